//! The user's kubeconfig: a context of the lab goes in, becomes current, and comes out again.
//!
//! The file is handled as a plain tree, so that what this program does not know survives. It is locked the way
//! kubectl locks it, and replaced as a whole.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use kube::config::Kubeconfig;
use serde_json::{Map, Value, json};

use super::processes::wait_until;
use super::record::{Published, write_private};

const LISTS: [&str; 3] = ["clusters", "users", "contexts"];

/// The file that kubectl would write to.
pub fn default_path() -> anyhow::Result<PathBuf> {
    if let Some(list) = std::env::var_os("KUBECONFIG").filter(|list| !list.is_empty()) {
        let paths: Vec<PathBuf> =
            std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect();
        let present = paths.iter().find(|path| path.exists());
        if let Some(path) = present.or(paths.last()) {
            return Ok(path.clone());
        }
    }
    let home =
        std::env::home_dir().context("there is no home directory for a kubeconfig: use --kubeconfig PATH")?;
    Ok(home.join(".kube/config"))
}

/// Writes a kubeconfig of its own.
pub fn write(path: &Path, config: &Kubeconfig) -> anyhow::Result<()> {
    write_private(path, to_yaml(&serde_json::to_value(config)?)?.as_bytes())
}

/// Like [`write`], with the certificates and keys that the original only names: nodes do not see the same files.
pub fn write_whole(path: &Path, config: &Kubeconfig) -> anyhow::Result<()> {
    let mut config = serde_json::to_value(config)?;
    for (list, entry, names) in [
        ("clusters", "cluster", &["certificate-authority"][..]),
        ("users", "user", &["client-certificate", "client-key"]),
    ] {
        for known in config[list].as_array_mut().into_iter().flatten() {
            for name in names {
                embed(&mut known[entry], name)?;
            }
        }
    }
    write_private(path, to_yaml(&config)?.as_bytes())
}

fn embed(entry: &mut Value, name: &str) -> anyhow::Result<()> {
    let data = format!("{name}-data");
    let Some(map) = entry.as_object_mut() else { return Ok(()) };
    let Some(Value::String(file)) = map.remove(name) else { return Ok(()) };
    if map.get(&data).is_none_or(Value::is_null) {
        let content =
            fs::read(&file).with_context(|| format!("cannot read {file}, which the kubeconfig names"))?;
        map.insert(data, json!(base64::engine::general_purpose::STANDARD.encode(content)));
    }
    Ok(())
}

/// Merges the lab's context into a file and makes it current.
pub fn merge(path: &Path, config: &Kubeconfig) -> anyhow::Result<Published> {
    let published = with_lock(path, || {
        let before = read(path)?;
        let after = merged(before.clone(), serde_json::to_value(config)?);
        write_private(path, to_yaml(&after)?.as_bytes())?;
        let former = before.get("current-context").and_then(Value::as_str);
        // A lab that crashed may have left itself there.
        let former =
            former.filter(|former| !former.is_empty() && Some(*former) != config.current_context.as_deref());
        Ok(Published { path: path.to_owned(), former_context: former.map(str::to_owned), own_file: false })
    })?;
    Ok(published)
}

/// Takes the lab's context out again. A file that holds nothing else is removed.
pub fn unmerge(published: &Published, context: &str) -> anyhow::Result<()> {
    let path = &published.path;
    if !path.exists() {
        return Ok(());
    }
    if published.own_file {
        // Somebody may have put something else there in the meantime.
        let ours = read(path).is_ok_and(|config| config.get("current-context") == Some(&json!(context)));
        return if ours { fs::remove_file(path).map_err(Into::into) } else { Ok(()) };
    }
    with_lock(path, || {
        let after = without(read(path)?, context, published.former_context.as_deref());
        let empty =
            LISTS.iter().all(|list| after.get(*list).and_then(Value::as_array).is_none_or(Vec::is_empty));
        if empty {
            return fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()));
        }
        write_private(path, to_yaml(&after)?.as_bytes())
    })
}

