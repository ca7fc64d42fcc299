use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// A node's root: configurations, programs and other files.
struct Node(tempfile::TempDir);

const FLANNEL: &str = r#"{"name":"n","plugins":[{"type":"flannel"},{"type":"portmap"}]}"#;

impl Node {
    fn new() -> Self {
        let node = Self(tempfile::tempdir().unwrap());
        for dir in ["mounted/net.d", "mounted/bin"] {
            std::fs::create_dir_all(node.0.path().join(dir)).unwrap();
        }
        node
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.0.path().join("root").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn plugins(&self, dir: &str) {
        for name in ["flannel", "portmap"] {
            self.file(&format!("{dir}/{name}"), "program");
        }
    }

    fn install(&self) -> CniInstall {
        let dir = self.0.path();
        CniInstall {
            net_dir: dir.join("mounted/net.d"),
            bin_dir: dir.join("mounted/bin"),
            node_root: Some(dir.join("root")),
            conf_name: None,
            chained: true,
            binary: dir.join("binary"),
        }
    }

    /// Configuration and directory of plugins, relative to the root.
    fn found(&self) -> (String, String) {
        let place = find(&self.install()).unwrap();
        let relative =
            |path: &Path| path.strip_prefix(self.0.path().join("root")).unwrap().to_str().unwrap().to_owned();
        (relative(&place.conf), relative(&place.bin_dir))
    }
}

#[test]
fn each_distribution_is_recognised_by_what_it_shows() {
    let k3s = "var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist";
    for (conf, bin) in [
        (k3s, "var/lib/rancher/k3s/data/cni"),
        (k3s, "var/lib/rancher/k3s/data/current/bin"),
        (k3s, "bin"),
        ("var/snap/microk8s/current/args/cni-network/cni.conflist", "var/snap/microk8s/current/opt/cni/bin"),
        ("etc/cni/net.d/10-gke.conflist", "home/kubernetes/bin"),
        ("etc/cni/multus/net.d/00.conflist", "var/lib/cni/bin"),
        ("etc/cni/net.d/10-kindnet.conflist", "opt/cni/bin"),
    ] {
        let node = Node::new();
        node.file(conf, FLANNEL);
        node.plugins(bin);
        assert_eq!(node.found(), (conf.to_owned(), bin.to_owned()));
    }
}

#[test]
fn what_the_runtime_is_configured_to_search_goes_before_every_guess() {
    let node = Node::new();
    node.file("etc/cni/net.d/10-net.conflist", FLANNEL);
    // What an earlier version left behind.
    node.plugins("opt/cni/bin");
    node.plugins("srv/plugins");
    node.file(
        "etc/containerd/config.toml",
        "[plugins.x.cni]\n  # bin_dir = \"/opt/cni/bin\"\n  bin_dir = \"/srv/plugins\"\n",
    );
    assert_eq!(node.found().1, "srv/plugins");
    assert!(find(&node.install()).unwrap().found_by.contains("/etc/containerd/config.toml"));
}

#[test]
fn several_directories_of_a_runtime_are_all_looked_at() {
    let node = Node::new();
    node.file("etc/kubernetes/cni/net.d/10-net.conflist", FLANNEL);
    node.plugins("usr/libexec/cni");
    node.file(
        "etc/crio/crio.conf",
        "network_dir = \"/etc/kubernetes/cni/net.d\"\nplugin_dirs = [\n \"/opt/cni/bin\",\n \"/usr/libexec/cni\",\n]\n",
    );
    assert_eq!(node.found(), ("etc/kubernetes/cni/net.d/10-net.conflist".into(), "usr/libexec/cni".into()));
}

#[test]
fn a_directory_that_the_runtime_does_not_search_is_never_used() {
    let node = Node::new();
    node.file("var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist", FLANNEL);
    node.file("opt/cni/bin/other", "program");
    let error = find(&node.install()).unwrap_err();
    let Error::NotSearched { types, looked, .. } = &error else { panic!("{error}") };
    assert_eq!(types, &["flannel", "portmap"]);
    assert!(looked[0].ends_with("var/lib/rancher/k3s/data/cni"), "{error}");
    assert!(error.to_string().contains("var/lib/rancher/k3s/data/cni"), "{error}");
}

#[test]
fn links_are_followed_as_the_node_follows_them() {
    let node = Node::new();
    node.file("var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist", FLANNEL);
    node.plugins("var/lib/rancher/k3s/data/abc/bin");
    let current = node.0.path().join("root/var/lib/rancher/k3s/data/current");
    symlink("/var/lib/rancher/k3s/data/abc", current).unwrap();
    assert_eq!(node.found().1, "var/lib/rancher/k3s/data/abc/bin");
    let root = node.0.path().join("root");
    symlink("../../../..", root.join("up")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    assert_eq!(resolve(&root, Path::new("/up/etc")), root.join("etc"));
    assert!(!resolve(&root, Path::new("loop/x")).exists());
}

#[test]
fn what_was_mounted_is_all_there_is_without_a_root() {
    let node = Node::new();
    node.file("etc/cni/net.d/10-net.conflist", FLANNEL);
    node.plugins("opt/cni/bin");
    let install = CniInstall { node_root: None, ..node.install() };
    assert!(matches!(find(&install), Err(Error::NoNetwork(_))));
}
