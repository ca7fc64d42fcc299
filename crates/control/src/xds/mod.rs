//! The workload API: delta xDS on `AggregatedDiscoveryService`.
//!
//! [`session`] is the protocol ([`demand`] for clients that ask by name), [`frame`] and [`body`] are the bytes, and
//! [`service`] joins them to a stream: requests first, then what is newer than the client was told. A push is made only
//! when the connection can take it, so a slow client makes no queue: it gets one merged update later. [`gate`] lets
//! few clients at once through the costly beginning.

mod body;
mod clients;
mod demand;
mod frame;
mod gate;
mod service;
mod session;
#[cfg(test)]
mod tests;

pub use clients::Clients;
pub use frame::Push;
pub use service::AdsServer;
pub use session::{Heard, Session};
