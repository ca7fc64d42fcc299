//! Sizes and time limits of tunnels.

use std::time::Duration;

use crate::tls::Rules;

/// Sizes and time limits; the defaults are those of the reference, and what it leaves unbounded is bounded here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes a peer may send on one stream before we have read them.
    pub stream_window: u32,
    /// Bytes a peer may send on all streams of a tunnel before we have read them. If this is less than all streams may
    /// have, a few stalled ones hold up all others (docs/decisions/0005).
    pub connection_window: u32,
    /// The longest frame we accept.
    pub frame_size: u32,
    /// Streams a client may have open on a tunnel that we serve. Never less than 100: a ztunnel hangs otherwise.
    pub max_streams: u32,
    /// How often a tunnel is asked whether it is alive.
    pub ping_interval: Duration,
    /// How long the answer may take.
    pub ping_timeout: Duration,
    /// For the TLS and for the HTTP/2 handshake, each.
    pub handshake_timeout: Duration,
    /// For the answer to CONNECT. The other end dials the application meanwhile, which may take it 10 s.
    pub answer_timeout: Duration,
    /// What is demanded of peers.
    pub rules: Rules,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stream_window: 4 << 20,
            // As much as all streams together: whoever does not read holds up itself alone.
            connection_window: 200 * (4 << 20),
            frame_size: 1 << 20,
            max_streams: 200,
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            handshake_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(20),
            rules: Rules::default(),
        }
    }
}