fn read(path: &Path) -> anyhow::Result<Value> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    if text.trim().is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    match serde_saphyr::from_str(&text) {
        Ok(Value::Object(config)) => Ok(Value::Object(config)),
        Ok(Value::Null) => Ok(Value::Object(Map::new())),
        Ok(_) => bail!("{} is no kubeconfig: use --kubeconfig PATH for another file", path.display()),
        Err(error) => Err(anyhow::anyhow!("{error}")).with_context(|| {
            format!("{} is no kubeconfig: use --kubeconfig PATH for another file", path.display())
        }),
    }
}

fn to_yaml(config: &Value) -> anyhow::Result<String> {
    Ok(serde_saphyr::to_string(config)?)
}

fn is_named(entry: &Value, name: &str) -> bool {
    entry.get("name").and_then(Value::as_str) == Some(name)
}

fn merged(mut into: Value, from: Value) -> Value {
    let Some(config) = into.as_object_mut() else { return from };
    config.entry("apiVersion").or_insert_with(|| json!("v1"));
    config.entry("kind").or_insert_with(|| json!("Config"));
    for list in LISTS {
        let mut entries = config.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
        for new in from.get(list).and_then(Value::as_array).into_iter().flatten() {
            let name = new.get("name").and_then(Value::as_str).unwrap_or_default();
            entries.retain(|entry| !is_named(entry, name));
            entries.push(new.clone());
        }
        config.insert(list.to_owned(), Value::Array(entries));
    }
    if let Some(current) = from.get("current-context") {
        config.insert("current-context".to_owned(), current.clone());
    }
    into
}

fn without(mut config: Value, context: &str, former: Option<&str>) -> Value {
    let Some(map) = config.as_object_mut() else { return config };
    // Cluster and user go with the last context that uses them.
    let contexts = map.get("contexts").and_then(Value::as_array).cloned().unwrap_or_default();
    let uses = |entry: &Value, what: &str| entry["context"][what].as_str().map(str::to_owned);
    let (ours, others): (Vec<&Value>, Vec<&Value>) =
        contexts.iter().partition(|entry| is_named(entry, context));
    for (list, what) in [("contexts", None), ("clusters", Some("cluster")), ("users", Some("user"))] {
        let mut names: Vec<String> = match what {
            None => vec![context.to_owned()],
            Some(what) => ours.iter().filter_map(|entry| uses(entry, what)).collect(),
        };
        names.retain(|name| {
            !what.is_some_and(|what| others.iter().any(|other| uses(other, what).as_ref() == Some(name)))
        });
        if let Some(entries) = map.get_mut(list).and_then(Value::as_array_mut) {
            entries.retain(|entry| !names.iter().any(|name| is_named(entry, name)));
        }
    }
    if map.get("current-context").and_then(Value::as_str) == Some(context) {
        let contexts = map.get("contexts").and_then(Value::as_array);
        let former =
            former.filter(|former| contexts.into_iter().flatten().any(|entry| is_named(entry, former)));
        match former {
            Some(former) => map.insert("current-context".to_owned(), json!(former)),
            None => map.remove("current-context"),
        };
    }
    config
}

