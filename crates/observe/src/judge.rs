//! What both proxies' words about one pair amount to: a pure function from what they recorded to one [`State`].
//!
//! The rule that everything else serves: `Proven` needs both proxies, the same two proven identities, and nothing
//! else beside it. A part is never taken for the whole.

use crate::flow::{Counts, Lane, Millis, Reporter, Security, Verdict};
use crate::model::{Bytes, Connections, State};
use crate::why::Code;

/// How far apart two proxies may report bytes of the same connection.
const REPORTING_LAG: Millis = 20_000;

/// What one proxy recorded on one lane within a span of time.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// How it was carried.
    pub lane: &'a Lane,
    /// Whether that proxy may speak for its end.
    pub believed: bool,
    /// Counted within the span.
    pub counts: Counts,
    /// Open at its end.
    pub open_now: u32,
    /// When something last happened.
    pub last_activity: Millis,
}

/// The judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Judgement {
    pub state: State,
    pub bytes: Bytes,
    pub connections: Connections,
    /// Why it is not proven, as far as the records alone tell.
    pub code: Option<Code>,
    /// The end whose proxy said nothing, when that is why.
    pub silent: Option<Reporter>,
}

impl Said<'_> {
    fn is_active(&self) -> bool {
        !self.counts.is_zero() || self.open_now > 0
    }

    /// Whether a connection was there, rather than only refused or seen to end.
    fn carries(&self) -> bool {
        self.lane.verdict == Verdict::Allowed
            && (self.counts.bytes() > 0 || self.counts.opened > 0 || self.open_now > 0)
    }
}

/// Sums of one reporter.
#[derive(Clone, Copy, Default)]
struct Side {
    mutual: bool,
    plain: bool,
    local: bool,
    unknown: bool,
    /// Of allowed lanes.
    all: Counts,
    plain_counts: Counts,
    local_counts: Counts,
    mutual_bytes: u64,
    last_mutual: Millis,
    open: u64,
    denied: u64,
    failed: u64,
}

