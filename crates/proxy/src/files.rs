//! Files that are mounted into the proxy's pod, and replaced while it runs.

use std::io;
use std::path::Path;
use std::time::Duration;

/// Files that Kubernetes mounts are replaced behind a link: contents are compared, not times.
const LOOK: Duration = Duration::from_secs(2);

/// What `path` holds, once that is something else than `current`; or why it cannot be read, at this look.
pub(crate) async fn changed(path: &Path, current: Option<&[u8]>) -> io::Result<Vec<u8>> {
    loop {
        tokio::time::sleep(LOOK).await;
        let now = tokio::fs::read(path).await?;
        if current != Some(&now) {
            return Ok(now);
        }
    }
}