/// As kubectl does: whoever makes `<file>.lock` has the file.
fn with_lock<T>(path: &Path, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    let lock = PathBuf::from(lock);
    let mut failure = None;
    let held = wait_until(Duration::from_secs(5), || {
        match OpenOptions::new().write(true).create_new(true).open(&lock) {
            Ok(_) => true,
            Err(error) => {
                let wait = error.kind() == std::io::ErrorKind::AlreadyExists;
                failure = (!wait).then_some(error);
                !wait
            }
        }
    });
    if let Some(error) = failure {
        return Err(error).with_context(|| format!("cannot lock {}", path.display()));
    }
    if !held {
        bail!("{} is locked: if no kubectl is writing it, remove {}", path.display(), lock.display());
    }
    let result = work();
    let _ = fs::remove_file(&lock);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab() -> Kubeconfig {
        let config = json!({
            "clusters": [{"name": "ambit-lab", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [{"name": "ambit-lab-admin", "user": {}}],
            "contexts": [{"name": "ambit-lab", "context": {"cluster": "ambit-lab", "user": "ambit-lab-admin"}}],
            "current-context": "ambit-lab",
        });
        serde_json::from_value(config).unwrap()
    }

    const MINE: &str = "apiVersion: v1\nkind: Config\nx-mine: kept\ncurrent-context: work\n\
        clusters:\n- name: work\n  cluster: {server: https://work}\n\
        contexts:\n- name: work\n  context: {cluster: work, user: me}\n\
        users:\n- name: me\n  user: {token: t}\n";

    #[test]
    fn the_context_goes_in_becomes_current_and_comes_out_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(&path, MINE).unwrap();
        let before = read(&path).unwrap();

        let published = merge(&path, &lab()).unwrap();
        assert_eq!(published.former_context.as_deref(), Some("work"));
        let between = read(&path).unwrap();
        assert_eq!(between["current-context"], "ambit-lab");
        assert_eq!(between["x-mine"], "kept");
        assert_eq!(between["contexts"].as_array().unwrap().len(), 2);
        let again = merge(&path, &lab()).unwrap();
        assert_eq!(read(&path).unwrap(), between, "twice is once");
        assert_eq!(again.former_context, None, "the lab is not its own predecessor");

        unmerge(&published, "ambit-lab").unwrap();
        assert_eq!(read(&path).unwrap(), before);
        assert!(!dir.path().join("config.lock").exists());
    }

    #[test]
    fn a_file_that_was_not_there_is_not_there_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/config");
        let published = merge(&path, &lab()).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions(),
            std::os::unix::fs::PermissionsExt::from_mode(0o100_600)
        );
        unmerge(&published, "ambit-lab").unwrap();
        assert!(!path.exists());
        unmerge(&published, "ambit-lab").unwrap();
    }

    #[test]
    fn a_copy_for_the_nodes_holds_what_the_original_names() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.crt"), "the CA").unwrap();
        let original = dir.path().join("config");
        fs::write(
            &original,
            "clusters: [{name: a, cluster: {server: 'https://a', certificate-authority: ca.crt}}]\n\
             users: [{name: a, user: {client-key-data: a2V5}}]\n\
             contexts: [{name: a, context: {cluster: a, user: a}}]\ncurrent-context: a\n",
        )
        .unwrap();
        let copy = dir.path().join("copy");
        write_whole(&copy, &Kubeconfig::read_from(&original).unwrap()).unwrap();
        let copy = read(&copy).unwrap();
        assert_eq!(copy["clusters"][0]["cluster"]["certificate-authority-data"], "dGhlIENB");
        assert_eq!(copy["clusters"][0]["cluster"].get("certificate-authority"), None);
        assert_eq!(copy["users"][0]["user"]["client-key-data"], "a2V5");
    }

    #[test]
    fn a_context_that_the_user_chose_meanwhile_stays_current() {
        let chosen =
            json!({"current-context": "other", "contexts": [{"name": "other"}, {"name": "ambit-lab"}]});
        let after = without(chosen, "ambit-lab", Some("work"));
        assert_eq!(after["current-context"], "other");
        let lost = json!({"current-context": "ambit-lab", "contexts": [{"name": "ambit-lab"}]});
        assert_eq!(without(lost, "ambit-lab", Some("work")).get("current-context"), None);
    }

    #[test]
    fn a_file_that_is_no_kubeconfig_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(&path, "- a\n- b\n").unwrap();
        assert!(merge(&path, &lab()).unwrap_err().to_string().contains("--kubeconfig"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "- a\n- b\n");
        assert!(!dir.path().join("config.lock").exists());
    }
}