impl Side {
    fn of(said: &[Said<'_>], reporter: Reporter) -> Self {
        let mut side = Self::default();
        for said in
            said.iter().filter(|said| said.believed && said.lane.reporter == reporter && said.is_active())
        {
            match said.lane.verdict {
                Verdict::Denied => side.denied += said.counts.failed,
                Verdict::Failed => side.failed += said.counts.failed,
                Verdict::Allowed => {
                    side.failed += said.counts.failed;
                    if !said.carries() {
                        continue;
                    }
                    let carried = Counts { failed: 0, ..said.counts };
                    side.all.add(&carried);
                    side.open += u64::from(said.open_now);
                    match said.lane.security {
                        Security::MutualTls => {
                            side.mutual = true;
                            side.mutual_bytes += said.counts.bytes();
                            side.last_mutual = side.last_mutual.max(said.last_activity);
                        }
                        Security::Plaintext => {
                            side.plain = true;
                            side.plain_counts.add(&carried);
                        }
                        Security::NodeLocal => {
                            side.local = true;
                            side.local_counts.add(&carried);
                        }
                        Security::Unknown => side.unknown = true,
                    }
                }
            }
        }
        side
    }

    fn carried(&self) -> bool {
        self.mutual || self.plain || self.local || self.unknown
    }
}

/// Judges one pair.
pub fn judge(said: &[Said<'_>]) -> Judgement {
    let (source, destination) = (Side::of(said, Reporter::Source), Side::of(said, Reporter::Destination));
    let (state, code, silent) = state(said, &source, &destination);
    let larger = |of: fn(&Side) -> u64| of(&source).max(of(&destination));
    let (sent, received) = (larger(|side| side.all.sent), larger(|side| side.all.received));
    let mut bytes = Bytes { sent, received, ..Bytes::default() };
    let total = sent.saturating_add(received);
    match state {
        State::Proven => bytes.proven = total,
        State::Plaintext => bytes.plaintext = total,
        State::OneSided | State::Contradiction => bytes.unproven = total,
        State::NodeLocal => bytes.node_local = total,
        State::Mixed => {
            bytes.plaintext = larger(|side| side.plain_counts.bytes()).min(total);
            let rest = total - bytes.plaintext;
            if source.mutual && destination.mutual && identities_agree(said).is_none() {
                bytes.proven = rest;
            } else {
                bytes.unproven = rest;
            }
        }
        State::Denied | State::Failed | State::Idle => {}
    }
    let connections = Connections {
        opened: larger(|side| side.all.opened),
        closed: larger(|side| side.all.closed),
        failed: larger(|side| side.failed),
        denied: larger(|side| side.denied),
        open_now: larger(|side| side.open),
    };
    Judgement { state, bytes, connections, code, silent }
}

fn state(said: &[Said<'_>], source: &Side, destination: &Side) -> (State, Option<Code>, Option<Reporter>) {
    if !source.carried() && !destination.carried() {
        return match () {
            () if source.denied + destination.denied > 0 => (State::Denied, Some(Code::DeniedByPolicy), None),
            () if source.failed + destination.failed > 0 => (State::Failed, Some(failure(said)), None),
            () => (State::Idle, None, None),
        };
    }
    let mutual = source.mutual || destination.mutual;
    let plain = source.plain || destination.plain;
    if mutual && plain {
        let disagree = (source.mutual && !source.plain && destination.plain && !destination.mutual)
            || (destination.mutual && !destination.plain && source.plain && !source.mutual);
        return if disagree {
            (State::Contradiction, Some(Code::ReportsDisagree), None)
        } else {
            // Why the plaintext part is plaintext depends on who the ends are.
            (State::Mixed, None, None)
        };
    }
    if plain {
        return (State::Plaintext, None, None);
    }
    if !mutual {
        return if source.unknown || destination.unknown {
            (State::OneSided, Some(Code::Unknown), None)
        } else {
            (State::NodeLocal, None, None)
        };
    }
    let silent = match (source.mutual, destination.mutual) {
        (true, false) => Some(Reporter::Destination),
        (false, true) => Some(Reporter::Source),
        _ => None,
    };
    if let Some(silent) = silent {
        let other = if silent == Reporter::Source { source } else { destination };
        return if other.carried() {
            (State::Contradiction, Some(Code::ReportsDisagree), None)
        } else {
            (State::OneSided, Some(Code::NotReported), Some(silent))
        };
    }
    if source.unknown || destination.unknown || source.local != destination.local {
        return (State::Contradiction, Some(Code::ReportsDisagree), None);
    }
    if let Some(code) = identities_agree(said) {
        return (State::Contradiction, Some(code), None);
    }
    // One says that bytes moved, the other saw its connection stand still all the while.
    let apart = source.last_mutual.abs_diff(destination.last_mutual) > REPORTING_LAG;
    match (source.mutual_bytes > 0, destination.mutual_bytes > 0) {
        (true, false) if apart => (State::OneSided, Some(Code::NotReported), Some(Reporter::Destination)),
        (false, true) if apart => (State::OneSided, Some(Code::NotReported), Some(Reporter::Source)),
        _ => (State::Proven, None, None),
    }
}

fn failure(said: &[Said<'_>]) -> Code {
    let reasons = said.iter().filter(|said| said.believed && said.is_active()).map(|said| &*said.lane.reason);
    for reason in reasons {
        if matches!(reason, "TLS_FAILURE" | "H2_HANDSHAKE_FAILURE" | "IDENTITY_ERROR" | "CERT_REVOKED") {
            return Code::TlsFailed;
        }
    }
    Code::ConnectFailed
}

/// Nothing when both sides name the same proven identities. Each proxy proves the *other* end: what it says of its
/// own end it takes from its own certificate, so both must be there.
fn identities_agree(said: &[Said<'_>]) -> Option<Code> {
    let named = |reporter: Reporter| {
        let mutual = |said: &&Said<'_>| {
            said.believed
                && said.carries()
                && said.lane.reporter == reporter
                && said.lane.security == Security::MutualTls
        };
        let mut named: Vec<(&str, &str)> = Vec::new();
        for said in said.iter().filter(mutual) {
            let lane = said.lane;
            let proven = match reporter {
                Reporter::Source => lane.destination_proven,
                Reporter::Destination => lane.source_proven,
            };
            if !proven || lane.source_identity.is_empty() || lane.destination_identity.is_empty() {
                return None;
            }
            named.push((&lane.source_identity, &lane.destination_identity));
        }
        named.sort_unstable();
        named.dedup();
        Some(named)
    };
    match (named(Reporter::Source), named(Reporter::Destination)) {
        (Some(source), Some(destination)) if source == destination => None,
        _ => Some(Code::IdentityMismatch),
    }
}

#[cfg(test)]
mod tests;
