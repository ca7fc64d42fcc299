//! The `traceparent` header: one id for a connection in the logs of both ends.

use std::fmt;

/// `00-<32 hex trace id>-<16 hex parent id>-00`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// Identifies the connection.
    pub trace_id: u128,
    /// Identifies the sender's part of it.
    pub parent_id: u64,
}

impl TraceParent {
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        if text.len() != 55 || text[2] != b'-' || text[35] != b'-' || text[52] != b'-' {
            return None;
        }
        let hex = |range: std::ops::Range<usize>| {
            let digits = &text[range];
            let plain = digits.iter().all(|b| b.is_ascii_hexdigit());
            std::str::from_utf8(digits).ok().filter(|_| plain)
        };
        hex(0..2)?;
        hex(53..55)?;
        Some(Self {
            trace_id: u128::from_str_radix(hex(3..35)?, 16).ok()?,
            parent_id: u64::from_str_radix(hex(36..52)?, 16).ok()?,
        })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-00", self.trace_id, self.parent_id)
    }
}
