//! The values that an installation can be given, with `--set key=value`.

use std::collections::BTreeMap;

use anyhow::{Context, bail};

/// Known keys and their defaults; the keys are the placeholders of the manifests.
const DEFAULTS: &[(&str, &str)] = &[
    ("profile", "ambient"),
    ("namespace", "ambit-system"),
    ("image", concat!("ambit:", env!("CARGO_PKG_VERSION"))),
    ("imagePullPolicy", "IfNotPresent"),
    ("clusterName", "Kubernetes"),
    ("trustDomain", "cluster.local"),
    ("logLevel", "info"),
    ("control.replicas", "1"),
    ("cni.binDir", "/opt/cni/bin"),
    ("cni.confDir", "/etc/cni/net.d"),
    ("cni.netnsDir", "/var/run/netns"),
    ("cni.detect", "true"),
    ("cni.chained", "true"),
    ("cni.dnsCapture", "true"),
];

/// Names that other installers use for the same value.
const ALIASES: &[(&str, &str)] = &[
    ("global.multiCluster.clusterName", "clusterName"),
    ("meshConfig.trustDomain", "trustDomain"),
    ("global.imagePullPolicy", "imagePullPolicy"),
    ("global.logging.level", "logLevel"),
    ("pilot.replicaCount", "control.replicas"),
    ("cni.cniBinDir", "cni.binDir"),
    ("cni.cniConfDir", "cni.confDir"),
    ("cni.cniNetnsDir", "cni.netnsDir"),
    ("cni.ambient.dnsCapture", "cni.dnsCapture"),
];

/// The values of one installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values(BTreeMap<String, String>);

impl Values {
    /// Defaults changed by `key=value` settings, later ones winning.
    pub fn new(settings: &[String]) -> anyhow::Result<Self> {
        let mut values: BTreeMap<String, String> =
            DEFAULTS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        for setting in settings {
            let (key, value) = setting.split_once('=').with_context(|| {
                format!("--set {setting}: write key=value, such as --set profile=ambient")
            })?;
            let key = key.strip_prefix("values.").unwrap_or(key);
            let key = ALIASES.iter().find(|(alias, _)| *alias == key).map_or(key, |(_, name)| name);
            let Some(slot) = values.get_mut(key) else {
                let known: Vec<&str> = DEFAULTS.iter().map(|(key, _)| *key).collect();
                bail!("--set {setting}: unknown key {key}; known are {}", known.join(", "));
            };
            check(key, value).with_context(|| format!("--set {setting}"))?;
            value.clone_into(slot);
        }
        let namespace = &values["namespace"];
        let trusted = format!("{namespace}/ambit-proxy,{namespace}/ztunnel,istio-system/ztunnel");
        values.insert("trustedNodeAccounts".to_owned(), trusted);
        Ok(Self(values))
    }

    /// A value by its key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

/// Values become text inside YAML: what would change its structure is refused.
fn check(key: &str, value: &str) -> anyhow::Result<()> {
    match key {
        "profile" if value != "ambient" => bail!("there is one profile: ambient"),
        "control.replicas" if value.parse::<u8>().map_or(true, |n| n == 0) => {
            bail!("a number from 1 to 255 is wanted")
        }
        "imagePullPolicy" if !["Always", "IfNotPresent", "Never"].contains(&value) => {
            bail!("one of Always, IfNotPresent, Never is wanted")
        }
        "namespace" if !is_dns_label(value) => {
            bail!("a namespace is lower-case letters, digits and -, at most 63")
        }
        _ if value.is_empty() => bail!("the value is empty"),
        _ if value.chars().any(|c| c.is_control() || c.is_whitespace() || "\"'{}[]#&*!|>%`,".contains(c)) => {
            bail!("the value has a character that is not allowed here")
        }
        _ => Ok(()),
    }
}

fn is_dns_label(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len())
        && text.chars().all(plain)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(settings: &[&str]) -> anyhow::Result<Values> {
        Values::new(&settings.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn settings_change_defaults_and_the_last_one_wins() {
        let values = set(&["profile=ambient", "logLevel=debug", "values.global.logging.level=warn"]).unwrap();
        assert_eq!(values.get("logLevel"), Some("warn"));
        assert_eq!(values.get("namespace"), Some("ambit-system"));
    }

    #[test]
    fn what_is_wrong_is_said_with_what_is_right() {
        for (setting, says) in [
            ("profile", "write key=value"),
            ("profile=demo", "there is one profile"),
            ("nonsense=1", "known are profile"),
            ("control.replicas=0", "a number from 1"),
            ("image=a\nb", "not allowed"),
            ("namespace=Not_A_Name", "lower-case"),
            ("logLevel=", "empty"),
        ] {
            let error = format!("{:#}", set(&[setting]).unwrap_err());
            assert!(error.contains(says), "{setting}: {error}");
        }
    }
}
