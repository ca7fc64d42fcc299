//! `kubectl logs`: the file a container's output was written to, filtered and followed.

pub(super) mod record;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use jiff::{SignedDuration, Timestamp};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::request::{LogOptions, Since};
use super::{Body, Refusal, whole};
use crate::node::border::Pods;
use record::{Records, View};

/// How soon a follower sees a new line.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const BLOCK: usize = 32 * 1024;

pub(super) async fn answer(
    pods: Arc<dyn Pods>,
    namespace: String,
    pod: String,
    container: String,
    options: LogOptions,
) -> Result<Response<Body>, Refusal> {
    let found = pods
        .container(&namespace, &pod, Some(&container))
        .map_err(|error| Refusal::of_pod(&namespace, &pod, &error))?;
    let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
    let path = match options.previous {
        false => found.log.clone(),
        true => found.previous_log.clone().ok_or_else(|| {
            bad(format!("previous terminated container {container:?} in pod {pod:?} not found"))
        })?,
    };
    let mut file = match File::open(&path).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && found.running => {
            return Ok(whole(StatusCode::OK, ""));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(bad(format!("container {container:?} in pod {pod:?} is waiting to start")));
        }
        Err(error) => {
            let message = format!("cannot open the log of container {container:?} in pod {pod:?}: {error}");
            return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message));
        }
    };
    if let Some(lines) = options.tail_lines {
        go_to_tail(&mut file, lines).await.map_err(|error| {
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot read the log: {error}"))
        })?;
    }
    let view = View {
        timestamps: options.timestamps,
        since: options.since.and_then(|since| moment(since, Timestamp::now())),
        left: options.limit_bytes,
        fresh: true,
    };
    let run = Run { pods, namespace, pod, container, id: found.id, path };
    let follow = (options.follow && !options.previous).then_some(run);
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(copy(file, view, follow, sender));
    let frames = ReceiverStream::new(receiver).map(|bytes| bytes.map(http_body::Frame::data));
    let mut response = whole(StatusCode::OK, "");
    *response.body_mut() = StreamBody::new(frames).boxed_unsync();
    Ok(response)
}

fn moment(since: Since, now: Timestamp) -> Option<Timestamp> {
    match since {
        Since::Time(time) => Some(time),
        // Longer ago than time itself is the same as no limit.
        Since::Seconds(seconds) => now.checked_sub(SignedDuration::from_secs(seconds)).ok(),
    }
}

async fn go_to_tail(file: &mut File, lines: u64) -> io::Result<()> {
    let mut copy = file.try_clone().await?.into_std().await;
    let start = tokio::task::spawn_blocking(move || record::tail(&mut copy, lines)).await??;
    file.seek(io::SeekFrom::Start(start)).await?;
    Ok(())
}

/// One run of a container, whose end is the end of following it.
pub(super) struct Run {
    pub pods: Arc<dyn Pods>,
    pub namespace: String,
    pub pod: String,
    pub container: String,
    pub id: String,
    pub path: PathBuf,
}

impl Run {
    pub fn goes_on(&self) -> bool {
        let now = self.pods.container(&self.namespace, &self.pod, Some(&self.container));
        now.is_ok_and(|now| now.running && now.id == self.id && now.log == self.path)
    }
}

async fn copy(mut file: File, mut view: View, follow: Option<Run>, to: mpsc::Sender<io::Result<Bytes>>) {
    let mut records = Records::default();
    let mut block = vec![0; BLOCK];
    let mut out = BytesMut::new();
    let mut last_look = follow.is_none();
    while !view.is_full() {
        match file.read(&mut block).await {
            Ok(0) if last_look => return,
            Ok(0) => {
                // What was written between the last read and the end is read once more.
                last_look = !follow.as_ref().is_some_and(Run::goes_on);
                if !last_look && tokio::time::timeout(LOOK_AGAIN, to.closed()).await.is_ok() {
                    return;
                }
            }
            Ok(length) => {
                records.push(&block[..length], |record| {
                    if !view.is_full() {
                        view.add(&record, &mut out);
                    }
                });
                let ready = out.split().freeze();
                if !ready.is_empty() && to.send(Ok(ready)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let _ = to.send(Err(error)).await;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_counted_back_from_now() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        assert_eq!(moment(Since::Seconds(60), now), Some("2026-01-01T00:00:00Z".parse().unwrap()));
        assert_eq!(moment(Since::Seconds(i64::MAX), now), None);
    }
}
