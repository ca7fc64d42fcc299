//! The workload API: delta xDS on `AggregatedDiscoveryService`.
//!
//! [`session`] is the protocol, [`frame`] the bytes; here is what joins them to a stream: requests first, then what
//! is newer than the client was told. A push is made only when the connection can take it, so a slow client makes no
//! queue: it gets one merged update later.

mod budget;
mod clients;
mod frame;
mod service;
mod session;
#[cfg(test)]
mod tests;

pub use clients::Clients;
pub use frame::{Push, PushCodec};
pub use service::AdsServer;
pub use session::{Heard, Session};
