//! The kubelet server with a real container: kube-rs calls it as it calls an API server, only that paths are
//! rewritten to the kubelet's on the way. Needs root and runc.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use futures::{AsyncBufReadExt as _, SinkExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{AttachParams, LogParams, TerminalSize};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use lab::node::border::{ContainerRef, PodError, Pods};
use lab::node::server;
use netns::NetNs;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const BOUND: Duration = Duration::from_secs(30);

/// What the kubelet knows in this test: one pod with one container.
struct OnePod {
    netns: NetNs,
    container: Mutex<ContainerRef>,
}

impl Pods for OnePod {
    fn container(&self, _: &str, pod: &str, container: Option<&str>) -> Result<ContainerRef, PodError> {
        match (pod, container) {
            ("web", Some("main") | None) => Ok(self.container.lock().clone()),
            ("web", Some(other)) => Err(PodError::NoSuchContainer(other.to_owned())),
            _ => Err(PodError::NoSuchPod),
        }
    }

    fn netns(&self, _: &str, pod: &str) -> Result<NetNs, PodError> {
        (pod == "web").then(|| self.netns.clone()).ok_or(PodError::NoSuchPod)
    }
}

/// A certificate authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key, PEM.
    fn issue(&self, common_name: &str, organization: &str) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// The server under test, and what it needs.
struct Lab {
    pods: Arc<OnePod>,
    authority: Authority,
    port: u16,
    directory: tempfile::TempDir,
}

impl Lab {
    fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let container = ContainerRef {
            id: String::new(),
            runc_root: directory.path().join("runc"),
            running: false,
            log: directory.path().join("0.log"),
            previous_log: None,
        };
        let pods = Arc::new(OnePod { netns: NetNs::current().unwrap(), container: Mutex::new(container) });
        let authority = Authority::new();
        let port = server::start(pods.clone(), authority.pem.clone()).unwrap();
        Self { pods, authority, port, directory }
    }

    async fn pod_api(&self, identity: Option<(String, String)>) -> Api<Pod> {
        let encode = |pem: String| base64::prelude::BASE64_STANDARD.encode(pem);
        let user = match identity {
            Some((certificate, key)) => {
                json!({"client-certificate-data": encode(certificate), "client-key-data": encode(key)})
            }
            None => json!({}),
        };
        let server = format!("https://127.0.0.1:{}", self.port);
        let kubeconfig: Kubeconfig = serde_json::from_value(json!({
            "clusters": [{"name": "x", "cluster": {"server": server, "insecure-skip-tls-verify": true}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
            "users": [{"name": "x", "user": user}], "current-context": "x",
        }))
        .unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        let rewrite = tower::util::MapRequestLayer::new(to_kubelet);
        Api::namespaced(ClientBuilder::try_from(config).unwrap().with_layer(&rewrite).build(), "shop")
    }

    async fn as_administrator(&self) -> Api<Pod> {
        self.pod_api(Some(self.authority.issue("admin", "system:masters"))).await
    }

    fn log(&self, text: &str) {
        use std::io::Write as _;
        let path = self.pods.container.lock().log.clone();
        let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
}

/// `/api/v1/namespaces/shop/pods/web/exec?container=main&…` → `/exec/shop/web/main?…`, as an API server does.
fn to_kubelet<B>(mut request: http::Request<B>) -> http::Request<B> {
    let uri = request.uri().clone();
    let segments: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let [_, _, _, namespace, _, pod, what] = segments.as_slice() else { panic!("unexpected call of {uri}") };
    let query = uri.query().unwrap_or_default();
    let path = match *what {
        "log" => format!("/containerLogs/{namespace}/{pod}/main?{query}"),
        "portforward" => format!("/portForward/{namespace}/{pod}?{query}"),
        what => format!("/{what}/{namespace}/{pod}/main?{query}"),
    };
    *request.uri_mut() = path.parse().unwrap();
    request
}

/// A container that sleeps, over the host's `/usr`, gone with this handle.
struct Container {
    root: PathBuf,
    id: String,
}

impl Container {
    fn start(lab: &Lab) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test runs a container and must run as root");
        let id = format!("ambit-test-server-{}", std::process::id());
        let (root, bundle) = (lab.directory.path().join("runc"), lab.directory.path().join("bundle"));
        let rootfs = bundle.join("rootfs");
        for directory in ["usr", "proc", "dev", "tmp"] {
            std::fs::create_dir_all(rootfs.join(directory)).unwrap();
        }
        for link in ["bin", "lib", "lib64", "sbin"] {
            std::os::unix::fs::symlink(Path::new("usr").join(link), rootfs.join(link)).unwrap();
        }
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {"terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/",
                "args": ["sleep", "3600"], "env": ["PATH=/usr/bin:/bin", "COLOUR=green"]},
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
                {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
            ],
            "linux": {"cgroupsPath": format!("/{id}"),
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]},
        });
        std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        let status = Command::new("runc")
            .arg("--root")
            .arg(&root)
            .args(["run", "--detach", "--bundle"])
            .arg(&bundle)
            .arg(&id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .status()
            .expect("runc (Debian package runc) is needed");
        let container = Self { root: root.clone(), id: id.clone() };
        assert!(status.success());
        let mut known = lab.pods.container.lock();
        (known.id, known.running) = (id, true);
        container
    }

    /// The command lines of its processes.
    fn processes(&self) -> String {
        let shown =
            Command::new("runc").arg("--root").arg(&self.root).args(["ps", &self.id]).output().unwrap();
        String::from_utf8_lossy(&shown.stdout).into_owned()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ =
            Command::new("runc").arg("--root").arg(&self.root).args(["delete", "--force", &self.id]).status();
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.unwrap_or_else(|_| panic!("{what}: not within {BOUND:?}"))
}

