//! Our node proxy in an Istio of others: an istiod in place of our control plane, the node agent and CNI plugin of
//! Istio in place of ours, in a lab whose API they are clients of.
//!
//! Nothing of them is built here, so these tests are ignored unless they are asked for:
//!
//! ```text
//! AMBIT_FOREIGN_ISTIOD=/path/to/pilot-discovery AMBIT_FOREIGN_CNI=/directory/of/install-cni-and-istio-cni \
//!     cargo nextest run -p ambit --test istio --run-ignored only
//! ```
//!
//! What was met this way is in `docs/reference/interoperability.md`.

mod agent;
mod control;
#[path = "../support/mod.rs"]
mod support;
#[path = "../foreign/traffic.rs"]
#[allow(dead_code)]
mod traffic;
mod world;
