//! The certificate authority (reference/control-plane.md §4).
//!
//! [`Authority`] holds the root and signs; [`store`] keeps the root in a Secret; [`authorizer`] decides whether a node
//! proxy may have a certificate in a workload's name; [`CaServer`] is the gRPC service. [`plugin`] reads authorities made
//! elsewhere, [`rotation`] replaces a self-signed root, [`Keeper`] follows either. Keys live in memory and in that
//! Secret, never in logs or dumps.

mod authority;
mod authorizer;
mod keeper;
mod limit;
pub mod plugin;
pub mod rotation;
mod service;
pub mod store;
#[cfg(test)]
mod tests;

pub use authority::{Authority, AuthorityError, Lifetime};
pub use authorizer::{Refused, may_impersonate};
pub use keeper::{Keeper, Source, load, page};
pub use service::CaServer;
