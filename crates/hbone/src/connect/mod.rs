//! The head of a CONNECT request: where the stream goes and what the sender says of itself
//! (reference/data-plane.md §2).
//!
//! Whatever a peer writes here is judged without panicking: a head without a usable destination is refused
//! ([`HeadError`]), everything that only describes the sender is optional and ignored when malformed.

mod baggage;
mod exercise;
mod forwarded;
mod trace;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use mesh::Authority;

pub use baggage::Baggage;
#[doc(hidden)]
pub use exercise::exercise;
pub use forwarded::Forwarded;
pub use trace::TraceParent;

pub(crate) const BAGGAGE: &str = "baggage";
pub(crate) const FORWARDED: &str = "forwarded";
pub(crate) const TRACEPARENT: &str = "traceparent";
pub(crate) const FORWARDED_NETWORK: &str = "x-forwarded-network";

/// The head of a CONNECT request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Where the stream goes.
    pub authority: Authority,
    /// The sender's workload, as the sender describes it.
    pub baggage: Option<Baggage>,
    /// Who opened the connection, and which service was called.
    pub forwarded: Option<Forwarded>,
    /// Identifies the connection in logs.
    pub trace: Option<TraceParent>,
    /// The sender's network, when the request crossed networks.
    pub network: Option<Arc<str>>,
}

/// Why a request is no CONNECT that can be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Another method.
    #[error("method {0} is not served here, only CONNECT is")]
    NotConnect(String),
    /// No destination, or none that can be understood.
    #[error("{0:?} is no destination: it must be address:port or hostname:port")]
    Authority(String),
}

impl Head {
    /// A head with nothing but a destination.
    pub fn to(authority: Authority) -> Self {
        Self { authority, baggage: None, forwarded: None, trace: None, network: None }
    }

    /// Reads the head of a request.
    pub fn parse<B>(request: &Request<B>) -> Result<Self, HeadError> {
        let text = request.uri().authority().map_or("", |authority| authority.as_str());
        Self::of(request.method(), text, request.headers())
    }

    /// Reads what a request says.
    pub(crate) fn of(method: &Method, authority: &str, headers: &HeaderMap) -> Result<Self, HeadError> {
        if method != Method::CONNECT {
            return Err(HeadError::NotConnect(method.as_str().chars().take(20).collect()));
        }
        Ok(Self {
            authority: parse_authority(authority)?,
            baggage: Baggage::parse(headers.get_all(BAGGAGE)),
            forwarded: headers.get(FORWARDED).and_then(Forwarded::parse),
            trace: headers.get(TRACEPARENT).and_then(|value| TraceParent::parse(value.as_bytes())),
            network: headers.get(FORWARDED_NETWORK).and_then(|value| value.to_str().ok()).map(Into::into),
        })
    }

    /// The request to send.
    pub(crate) fn request(&self) -> Result<Request<()>, HeadError> {
        let authority = self.authority.to_string();
        let uri = Uri::builder().authority(authority.as_str()).build();
        let uri = uri.map_err(|_| HeadError::Authority(authority))?;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        put(headers, BAGGAGE, self.baggage.as_ref().map(Baggage::to_string));
        put(headers, FORWARDED, self.forwarded.as_ref().map(Forwarded::to_string));
        put(headers, TRACEPARENT, self.trace.map(|trace| trace.to_string()));
        put(headers, FORWARDED_NETWORK, self.network.as_deref().map(str::to_owned));
        Ok(request)
    }
}

/// A description that cannot be a header is left out: it only describes.
pub(crate) fn put(headers: &mut HeaderMap, name: &'static str, value: Option<String>) {
    let value = value.filter(|value| !value.is_empty());
    if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
        headers.insert(name, value);
    }
}

pub(crate) fn put_baggage(headers: &mut HeaderMap, baggage: &Baggage) {
    put(headers, BAGGAGE, Some(baggage.to_string()));
}

pub(crate) fn baggage_of(headers: &HeaderMap) -> Option<Baggage> {
    Baggage::parse(headers.get_all(BAGGAGE))
}

/// Reads `address:port`, `[address]:port` or `hostname:port`.
pub fn parse_authority(text: &str) -> Result<Authority, HeadError> {
    let error = || HeadError::Authority(text.chars().take(300).collect());
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Authority::Address(SocketAddr::new(address.ip().to_canonical(), address.port())));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
    // `u16` would accept a leading plus.
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = port.parse::<u16>().ok().filter(|_| digits).ok_or_else(error)?;
    let hostname = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        && host.parse::<IpAddr>().is_err();
    if hostname { Ok(Authority::Hostname(host.into(), port)) } else { Err(error()) }
}

#[cfg(test)]
mod tests;
