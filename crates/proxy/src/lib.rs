//! The node proxy: one process a node that carries the traffic of the node's enrolled pods.
//!
//! `path` is the sentence everything else exists for: accept → identify → decide → authorize → dial → copy →
//! account. `pods` owns the listeners inside the pods' namespaces, `pool` the tunnels, `certs` the certificates,
//! `xds` the view of the mesh, `flows` the accounting, `reports` what the observer is told of it,
//! `dns` the names, `http` the proxy's own servers, `heap` and `memory` what it holds.
//!
//! Decisions are made in [`mesh`] and the protocol of tunnels is in [`hbone`]; this crate does the IO.

mod certs;
mod config;
mod context;
mod copy;
mod dns;
mod engine;
mod failure;
mod files;
mod flows;
mod grpc;
mod heap;
mod hostnames;
mod http;
mod local;
pub mod logging;
mod memory;
mod outdated;
mod path;
mod pods;
mod pool;
mod proxy_protocol;
mod ready;
mod reports;
mod revocation;
mod run;
mod sockets;
#[cfg(test)]
mod testing;
mod views;
mod xds;

pub use config::{
    Config, ConfigError, Dns, FlowTarget, Headers, Keepalive, Local, Log, Own, Ports, Remote, Root, Token,
};
#[doc(hidden)]
pub use dns::exercise as exercise_dns;
pub use heap::Sampling;
#[doc(hidden)]
pub use pods::exercise_zds;
pub use run::{RunError, run, run_with_log};
#[doc(hidden)]
pub use xds::exercise as exercise_xds;
