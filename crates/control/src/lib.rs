//! The control plane: it watches Kubernetes, serves the workload API over delta xDS, and signs certificates.
//!
//! Data flows one way: [`watch`] hears of objects, [`input`] keeps what the mesh needs of each, [`state`] owns them
//! and recomputes with the pure functions of [`model`] only what a change touches, and publishes snapshots. [`xds`]
//! and [`ca`] answer node proxies from the latest snapshot; [`auth`] says who is asking; [`roots`] spreads the root
//! certificate and [`status`] writes conditions back, on the replica that holds the lease. [`run`] wires it all.
//!
//! It never talks to the data path, never keeps state outside the Kubernetes API, and never starts to serve before
//! every input has been listed once: half a mesh would tell proxies that the other half is gone.

pub mod auth;
pub mod ca;
mod config;
mod dump;
mod error;
#[cfg(test)]
mod fixtures;
mod http;
pub mod input;
mod lease;
pub mod metrics;
pub mod model;
mod process;
mod profile;
pub mod roots;
mod run;
pub mod serve;
pub mod state;
pub mod status;
pub mod watch;
pub mod xds;

pub use config::{Account, Config, Ports};
pub use error::Error;
pub use run::run;
