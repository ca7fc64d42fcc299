//! The files of volumes that are made from objects: ConfigMaps, Secrets, tokens, and what a pod knows of itself.

use anyhow::{anyhow, bail};
use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Secret, Volume};

use super::payload::{self, File, Files};
use super::{Sources, Volumes, fetch};
use crate::node::fields;

impl Volumes {
    /// The files of a volume that is made from objects; `None` when it is of another kind.
    pub(super) async fn project(
        &mut self,
        volume: &Volume,
        from: &Sources<'_>,
    ) -> anyhow::Result<Option<Files>> {
        let pod = from.facts.pod;
        let mode = |mode: Option<i32>| mode.map_or(0o644, |m| m as u32);
        if let Some(map) = &volume.config_map {
            return config_map(from, &map.name, map.items.as_deref(), mode(map.default_mode), map.optional)
                .await
                .map(Some);
        }
        if let Some(secret) = &volume.secret {
            let name = secret.secret_name.as_deref().unwrap_or_default();
            return secret_files(
                from,
                name,
                secret.items.as_deref(),
                mode(secret.default_mode),
                secret.optional,
            )
            .await
            .map(Some);
        }
        if let Some(downward) = &volume.downward_api {
            return downward_files(from, downward.items.iter().flatten(), mode(downward.default_mode))
                .map(Some);
        }
        let Some(projected) = &volume.projected else { return Ok(None) };
        let default = mode(projected.default_mode);
        let mut files = Files::new();
        for source in projected.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                files.extend(config_map(from, &map.name, map.items.as_deref(), default, map.optional).await?);
            } else if let Some(secret) = &source.secret {
                files.extend(
                    secret_files(from, &secret.name, secret.items.as_deref(), default, secret.optional)
                        .await?,
                );
            } else if let Some(downward) = &source.downward_api {
                files.extend(downward_files(from, downward.items.iter().flatten(), default)?);
            } else if let Some(wanted) = &source.service_account_token {
                payload::check_path(&wanted.path).map_err(|e| anyhow!(e))?;
                let token = self.tokens.get(from.client, pod, wanted).await?;
                files.insert(wanted.path.clone(), File { content: token.into_bytes(), mode: default });
            } else {
                bail!("a projected source is of a kind the lab does not offer");
            }
        }
        Ok(Some(files))
    }
}

fn namespace<'a>(from: &Sources<'a>) -> &'a str {
    from.facts.pod.metadata.namespace.as_deref().unwrap_or("default")
}

async fn config_map(
    from: &Sources<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: Option<bool>,
) -> anyhow::Result<Files> {
    let optional = optional.unwrap_or(false);
    let Some(map) = fetch::<ConfigMap>(from.client, namespace(from), name, optional).await? else {
        return Ok(Files::new());
    };
    payload::lay_out(&format!("configmap {name:?}"), &payload::config_map(&map), items, mode, optional)
        .map_err(|e| anyhow!(e))
}

async fn secret_files(
    from: &Sources<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: Option<bool>,
) -> anyhow::Result<Files> {
    let optional = optional.unwrap_or(false);
    let Some(secret) = fetch::<Secret>(from.client, namespace(from), name, optional).await? else {
        return Ok(Files::new());
    };
    payload::lay_out(&format!("secret {name:?}"), &payload::secret(&secret), items, mode, optional)
        .map_err(|e| anyhow!(e))
}

fn downward_files<'f>(
    from: &Sources<'_>,
    items: impl Iterator<Item = &'f DownwardAPIVolumeFile>,
    default_mode: u32,
) -> anyhow::Result<Files> {
    let mut files = Files::new();
    for item in items {
        payload::check_path(&item.path).map_err(|e| anyhow!(e))?;
        let text = if let Some(field) = &item.field_ref {
            fields::field(&from.facts, &field.field_path)
        } else if let Some(resource) = &item.resource_field_ref {
            fields::resource(from.facts.pod, None, resource, from.capacity)
        } else {
            Err(format!("{:?} says neither fieldRef nor resourceFieldRef", item.path))
        };
        let content = text.map_err(|e| anyhow!(e))?.into_bytes();
        let mode = item.mode.map_or(default_mode, |m| m as u32);
        files.insert(item.path.clone(), File { content, mode });
    }
    Ok(files)
}
