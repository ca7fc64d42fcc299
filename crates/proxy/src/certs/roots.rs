//! The roots that this proxy is told to trust, watched for being replaced.
//!
//! An authority may go over to another root from one moment to the next: an istiod does when it is given its first
//! `cacerts`, or has lost its Secret. Certificates of before and after then refuse one another, for as long as those of
//! before live. The authority's roots stand in the file that its server is checked against, on every node; when it
//! changes, everything is renewed.

use std::path::PathBuf;

use tokio::sync::watch;

use crate::files;

/// Says whenever the file holds something else, for as long as somebody listens.
pub(super) async fn follow(path: PathBuf, changed: watch::Sender<()>) {
    let mut current = tokio::fs::read(&path).await.ok();
    loop {
        let now = tokio::select! {
            () = changed.closed() => return,
            now = files::changed(&path, current.as_deref()) => now,
        };
        // Away or unreadable for a moment is not replaced.
        let Ok(now) = now else { continue };
        if current.replace(now).is_some() {
            tracing::info!(path = %path.display(), "the authority's roots have changed, certificates are renewed");
            changed.send_replace(());
        }
    }
}
