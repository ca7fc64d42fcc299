//! Asks the agent over its Unix socket: is the pod to be in the mesh, and if so, enrol it. Each request is bounded
//! in time and size.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;

use super::event::{Answer, Event};

/// How long the agent may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// To say whether a pod is to be in the mesh. An agent that hangs is as good as away, so this is what it costs
    /// a pod that is outside.
    pub judge: Duration,
    /// To enrol it: a node proxy that has just restarted needs a while to come back to the agent.
    pub enrol: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { judge: Duration::from_secs(4), enrol: Duration::from_secs(25) }
    }
}

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
    /// It said that the pod is to be in the mesh, and then nothing more.
    #[error("the node agent on {socket} was to enrol the pod and did not answer any more: {reason}")]
    Left {
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

/// Asks the agent behind `socket` to enrol a pod, if it is to be enrolled.
pub async fn ask(socket: &Path, event: &Event, patience: Patience) -> Result<Answer, Error> {
    let wanted = match answer(exchange(socket, "/judge", event, patience.judge).await, socket) {
        // A foreign agent, which knows one question only.
        Err(Error::Failed { status: 404, .. }) => false,
        Ok(wanted) if wanted.enrolled => true,
        settled => return settled,
    };
    match answer(exchange(socket, "/cmdadd", event, patience.enrol).await, socket) {
        // What is known is known, also when the agent dies over it.
        Err(Error::Unreachable { socket, reason }) if wanted => Err(Error::Left { socket, reason }),
        settled => settled,
    }
}

fn answer(result: anyhow::Result<(u16, String)>, socket: &Path) -> Result<Answer, Error> {
    let unreachable = |reason: String| Error::Unreachable { socket: socket.display().to_string(), reason };
    let (status, text) = result.map_err(|error| unreachable(error.to_string()))?;
    match status {
        200 if text.trim().is_empty() => Ok(Answer { enrolled: true, reason: None }),
        503 => Err(unreachable(format!("it cannot tell yet: {}", text.trim()))),
        200 => serde_json::from_str(&text).map_err(|_| Error::Failed { status, text }),
        _ => Err(Error::Failed { status, text: text.trim().to_owned() }),
    }
}

async fn exchange(
    socket: &Path,
    path: &str,
    event: &Event,
    patience: Duration,
) -> anyhow::Result<(u16, String)> {
    tokio::time::timeout(patience, post(socket, path, event))
        .await
        .map_err(|_| anyhow::anyhow!("no answer within {patience:?}"))?
}

async fn post(socket: &Path, path: &str, event: &Event) -> anyhow::Result<(u16, String)> {
    let stream = tokio::net::UnixStream::connect(socket).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::post(path)
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
