//! kube-proxy's job for one node: keeps the packet rules of the node's network namespace equal to the Services.
//!
//! It owns the tables named [`rules::TABLE`] there and touches no other rule. What the rules say is decided by
//! [`rules::render`]; here they are only handed to `nft`, and handed again when that failed.

pub mod rules;

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use netns::NetNs;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;

use super::Shared;
use rules::Node;

/// Bursts of changes (a rollout) become one transaction.
const SETTLE: Duration = Duration::from_millis(30);
const APPLY_WITHIN: Duration = Duration::from_secs(20);

/// Programs the node for as long as the process lives.
pub(super) async fn keep(ns: NetNs, node: Node, mut changes: watch::Receiver<Shared>) {
    let mut applied = String::new();
    let mut failures = 0u32;
    loop {
        let snapshot = changes.borrow_and_update().clone();
        if let Some(snapshot) = snapshot {
            let text = rules::render(&node, &snapshot);
            if text != applied {
                match apply(&ns, &text).await {
                    Ok(()) => {
                        tracing::debug!(
                            node = node.name,
                            services = snapshot.services.len(),
                            "service rules replaced"
                        );
                        (applied, failures) = (text, 0);
                    }
                    Err(error) => {
                        failures += 1;
                        tracing::error!(
                            node = node.name,
                            failures,
                            "service rules not replaced, the old ones stay: {error:#}"
                        );
                    }
                }
            }
        }
        let changed = if failures == 0 {
            changes.changed().await
        } else {
            // Same text again, in case the fault was outside it (memory, a lock held by another transaction).
            let pause = Duration::from_secs(1 << failures.min(5));
            tokio::time::timeout(pause, changes.changed()).await.unwrap_or(Ok(()))
        };
        if changed.is_err() {
            return;
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// Runs `nft -f -` inside `ns`: all of `text` or nothing of it.
pub(super) async fn apply(ns: &NetNs, text: &str) -> anyhow::Result<()> {
    // The child inherits the namespace of the thread that forks it.
    let mut child = ns
        .try_run(|| {
            tokio::process::Command::new("nft")
                .args(["-f", "-"])
                .env("PATH", super::TOOLS_PATH)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
        })
        .context("cannot start nft (Debian package nftables)")?;
    let mut stdin = child.stdin.take();
    let run = async {
        if let Some(stdin) = &mut stdin {
            // A write error is nft's own early exit; its message on stderr says more.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
        drop(stdin);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(APPLY_WITHIN, run).await.context("nft did not end in time")??;
    if !output.status.success() {
        bail!("nft refused the rules: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
