use std::net::Ipv4Addr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Name;
use hickory_proto::rr::rdata::A;
use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(host: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Asked::query(name(host), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn query(host: &str, kind: RecordType, payload: Option<u16>) -> Query {
    Query::parse(question(host, kind, payload).into()).unwrap()
}

fn answer_of(addresses: usize) -> Answer {
    let ip = |n: usize| Ipv4Addr::from(0x0a00_0000 + u32::try_from(n).unwrap());
    Answer { alias: None, addresses: (0..addresses).map(|n| ip(n).into()).collect() }
}

fn answered(query: &Query, answer: &Answer) -> Vec<u8> {
    query.answered(query.question().unwrap(), answer)
}

#[test]
fn only_plain_unsigned_questions_for_addresses_are_the_meshs() {
    let is_ours = |bytes: Vec<u8>| Query::parse(bytes.into()).unwrap().question().is_some();
    assert!(is_ours(question("a.b.", RecordType::A, None)));
    assert!(is_ours(question("a.b.", RecordType::AAAA, Some(1232))));
    for kind in [RecordType::SRV, RecordType::HTTPS, RecordType::ANY, RecordType::AXFR, RecordType::PTR] {
        assert!(!is_ours(question("a.b.", kind, None)), "{kind}");
    }
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = question("a.b.", RecordType::A, None);
        change(&mut bytes);
        is_ours(bytes)
    };
    assert!(!changed(&|bytes| bytes[2] |= 5 << 3), "an update");
    assert!(!changed(&|bytes| *bytes.last_mut().unwrap() = 3), "class CH");
    assert!(!changed(&|bytes| bytes[7] = 1), "with an answer");
    assert!(!changed(&|bytes| bytes[11] = 2), "with more than an OPT");
    let with = |kind: u16, version: u8| {
        changed(&move |bytes| {
            bytes[11] = 1;
            bytes.push(0);
            bytes.extend(kind.to_be_bytes());
            bytes.extend([0x10, 0, 0, version, 0, 0, 0, 0]);
        })
    };
    assert!(with(OPT, 0));
    assert!(!with(OPT, 1), "another version of EDNS");
    assert!(!with(250, 0), "a signature");
}

#[test]
fn answers_and_noise_are_ignored_and_broken_questions_are_told_so() {
    let mut response = question("a.", RecordType::A, None);
    response[2] |= 0x80;
    assert_eq!(Query::parse(response.into()).unwrap_err(), Unreadable::Ignore);
    assert_eq!(Query::parse(Bytes::from_static(b"short")).unwrap_err(), Unreadable::Ignore);
    let mut cut = question("a.b.", RecordType::A, None);
    cut.truncate(15);
    let Err(Unreadable::Malformed(answer)) = Query::parse(cut.into()) else { panic!("understood") };
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!((answer.metadata.id, answer.metadata.response_code), (77, ResponseCode::FormErr));
}

#[test]
fn the_meshs_answer_is_authoritative_and_repeats_the_question_in_its_case() {
    let query = query("WeB.shop.", RecordType::A, None);
    let answer = answered(&query, &answer_of(2));
    assert_eq!(query.belongs(77, &answer), Belongs::Yes);
    let message = Message::from_vec(&answer).unwrap();
    assert!(message.metadata.authoritative && message.metadata.recursion_desired);
    assert!(message.metadata.recursion_available && !message.metadata.truncation);
    assert!(message.answers.iter().all(|record| record.ttl == 30 && record.name.eq_case(&name("WeB.shop."))));
    assert!(message.edns.is_none(), "the client did not offer EDNS");
}

#[test]
fn a_stripped_search_domain_gives_a_cname_first() {
    let query = query("api.example.com.shop.svc.cluster.local.", RecordType::A, None);
    let alias = Some(name("api.example.com."));
    let message = Message::from_vec(&answered(&query, &Answer { alias, ..answer_of(1) })).unwrap();
    let shown: Vec<String> =
        message.answers.iter().map(|r| format!("{} {} {}", r.name, r.record_type(), r.data)).collect();
    assert_eq!(
        shown,
        ["api.example.com.shop.svc.cluster.local. CNAME api.example.com.", "api.example.com. A 10.0.0.0"]
    );
}

#[test]
fn an_answer_fits_what_the_client_takes_and_says_when_it_is_not_all() {
    for (payload, limit) in
        [(None, 512), (Some(0), 512), (Some(100), 512), (Some(1232), 1232), (Some(4096), 4096)]
    {
        let query = query("stores.mon.svc.cluster.local.", RecordType::A, payload);
        let whole = answered(&query, &answer_of(300));
        assert!(whole.len() > 4096);
        let fitted = query.fit(whole.clone());
        assert!(fitted.len() <= limit && fitted.len() > limit - 16, "{payload:?}: {}", fitted.len());
        let message = Message::from_vec(&fitted).unwrap();
        assert!(message.metadata.truncation);
        assert_eq!(message.edns.is_some(), payload.is_some());
        assert!(message.answers.len() > 25);
        assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 300, "over TCP it is whole");
    }
    let query = query("a.", RecordType::A, None);
    let small = answered(&query, &answer_of(3));
    assert_eq!(query.fit(small.clone()), small);
}

