//! The way from a node's pods to the API server: a listener inside the node's network namespace whose connections
//! this process, which lives in the host's, carries on to the server of its kubeconfig.
//!
//! Bytes are carried as they are: TLS and credentials are between the pod and the API server.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use netns::NetNs;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// More connections than any lab holds; it keeps a pod that opens them without end from taking the node along.
const AT_MOST: usize = 4096;

/// Where the API server is, as seen from the host's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Upstream {
    pub host: String,
    pub port: u16,
}

impl Upstream {
    /// Takes host and port from a kubeconfig's server URL.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        let uri: http::Uri =
            url.parse().with_context(|| format!("the kubeconfig's server {url} is no URL"))?;
        let host = uri.host().with_context(|| format!("the kubeconfig's server {url} names no host"))?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        Ok(Self { host: host.trim_matches(['[', ']']).to_owned(), port })
    }
}

/// Listens on a free port of `ip` inside `ns`, relays for as long as the process lives, and answers the address.
pub(super) fn start(ns: &NetNs, ip: IpAddr, upstream: Upstream) -> anyhow::Result<SocketAddr> {
    let listener = ns
        .try_run(|| super::listen(SocketAddr::new(ip, 0)))
        .context("the relay to the API server cannot listen")?;
    let address = listener.local_addr()?;
    tokio::spawn(accept(listener, upstream));
    Ok(address)
}

async fn accept(listener: TcpListener, upstream: Upstream) {
    let places = Arc::new(Semaphore::new(AT_MOST));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((downstream, peer)) => {
                let upstream = upstream.clone();
                tokio::spawn(async move {
                    if let Err(error) = relay(downstream, &upstream).await {
                        tracing::debug!(%peer, "connection to the API server ended: {error}");
                    }
                    drop(place);
                });
            }
            Err(error) => super::accept_failed("relay to the API server", &error).await,
        }
    }
}

async fn relay(mut downstream: TcpStream, to: &Upstream) -> io::Result<()> {
    let connect = TcpStream::connect((to.host.as_str(), to.port));
    let mut upstream = tokio::time::timeout(CONNECT_WITHIN, connect).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, "the API server does not accept connections")
    })??;
    for socket in [&downstream, &upstream] {
        // Watches are quiet for long; keepalive tells a quiet peer from one that is gone.
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10));
        socket2::SockRef::from(socket).set_tcp_keepalive(&keepalive)?;
        socket.set_nodelay(true)?;
    }
    tokio::io::copy_bidirectional(&mut downstream, &mut upstream).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn the_upstream_is_the_kubeconfigs_server() {
        let parse = |url| Upstream::parse(url).map(|up| (up.host, up.port)).ok();
        assert_eq!(parse("https://127.0.0.1:6443"), Some(("127.0.0.1".into(), 6443)));
        assert_eq!(parse("https://[::1]:6443/path"), Some(("::1".into(), 6443)));
        assert_eq!(parse("https://api.example.com"), Some(("api.example.com".into(), 443)));
        assert_eq!(parse("not a url at all"), None);
    }

    #[tokio::test]
    async fn a_half_closed_connection_still_carries_the_answer() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let here = NetNs::current().unwrap();
        let ip = "127.0.0.1".parse().unwrap();
        let relay = start(&here, ip, Upstream { host: "127.0.0.1".into(), port }).unwrap();

        let mut client = TcpStream::connect(relay).await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let (mut served, _) = server.accept().await.unwrap();
        let mut question = String::new();
        served.read_to_string(&mut question).await.unwrap();
        served.write_all(b"answer").await.unwrap();
        drop(served);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
    }
}
