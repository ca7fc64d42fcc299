//! The mesh configuration: ConfigMap `istio` (or `istio-<revision>`), key `mesh`, as far as it matters at layer 4.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use serde::Deserialize;

use super::{Labels, Selector};

/// What the mesh configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshConfig {
    /// Name of the ConfigMap.
    pub name: Arc<str>,
    /// Namespace whose policies hold for all.
    pub root_namespace: Option<Arc<str>>,
    /// Trust domain of every identity; read at the start only.
    pub trust_domain: Option<Arc<str>>,
    /// Other names of the trust domain, under which policies may name accounts.
    pub aliases: Arc<[Arc<str>]>,
    /// Namespaces with any of these are of the mesh; none: all are.
    pub discovery: Vec<Selector>,
    /// Who sees the services of ServiceEntries.
    pub visibility: Option<VisibilityRules>,
}

/// Who sees the services of ServiceEntries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct VisibilityRules {
    /// When no policy matches.
    pub default: EntryVisibility,
    /// The first one whose selectors all match decides.
    pub policies: Vec<VisibilityPolicy>,
}

/// One policy of visibility.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct VisibilityPolicy {
    pub namespace_selectors: Vec<Selector>,
    pub visibility: EntryVisibility,
}

/// Who sees a ServiceEntry's service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum EntryVisibility {
    #[default]
    #[serde(alias = "UNSPECIFIED")]
    Public,
    Namespace,
    None,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Text {
    root_namespace: Option<String>,
    trust_domain: Option<String>,
    trust_domain_aliases: Vec<String>,
    discovery_selectors: Vec<Selector>,
    service_entry_visibility: Option<VisibilityRules>,
}

impl MeshConfig {
    /// Whether a namespace with these labels is of the mesh.
    pub fn discovers(&self, labels: &Labels) -> bool {
        self.discovery.is_empty() || self.discovery.iter().any(|selector| selector.selects(labels))
    }

    /// Who sees the service of a ServiceEntry in a namespace with these labels.
    pub fn visibility(&self, labels: &Labels) -> EntryVisibility {
        let Some(rules) = &self.visibility else { return EntryVisibility::Public };
        let applies = |policy: &&VisibilityPolicy| {
            policy.namespace_selectors.iter().all(|selector| selector.selects(labels))
        };
        rules.policies.iter().find(applies).map_or(rules.default, |policy| policy.visibility)
    }

    /// Reads the document of key `mesh`.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let text: Text = if text.trim().is_empty() {
            Text::default()
        } else {
            serde_saphyr::from_str(text).map_err(|error| error.to_string())?
        };
        let some = |text: Option<String>| text.filter(|text| !text.is_empty()).map(Arc::from);
        // One that could be no part of an identity is no name; `@` is written as in identities.
        let aliases = text.trust_domain_aliases.iter().map(|alias| alias.replace('@', "."));
        let aliases = aliases.filter(|alias| !alias.is_empty() && !alias.contains(['/', '*']));
        Ok(Self {
            name: name.into(),
            root_namespace: some(text.root_namespace),
            trust_domain: some(text.trust_domain),
            aliases: aliases.map(Arc::from).collect(),
            discovery: text.discovery_selectors,
            visibility: text.service_entry_visibility,
        })
    }

    /// From its ConfigMap; none when it cannot be read, which is logged.
    pub fn read(map: &ConfigMap) -> Option<Self> {
        let name = map.metadata.name.as_deref().unwrap_or_default();
        let text = map.data.as_ref().and_then(|data| data.get("mesh")).map_or("", String::as_str);
        Self::parse(name, text)
            .inspect_err(|error| {
                tracing::error!(
                    config_map = name,
                    error,
                    "mesh configuration cannot be read; the last readable one stays in force"
                );
            })
            .ok()
    }
}
