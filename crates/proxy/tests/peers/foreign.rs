//! Peers with TLS and HTTP/2 of others: OpenSSL, and nghttp2 as a client and as a server of CONNECT. Both are Debian's.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use mesh::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::control::Control;
use crate::harness::{World, call, echo, eventually, identity, workload};
use crate::namespaces::{Pod, in_a_node};

/// Certificate, key and roots of an identity, as files.
struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn of(control: &Control, identity: &Identity) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key, roots) = control.pem(identity);
        for (name, text) in [("cert.pem", certificate), ("key.pem", key), ("root.pem", roots)] {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }
}

/// A program inside a pod's namespace; it ends with the value.
struct Program(Child);

impl Program {
    fn start(pod: &Pod, program: &str, arguments: &[String]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(pod.netns.run(move || command.spawn()).unwrap().unwrap_or_else(|error| {
            panic!("{program}: {error}; `cargo xtask ci` installs what the tests need")
        }))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `openssl s_client` says of a handshake with `to`.
async fn s_client(pod: &Pod, to: SocketAddr, more: &[&str]) -> String {
    let mut command = Command::new("timeout");
    command.args(["10", "openssl", "s_client", "-connect", &to.to_string()]).args(more).stdin(Stdio::null());
    let netns = pod.netns.clone();
    let output = tokio::task::spawn_blocking(move || netns.run(|| command.output()).unwrap().unwrap());
    let output = output.await.unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn openssl_finds_tls_1_3_alpn_h2_and_the_demand_for_a_client_certificate() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let to = world.b.at(15008);
        let said = s_client(&world.c, to, &["-alpn", "h2", "-ign_eof"]).await;
        assert!(said.contains("New, TLSv1.3"), "{said}");
        assert!(said.contains("ALPN protocol: h2"), "{said}");
        assert!(said.contains("Requested Signature Algorithms"), "a certificate is asked for: {said}");
        assert!(said.contains("certificate required"), "and refused without: {said}");
        let old = s_client(&world.c, to, &["-tls1_2"]).await;
        assert!(old.contains("alert protocol version"), "{old}");
        let files = Files::of(&world.control, &identity("a"));
        let (cert, key) = (files.path("cert.pem"), files.path("key.pem"));
        let known = s_client(&world.c, to, &["-alpn", "h2", "-cert", &cert, "-key", &key]).await;
        assert!(!known.contains("alert"), "with a certificate of the mesh it is let in: {known}");
        eventually("the refusal is counted with its reason", async || {
            let metrics = world.pb.metrics().await;
            metrics.sum("ambit_connections_refused_total", &[("reason", "no_client_certificate")]) == 1
        })
        .await;
    });
}

#[test]
fn nghttp2_speaks_connect_to_a_proxy() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let peers = echo(world.b.listen(8080));
        let files = Files::of(&world.control, &identity("a"));
        let arguments = [
            "--conf=/dev/null".to_owned(),
            "--http2-proxy".into(),
            "--workers=1".into(),
            "--insecure".into(),
            "--frontend=127.0.0.1,3128;no-tls".into(),
            format!("--backend={},15008;;proto=h2;tls", world.b.ip),
            format!("--client-cert-file={}", files.path("cert.pem")),
            format!("--client-private-key-file={}", files.path("key.pem")),
        ];
        let _client = Program::start(&world.c, "nghttpx", &arguments);
        let mut stream = None;
        eventually("it listens", async || {
            stream = world.c.connect("127.0.0.1:3128".parse().unwrap()).await.ok();
            stream.is_some()
        })
        .await;
        let mut stream = stream.unwrap();
        let request = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", world.b.at(8080));
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        let data = vec![3; 1 << 20];
        let (mut read, mut write) = stream.into_split();
        let sent = data.clone();
        // The end of what a client sends is the end of everything to nghttpx: it is not told before the answer is there.
        let writing = tokio::spawn(async move {
            write.write_all(&sent).await.unwrap();
            write
        });
        let mut got = vec![0; data.len()];
        read.read_exact(&mut got).await.unwrap();
        assert_eq!(got, data);
        drop(writing.await.unwrap());
        assert_eq!(peers.lock().unwrap().len(), 1);
        let metrics = world.pb.metrics().await;
        let labels = [("source_principal", "spiffe://cluster.local/ns/ns/sa/a")];
        assert_eq!(metrics.sum("istio_tcp_received_bytes_total", &labels), data.len() as u64);
    });
}

