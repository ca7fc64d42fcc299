//! What the demo measured, for people and for programs.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// One row of the query that users know from the article this demo follows.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Workload that was called.
    pub destination_workload: String,
    /// `mutual_tls` or `unknown`.
    pub connection_security_policy: String,
    /// Bytes sent to Prometheus.
    pub bytes: u64,
}

/// The observer's count of Prometheus' active targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// All of them.
    pub total: u64,
    /// Mutual TLS, seen by both proxies.
    pub proven: u64,
}

/// Seconds that the chapters took.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Seconds {
    /// Until the lab stood and every target was scraped.
    pub lab: f64,
    /// Until the mesh was ready.
    pub install: f64,
    /// From the labels until every scrape was proven mutual TLS.
    pub enrol: f64,
}

/// Everything measured in one run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Scraped application pods.
    pub targets: usize,
    /// Of them up, as Prometheus says, at the end.
    pub up: usize,
    /// Scrapes proven mutual TLS before the labels.
    pub mtls_before: usize,
    /// Scrapes proven mutual TLS after them.
    pub mtls_after: usize,
    /// Targets whose scrapes either proxy still saw in plaintext, or nobody saw, after the labels.
    pub plaintext_after: usize,
    /// Pods whose UID or restart count changed.
    pub pods_restarted: usize,
    /// Samples of `up` that were 0 between the labels and the end.
    pub scrapes_failed_while_enrolling: u64,
    /// An eavesdropper on the nodes' links read scrapes before.
    pub wire_readable_before: bool,
    /// … and after.
    pub wire_readable_after: bool,
    /// What the observer's scrape proof says of all targets of Prometheus, the mesh's own included.
    pub proof: Proof,
    /// The query's answer at the end.
    pub query: Vec<Row>,
    /// How long it took.
    pub seconds: Seconds,
}

/// The query of the article.
pub const QUERY: &str = "sum(istio_tcp_sent_bytes_total{source_workload=\"prometheus\"}) \
                         by (destination_workload, connection_security_policy)";

impl Report {
    /// Whether all that the demo promises held.
    pub fn held(&self) -> bool {
        self.broken().is_empty()
    }

    /// The promises that did not hold.
    pub fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut check = |held: bool, text: String| {
            if !held {
                broken.push(text);
            }
        };
        check(self.targets >= 14, format!("only {} targets", self.targets));
        check(self.up == self.targets, format!("{} of {} targets are up", self.up, self.targets));
        check(
            self.mtls_before == 0,
            format!("{} scrapes were mutual TLS before the labels", self.mtls_before),
        );
        check(
            self.mtls_after == self.targets,
            format!("{} of {} scrapes are proven mutual TLS", self.mtls_after, self.targets),
        );
        check(
            self.plaintext_after == 0,
            format!("{} targets are still scraped in plaintext", self.plaintext_after),
        );
        check(self.pods_restarted == 0, format!("{} pods were restarted", self.pods_restarted));
        check(
            self.scrapes_failed_while_enrolling == 0,
            format!("{} scrapes failed while enrolling", self.scrapes_failed_while_enrolling),
        );
        check(
            self.wire_readable_before,
            "the eavesdropper read nothing before: the capture proves nothing".to_owned(),
        );
        check(!self.wire_readable_after, "the eavesdropper still reads scrapes".to_owned());
        let Proof { total, proven } = self.proof;
        check(total > 0 && proven == total, format!("the observer proves {proven} of {total} scrapes"));
        broken
    }

    /// The end of the story, on standard output.
    pub fn print(&self) {
        println!("\n{QUERY}\n");
        let width = self.query.iter().map(|row| row.destination_workload.len()).max().unwrap_or(0).max(20);
        println!("{:width$}  {:26}  {:>10}", "destination_workload", "connection_security_policy", "bytes");
        for row in &self.query {
            let Row { destination_workload, connection_security_policy, bytes } = row;
            println!("{destination_workload:width$}  {connection_security_policy:26}  {bytes:>10}");
        }
        println!();
        println!("                        before   after");
        println!(
            "scrapes in mutual TLS   {:>6}   {:>5}  of {}",
            self.mtls_before, self.mtls_after, self.targets
        );
        println!(
            "readable on the wire    {:>6}   {:>5}",
            yes(self.wire_readable_before),
            yes(self.wire_readable_after)
        );
        println!("proven by the observer           {:>5}  of {}", self.proof.proven, self.proof.total);
        println!("pods restarted                   {:>5}", self.pods_restarted);
        println!("scrapes failed                   {:>5}", self.scrapes_failed_while_enrolling);
        println!(
            "seconds: lab {:.1}, install {:.1}, enrol {:.1}",
            self.seconds.lab, self.seconds.install, self.seconds.enrol
        );
        match self.broken().as_slice() {
            [] => println!(
                "\n✔ Every scrape is mutual TLS, seen by the proxies of both ends; nothing was restarted or lost."
            ),
            broken => println!("\n✘ {}", broken.join("\n✘ ")),
        }
    }

    /// Writes the report as JSON.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n")
            .with_context(|| format!("cannot write the report to {}", path.display()))
    }
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}