fn sh(script: &str) -> Vec<&str> {
    vec!["sh", "-c", script]
}

#[tokio::test]
async fn only_the_api_server_and_administrators_get_in() {
    let lab = Lab::start();
    lab.log("2026-01-01T00:00:00Z stdout F secret\n");
    let logs = LogParams::default();
    for stranger in [None, Some(lab.authority.issue("someone", "system:authenticated"))] {
        let refused = lab.pod_api(stranger).await.logs("web", &logs).await.unwrap_err();
        let kube::Error::Api(status) = refused else { panic!("{refused}") };
        assert_eq!(status.code, 401);
    }
    let forged = Authority::new().issue("admin", "system:masters");
    assert!(lab.pod_api(Some(forged)).await.logs("web", &logs).await.is_err(), "another CA's administrator");
    let api_server = lab.authority.issue("kube-apiserver-kubelet-client", "kubeadm:cluster-admins");
    assert_eq!(lab.pod_api(Some(api_server)).await.logs("web", &logs).await.unwrap(), "secret\n");
}

#[tokio::test]
async fn logs_are_cut_and_followed() {
    let lab = Lab::start();
    for n in 1..=5 {
        lab.log(&format!("2026-01-01T00:00:0{n}Z stdout F line {n}\n"));
    }
    let api = lab.as_administrator().await;
    let tail = LogParams { tail_lines: Some(2), ..LogParams::default() };
    assert_eq!(api.logs("web", &tail).await.unwrap(), "line 4\nline 5\n");
    let timed = LogParams { tail_lines: Some(1), timestamps: true, ..LogParams::default() };
    assert_eq!(api.logs("web", &timed).await.unwrap(), "2026-01-01T00:00:05Z line 5\n");
    let previous = LogParams { previous: true, ..LogParams::default() };
    assert!(api.logs("web", &previous).await.is_err(), "there was no run before");
    let other = api.logs("nobody", &tail).await.unwrap_err();
    assert!(matches!(other, kube::Error::Api(status) if status.code == 404));

    lab.pods.container.lock().running = true;
    let follow = LogParams { follow: true, tail_lines: Some(1), ..LogParams::default() };
    let mut lines = api.log_stream("web", &follow).await.unwrap().lines();
    assert_eq!(within("the first line", lines.next()).await.unwrap().unwrap(), "line 5");
    lab.log("2026-01-01T00:00:06Z stdout F line 6\n");
    assert_eq!(within("a new line", lines.next()).await.unwrap().unwrap(), "line 6");
    lab.log("2026-01-01T00:00:07Z stdout F last words\n");
    lab.pods.container.lock().running = false;
    assert_eq!(within("the last line", lines.next()).await.unwrap().unwrap(), "last words");
    assert!(within("the end of the container", lines.next()).await.is_none());
}

