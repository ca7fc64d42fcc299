//! Scrape targets and their proofs.

use serde::Serialize;

use super::{Record, Why};
use crate::flow::{Millis, Text};

/// How a scrape is secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Proof {
    // Worst first: rows are sorted so.
    Plaintext,
    Unproven,
    OneSided,
    Denied,
    Proven,
}

impl Proof {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Plaintext, Self::Unproven, Self::OneSided, Self::Denied, Self::Proven];

    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Unproven => "unproven",
            Self::OneSided => "one_sided",
            Self::Denied => "denied",
            Self::Proven => "proven",
        }
    }
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Targets {
    pub at: Millis,
    pub prometheis: Vec<Prometheus>,
    pub summary: ProofCounts,
    pub total: usize,
    pub targets: Vec<Target>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct ProofCounts {
    pub total: usize,
    pub proven: usize,
    pub one_sided: usize,
    pub plaintext: usize,
    pub denied: usize,
    pub unproven: usize,
    pub up: usize,
}

impl ProofCounts {
    /// Counts one more target.
    pub fn add(&mut self, proof: Proof, up: bool) {
        self.total += 1;
        self.up += usize::from(up);
        *match proof {
            Proof::Proven => &mut self.proven,
            Proof::OneSided => &mut self.one_sided,
            Proof::Plaintext => &mut self.plaintext,
            Proof::Denied => &mut self.denied,
            Proof::Unproven => &mut self.unproven,
        } += 1;
    }

    /// How many have a proof.
    pub fn of(&self, proof: Proof) -> usize {
        match proof {
            Proof::Proven => self.proven,
            Proof::OneSided => self.one_sided,
            Proof::Plaintext => self.plaintext,
            Proof::Denied => self.denied,
            Proof::Unproven => self.unproven,
        }
    }
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Prometheus {
    pub id: Text,
    pub url: String,
    pub namespace: Text,
    pub pod: Text,
    pub identity: Text,
    pub enrolled: Option<bool>,
    pub reachable: bool,
    pub error: String,
    pub polled_at: Option<Millis>,
    pub summary: ProofCounts,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Target {
    pub id: String,
    pub prometheus: Text,
    pub pool: Text,
    pub scrape_url: String,
    pub address: String,
    pub health: &'static str,
    pub last_error: String,
    pub last_scrape: Option<Millis>,
    pub last_scrape_duration_ms: f64,
    pub scrape_interval_ms: Millis,
    pub proof: Proof,
    pub namespace: Text,
    pub pod: Text,
    pub workload: Text,
    pub node: Text,
    pub target_id: Text,
    pub source_identity: Text,
    pub destination_identity: Text,
    pub why: Option<Why>,
    pub notes: Vec<Why>,
    pub evidence: Evidence,
}

#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Evidence {
    pub from: Option<Millis>,
    pub to: Option<Millis>,
    pub records: Vec<Record>,
    pub text: String,
}
