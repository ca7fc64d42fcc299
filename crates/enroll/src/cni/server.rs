//! The agent's end of the plugin's line: HTTP over a Unix socket that only root can open.

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::event::{Answer, Event};
use crate::metrics::Metrics;

/// Why a pod is not enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It is to be enrolled and could not be: it must not start.
    NotEnrolled(String),
    /// The agent cannot tell whether it is to be enrolled: for the plugin that is as if the agent were away.
    CannotTell(String),
}

/// What the plugin asks about a pod that is about to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Whether it is to be in the mesh; nothing is done.
    Judge,
    /// To enrol it.
    Enrol,
}

/// Answers the question about the pod of an event.
pub type Handler = Arc<dyn Fn(Question, Event) -> BoxFuture<'static, Result<Answer, Failure>> + Send + Sync>;

/// Serves `/judge` and `/cmdadd` on `socket` until `stop`, replacing a socket that a predecessor left.
pub fn serve(
    socket: &Path,
    handler: Handler,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    if std::fs::symlink_metadata(socket).is_ok_and(|there| there.file_type().is_socket()) {
        std::fs::remove_file(socket)?;
    }
    let listener = tokio::net::UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    let asked = |question: Question| {
        let (handler, metrics) = (handler.clone(), metrics.clone());
        any(move |body: axum::body::Bytes| async move {
            let response = respond(&handler, question, &body).await;
            if question == Question::Enrol {
                metrics.plugin_request(response.status().as_u16());
            }
            response
        })
    };
    let router = Router::new()
        .route("/judge", asked(Question::Judge))
        .route("/cmdadd", asked(Question::Enrol))
        .layer(DefaultBodyLimit::max(64 * 1024));
    tokio::spawn(async move {
        let _ = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    });
    Ok(())
}

async fn respond(handler: &Handler, question: Question, body: &[u8]) -> Response {
    let event: Event = match serde_json::from_slice(body) {
        Ok(event) => event,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("not a CNI event: {error}")).into_response(),
    };
    if let Some(fault) = event.fault() {
        return (StatusCode::BAD_REQUEST, fault).into_response();
    }
    match handler(question, event).await {
        Ok(answer) => axum::Json(answer).into_response(),
        Err(Failure::NotEnrolled(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
        Err(Failure::CannotTell(error)) => (StatusCode::SERVICE_UNAVAILABLE, error).into_response(),
    }
}
