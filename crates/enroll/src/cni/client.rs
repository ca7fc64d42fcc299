//! Asks the agent over its Unix socket: one request, bounded in time and size.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;

use super::event::{Answer, Event};

/// How long the agent may take: a node proxy that has just restarted needs a while to come back to it.
pub const PATIENCE: Duration = Duration::from_secs(25);
const MAX_BODY: usize = 64 * 1024;

/// Why the pod is not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers, or the agent does not know the pod's labels yet.
    #[error("no answer from the node agent on {socket}: {reason}")]
    Unreachable {
        /// The agent's socket.
        socket: String,
        /// What happened.
        reason: String,
    },
    /// The agent could not do it.
    #[error("the node agent could not enrol the pod (status {status}): {text}")]
    Failed {
        /// The HTTP status.
        status: u16,
        /// What the agent said.
        text: String,
    },
}

/// Asks the agent behind `socket` to enrol a pod.
pub async fn ask(socket: &Path, event: &Event) -> Result<Answer, Error> {
    let unreachable = |reason: String| Error::Unreachable { socket: socket.display().to_string(), reason };
    tokio::time::timeout(PATIENCE, exchange(socket, event))
        .await
        .map_err(|_| unreachable(format!("no answer within {} s", PATIENCE.as_secs())))?
        .map_err(|error| unreachable(error.to_string()))
        .and_then(|(status, text)| match status {
            200 if text.trim().is_empty() => Ok(Answer { enrolled: true, reason: None }),
            503 => Err(unreachable(format!("it cannot tell yet: {}", text.trim()))),
            200 => serde_json::from_str(&text).map_err(|_| Error::Failed { status, text }),
            _ => Err(Error::Failed { status, text: text.trim().to_owned() }),
        })
}

async fn exchange(socket: &Path, event: &Event) -> anyhow::Result<(u16, String)> {
    let stream = tokio::net::UnixStream::connect(socket).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::post("/cmdadd")
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(event)?)))?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), MAX_BODY)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!("its answer broke off: {error}"))?;
    connection.abort();
    Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
}
