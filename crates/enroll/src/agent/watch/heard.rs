//! Watches that an API server with another memory does not deceive.
//!
//! One that was restored from a backup counts its versions from further back. A watch from the last version heard is
//! then accepted and stays silent until that is reached again, and has missed what came before. So whoever could not
//! take up a watch because the API was away lists anew.

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

/// What the API says of these objects, for as long as somebody listens.
pub(in crate::agent) fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
) -> BoxStream<'static, watcher::Result<watcher::Event<K>>>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let start = move || watcher(api.clone(), config.clone()).boxed();
    stream::unfold((start(), start), |(mut watch, start)| async move {
        let heard = watch.next().await?;
        if heard.as_ref().err().is_some_and(away) {
            watch = start();
        }
        Some((heard, (watch, start)))
    })
    // Around all of it: one that begins anew has paused, too.
    .default_backoff()
    .boxed()
}

/// Whether a watch could not be taken up because the API was not there; a refusal is an answer.
fn away(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code >= 500,
        watcher::Error::WatchStartFailed(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
