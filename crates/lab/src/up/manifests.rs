//! Manifests: read and judged before anything is made, applied when the cluster is ready for them.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::discovery::{Scope, pinned_kind};
use kube::{Api, Client};
use serde_json::Value;

use super::answers::plainly;

/// How long a kind may take to be served after its CustomResourceDefinition was applied, and a new namespace to
/// get its service account.
const SETTLE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(100);

/// Objects of a cluster, in the order in which they were written.
#[derive(Clone, Debug, Default)]
pub struct Manifests(Vec<Value>);

impl Manifests {
    /// Reads files, directories (their `.yaml`, `.yml` and `.json` files) and, for `-`, standard input.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn read(paths: &[PathBuf]) -> anyhow::Result<Manifests> {
        let mut objects = Vec::new();
        for path in paths {
            if path.as_os_str() == "-" {
                let mut text = String::new();
                std::io::stdin()
                    .read_to_string(&mut text)
                    .context("cannot read manifests from standard input")?;
                parse("standard input", &text, &mut objects)?;
                continue;
            }
            for file in files(path)? {
                let text = fs::read_to_string(&file)
                    .with_context(|| format!("cannot read the manifest {}", file.display()))?;
                parse(&file.display().to_string(), &text, &mut objects)?;
            }
        }
        Ok(Manifests(objects))
    }

    /// Manifests in text.
    ///
    /// # Errors
    /// What is wrong with them, under the name `source`.
    pub fn parse(source: &str, text: &str) -> anyhow::Result<Manifests> {
        let mut objects = Vec::new();
        parse(source, text, &mut objects)?;
        Ok(Manifests(objects))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// As text that [`Manifests::parse`] reads.
    pub fn to_text(&self) -> String {
        self.0.iter().map(|object| format!("---\n{object}\n")).collect()
    }

    /// Applies them on the server's side: kinds first, then namespaces, then the rest as it was written.
    pub async fn apply(&self, client: &Client) -> anyhow::Result<()> {
        let rank = |object: &Value| match object["kind"].as_str() {
            Some("CustomResourceDefinition") => 0,
            Some("Namespace") => 1,
            _ => 2,
        };
        let mut objects: Vec<&Value> = self.0.iter().collect();
        objects.sort_by_key(|object| rank(object));
        let has_kinds = objects.iter().any(|object| rank(object) == 0);
        for object in objects {
            apply(client, object, has_kinds)
                .await
                .with_context(|| format!("cannot apply {}", title(object)))?;
        }
        Ok(())
    }
}

fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries =
        fs::read_dir(path).with_context(|| format!("cannot read the directory {}", path.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let is_manifest = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        path.is_file() && matches!(extension, Some("yaml" | "yml" | "json"))
    };
    files.retain(is_manifest);
    files.sort();
    if files.is_empty() {
        bail!("there are no manifests (.yaml, .yml, .json) in {}", path.display());
    }
    Ok(files)
}

fn parse(source: &str, text: &str, objects: &mut Vec<Value>) -> anyhow::Result<()> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)
        .map_err(|error| anyhow::anyhow!("{source} is no valid YAML: {}", first_line(&error.to_string())))?;
    for document in documents {
        add(source, document, objects)?;
    }
    Ok(())
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn add(source: &str, document: Value, objects: &mut Vec<Value>) -> anyhow::Result<()> {
    if document.is_null() {
        return Ok(());
    }
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let Some(kind) = text(&document["kind"]) else { bail!("{source} holds an object without `kind`") };
    if text(&document["apiVersion"]).is_none() {
        bail!("{source} holds a {kind} without `apiVersion`");
    }
    if let (true, Some(items)) = (kind.ends_with("List"), document["items"].as_array()) {
        return items.iter().try_for_each(|item| add(source, item.clone(), objects));
    }
    let meta = &document["metadata"];
    if text(&meta["name"]).is_none() && text(&meta["generateName"]).is_none() {
        bail!("{source} holds a {kind} without `metadata.name`");
    }
    objects.push(document);
    Ok(())
}

