use hickory_proto::op::Query;
use hickory_proto::rr::{Name, RecordType};
use serde_json::json;

use super::*;
use crate::node::net::model::tests::{service, slice, snapshot};

fn query(name: &str, edns: Option<u16>) -> Message {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    if let Some(room) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(room);
        query.set_edns(edns);
    }
    query
}

fn now(reply: Reply) -> Message {
    match reply {
        Reply::Now(message) => message,
        Reply::Elsewhere(_) => panic!("the cluster's own name was sent elsewhere"),
    }
}

fn large() -> super::super::Snapshot {
    let endpoints: Vec<_> = (1..200).map(|n| json!({"addresses": [format!("10.1.0.{n}")]})).collect();
    snapshot(&[
        service("shop", "db", json!({"clusterIP": "None", "ports": [{"port": 1}]})),
        slice("shop", "db", json!([{"port": 1}]), json!(endpoints)),
    ])
}

#[test]
fn before_the_first_list_names_fail_rather_than_not_exist() {
    let reply = now(answer(&Zone::cluster_local(), None, &query("web.shop.svc.cluster.local.", None)));
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn an_answer_too_long_for_udp_says_so() {
    let ask = |edns| {
        now(answer(&Zone::cluster_local(), Some(&large()), &query("db.shop.svc.cluster.local.", edns)))
    };
    for (edns, room) in [(None, 512), (Some(100), 512), (Some(65535), 1232)] {
        let bytes = encode(ask(edns), Over::Udp).unwrap();
        assert!(bytes.len() <= room);
        assert!(Message::from_vec(&bytes).unwrap().metadata.truncation);
    }
    let whole = Message::from_vec(&encode(ask(None), Over::Tcp).unwrap()).unwrap();
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (199, false));
}

#[test]
fn an_answer_is_related_to_its_question() {
    let reply =
        now(answer(&Zone::cluster_local(), Some(&large()), &query("no.shop.svc.cluster.local.", None)));
    assert_eq!(reply.metadata.id, 7);
    assert_eq!(reply.metadata.message_type, MessageType::Response);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(reply.queries.len(), 1);
    assert_eq!(reply.authorities.len(), 1, "how long the no may be kept");
}

#[test]
fn other_peoples_names_go_elsewhere() {
    let reply = answer(&Zone::cluster_local(), Some(&large()), &query("example.com.", None));
    assert!(
        matches!(reply, Reply::Elsewhere(failed) if failed.metadata.response_code == ResponseCode::ServFail)
    );
}

#[test]
fn what_is_no_question_is_not_answered() {
    let (_sender, changes) = watch::channel(None);
    let forward = forward::Forward::from_host("10.96.0.10".parse().unwrap());
    let resolver = Resolver { zone: Zone::cluster_local(), changes, forward };
    assert!(resolver.answer(b"").is_none());
    assert!(resolver.answer(b"x").is_none());
    assert!(resolver.answer(&[0, 1, 0x80, 0, 0, 9, 0, 0, 0, 0, 0, 0]).is_none(), "a broken response");
    let broken = now(resolver.answer(&[0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0]).unwrap());
    assert_eq!(broken.metadata.response_code, ResponseCode::FormErr);
    let mut response = query("example.com.", None);
    response.metadata.message_type = MessageType::Response;
    assert!(resolver.answer(&response.to_vec().unwrap()).is_none());
}