#[test]
fn a_proxy_speaks_connect_to_nghttp2() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        // Pod c says that it takes tunnels, and has a server of its own for them.
        world.control.workload(&workload("c", "node-b", &world.c));
        let files = Files::of(&world.control, &identity("c"));
        let arguments = [
            "--conf=/dev/null".to_owned(),
            "--workers=1".into(),
            "--http2-proxy".into(),
            "--no-ocsp".into(),
            "--verify-client".into(),
            format!("--verify-client-cacert={}", files.path("root.pem")),
            format!("--frontend={},15008", world.c.ip),
            // The tunnel's bytes go to this one, whatever the authority says.
            format!("--backend={},3129;;proto=http/1.1", world.c.ip),
            files.path("key.pem"),
            files.path("cert.pem"),
        ];
        let backend = world.c.listen(3129);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = backend.accept().await {
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        head.push(stream.read_u8().await.unwrap());
                    }
                    assert!(
                        head.starts_with(b"CONNECT 10.77.0.4:9000"),
                        "{}",
                        String::from_utf8_lossy(&head)
                    );
                    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                });
            }
        });
        let _server = Program::start(&world.c, "nghttpx", &arguments);
        eventually("it carries a call", async || {
            // Half-close is the end to nghttpx, so the answer is read first.
            let calling = async {
                let mut stream = world.a.connect(world.c.at(9000)).await?;
                stream.write_all(b"over another stack").await?;
                let mut got = [0; 18];
                stream.read_exact(&mut got).await?;
                Ok::<_, std::io::Error>(got)
            };
            let got = tokio::time::timeout(std::time::Duration::from_secs(2), calling).await;
            got.is_ok_and(|got| got.is_ok_and(|got| &got == b"over another stack"))
        })
        .await;
        let metrics = world.pa.metrics().await;
        let labels = [("connection_security_policy", "mutual_tls"), ("destination_workload", "c")];
        assert!(metrics.sum("istio_tcp_connections_opened_total", &labels) > 0);
    });
}

#[test]
fn a_client_whose_certificate_is_revoked_is_cut_and_refused_from_then_on() {
    in_a_node(|node| async move {
        let directory = tempfile::tempdir().unwrap();
        let path: PathBuf = directory.path().join("crl.pem");
        std::fs::write(&path, "").unwrap();
        let (control, address) = Control::start().await;
        let vars = [("CRL_PATH", path.to_str().unwrap())];
        let world = World::with(&node, control, address, &vars).await;
        echo(world.b.listen(8080));
        let credential = world.control.credential(&identity("a"));
        let expected = [identity("b")];
        let settings = hbone::Settings::default();
        let connect = async || {
            let socket = world.c.connect(world.b.at(15008)).await.unwrap();
            hbone::Tunnel::handshake(socket, world.b.at(15008), &credential, &expected, &settings).await
        };
        let tunnel = connect().await.unwrap();
        let head = hbone::Head::to(mesh::Authority::Address(world.b.at(8080)));
        let mut stream = tunnel.open(&head).await.unwrap().stream;
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        std::fs::write(&path, world.control.revoke(&credential)).unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(10), tunnel.closed()).await.expect("it is cut");
        eventually("its connection has failed for that reason", async || {
            let metrics = world.pb.metrics().await;
            metrics.sum("istio_tcp_connections_failed_total", &[("response_flags", "CERT_REVOKED")]) == 1
        })
        .await;
        assert!(connect().await.is_err());
        eventually("its next handshake is refused for that reason", async || {
            let metrics = world.pb.metrics().await;
            metrics.sum("ambit_connections_refused_total", &[("reason", "certificate_revoked")]) == 1
        })
        .await;
        // Everybody else goes on.
        assert_eq!(call(&world.a, world.b.at(8080), b"y").await.unwrap(), b"y");
    });
}
