//! What must hold for any head that a peer sends: for fuzzing.

use http::header::HeaderName;
use http::{HeaderValue, Method, Request, Uri};

use super::{Head, parse_authority};

/// Reads `input` as a head: its first line is the authority, each further one a header `name: value`. Panics where a
/// promise is broken.
pub fn exercise(input: &[u8]) {
    let mut lines = input.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    if let Ok(text) = std::str::from_utf8(first)
        && let Ok(authority) = parse_authority(text)
    {
        assert_eq!(parse_authority(&authority.to_string()), Ok(authority), "read as it is written");
    }
    let Ok(uri) = Uri::builder().authority(first).build() else { return };
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = uri;
    for line in lines {
        let Some(at) = line.windows(2).position(|pair| pair == b": ") else { continue };
        let name = HeaderName::from_bytes(&line[..at]);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(&line[at + 2..])) {
            request.headers_mut().append(name, value);
        }
    }
    // Only the destination can be wrong: the rest describes, and what cannot be read of it is left out.
    let Ok(head) = Head::parse(&request) else { return };
    let written = head.request().unwrap_or_else(|error| panic!("{head:?} is not to be sent on: {error}"));
    let again = Head::parse(&written).unwrap_or_else(|error| panic!("{head:?} is not read again: {error}"));
    assert_eq!(again.authority, head.authority);
    assert_eq!(again.trace, head.trace);
    assert_eq!(again.network, head.network.filter(|network| !network.is_empty()));
    assert_eq!(again.baggage.unwrap_or_default(), head.baggage.unwrap_or_default());
    assert_eq!(
        again.forwarded.and_then(|forwarded| forwarded.client),
        head.forwarded.and_then(|forwarded| forwarded.client)
    );
}