#[test]
fn more_addresses_than_fit_into_any_message_do_no_harm() {
    let query = query(&format!("{}.", vec!["a".repeat(62); 3].join(".")), RecordType::AAAA, None);
    let ip = |n: u128| IpAddr::V6(n.into());
    let answer = Answer { alias: Some(name("alias.")), addresses: (0..2000).map(ip).collect() };
    let message = Message::from_vec(&answered(&query, &answer)).unwrap();
    assert_eq!(message.answers.len(), 2001);
    assert!(!message.metadata.truncation);
}

#[test]
fn additional_records_are_left_out_without_a_word() {
    let query = query("a.", RecordType::SRV, None);
    let mut message = Message::from_vec(&query.failed(0)).unwrap();
    let record = |n: u8| Record::from_rdata(name("b."), 1, RData::A(A(Ipv4Addr::new(10, 0, 0, n))));
    message.add_answer(record(0));
    message.add_additionals((0..100).map(record));
    let fitted = Message::from_vec(&query.fit(message.to_vec().unwrap())).unwrap();
    assert!(!fitted.metadata.truncation);
    assert_eq!(fitted.answers.len(), 1);
    assert!(fitted.additionals.len() > 20);
}

#[test]
fn only_the_answer_to_this_question_belongs_to_it() {
    let query = query("WwW.example.com.", RecordType::A, Some(1232));
    let sent = query.with_id(0xbeef);
    let answer = |host: &str, kind, id: u16, change: &dyn Fn(&mut Message)| {
        let mut message = Message::new(id, MessageType::Response, OpCode::Query);
        message.add_query(Asked::query(name(host), kind));
        change(&mut message);
        message.to_vec().unwrap()
    };
    let belongs = |bytes: Vec<u8>| query.belongs(0xbeef, &bytes);
    assert_eq!(sent[2..], question("WwW.example.com.", RecordType::A, Some(1232))[2..]);
    assert_eq!(belongs(answer("WwW.example.com.", RecordType::A, 0xbeef, &|_| ())), Belongs::Yes);
    assert_eq!(belongs(answer("www.example.com.", RecordType::A, 0xbeef, &|_| ())), Belongs::ButForCase);
    for (what, bytes) in [
        ("another id", answer("WwW.example.com.", RecordType::A, 0xbeee, &|_| ())),
        ("another name", answer("www.example.org.", RecordType::A, 0xbeef, &|_| ())),
        ("another type", answer("WwW.example.com.", RecordType::AAAA, 0xbeef, &|_| ())),
        ("a query", sent.clone()),
        ("success without the question", answer("a.", RecordType::A, 0xbeef, &|m| m.queries.clear())),
        (
            "another opcode",
            answer("WwW.example.com.", RecordType::A, 0xbeef, &|m| m.metadata.op_code = OpCode::Update),
        ),
        ("nothing", Vec::new()),
    ] {
        assert_eq!(belongs(bytes), Belongs::No, "{what}");
    }
    let refused = answer("a.", RecordType::A, 0xbeef, &|m| {
        m.queries.clear();
        m.metadata.response_code = ResponseCode::FormErr;
    });
    assert_eq!(belongs(refused), Belongs::Yes, "a server that understood nothing");
}

#[test]
fn type_and_class_have_no_case() {
    // 65 and 97 differ as A and a do.
    let query = query("a.", RecordType::from(65), None);
    let mut answer = Message::new(1, MessageType::Response, OpCode::Query);
    answer.add_query(Asked::query(name("a."), RecordType::from(97)));
    assert_eq!(query.belongs(1, &answer.to_vec().unwrap()), Belongs::No);
}

#[test]
fn failures_keep_what_the_client_needs_to_recognise_them() {
    for payload in [None, Some(1232)] {
        let query = query("a.b.", RecordType::A, payload);
        let bytes = query.failed(SERVFAIL);
        assert_eq!(query.belongs(77, &bytes), Belongs::Yes);
        let message = Message::from_vec(&bytes).unwrap();
        assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(message.edns.is_some(), payload.is_some());
        assert!(poor(&bytes));
    }
}

/// Bytes that look like messages more often than chance would have it.
fn almost_message() -> impl Strategy<Value = Vec<u8>> {
    let real = (0usize..60, any::<Option<u16>>(), "[a-z]{1,10}(\\.[a-z]{1,10}){0,4}\\.").prop_map(
        |(addresses, payload, host)| {
            let query = query(&host, RecordType::A, payload);
            answered(&query, &answer_of(addresses))
        },
    );
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let changed = (real, changes, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(mut bytes, changes, end, cut)| {
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if cut {
                bytes.truncate(end.index(bytes.len()));
            }
            bytes
        },
    );
    prop_oneof![changed, proptest::collection::vec(any::<u8>(), 0..600)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// No bytes of a client or a name server break a promise.
    #[test]
    fn hostile_messages_do_no_harm(mut question in almost_message(), answer in almost_message(), same: bool) {
        if let Some(flags) = question.get_mut(2) {
            *flags &= 0x7f;
        }
        exercise(&question, &answer);
        if same {
            let mut answer = question.clone();
            answer.get_mut(2).into_iter().for_each(|flags| *flags |= 0x80);
            exercise(&question, &answer);
        }
    }

    /// Whatever a server sends, it is made to fit.
    #[test]
    fn hostile_answers_are_made_to_fit(bytes in almost_message(), limit in 12usize..700) {
        prop_assert!(truncate(bytes, limit).len() <= limit);
    }
}