fn title(object: &Value) -> String {
    let of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let meta = &object["metadata"];
    let name = if meta["name"].is_string() { of(&meta["name"]) } else { of(&meta["generateName"]) };
    format!("{} {name}", of(&object["kind"]))
}

async fn apply(client: &Client, object: &Value, has_kinds: bool) -> anyhow::Result<()> {
    let mut object: DynamicObject = serde_json::from_value(object.clone())?;
    let types = object.types.clone().unwrap_or_default();
    let kind = GroupVersionKind::try_from(&types)?;
    let found = within(if has_kinds { SETTLE } else { Duration::ZERO }, || pinned_kind(client, &kind)).await;
    let (resource, capabilities) = found
        .map_err(plainly)
        .with_context(|| format!("the API serves no kind {} of {}", types.kind, types.api_version))?;
    let api: Api<DynamicObject> = if capabilities.scope == Scope::Cluster {
        object.metadata.namespace = None;
        Api::all_with(client.clone(), &resource)
    } else {
        let namespace = object.metadata.namespace.get_or_insert_with(|| "default".to_owned());
        if kind.kind == "Pod" && kind.group.is_empty() {
            // The API refuses pods of a service account that is still on its way.
            let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
            let _ = within(SETTLE, || accounts.get("default")).await;
        }
        Api::namespaced_with(client.clone(), namespace, &resource)
    };
    match object.metadata.name.clone() {
        Some(name) => {
            api.patch(&name, &PatchParams::apply("ambit-lab").force(), &Patch::Apply(&object))
                .await
                .map_err(plainly)?;
        }
        None => _ = api.create(&PostParams::default(), &object).await.map_err(plainly)?,
    }
    Ok(())
}

/// Asks again while the answer is that something is not there (yet).
async fn within<T, F>(limit: Duration, ask: impl Fn() -> F) -> Result<T, kube::Error>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    let end = tokio::time::Instant::now() + limit;
    loop {
        let error = match ask().await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        let absent = match &error {
            kube::Error::Api(status) => status.code == 404,
            kube::Error::Discovery(_) => true,
            _ => false,
        };
        if !absent || tokio::time::Instant::now() >= end {
            return Err(error);
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_documents_and_lists_are_all_objects_and_empty_ones_are_none() {
        let text = "---\n# nothing\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n\
            apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: b}}\n\
            - {apiVersion: batch/v1, kind: Job, metadata: {generateName: c-}}\n";
        let manifests = Manifests::parse("x", text).unwrap();
        assert_eq!(
            manifests.0.iter().map(title).collect::<Vec<_>>(),
            ["Namespace a", "ConfigMap b", "Job c-"]
        );
        let again = Manifests::parse("x", &manifests.to_text()).unwrap();
        assert_eq!(again.0, manifests.0);
    }

    #[test]
    fn what_is_no_manifest_is_refused_by_file_and_reason() {
        for (text, reason) in [
            ("kind: [", "YAML"),
            ("metadata: {name: a}", "without `kind`"),
            ("kind: Pod\nmetadata: {name: a}", "without `apiVersion`"),
            ("apiVersion: v1\nkind: Pod", "without `metadata.name`"),
            ("just text", "without `kind`"),
        ] {
            let error = format!("{:#}", Manifests::parse("bad.yaml", text).unwrap_err());
            assert!(error.contains("bad.yaml") && error.contains(reason), "{text:?}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn a_directory_is_its_manifests_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, name: &str| {
            let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n");
            fs::write(dir.path().join(file), text).unwrap();
        };
        write("2.yml", "two");
        write("1.yaml", "one");
        write("notes.txt", "three");
        let manifests = Manifests::read(&[dir.path().to_owned()]).unwrap();
        assert_eq!(manifests.0.iter().map(title).collect::<Vec<_>>(), ["ConfigMap one", "ConfigMap two"]);
        let error = Manifests::read(&[dir.path().join("no.yaml")]).unwrap_err();
        assert!(format!("{error:#}").contains("no.yaml"));
    }
}
