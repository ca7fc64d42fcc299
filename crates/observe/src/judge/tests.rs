use super::*;
use crate::flow::Text;

const A: &str = "spiffe://td/ns/a/sa/a";
const B: &str = "spiffe://td/ns/b/sa/b";

fn lane(reporter: Reporter, security: Security) -> Lane {
    let mutual = security == Security::MutualTls;
    let text = |text: &str| -> Text { if mutual { text.into() } else { "".into() } };
    Lane {
        reporter,
        security,
        verdict: Verdict::Allowed,
        source_identity: text(A),
        destination_identity: text(B),
        source_proven: mutual,
        destination_proven: mutual,
        service: "".into(),
        reason: "".into(),
        policy: "".into(),
    }
}

fn said(lane: &Lane, bytes: u64) -> Said<'_> {
    let counts = match lane.verdict {
        Verdict::Allowed => Counts { sent: bytes, ..Counts::default() },
        _ => Counts { failed: bytes, ..Counts::default() },
    };
    Said { lane, believed: true, counts, open_now: 0, last_activity: 1_000_000 }
}

use Reporter::{Destination, Source};
use Security::{MutualTls, NodeLocal, Plaintext, Unknown};

/// Lanes as (reporter, security, bytes) and what they amount to.
#[test]
fn what_two_proxies_say_amounts_to_one_state() {
    type Lanes = &'static [(Reporter, Security, u64)];
    let table: &[(Lanes, State)] = &[
        (&[], State::Idle),
        (&[(Source, MutualTls, 10), (Destination, MutualTls, 10)], State::Proven),
        (&[(Source, MutualTls, 10)], State::OneSided),
        (&[(Destination, MutualTls, 10)], State::OneSided),
        (&[(Source, MutualTls, 10), (Destination, MutualTls, 0)], State::OneSided),
        (&[(Source, MutualTls, 10), (Destination, Plaintext, 10)], State::Contradiction),
        (&[(Source, Plaintext, 10), (Destination, MutualTls, 10)], State::Contradiction),
        (&[(Source, MutualTls, 10), (Destination, NodeLocal, 10)], State::Contradiction),
        (&[(Source, MutualTls, 10), (Destination, Unknown, 10)], State::Contradiction),
        (&[(Source, Plaintext, 10)], State::Plaintext),
        (&[(Destination, Plaintext, 10)], State::Plaintext),
        (&[(Source, Plaintext, 10), (Destination, Plaintext, 10)], State::Plaintext),
        (
            &[
                (Source, MutualTls, 95),
                (Destination, MutualTls, 95),
                (Source, Plaintext, 5),
                (Destination, Plaintext, 5),
            ],
            State::Mixed,
        ),
        (&[(Source, MutualTls, 95), (Destination, MutualTls, 95), (Destination, Plaintext, 5)], State::Mixed),
        (&[(Source, NodeLocal, 10), (Destination, NodeLocal, 10)], State::NodeLocal),
        (&[(Source, Unknown, 10)], State::OneSided),
    ];
    for (lanes, state) in table {
        let owned: Vec<_> = lanes.iter().map(|(reporter, security, _)| lane(*reporter, *security)).collect();
        let said: Vec<_> = owned.iter().zip(*lanes).map(|(lane, (.., bytes))| said(lane, *bytes)).collect();
        let judgement = judge(&said);
        assert_eq!(judgement.state, *state, "{lanes:?}");
        let parts = judgement.bytes;
        let total = parts.proven + parts.plaintext + parts.unproven + parts.node_local;
        assert_eq!(total, parts.sent + parts.received, "every byte is called something: {lanes:?}");
    }
}

#[test]
fn a_part_in_plaintext_is_neither_hidden_nor_taken_for_the_whole() {
    let lanes = [
        lane(Source, MutualTls),
        lane(Destination, MutualTls),
        lane(Source, Plaintext),
        lane(Destination, Plaintext),
    ];
    let said = [said(&lanes[0], 95), said(&lanes[1], 95), said(&lanes[2], 5), said(&lanes[3], 5)];
    let bytes = judge(&said).bytes;
    assert_eq!((bytes.proven, bytes.plaintext, bytes.unproven), (95, 5, 0));
}

#[test]
fn identities_must_agree_and_be_proven() {
    let (source, mut destination) = (lane(Source, MutualTls), lane(Destination, MutualTls));
    destination.source_identity = "spiffe://td/ns/x/sa/x".into();
    let judgement = judge(&[said(&source, 9), said(&destination, 9)]);
    assert_eq!((judgement.state, judgement.code), (State::Contradiction, Some(Code::IdentityMismatch)));

    let mut destination = lane(Destination, MutualTls);
    destination.source_proven = false;
    let judgement = judge(&[said(&source, 9), said(&destination, 9)]);
    assert_eq!((judgement.state, judgement.code), (State::Contradiction, Some(Code::IdentityMismatch)));

    let nameless = |reporter| Lane { source_identity: "".into(), ..lane(reporter, MutualTls) };
    let (source, destination) = (nameless(Source), nameless(Destination));
    assert_eq!(judge(&[said(&source, 9), said(&destination, 9)]).state, State::Contradiction);
}

#[test]
fn a_proxy_that_may_not_speak_for_a_pod_is_not_heard() {
    let (source, destination) = (lane(Source, MutualTls), lane(Destination, MutualTls));
    let lie = Said { believed: false, ..said(&destination, 10) };
    let judgement = judge(&[said(&source, 10), lie]);
    assert_eq!((judgement.state, judgement.silent), (State::OneSided, Some(Destination)));
}

#[test]
fn refusals_and_failures_carry_nothing_and_keep_their_names() {
    let denied = Lane { verdict: Verdict::Denied, reason: "DENY".into(), ..lane(Destination, MutualTls) };
    let judgement = judge(&[said(&denied, 3)]);
    assert_eq!((judgement.state, judgement.connections.denied), (State::Denied, 3));
    assert_eq!(judgement.bytes, Bytes::default());

    let failed = Lane { verdict: Verdict::Failed, reason: "TLS_FAILURE".into(), ..lane(Source, MutualTls) };
    let judgement = judge(&[said(&failed, 2)]);
    assert_eq!((judgement.state, judgement.code), (State::Failed, Some(Code::TlsFailed)));

    // Refused now and then, and proven otherwise: both are told.
    let (source, destination) = (lane(Source, MutualTls), lane(Destination, MutualTls));
    let judgement = judge(&[said(&source, 9), said(&destination, 9), said(&denied, 3)]);
    assert_eq!((judgement.state, judgement.connections.denied), (State::Proven, 3));
}

#[test]
fn a_side_that_saw_its_connection_stand_still_did_not_see_the_bytes() {
    let (source, destination) = (lane(Source, MutualTls), lane(Destination, MutualTls));
    let still = Said { open_now: 1, last_activity: 0, ..said(&destination, 0) };
    assert_eq!(judge(&[said(&source, 10), still]).state, State::OneSided);
    // A report that is only a moment late is no contradiction.
    let late = Said { last_activity: 995_000, ..still };
    assert_eq!(judge(&[said(&source, 10), late]).state, State::Proven);
}
