//! What a projected volume holds: files by relative path, out of ConfigMaps, Secrets and fields. Pure.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{ConfigMap, KeyToPath, Secret};

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its content.
    pub content: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
}

/// Files by path relative to the volume.
pub type Files = BTreeMap<String, File>;

/// Everything a ConfigMap holds.
pub fn config_map(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}

/// Everything a Secret holds.
pub fn secret(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    let binary = secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    let text = secret.string_data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    binary.chain(text).collect()
}

/// Lays keys out as files: all of them under their own names, or those that `items` names under its paths.
pub fn lay_out(
    of: &str,
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    default_mode: u32,
    optional: bool,
) -> Result<Files, String> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return Ok(data
            .iter()
            .map(|(k, v)| (k.clone(), File { content: v.clone(), mode: default_mode }))
            .collect());
    };
    let mut files = Files::new();
    for item in items {
        check_path(&item.path)?;
        match data.get(&item.key) {
            Some(content) => {
                let mode = item.mode.map_or(default_mode, |m| m as u32);
                files.insert(item.path.clone(), File { content: content.clone(), mode });
            }
            None if optional => {}
            None => return Err(format!("{of} has no key {:?}", item.key)),
        }
    }
    Ok(files)
}

/// A path that stays inside the volume.
pub fn check_path(path: &str) -> Result<(), String> {
    let inside = !path.is_empty()
        && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
        && !path.starts_with("..");
    if inside { Ok(()) } else { Err(format!("path {path:?} does not stay inside the volume")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> BTreeMap<String, Vec<u8>> {
        BTreeMap::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())])
    }

    fn item(key: &str, path: &str) -> KeyToPath {
        KeyToPath { key: key.into(), path: path.into(), mode: None }
    }

    #[test]
    fn without_items_every_key_is_a_file() {
        let files = lay_out("m", &data(), None, 0o644, false).unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn items_choose_and_rename() {
        let files = lay_out("m", &data(), Some(&[item("b", "x/y")]), 0o400, false).unwrap();
        assert_eq!(files["x/y"], File { content: b"2".to_vec(), mode: 0o400 });
        assert_eq!(files.len(), 1);
    }

    #[test]
    fn a_missing_key_is_an_error_unless_it_is_optional() {
        let items = [item("c", "c")];
        let error = lay_out("config map \"m\"", &data(), Some(&items), 0o644, false).unwrap_err();
        assert_eq!(error, "config map \"m\" has no key \"c\"");
        assert!(lay_out("m", &data(), Some(&items), 0o644, true).unwrap().is_empty());
    }

    #[test]
    fn no_path_leads_out_of_the_volume() {
        for path in ["", "/a", "a/../../b", "..data", ".."] {
            assert!(check_path(path).is_err(), "{path}");
        }
        assert!(check_path("a/b..c").is_ok());
    }
}
