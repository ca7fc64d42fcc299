//! `kubectl exec`: a command in a running container, its streams carried over WebSocket or SPDY.
//!
//! [`process`] runs the command and knows nothing of the wire; [`channels`] and [`streams`] speak one wire each
//! and know nothing of processes. Between them stand [`Ends`], which `attach` uses as well.

pub(super) mod channels;
mod process;
mod pty;
pub(super) mod streams;

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::json;
use tokio::sync::mpsc;

use super::request::ExecOptions;
use super::upgrade::{Upgrade, web_socket};
use super::{Body, Refusal};
use crate::node::border::Pods;

/// What comes from the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    Stdin(Bytes),
    /// No more standard input; the other streams go on.
    StdinClosed,
    Resize {
        columns: u16,
        rows: u16,
    },
}

/// What goes to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
}

/// The program's side of a session. The client is gone when `input` ends or `output` is closed.
pub(super) struct Ends {
    pub input: mpsc::Receiver<Input>,
    pub output: mpsc::Sender<Output>,
}

/// The client's side.
struct Client {
    input: mpsc::Sender<Input>,
    output: mpsc::Receiver<Output>,
}

fn pair() -> (Client, Ends) {
    // A few blocks on the way are enough; more would only hide a slow reader from the program.
    let (input, ends_input) = mpsc::channel(4);
    let (ends_output, output) = mpsc::channel(4);
    (Client { input, output }, Ends { input: ends_input, output: ends_output })
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Exit {
    /// It ended by itself; 128 and the signal's number when by a signal.
    Code(i32),
    /// It could not be run or waited for.
    Failed(String),
}

impl Exit {
    /// The `Status` object that ends a session, as clients expect it on the error channel from v4 on.
    fn status(&self) -> Vec<u8> {
        let status = match self {
            Exit::Code(0) => json!({"metadata": {}, "status": "Success"}),
            Exit::Code(code) => json!({
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Exit::Failed(message) => json!({
                "metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500,
            }),
        };
        status.to_string().into_bytes()
    }
}

pub(super) fn answer(
    request: Request<Incoming>,
    pods: &Arc<dyn Pods>,
    namespace: &str,
    pod: &str,
    container: String,
    options: ExecOptions,
) -> Result<Response<Body>, Refusal> {
    let found = pods
        .container(namespace, pod, Some(&container))
        .map_err(|error| Refusal::of_pod(namespace, pod, &error))?;
    if !found.running {
        let message = format!("container {container:?} of pod {namespace}/{pod} is not running");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
    }
    let wanted = options.clone();
    session(request, options, move |ends| async move { process::run(&found, &wanted, ends).await })
}

/// Upgrades the request and connects the client to `program`.
pub(super) fn session<P, F>(
    request: Request<Incoming>,
    options: ExecOptions,
    program: P,
) -> Result<Response<Body>, Refusal>
where
    P: FnOnce(Ends) -> F + Send + 'static,
    F: Future<Output = Exit> + Send,
{
    let upgrade = Upgrade::choose(request.headers(), &channels::PROTOCOLS, &streams::PROTOCOLS)?;
    Ok(upgrade.accept(request, move |io| async move {
        match upgrade {
            Upgrade::WebSocket(_) => channels::serve(web_socket(io).await, &options, program).await,
            Upgrade::Spdy(_) => streams::serve(io, &options, program).await,
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_says_its_exit_code_where_clients_look_for_it() {
        let status: serde_json::Value = serde_json::from_slice(&Exit::Code(3).status()).unwrap();
        assert_eq!(status["status"], "Failure");
        assert_eq!(status["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(status["details"]["causes"][0]["message"], "3");
        let status: serde_json::Value = serde_json::from_slice(&Exit::Code(0).status()).unwrap();
        assert_eq!(status["status"], "Success");
    }
}
