//! From manifests and values to objects.

use anyhow::Context;
use kube::api::DynamicObject;

use super::values::Values;

/// A part of the mesh, in the order of installation.
#[derive(Clone, Debug)]
pub struct Component {
    /// As shown to the user.
    pub title: &'static str,
    /// Its objects, in order.
    pub objects: Vec<DynamicObject>,
}

const COMPONENTS: &[(&str, &[&str])] = &[
    ("Namespace", &[include_str!("../../manifests/00-namespace.yaml")]),
    ("Custom resource definitions", &[include_str!("../../manifests/10-crds.yaml")]),
    ("Roles", &[include_str!("../../manifests/20-rbac.yaml")]),
    ("Control plane", &[include_str!("../../manifests/30-control.yaml")]),
    ("Observer", &[include_str!("../../manifests/60-observe.yaml")]),
    ("Node agent", &[include_str!("../../manifests/40-agent.yaml")]),
    ("Node proxy", &[include_str!("../../manifests/50-proxy.yaml")]),
];

/// Everything that an installation with these values consists of.
pub fn render(values: &Values) -> anyhow::Result<Vec<Component>> {
    let component = |(title, texts): &(&'static str, &[&str])| {
        let mut objects = Vec::new();
        for text in *texts {
            let text = fill(text, values)?;
            for document in documents(&text) {
                let mut object: DynamicObject =
                    serde_saphyr::from_str(document).with_context(|| format!("the manifest of {title}"))?;
                let labels = object.metadata.labels.get_or_insert_default();
                labels.insert(super::MANAGED_BY.0.to_owned(), super::MANAGED_BY.1.to_owned());
                labels.insert("app.kubernetes.io/part-of".to_owned(), "ambit".to_owned());
                objects.push(object);
            }
        }
        Ok(Component { title, objects })
    };
    COMPONENTS.iter().map(component).collect()
}

/// The YAML that would be applied.
pub fn to_yaml(components: &[Component]) -> anyhow::Result<String> {
    let objects = components.iter().flat_map(|component| &component.objects);
    let documents: Vec<String> = objects.map(serde_saphyr::to_string).collect::<Result<_, _>>()?;
    Ok(documents.iter().map(|document| format!("---\n{}\n", document.trim_end())).collect())
}

fn documents(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n---\n")
        .filter(|document| document.lines().any(|line| !line.is_empty() && !line.starts_with('#')))
}

/// Replaces `${key}` by its value. A key that is not known is a fault of the manifest.
fn fill(text: &str, values: &Values) -> anyhow::Result<String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (key, after) = after.split_once('}').context("a placeholder is not closed")?;
        filled.push_str(before);
        filled.push_str(values.get(key).with_context(|| format!("no value for the placeholder {key}"))?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_manifest_renders_and_every_object_is_labelled() {
        let components = render(&Values::new(&[]).unwrap()).unwrap();
        let objects: Vec<_> = components.iter().flat_map(|component| &component.objects).collect();
        assert!(objects.len() > 15);
        for object in objects {
            assert!(object.types.is_some() && object.metadata.name.is_some(), "{object:?}");
            assert_eq!(object.metadata.labels.as_ref().unwrap()[crate::install::MANAGED_BY.0], "ambit");
        }
    }

    #[test]
    fn the_proxy_is_found_where_other_tools_look_for_it() {
        let components = render(&Values::new(&[]).unwrap()).unwrap();
        let proxy = components
            .iter()
            .flat_map(|c| &c.objects)
            .find(|o| o.metadata.name.as_deref() == Some("ambit-proxy"));
        let daemon_set = components
            .iter()
            .flat_map(|c| &c.objects)
            .find(|o| {
                o.types.as_ref().is_some_and(|t| t.kind == "DaemonSet")
                    && o.metadata.name.as_deref() == Some("ambit-proxy")
            })
            .unwrap();
        assert!(proxy.is_some());
        assert_eq!(daemon_set.metadata.labels.as_ref().unwrap()["app.kubernetes.io/name"], "ztunnel");
        assert_eq!(daemon_set.data["spec"]["template"]["metadata"]["labels"]["app"], "ztunnel");
    }

    #[test]
    fn values_reach_the_manifests() {
        let values = Values::new(&["image=example/ambit:9".to_owned(), "namespace=mesh".to_owned()]).unwrap();
        let yaml = to_yaml(&render(&values).unwrap()).unwrap();
        assert!(yaml.contains("example/ambit:9") && yaml.contains("ambit-control.mesh.svc"));
        assert!(!yaml.contains("${") && !yaml.contains("ambit-system"));
    }
}