#[tokio::test]
async fn a_command_runs_in_the_container_with_its_own_streams() {
    let lab = Lab::start();
    let api = lab.as_administrator().await;
    let params = AttachParams::default().container("main").stdin(true).stdout(true).stderr(true);
    assert!(api.exec("web", sh("true"), &params).await.is_err(), "nothing runs yet");

    let _container = Container::start(&lab);
    let script = "read word; echo $word $COLOUR $(cat /proc/1/comm); echo trouble >&2; exit 3";
    let mut process = api.exec("web", sh(script), &params).await.unwrap();
    let status = process.take_status().unwrap();
    let mut stdin = process.stdin().unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let (mut out, mut err) = (process.stdout().unwrap(), process.stderr().unwrap());
    let reading = async { tokio::join!(out.read_to_string(&mut stdout), err.read_to_string(&mut stderr)) };
    let _ = within("the command's output", reading).await;
    let status = within("the status", status).await.unwrap();
    assert_eq!((stdout.as_str(), stderr.as_str()), ("hello green sleep\n", "trouble\n"));
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"));
    let causes = status.details.unwrap().causes.unwrap();
    assert_eq!(causes[0].message.as_deref(), Some("3"));

    // Standard input that is not asked for is at its end, and much output arrives whole.
    let params = AttachParams::default().stdin(false).stdout(true).stderr(false);
    let mut process = api.exec("web", sh("cat; head -c 3000000 /dev/zero"), &params).await.unwrap();
    let status = process.take_status().unwrap();
    let mut received = Vec::new();
    within("3 MB", process.stdout().unwrap().read_to_end(&mut received)).await.unwrap();
    assert_eq!(received.len(), 3_000_000);
    assert_eq!(within("the status", status).await.unwrap().status.as_deref(), Some("Success"));
}

#[tokio::test]
async fn a_terminal_has_the_size_of_the_callers() {
    let lab = Lab::start();
    let _container = Container::start(&lab);
    let api = lab.as_administrator().await;
    let params = AttachParams::default().stdin(true).stdout(true).stderr(false).tty(true);
    let mut process = api.exec("web", sh("read go; stty size; tty; echo $TERM"), &params).await.unwrap();
    let status = process.take_status().unwrap();
    let mut size = process.terminal_size().unwrap();
    size.send(TerminalSize { width: 132, height: 43 }).await.unwrap();
    let mut stdin = process.stdin().unwrap();
    stdin.write_all(b"go\n").await.unwrap();
    let mut shown = String::new();
    within("the screen", process.stdout().unwrap().read_to_string(&mut shown)).await.unwrap();
    assert!(shown.contains("43 132") && shown.contains("/dev/pts/0"), "{shown:?}");
    assert!(shown.contains("xterm"), "{shown:?}");
    assert_eq!(within("the status", status).await.unwrap().status.as_deref(), Some("Success"));
}

#[tokio::test]
async fn a_command_ends_when_its_caller_goes() {
    let lab = Lab::start();
    let container = Container::start(&lab);
    let api = lab.as_administrator().await;
    let params = AttachParams::default().stdout(true).stderr(false);
    let mut process = api.exec("web", sh("echo up; exec sleep 1234"), &params).await.unwrap();
    let mut up = [0; 3];
    let mut stdout = process.stdout().unwrap();
    within("the command's start", stdout.read_exact(&mut up)).await.unwrap();
    assert!(container.processes().contains("sleep 1234"), "it runs while its caller is there");
    process.abort();
    drop((process, stdout));
    let gone = async {
        while container.processes().contains("sleep 1234") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within("the command's end", gone).await;
}

#[tokio::test]
async fn ports_of_the_pods_own_loopback_are_forwarded() {
    let lab = Lab::start();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut word = [0; 5];
        stream.read_exact(&mut word).await.unwrap();
        stream.write_all(&word.to_ascii_uppercase()).await.unwrap();
    });
    let api = lab.as_administrator().await;
    let mut forward = api.portforward("web", &[port]).await.unwrap();
    let mut stream = forward.take_stream(port).unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut answer = String::new();
    within("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "HELLO");
    assert!(api.portforward("nobody", &[port]).await.is_err());
}
