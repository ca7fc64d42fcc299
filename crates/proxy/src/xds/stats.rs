//! Metrics of the control plane's client (reference/control-plane.md §8.2).

use std::collections::BTreeMap;
use std::fmt::Write;

use parking_lot::Mutex;

use crate::flows::escape;

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// It never began.
    ConnectionError,
    /// It broke.
    Error,
    /// It had lived long enough.
    Reconnect,
    /// The server closed it.
    Complete,
}

impl End {
    const ALL: [Self; 4] = [Self::ConnectionError, Self::Error, Self::Reconnect, Self::Complete];

    fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionError => "ConnectionError",
            Self::Error => "Error",
            Self::Reconnect => "Reconnect",
            Self::Complete => "Complete",
        }
    }
}

/// Counters of the client.
#[derive(Debug, Default)]
pub(crate) struct Stats(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    ended: BTreeMap<End, u64>,
    /// Messages and bytes, for each type.
    received: BTreeMap<&'static str, (u64, u64)>,
}

impl Stats {
    pub(super) fn ended(&self, how: End) {
        *self.0.lock().ended.entry(how).or_default() += 1;
    }

    pub(super) fn received(&self, type_url: &'static str, bytes: u64) {
        let mut counts = self.0.lock();
        let counts = counts.received.entry(type_url).or_default();
        counts.0 += 1;
        counts.1 += bytes;
    }

    /// The counters in OpenMetrics text.
    pub(crate) fn encode(&self, out: &mut String) {
        let counts = self.0.lock();
        let name = "istio_xds_connection_terminations";
        let _ =
            writeln!(out, "# HELP {name} Streams from the control plane that ended.\n# TYPE {name} counter");
        for how in End::ALL {
            let count = counts.ended.get(&how).copied().unwrap_or(0);
            let _ = writeln!(out, "{name}_total{{reason=\"{}\"}} {count}", how.as_str());
        }
        for (name, help, bytes) in [
            ("istio_xds_message", "Messages from the control plane", false),
            ("istio_xds_message_bytes", "Bytes of messages from the control plane", true),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}.\n# TYPE {name} counter");
            for (url, count) in &counts.received {
                let _ = write!(out, "{name}_total{{url=\"");
                escape(out, url);
                let _ = writeln!(out, "\"}} {}", if bytes { count.1 } else { count.0 });
            }
        }
    }
}
