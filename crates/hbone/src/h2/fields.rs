//! The fields of one header block, judged: what makes a message malformed (RFC 9113 §8.1.1) and, of the rest, what a
//! tunnel wants to know. Nothing is kept of a field that nobody asks for.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::BUDGET;
use crate::connect::{self, BAGGAGE, FORWARDED, FORWARDED_NETWORK, TRACEPARENT};
use crate::{Baggage, Head, HeadError};

const METHOD: u8 = 1;
const AUTHORITY: u8 = 2;
const STATUS: u8 = 4;
const SCHEME: u8 = 8;
const PATH: u8 = 16;

/// What a block has said so far.
#[derive(Default)]
pub(super) struct Fields {
    headers: HeaderMap,
    method: Option<Method>,
    authority: String,
    status: Option<StatusCode>,
    /// Pseudo-header fields that were there.
    pseudo: u8,
    /// One that is none was there; after it no pseudo-header field may come (§8.3).
    regular: bool,
    size: usize,
    malformed: bool,
}

impl Fields {
    /// Takes one field.
    pub(super) fn take(&mut self, name: &[u8], value: &[u8]) {
        // RFC 9113 §6.5.2
        self.size += name.len() + value.len() + 32;
        if self.is_too_long() {
            return;
        }
        match name {
            [b':', ..] => self.take_pseudo(name, value),
            name => self.take_regular(name, value),
        }
    }

    fn take_pseudo(&mut self, name: &[u8], value: &[u8]) {
        let which = match name {
            b":method" => {
                self.method = Method::from_bytes(value).ok();
                self.malformed |= self.method.is_none();
                METHOD
            }
            b":authority" => {
                // What is no text is no destination either, and refused as such.
                self.authority = String::from_utf8(value.to_vec()).unwrap_or_default();
                AUTHORITY
            }
            b":status" => {
                self.status = StatusCode::from_bytes(value).ok();
                STATUS
            }
            b":scheme" => SCHEME,
            b":path" => PATH,
            // `:protocol` too: extended CONNECT (RFC 8441) is not offered.
            _ => 0,
        };
        self.malformed |= which == 0 || self.regular || self.pseudo & which != 0;
        self.pseudo |= which;
    }

    fn take_regular(&mut self, name: &[u8], value: &[u8]) {
        self.regular = true;
        let of_a_connection = match name {
            b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => true,
            b"te" => value != b"trailers",
            _ => false,
        };
        let no_name = name.is_empty()
            || name.iter().any(|byte| !(0x21..0x7f).contains(byte) || *byte == b':')
            || name.iter().any(u8::is_ascii_uppercase);
        let no_value = value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'));
        if of_a_connection || no_name || no_value {
            self.malformed = true;
            return;
        }
        if ![BAGGAGE, FORWARDED, FORWARDED_NETWORK, TRACEPARENT].iter().any(|known| known.as_bytes() == name)
        {
            return;
        }
        // A value that cannot be one only describes, and is left out.
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            self.headers.append(name, value);
        }
    }

    /// Whether it says more than we are willing to keep.
    pub(super) fn is_too_long(&self) -> bool {
        self.size > BUDGET.header_list
    }

    /// Whether this is a request at all; what it asks for is judged by [`Fields::head`].
    pub(super) fn is_request(&self) -> bool {
        let wanted = match self.method {
            Some(Method::CONNECT) => METHOD | AUTHORITY,
            _ => METHOD | AUTHORITY | SCHEME | PATH,
        };
        // A CONNECT without a destination is answered with words.
        !self.malformed && self.pseudo | AUTHORITY == wanted
    }

    /// The status, if this is an answer.
    pub(super) fn status(&self) -> Option<StatusCode> {
        self.status.filter(|_| !self.malformed && self.pseudo == STATUS && !self.is_too_long())
    }

    /// Whether this may come at the end.
    pub(super) fn are_trailers(&self) -> bool {
        !self.malformed && self.pseudo == 0
    }

    /// What the sender says of its workload.
    pub(super) fn baggage(&self) -> Option<Baggage> {
        connect::baggage_of(&self.headers)
    }

    /// What is asked for.
    pub(super) fn head(&self) -> Result<Head, HeadError> {
        let method = self.method.clone().unwrap_or_default();
        Head::of(&method, &self.authority, &self.headers)
    }
}
