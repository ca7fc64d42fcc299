use std::collections::BTreeMap;

use super::*;

/// What the configurations of these tests name.
const PLUGINS: [&str; 2] = ["bridge", "portmap"];

struct Node {
    dir: tempfile::TempDir,
    installer: Installer,
}

impl Node {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (net_dir, bin_dir, binary) =
            (dir.path().join("net.d"), dir.path().join("bin"), dir.path().join("ambit"));
        std::fs::create_dir_all(&net_dir).unwrap();
        std::fs::create_dir_all(&bin_dir).unwrap();
        std::fs::write(&binary, b"the binary").unwrap();
        for plugin in PLUGINS {
            std::fs::write(bin_dir.join(plugin), b"program").unwrap();
            std::fs::set_permissions(bin_dir.join(plugin), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        for (name, text) in files {
            std::fs::write(net_dir.join(name), text).unwrap();
        }
        let entry =
            conflist::entry(Path::new("/run/x"), "ambit-system", "ambit-agent-", &["kube-system".into()]);
        Self {
            dir,
            installer: Installer::new(
                CniInstall { net_dir, bin_dir, node_root: None, conf_name: None, chained: true, binary },
                entry,
            ),
        }
    }

    fn files(&self) -> BTreeMap<String, String> {
        std::fs::read_dir(&self.installer.place.net_dir)
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.file_name().into_string().unwrap(), std::fs::read_to_string(e.path()).unwrap()))
            .collect()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.files()[name]).unwrap()
    }
}

fn types(config: &Value) -> Vec<&str> {
    config["plugins"].as_array().unwrap().iter().map(|p| p["type"].as_str().unwrap()).collect()
}

const SINGLE: &str =
    "{ \"cniVersion\": \"0.3.0\", \"name\": \"net\",\n  \"type\": \"bridge\", \"odd\": [1, 2] }";
const LIST: &str = r#"{"zeta": {"b": 1, "a": 2}, "cniVersion": "0.4.0", "name": "net",
  "plugins": [{"type": "bridge", "x": null}, {"type": "portmap", "capabilities": {"portMappings": true}}], "disableCheck": true}"#;

#[test]
fn a_single_configuration_becomes_a_list_and_comes_back_as_it_was() {
    let node = Node::new(&[("10-net.conf", SINGLE)]);
    for _ in 0..3 {
        node.installer.ensure().unwrap();
    }
    let config = node.json("10-net.conflist");
    assert_eq!(types(&config), ["bridge", "ambit-cni"]);
    assert_eq!(config["cniVersion"], "0.3.0");
    assert_eq!(config["plugins"][0]["odd"], serde_json::json!([1, 2]));
    assert!(!node.files().contains_key("10-net.conf"));
    assert!(node.installer.uninstall().is_empty());
    assert_eq!(node.files(), BTreeMap::from([("10-net.conf".to_owned(), SINGLE.to_owned())]));
    assert_eq!(std::fs::read_dir(&node.installer.place.bin_dir).unwrap().count(), PLUGINS.len());
    assert!(node.installer.uninstall().is_empty());
}

#[test]
fn a_configuration_of_its_own_touches_nobody_elses_and_goes_without_a_trace() {
    let mut node = Node::new(&[("00-multus.conf", SINGLE)]);
    node.installer.place.chained = false;
    let before = node.files();
    assert!(node.installer.ensure().unwrap().changed);
    assert!(!node.installer.ensure().unwrap().changed, "done once is done");
    let own = node.json("ambit-cni.conf");
    assert_eq!((&own["type"], &own["cniVersion"]), (&PLUGIN.into(), &"0.3.1".into()));
    assert_eq!(own["cni_agent_run_dir"], "/run/x");
    assert_eq!(node.files()["00-multus.conf"], SINGLE);
    assert!(node.dir.path().join("bin").join(PLUGIN).exists());
    // Somebody rewrites it, somebody takes it away.
    let path = node.installer.own_file();
    std::fs::write(&path, "{").unwrap();
    assert!(node.installer.ensure().unwrap().changed);
    std::fs::remove_file(&path).unwrap();
    assert!(node.installer.ensure().unwrap().changed);
    assert!(node.installer.uninstall().is_empty());
    assert_eq!(node.files(), before);
    assert!(!node.dir.path().join("bin").join(PLUGIN).exists());
}

#[test]
fn a_file_of_somebody_else_under_our_name_is_left_by_the_uninstallation() {
    let mut node = Node::new(&[("ambit-cni.conf", SINGLE)]);
    node.installer.place.chained = false;
    assert!(node.installer.uninstall().is_empty());
    assert_eq!(node.files()["ambit-cni.conf"], SINGLE);
}

