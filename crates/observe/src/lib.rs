//! What the mesh saw: the flow store, the traffic graph, the scrape proof, the HTTP API and the web UI.
//!
//! Node proxies push what they count ([`ingest`]); the store keeps an hour of it ([`store`]); what both proxies said of
//! a pair is judged ([`judge`]) against what the cluster is ([`directory`]), and every judgement that is not *proven*
//! has a reason and a cure ([`why`]). From one judged snapshot ([`table`]) the graph, the overview and the lists are
//! made; Prometheus' own targets are joined with it ([`proof`]), and what only Prometheus saw is added ([`unseen`]).
//!
//! Everything from `store` to `proof` is pure: time is an argument, nothing waits. This crate never carries traffic,
//! never changes the cluster, and never says *mutual TLS* on the word of one side.

pub mod api;
pub mod certs;
pub mod cluster;
pub mod directory;
pub mod fixture;
pub mod flow;
pub mod graph;
pub mod ingest;
pub mod judge;
pub mod model;
pub mod observer;
pub mod overview;
pub mod proof;
mod run;
pub mod scrape;
pub mod serve;
pub mod store;
pub mod table;
#[cfg(test)]
mod testing;
pub mod unseen;
pub mod why;

pub use observer::Observer;
pub use run::{Config, Error, run};
