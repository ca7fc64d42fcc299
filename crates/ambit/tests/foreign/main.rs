//! A node proxy of another project under our control plane and our node agent, and against our own proxy: the binary in
//! `AMBIT_FOREIGN_PROXY` (a ztunnel) serves one node of a lab, ours the other.
//!
//! Nothing of it is built here, so these tests are ignored unless they are asked for:
//!
//! ```text
//! AMBIT_FOREIGN_PROXY=/path/to/ztunnel cargo nextest run -p ambit --test foreign --run-ignored only
//! ```
//!
//! What was met this way is in `docs/reference/interoperability.md`.

mod calls;
mod ends;
mod fed;
mod rules;
mod seen;
mod stalled;
#[path = "../support/mod.rs"]
mod support;
mod traffic;
mod words;
mod world;
