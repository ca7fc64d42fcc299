//! How a watch goes on after it broke.
//!
//! One that merely breaks is taken up where it was, with another server of the API or with the same one. After an outage
//! nothing is: an API that was restored from a backup counts its versions from further back, so that a watch from the
//! last one heard would be silent until they are reached again, and then have missed what came before.

use futures::{Stream, StreamExt};
use kube::runtime::{WatchStreamExt, watcher};

/// Follows what `start` begins to watch, with pauses after errors, and begins anew when the API was away.
pub(crate) fn follow<K, S>(
    start: impl Fn() -> S + Send,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send
where
    S: Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    K: Send + 'static,
{
    let begin = move || start().boxed();
    futures::stream::unfold((begin(), begin), |(mut stream, begin)| async move {
        let heard = stream.next().await?;
        if heard.as_ref().is_err_and(away) {
            stream = begin();
        }
        Some((heard, (stream, begin)))
    })
    // Around all of it: one that begins anew has paused, too.
    .default_backoff()
}

/// Whether a watch could not be taken up again because the API was not there. A refusal is an answer.
fn away(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code >= 500,
        watcher::Error::WatchStartFailed(_) => true,
        _ => false,
    }
}
