//! One change of a rule set: a script handed to `nft -f -` in one process and so in one kernel transaction.
//!
//! It knows nothing of what the script says. The process starts on a thread that is inside the wanted network
//! namespace for that moment, inherits the namespace, and is ended when it takes longer than [`PATIENCE`].

use std::process::Stdio;
use std::time::Duration;

use netns::NetNs;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How long one change may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Why a rule set could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program is missing or cannot be started.
    #[error("cannot start nft: {0}; is the package nftables installed?")]
    Start(std::io::Error),
    /// The namespace cannot be entered.
    #[error(transparent)]
    Namespace(#[from] netns::Error),
    /// The program refused the script; nothing of it was applied.
    #[error("nft refused the rules: {0}")]
    Refused(String),
    /// The program did not end in time and was killed.
    #[error("nft did not finish within {} s", PATIENCE.as_secs())]
    Slow,
}

/// Applies `script` in `namespace`, or in the caller's own one.
pub async fn apply(namespace: Option<&NetNs>, script: &str) -> Result<(), Error> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    let mut child = match namespace {
        Some(namespace) => namespace.run(|| command.spawn())?,
        None => command.spawn(),
    }
    .map_err(Error::Start)?;
    let mut stdin = child.stdin.take();
    let work = async move {
        if let Some(stdin) = stdin.as_mut() {
            // An nft that ends early says why on stderr; the broken pipe adds nothing.
            let _ = stdin.write_all(script.as_bytes()).await;
        }
        drop(stdin);
        child.wait_with_output().await
    };
    let output =
        tokio::time::timeout(PATIENCE, work).await.map_err(|_| Error::Slow)?.map_err(Error::Start)?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let first: Vec<&str> = text.lines().take(4).map(str::trim).collect();
    Err(Error::Refused(format!("{} ({})", first.join(" "), output.status)))
}
