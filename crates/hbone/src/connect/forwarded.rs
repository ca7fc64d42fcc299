//! The `forwarded` header: who opened the connection and which service was called.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderValue;

/// `for="<client>"`, and `host=<service hostname>` when the call was addressed to a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// Address of the client.
    pub client: Option<SocketAddr>,
    /// Hostname of the service that was called; none: the workload itself was.
    pub host: Option<Arc<str>>,
}

impl Forwarded {
    pub(crate) fn parse(header: &HeaderValue) -> Option<Self> {
        let text = header.to_str().ok()?;
        let value = |key: &str| {
            let parts = text.split(';').map(str::trim);
            parts.filter_map(|part| part.strip_prefix(key)).map(|value| value.trim_matches('"')).next()
        };
        Some(Self {
            client: value("for=").and_then(|client| client.parse().ok()),
            host: value("host=").filter(|host| !host.is_empty()).map(Into::into),
        })
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(client) = self.client {
            write!(f, "for=\"{client}\"")?;
        }
        if let Some(host) = &self.host {
            let separator = if self.client.is_some() { ";" } else { "" };
            write!(f, "{separator}host={host}")?;
        }
        Ok(())
    }
}
