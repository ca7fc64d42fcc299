//! A lab for a test, driven by the commands that users have, and looked at through the Kubernetes API.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use netns::NetNs;

/// The binary under test.
pub const AMBIT: &str = env!("CARGO_BIN_EXE_ambit");
/// The programs of the demo.
pub const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo/manifests.yaml");
/// Nothing in a test waits longer for anything.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A lab that is taken down when the test ends, however it ends.
pub struct TestLab {
    pub name: String,
    home: tempfile::TempDir,
}

impl TestLab {
    /// A name and a home directory of its own; nothing is started yet.
    pub fn new(purpose: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the lab needs root: run the tests with sudo");
        Self { name: format!("{purpose}{}", std::process::id() % 10_000), home: tempfile::tempdir().unwrap() }
    }

    /// Runs `ambit …` as a user with an empty home directory would.
    pub fn ambit(&self, args: &[&str]) -> Output {
        self.command(AMBIT).args(args).output().unwrap()
    }

    /// Runs `ambit …`, which must succeed.
    pub fn must(&self, args: &[&str]) -> String {
        let output = self.ambit(args);
        assert!(output.status.success(), "ambit {}: {}", args.join(" "), text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("HOME", self.home.path()).env_remove("KUBECONFIG");
        command
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.home.path().join(".kube/config")
    }

    pub async fn client(&self) -> Client {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }

    /// `kubectl label namespace …`, by kubectl where it is installed. An empty value removes the label.
    pub async fn label(&self, namespace: &str, value: &str) {
        let argument = match value {
            "" => "istio.io/dataplane-mode-".to_owned(),
            value => format!("istio.io/dataplane-mode={value}"),
        };
        if let Ok(output) =
            self.command("kubectl").args(["label", "namespace", namespace, &argument]).output()
        {
            assert!(output.status.success(), "kubectl label: {}", text(&output));
            return;
        }
        let value = (!value.is_empty()).then_some(value);
        let patch = serde_json::json!({"metadata": {"labels": {"istio.io/dataplane-mode": value}}});
        let namespaces = Api::<Namespace>::all(self.client().await);
        namespaces.patch(namespace, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    /// What the kernel still has of this lab: namespaces, processes, mounts, control groups, files.
    pub fn leftovers(&self) -> Vec<String> {
        let tag = format!("ambit-{}", self.name);
        let mut left = Vec::new();
        let mut look = |what: &str, text: String| {
            left.extend(
                text.lines().filter(|line| line.contains(&tag)).map(|line| format!("{what}: {line}")),
            );
        };
        let run = |program: &str, args: &[&str]| {
            String::from_utf8_lossy(&Command::new(program).args(args).output().unwrap().stdout).into_owned()
        };
        look("namespace", run("ip", &["netns", "list"]));
        look("link", run("ip", &["-o", "link"]));
        look("rules", run("nft", &["list", "ruleset"]));
        look("mount", std::fs::read_to_string("/proc/mounts").unwrap());
        look(
            "control group",
            run("find", &["/sys/fs/cgroup", "-maxdepth", "3", "-name", &format!("{tag}*")]),
        );
        look("process", run("ps", &["-eo", "args"]));
        let state = PathBuf::from("/run/ambit").join(&self.name);
        if state.exists() {
            left.push(format!("files: {}", state.display()));
        }
        left
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        // Nothing to do when it is down already.
        let _ = self.ambit(&["lab", "down", "--name", &self.name]);
    }
}

/// What a command printed.
pub fn text(output: &Output) -> String {
    format!(
        "status {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Asks until the answer is there, and says at the end what was missing.
pub async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let start = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(missing) if start.elapsed() > PATIENCE => panic!("{what}: {missing}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(300)).await,
        }
    }
}

/// The only pod with this `app` label.
pub async fn pod(client: &Client, namespace: &str, app: &str) -> Pod {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let list = pods.list(&ListParams::default().labels(&format!("app={app}"))).await.unwrap();
    list.items.into_iter().find(|pod| pod.metadata.deletion_timestamp.is_none()).expect("the pod is there")
}

/// UID and restarts of all pods outside the mesh.
pub async fn generations(client: &Client) -> BTreeMap<String, (String, i32)> {
    let pods = Api::<Pod>::all(client.clone()).list(&ListParams::default()).await.unwrap();
    let of_users = pods.iter().filter(|pod| {
        pod.namespace().as_deref() != Some("ambit-system") && pod.metadata.deletion_timestamp.is_none()
    });
    of_users
        .map(|pod| {
            let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
            let restarts = statuses.into_iter().flatten().map(|status| status.restart_count).sum();
            (pod.name_any(), (pod.uid().unwrap(), restarts))
        })
        .collect()
}

/// Host process ids of `ambit <subcommand>` inside this lab, one a node or fewer.
pub fn processes(lab: &TestLab, subcommand: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let arguments: Vec<String> = read("cmdline").split('\0').map(str::to_owned).collect();
        let ours = read("cgroup").contains(&format!("ambit-{}/", lab.name));
        let program = arguments.first().is_some_and(|program| program.ends_with("ambit"));
        if ours && program && arguments.get(1).is_some_and(|argument| argument == subcommand) {
            found.push(pid);
        }
    }
    found
}

/// The network namespace of a pod's processes on this machine.
pub fn netns_of(pod: &Pod) -> Option<NetNs> {
    let uid = pod.uid()?;
    let tags = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let cgroup = std::fs::read_to_string(entry.path().join("cgroup")).ok()?;
        let ours = tags.iter().any(|tag| cgroup.contains(tag.as_str()));
        ours.then(|| NetNs::open(entry.path().join("ns/net")).ok())?
    })
}
