//! From an HTTP request to a connection that speaks something else: WebSocket or SPDY/3.1, in which protocol.
//!
//! The choice is pure; [`Upgrade::accept`] answers 101 and runs the session once HTTP has let go.

use std::future::Future;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::{Body, Refusal};

/// The connection after the upgrade.
pub(super) type Io = TokioIo<Upgraded>;

const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
/// Larger than any frame clients send (kubectl: 32 KiB, kube-rs: 4 KiB).
const LARGEST_MESSAGE: usize = 1 << 20;

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// A WebSocket that speaks this subprotocol; the empty one when the client named none.
    WebSocket(&'static str),
    /// SPDY/3.1 whose streams speak this protocol.
    Spdy(&'static str),
}

impl Upgrade {
    /// Chooses from the request's headers, the first of `web_socket` or `spdy` that the client offers too.
    pub fn choose(
        headers: &HeaderMap,
        web_socket: &[&'static str],
        spdy: &[&'static str],
    ) -> Result<Self, Refusal> {
        let upgrades: Vec<String> = list(headers, header::UPGRADE.as_str()).collect();
        let asks = |what: &str| upgrades.iter().any(|upgrade| upgrade.eq_ignore_ascii_case(what));
        if asks("websocket") {
            if !headers.contains_key(header::SEC_WEBSOCKET_KEY) {
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "the WebSocket request has no key"));
            }
            let offered: Vec<String> = list(headers, header::SEC_WEBSOCKET_PROTOCOL.as_str()).collect();
            return pick(&offered, web_socket).map(Self::WebSocket);
        }
        if asks("spdy/3.1") {
            let offered: Vec<String> = list(headers, STREAM_PROTOCOL).collect();
            return pick(&offered, spdy).map(Self::Spdy);
        }
        Err(Refusal::new(StatusCode::BAD_REQUEST, "this needs an upgrade to WebSocket or SPDY/3.1"))
    }

    /// The answer that switches protocols; `session` runs on the connection afterwards.
    pub fn accept<S, F>(self, mut request: Request<Incoming>, session: S) -> Response<Body>
    where
        S: FnOnce(Io) -> F + Send + 'static,
        F: Future<Output = ()> + Send,
    {
        let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        match self {
            Self::WebSocket(protocol) => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
                let accept = key.map(|key| derive_accept_key(key.as_bytes())).unwrap_or_default();
                if let Ok(accept) = HeaderValue::from_str(&accept) {
                    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
                }
                if !protocol.is_empty() {
                    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
                }
            }
            Self::Spdy(protocol) => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
                headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
            }
        }
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            match upgraded.await {
                Ok(io) => session(TokioIo::new(io)).await,
                Err(error) => tracing::debug!("the upgrade did not happen: {error}"),
            }
        });
        response
    }
}

/// The WebSocket on an upgraded connection.
pub(super) async fn web_socket(io: Io) -> WebSocketStream<Io> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(LARGEST_MESSAGE))
        .max_frame_size(Some(LARGEST_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// The message that ends a session as it should. Without a code kubectl takes the end for an accident.
pub(super) fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() }))
}

/// The words of a header that may come as a list, as several lines, or both.
fn list(headers: &HeaderMap, name: &str) -> impl Iterator<Item = String> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(|word| word.trim().to_owned()).filter(|word| !word.is_empty())
}

fn pick(offered: &[String], served: &[&'static str]) -> Result<&'static str, Refusal> {
    if offered.is_empty() && served.contains(&"") {
        return Ok("");
    }
    let chosen = served.iter().find(|served| offered.iter().any(|offered| offered == *served));
    chosen.copied().ok_or_else(|| {
        let message = format!("none of the protocols {offered:?} is served here, only {served:?}");
        Refusal::new(StatusCode::FORBIDDEN, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_best_protocol_both_sides_know_is_chosen() {
        let served = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
        let ask = |protocols: &str| {
            let headers = headers(&[
                ("upgrade", "websocket"),
                ("sec-websocket-key", "x"),
                ("sec-websocket-protocol", protocols),
            ]);
            Upgrade::choose(&headers, &served, &[]).ok()
        };
        assert_eq!(
            ask("v4.channel.k8s.io, v5.channel.k8s.io"),
            Some(Upgrade::WebSocket("v5.channel.k8s.io"))
        );
        assert_eq!(ask("v4.channel.k8s.io"), Some(Upgrade::WebSocket("v4.channel.k8s.io")));
        assert_eq!(ask("v9.channel.k8s.io"), None);
    }

    #[test]
    fn spdy_names_its_protocols_in_a_header_of_its_own() {
        let headers = headers(&[
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ]);
        let chosen = Upgrade::choose(&headers, &[], &["v4.channel.k8s.io"]);
        assert_eq!(chosen, Ok(Upgrade::Spdy("v4.channel.k8s.io")));
    }

    #[test]
    fn a_plain_request_is_told_what_it_lacks() {
        assert!(Upgrade::choose(&headers(&[]), &[""], &[""]).unwrap_err().message.contains("upgrade"));
        let no_key = headers(&[("upgrade", "websocket")]);
        assert!(Upgrade::choose(&no_key, &[""], &[]).is_err());
    }
}
