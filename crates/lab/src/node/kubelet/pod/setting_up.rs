//! Setting a pod up: its sandbox, its volumes, its files; again and again for as long as it is wanted.

use std::sync::Arc;
use std::time::Duration;

use super::super::container::{self, Home};
use super::{API_TIMEOUT, Worker};
use crate::node::sandbox::Sandbox;
use crate::node::volumes::etc::{EtcFiles, resolv_conf};

/// How long the first attempt waits for the second; doubled up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(500);
/// The longest wait between two attempts.
const LONGEST: Duration = Duration::from_secs(8);

impl Worker {
    /// Makes volumes and sandbox, trying again for as long as the pod is wanted; answers whether it still is.
    pub(super) async fn set_up(&mut self) -> bool {
        let mut wait = FIRST;
        loop {
            if self.leaving() {
                return false;
            }
            self.report().await;
            let Err((reason, error)) = self.try_set_up().await else { return true };
            self.context.events.warning(&self.pod, None, reason, format!("{error:#}"));
            let until = tokio::time::Instant::now() + wait;
            wait = (wait * 2).min(LONGEST);
            loop {
                tokio::select! {
                    () = self.news() => if self.leaving() { return false },
                    () = tokio::time::sleep_until(until) => break,
                }
            }
        }
    }

    async fn try_set_up(&mut self) -> Result<(), (&'static str, anyhow::Error)> {
        let context = self.context.clone();
        if self.sandbox.is_none() {
            let sandbox = Sandbox::create(&context.config, &self.pod)
                .await
                .map_err(|e| ("FailedCreatePodSandBox", e.context("Failed to create pod sandbox")))?;
            self.ips = sandbox.ips.clone();
            self.sandbox = Some(sandbox);
            self.register();
            self.report().await;
        }
        let pod = self.pod.clone();
        let sources = container::sources(&context, &pod, &self.ips);
        let set_up = async { self.volumes.lock().await.set_up(&sources).await };
        tokio::time::timeout(3 * API_TIMEOUT, set_up)
            .await
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the API server does not answer")))
            .map_err(|e| ("FailedMount", e))?;
        let hostname = container::hostname(&self.pod, &context.config.name);
        let resolv = resolv_conf(&self.pod, context.config.dns_ip, &context.resolv_conf);
        let etc = EtcFiles::write(&self.pod, &hostname, &self.ips, &resolv)
            .map_err(|e| ("FailedMount", e.context("cannot write the pod's files for /etc")))?;
        self.home = self.sandbox.as_ref().map(|sandbox| Home {
            ips: self.ips.clone(),
            netns: sandbox.netns_path.clone(),
            hostname,
            etc: Arc::new(etc),
            volumes: self.volumes.clone(),
        });
        Ok(())
    }
}
