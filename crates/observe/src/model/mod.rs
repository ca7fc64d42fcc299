//! The answers of the API, field by field as `openapi.json` describes them. Plain data: nothing is decided here.

mod coverage;
mod graph;
mod overview;
mod pairs;
mod scrape;
mod state;

use serde::Serialize;

use crate::flow::Text;
use crate::why::Code;

pub use coverage::{Coverage, Measure, percent};
pub use graph::{
    Bytes, Connections, Delta, Edge, Exception, Graph, IdentityPair, Limits, Node, PairCounts, Proxy, Rate,
    Snapshot,
};
pub use overview::{Blind, Finding, Hint, NamespaceRow, Overview};
pub use pairs::{End, Pair, Pairs, Record};
pub use scrape::{Evidence, Prometheus, Proof, ProofCounts, Target, Targets};
pub use state::{Lock, State};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Why {
    pub code: Code,
    pub reason: Text,
    pub text: String,
    pub fix: String,
    pub command: String,
    pub count: usize,
}
