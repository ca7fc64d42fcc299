//! `kubectl attach`, as far as a container's output goes: what it writes from now on. Its standard input is
//! nobody's, as without `stdin: true` in the pod.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use super::exec::{Ends, Exit, Output, session};
use super::logs::Run;
use super::logs::record::{Records, output};
use super::request::ExecOptions;
use super::{Body, Refusal};
use crate::node::border::Pods;

const LOOK_AGAIN: Duration = Duration::from_millis(100);

pub(super) fn answer(
    request: Request<Incoming>,
    pods: Arc<dyn Pods>,
    namespace: String,
    pod: String,
    container: String,
    options: ExecOptions,
) -> Result<Response<Body>, Refusal> {
    let found = pods
        .container(&namespace, &pod, Some(&container))
        .map_err(|error| Refusal::of_pod(&namespace, &pod, &error))?;
    if !found.running {
        let message = format!("container {container:?} of pod {namespace}/{pod} is not running");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
    }
    let run = Run { pods, namespace, pod, container, id: found.id, path: found.log };
    session(request, options, move |ends| async move {
        match follow(&run, ends).await {
            Ok(()) => Exit::Code(0),
            Err(error) => Exit::Failed(format!("cannot read the container's output: {error}")),
        }
    })
}

async fn follow(run: &Run, mut ends: Ends) -> std::io::Result<()> {
    let mut file = File::open(&run.path).await?;
    file.seek(std::io::SeekFrom::End(0)).await?;
    let mut records = Records::default();
    let mut block = vec![0; 16 * 1024];
    let mut last_look = false;
    loop {
        let length = file.read(&mut block).await?;
        if length == 0 {
            if last_look {
                return Ok(());
            }
            last_look = !run.goes_on();
            // Input has nowhere to go; its end means that the client went away.
            if !last_look && matches!(tokio::time::timeout(LOOK_AGAIN, ends.input.recv()).await, Ok(None)) {
                return Ok(());
            }
            continue;
        }
        let mut pieces = Vec::new();
        records.push(&block[..length], |record| {
            let bytes = output(&record);
            pieces.push(if record.stderr { Output::Stderr(bytes) } else { Output::Stdout(bytes) });
        });
        for piece in pieces {
            if ends.output.send(piece).await.is_err() {
                return Ok(());
            }
        }
    }
}