#[test]
fn a_list_keeps_everything_else_and_comes_back_byte_for_byte() {
    let node = Node::new(&[("10-net.conflist", LIST), ("99-loopback.conf", "{\"type\":\"loopback\"}")]);
    let path = node.installer.place.net_dir.join("10-net.conflist");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let before = node.files();
    assert!(node.installer.ensure().unwrap().changed);
    assert!(!node.installer.ensure().unwrap().changed);
    let config = node.json("10-net.conflist");
    assert_eq!(types(&config), ["bridge", "portmap", "ambit-cni"]);
    assert_eq!(conflist::without_entry(&config, PLUGIN), serde_json::from_str::<Value>(LIST).unwrap());
    assert_eq!(config.as_object().unwrap().keys().next().unwrap(), "zeta");
    assert_eq!(mode(&path), 0o640);
    node.installer.uninstall();
    assert_eq!(node.files(), before);
}

#[test]
fn an_entry_that_is_there_twice_is_there_once_and_last() {
    let twice = r#"{"name":"n","plugins":[{"type":"ambit-cni"},{"type":"bridge"},{"type":"ambit-cni","old":1},{"type":"portmap"}]}"#;
    let node = Node::new(&[("10-net.conflist", twice)]);
    node.installer.ensure().unwrap();
    assert_eq!(types(&node.json("10-net.conflist")), ["bridge", "portmap", "ambit-cni"]);
    node.installer.uninstall();
    assert_eq!(types(&node.json("10-net.conflist")), ["bridge", "portmap"]);
}

#[test]
fn what_another_tool_rewrote_is_made_good() {
    let node = Node::new(&[("10-net.conflist", LIST)]);
    node.installer.ensure().unwrap();
    let rewritten = LIST.replace("0.4.0", "1.0.0");
    std::fs::write(node.installer.place.net_dir.join("10-net.conflist"), &rewritten).unwrap();
    assert!(node.installer.ensure().unwrap().changed);
    assert_eq!(types(&node.json("10-net.conflist")), ["bridge", "portmap", "ambit-cni"]);
    // Another tool's configuration that sorts first is the one in use now.
    std::fs::write(node.installer.place.net_dir.join("05-new.conflist"), LIST).unwrap();
    assert!(node.installer.ensure().unwrap().changed);
    assert_eq!(types(&node.json("05-new.conflist")), ["bridge", "portmap", "ambit-cni"]);
    std::fs::remove_file(node.installer.place.bin_dir.join(PLUGIN)).unwrap();
    assert!(node.installer.ensure().unwrap().changed);
    node.installer.uninstall();
    assert_eq!(node.files()["10-net.conflist"], rewritten);
    assert_eq!(node.files()["05-new.conflist"], LIST);
}

#[test]
fn without_a_usable_configuration_nothing_is_written_but_the_binary() {
    for files in [
        &[][..],
        &[("10-a.conflist", "{"), ("20-b.conf", "{\"name\":\"x\"}"), ("30-c.conflist", "{\"plugins\":[]}")],
    ] {
        let node = Node::new(files);
        let before = node.files();
        assert!(matches!(node.installer.ensure(), Err(Error::NoNetwork(_))));
        assert_eq!(node.files(), before);
    }
}

#[test]
fn a_crash_between_two_steps_is_made_good_by_the_next_start() {
    let node = Node::new(&[("10-net.conf", SINGLE)]);
    node.installer.ensure().unwrap();
    // As if the process had ended before the single configuration stepped aside.
    std::fs::write(node.installer.place.net_dir.join("10-net.conf"), SINGLE).unwrap();
    node.installer.ensure().unwrap();
    assert!(!node.files().contains_key("10-net.conf"));
    assert_eq!(types(&node.json("10-net.conflist")), ["bridge", "ambit-cni"]);
    // As if it had ended while a new file was being written.
    std::fs::write(node.installer.place.net_dir.join(".ambit-x.tmp"), "{").unwrap();
    assert!(!node.installer.ensure().unwrap().changed);
    assert!(node.dir.path().exists());
}

proptest::proptest! {
    #[test]
    fn whatever_a_list_holds_our_entry_comes_and_goes_without_a_trace(
        kinds in proptest::collection::vec("[a-z]{1,8}", 1..6),
        ours in proptest::collection::vec(0usize..6, 0..3),
    ) {
        let mut plugins: Vec<Value> = kinds.iter().map(|kind| serde_json::json!({"type": kind, "x": kind.len()})).collect();
        let others = plugins.clone();
        for at in ours {
            plugins.insert(at.min(plugins.len()), serde_json::json!({"type": PLUGIN, "stale": true}));
        }
        let config = serde_json::json!({"name": "n", "plugins": plugins});
        let entry = conflist::entry(Path::new("/run/x"), "m", "a-", &[]);
        let with = conflist::with_entry(&config, &entry, true).unwrap();
        assert_eq!(with["plugins"].as_array().unwrap().last(), Some(&entry));
        assert_eq!(conflist::with_entry(&with, &entry, true).unwrap(), with);
        assert_eq!(conflist::without_entry(&with, PLUGIN)["plugins"], Value::Array(others));
    }
}
