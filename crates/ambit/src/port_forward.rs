//! A port of a pod, through the API server, as any user can reach it.

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;
use tokio::time::timeout;

const LIMIT: usize = 64 << 20;
const TIME: Duration = Duration::from_secs(10);

/// The body of `GET path` at `port` of a pod.
pub async fn get(pods: &Api<Pod>, pod: &str, port: u16, path: &str) -> anyhow::Result<String> {
    timeout(TIME, fetch(pods, pod, port, path))
        .await
        .with_context(|| format!("{pod}:{port}{path}: no answer within {} s", TIME.as_secs()))?
        .with_context(|| format!("{pod}:{port}{path}"))
}

async fn fetch(pods: &Api<Pod>, pod: &str, port: u16, path: &str) -> anyhow::Result<String> {
    let mut forwarder = pods.portforward(pod, &[port]).await?;
    let stream = forwarder.take_stream(port).context("no stream for the port")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = http::Request::get(path)
        .header("host", format!("localhost:{port}"))
        .body(Empty::<bytes::Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LIMIT).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    driver.abort();
    let text = String::from_utf8_lossy(&body).into_owned();
    if !status.is_success() {
        bail!("{status}: {}", text.chars().take(300).collect::<String>());
    }
    Ok(text)
}

/// Serves a pod's port on the loopback address; returns the port to connect to.
pub async fn forward(pods: Api<Pod>, pod: String, port: u16) -> anyhow::Result<u16> {
    // The usual port if it is free, any otherwise.
    let listener = match TcpListener::bind(("127.0.0.1", port)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("127.0.0.1", 0)).await?,
    };
    let local = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (pods, pod) = (pods.clone(), pod.clone());
            tokio::spawn(async move {
                let Ok(mut forwarder) = pods.portforward(&pod, &[port]).await else { return };
                if let Some(mut stream) = forwarder.take_stream(port) {
                    // Either end may leave when it likes.
                    let _ = copy_bidirectional(&mut client, &mut stream).await;
                }
            });
        }
    });
    Ok(local)
}
