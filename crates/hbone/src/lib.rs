//! HBONE: tunnels that carry TCP connections between proxies, each an HTTP/2 CONNECT stream inside mutually
//! authenticated TLS whose certificates are SPIFFE identities (reference/data-plane.md §2).
//!
//! This crate owns the protocol: TLS configurations and what is asked of a peer's certificate ([`tls`]), the head
//! of a CONNECT request ([`connect`]), and both ends of a tunnel ([`client`], [`server`]). It works over anything
//! that reads and writes. It never looks at policies or workloads, never dials, never decides, and every wait in
//! it is bounded by [`Settings`].

pub mod client;
pub mod connect;
pub mod h2;
mod keepalive;
pub mod secured;
pub mod server;
mod settings;
mod stream;
pub mod tls;

pub use client::{OpenError, Opened, Tunnel};
#[doc(hidden)]
pub use connect::exercise as exercise_head;
pub use connect::{Baggage, Forwarded, Head, HeadError, TraceParent};
pub use server::{Request, Responder, Server};
pub use settings::Settings;
pub use stream::{RecvHalf, SendHalf, Stream};
pub use tls::{Credential, CredentialError, HandshakeError, PeerFault};

/// What the tunnel negotiates inside TLS.
pub const ALPN: &[u8] = b"h2";
