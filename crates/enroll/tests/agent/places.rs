//! Pods in unusual places: on the network of the node, in namespaces with a name of somebody else's, without any file.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use netns::NetNs;
use serde_json::json;

use crate::world::{World, in_a_node};

const AMBIENT: &str = "ambient";

/// What the node's own namespace has, in full.
fn of_the_node() -> String {
    let commands: [&[&str]; 5] = [
        &["nft", "list", "ruleset"],
        &["ip", "rule"],
        &["ip", "-6", "rule"],
        &["ip", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
    ];
    let mut text = String::new();
    for command in commands {
        let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        text += &String::from_utf8(output.stdout).unwrap();
    }
    text
}

/// However loudly labels ask for it: what is on the node's network is the node's.
#[test]
fn a_pod_on_the_network_of_its_host_changes_no_byte_of_the_nodes_rules() {
    in_a_node(async |world: &mut World| {
        world.api.namespace("shop", Some(AMBIENT));
        world.pod("shop", "neighbour", "10.77.1.2");
        world.start_proxy();
        world.start_agent();
        world.until("the neighbour is in", |w| w.annotation("neighbour").as_deref() == Some("enabled")).await;
        let before = of_the_node();
        assert!(before.contains("ambit-probes") && before.contains("10.77.1.2"), "{before}");

        world.api.put_pod(
            "hosted",
            json!({
                "metadata": {"name": "hosted", "namespace": "shop", "uid": "uid-hosted", "annotations": {},
                    "labels": {"istio.io/dataplane-mode": AMBIENT}},
                "spec": {"nodeName": "node1", "hostNetwork": true, "containers": []},
                "status": {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]},
            }),
        );
        let deadline = Instant::now() + Duration::from_secs(20);
        let said = loop {
            match world.status("shop", "hosted").await {
                Ok(said) => break said,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert_eq!((said.wanted, said.why.as_str()), (false, "it uses the network of its host"));
        // Some runtimes call the plugins for it all the same.
        let outcome = world.cni_add_at("shop", "hosted", "127.0.0.1", "/proc/self/ns/net").await;
        assert_eq!(outcome.status, 0, "{outcome:?}");
        // One that comes after it: when that is in, it had its turn.
        world.pod("shop", "later", "10.77.2.2");
        world.until("the later one is in", |w| w.annotation("later").as_deref() == Some("enabled")).await;
        world.api.delete_pod("later");
        world.until("it has gone", |w| w.proxy_has() == ["uid-neighbour"]).await;
        world.until("its exemption too", |w| !w.probes().contains("10.77.2.2")).await;
        assert_eq!(of_the_node(), before);
        assert_eq!(world.annotation("hosted"), None);
    });
}

/// A namespace as `ip netns add` makes it, gone when the test ends.
struct Named(String);

impl Named {
    fn add() -> Self {
        let named = Self(format!("ambit-test-{}", std::process::id()));
        let output = Command::new("ip").args(["netns", "add", &named.0]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        named
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[test]
fn a_pod_in_a_namespace_that_its_owner_named_is_enrolled_through_the_path_that_add_names() {
    let named = Named::add();
    let path = format!("/var/run/netns/{}", named.0);
    in_a_node(async move |world: &mut World| {
        world.api.namespace("shop", Some(AMBIENT));
        world.start_proxy();
        world.start_agent();
        world.until("the agent serves", World::ready).await;
        // Other tests' agents see this directory too, and go by addresses: these are in no other test.
        world.new_pod_in("shop", "owned", "10.79.1.2", NetNs::open(&path).unwrap());
        let outcome = world.cni_add_at("shop", "owned", "10.79.1.2", &path).await;
        assert_eq!(outcome.status, 0, "{outcome:?}");
        assert!(world.redirected("owned"), "before its first packet");
        world.until("it is announced", |w| w.annotation("owned").as_deref() == Some("enabled")).await;
        // A path that leads to no namespace is an error that names it, and no way in.
        world.new_pod("shop", "lost", "10.79.2.2");
        let outcome = world.cni_add_at("shop", "lost", "10.79.2.2", &format!("{path}-not")).await;
        assert_eq!(outcome.status, 1);
        assert!(outcome.stdout.unwrap().to_string().contains("-not"));
        world.api.namespace("shop", None);
        world.until("it is as it was", |w| !w.touched("owned")).await;
    });
    drop(named);
}

/// A process whose root holds nothing: no shell, no tool, no library, not even the program that runs.
struct Rootless {
    process: Child,
    root: tempfile::TempDir,
}

impl Rootless {
    fn start(world: &World, pod: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut files = vec!["/bin/sleep".to_owned()];
        let needed = Command::new("ldd").arg("/bin/sleep").output().unwrap().stdout;
        let needed = String::from_utf8(needed).unwrap();
        files.extend(needed.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
        for file in &files {
            let to = root.path().join(file.trim_start_matches('/'));
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(file, to).unwrap();
        }
        let mut command = Command::new("unshare");
        command.args(["--mount", "--root"]).arg(root.path()).args(["/bin/sleep", "600"]);
        let rootless = Self { process: world.spawn_in(pod, &mut command), root };
        let deadline = Instant::now() + Duration::from_secs(20);
        // It sleeps once it has loaded all it needs.
        while !rootless.sleeps() {
            assert!(Instant::now() < deadline, "it does not run");
            std::thread::yield_now();
        }
        for entry in std::fs::read_dir(rootless.root.path()).unwrap().flatten() {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
        rootless
    }

    fn proc(&self) -> std::path::PathBuf {
        Path::new("/proc").join(self.process.id().to_string())
    }

    fn sleeps(&self) -> bool {
        let read = |file: &str| std::fs::read_to_string(self.proc().join(file)).unwrap_or_default();
        let waits = read("syscall");
        // clock_nanosleep, on x86-64 and on aarch64.
        read("comm").trim() == "sleep" && (waits.starts_with("230 ") || waits.starts_with("115 "))
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.proc().join("root")).unwrap().count()
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_pod_without_a_single_file_is_found_by_its_process_and_enrolled_with_the_nodes_tools() {
    const UID: &str = "0b5e1d0c-1111-4222-8333-444455556666";
    in_a_node(async |world: &mut World| {
        world.api.namespace("shop", None);
        world.pod("shop", "bare", "10.77.1.2");
        // No bind mount, no word of the plugin: the process is all there is.
        world.hide("bare");
        let rootless = Rootless::start(world, "bare");
        assert_eq!(rootless.files(), 0);
        let there = world.proc().join(rootless.process.id().to_string());
        std::fs::create_dir_all(there.join("ns")).unwrap();
        std::fs::write(there.join("cgroup"), format!("0::/kubepods/besteffort/pod{UID}/c\n")).unwrap();
        std::fs::copy(rootless.proc().join("stat"), there.join("stat")).unwrap();
        symlink(rootless.proc().join("ns/net"), there.join("ns/net")).unwrap();
        let mut pod = world.api.pod("bare").unwrap();
        world.api.delete_pod("bare");
        pod["metadata"]["uid"] = UID.into();
        world.api.put_pod("bare", pod);

        world.start_proxy();
        world.start_agent();
        world.until("the agent serves", World::ready).await;
        assert!(!world.touched("bare"));
        world.api.namespace("shop", Some(AMBIENT));
        world.until("it is in", |w| w.annotation("bare").as_deref() == Some("enabled")).await;
        assert!(world.redirected("bare"), "{}", world.traces("bare"));
        assert_eq!(world.proxy_has(), [UID]);
        world.api.namespace("shop", None);
        world.until("it is out", |w| !w.touched("bare")).await;
        assert_eq!(rootless.files(), 0, "nothing was left in it");
    });
}
