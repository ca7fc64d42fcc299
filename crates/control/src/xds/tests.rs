//! The protocol with one client.

mod demand;
mod model;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tonic::Code;
use wire::type_url::{ADDRESS, AUTHORIZATION};
use wire::xds::{DeltaDiscoveryRequest, Node, Status as ErrorDetail};

use super::*;
use crate::auth::Caller;
use crate::config::Account;
use crate::fixtures::{self, settings};
use crate::input::Key;
use crate::state::{Delta, Event, Snapshot, State};

fn caller() -> Caller {
    Caller { account: Account { namespace: "ambit-system".into(), name: "ztunnel".into() }, pod: None }
}

fn node() -> Node {
    Node {
        id: "ztunnel~10.0.0.2~ztunnel-x.ambit-system~ambit-system.svc.cluster.local".into(),
        ..Node::default()
    }
}

fn first(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { node: Some(node()), type_url: type_url.into(), ..Default::default() }
}

fn answer(type_url: &str, nonce: &str, error: Option<&str>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.into(),
        response_nonce: nonce.into(),
        error_detail: error.map(|message| ErrorDetail { message: message.into(), ..Default::default() }),
        ..Default::default()
    }
}

/// A state and one client's session on it.
struct Talk {
    state: State,
    snapshot: Snapshot,
    session: Session,
}

impl Talk {
    fn new() -> Self {
        Self {
            state: State::new(settings()),
            snapshot: Snapshot::default(),
            session: Session::new(caller(), 7),
        }
    }

    fn pod(&mut self, name: &str, over: Value) {
        self.happens(Event::Pods(Delta::Put(fixtures::pod(name, "10.0.0.1", over))));
    }

    /// Something happens, which the client is not told yet.
    fn happens(&mut self, event: Event) {
        self.state.apply(event);
        if let Some(snapshot) = self.state.flush() {
            self.snapshot = snapshot;
        }
    }

    fn ask(&mut self, request: DeltaDiscoveryRequest) -> Heard {
        self.session.request(request, &self.snapshot).unwrap()
    }

    fn refused(&mut self, request: DeltaDiscoveryRequest) -> Code {
        self.session.request(request, &self.snapshot).unwrap_err().code()
    }

    fn pushes(&mut self) -> Vec<Push> {
        std::iter::from_fn(|| self.session.take()).collect()
    }

    fn update(&mut self) -> Vec<Push> {
        self.session.update(&self.snapshot).unwrap();
        self.pushes()
    }
}

fn names(push: &Push) -> Vec<&str> {
    push.resources.iter().map(|resource| &*resource.name).collect()
}

const WEB: &str = "Kubernetes//Pod/shop/web-0";

#[test]
fn the_first_request_of_each_type_is_answered_even_when_there_is_nothing() {
    let mut talk = Talk::new();
    for type_url in [ADDRESS, AUTHORIZATION] {
        assert_eq!(talk.ask(first(type_url)), Heard::Subscribed);
        let [push] = &talk.pushes()[..] else { panic!("one answer") };
        assert_eq!((push.type_url, push.resources.len(), push.removed.len()), (type_url, 0, 0));
        assert!(!push.nonce.is_empty());
    }
}

#[test]
fn a_change_is_one_push_and_no_change_is_none() {
    let mut talk = Talk::new();
    talk.pod("web-0", json!({}));
    talk.ask(first(ADDRESS));
    assert_eq!(names(&talk.pushes()[0]), [WEB]);
    assert!(talk.update().is_empty());
    talk.pod("web-0", json!({ "status": { "conditions": [] } }));
    let pushes = talk.update();
    assert_eq!((pushes.len(), names(&pushes[0])), (1, vec![WEB]));
    talk.happens(Event::Pods(Delta::Gone(Key::new("shop", "web-0"))));
    let pushes = talk.update();
    assert_eq!((pushes.len(), &pushes[0].removed[..]), (1, &[WEB.into()][..]));
}

#[test]
fn a_slow_client_gets_one_merged_push() {
    let mut talk = Talk::new();
    talk.ask(first(ADDRESS));
    talk.pushes();
    for turn in 0..500 {
        let conditions =
            if turn % 2 == 0 { json!([]) } else { json!([{ "type": "Ready", "status": "True" }]) };
        talk.pod("web-0", json!({ "status": { "conditions": conditions } }));
        talk.pod(&format!("churn-{turn}"), json!({}));
        talk.happens(Event::Pods(Delta::Gone(Key::new("shop", format!("churn-{turn}")))));
    }
    let pushes = talk.update();
    assert_eq!(pushes.len(), 1);
    assert_eq!(names(&pushes[0]), [WEB]);
    let latest = talk.snapshot.addresses.get(WEB).unwrap();
    assert_eq!(pushes[0].resources[0].version, latest.version);
}

#[test]
fn a_client_that_comes_back_gets_what_is_new_and_hears_what_is_gone() {
    let mut talk = Talk::new();
    talk.pod("web-0", json!({}));
    talk.pod("web-1", json!({}));
    talk.pod("web-2", json!({}));
    let known = |talk: &Talk, name: &str| {
        (name.to_string(), talk.snapshot.addresses.get(name).unwrap().version.to_string())
    };
    let mut request = first(ADDRESS);
    request.initial_resource_versions = BTreeMap::from([
        known(&talk, WEB),
        ("Kubernetes//Pod/shop/web-1".into(), "an older version".into()),
        ("Kubernetes//Pod/shop/gone".into(), "1".into()),
    ]);
    talk.ask(request);
    let pushes = talk.pushes();
    let mut updated = names(&pushes[0]);
    updated.sort();
    assert_eq!(updated, ["Kubernetes//Pod/shop/web-1", "Kubernetes//Pod/shop/web-2"]);
    assert_eq!(pushes[0].removed, ["Kubernetes//Pod/shop/gone".into()]);
}

/// A request of that size is some 15 MB, far below what the server takes and far above what gRPC takes by default.
#[test]
fn a_client_may_come_back_with_two_hundred_thousand_names() {
    use prost::Message;
    let mut talk = Talk::new();
    talk.pod("web-0", json!({}));
    let mut request = first(ADDRESS);
    request.initial_resource_versions = (0..200_000)
        .map(|index| {
            (
                format!("Kubernetes//Pod/team-{}/service-6c7d8f9b5-{index}", index / 100),
                "0123456789abcdef".into(),
            )
        })
        .collect();
    let bytes = request.encode_to_vec();
    assert!((4 << 20..service::REQUEST_LIMIT).contains(&bytes.len()), "{}", bytes.len());
    talk.ask(DeltaDiscoveryRequest::decode(&bytes[..]).unwrap());
    let pushes = talk.pushes();
    assert_eq!((names(&pushes[0]), pushes[0].removed.len()), (vec![WEB], 200_000));
}

/// Case D19. What happened while the line was down is told; of a large mesh in which nothing happened, nothing is.
#[test]
fn what_was_deleted_while_the_line_was_down_is_gone_after_it() {
    let deny = |name: &str| fixtures::authorization("shop", name, json!({ "action": "DENY", "rules": [{}] }));
    let world = |talk: &mut Talk| {
        talk.pod("a", json!({}));
        talk.pod("b", json!({}));
        talk.happens(Event::Authorizations(Delta::Put(deny("p"))));
    };
    let change = |talk: &mut Talk| {
        talk.happens(Event::Pods(Delta::Gone(Key::new("shop", "b"))));
        talk.happens(Event::Authorizations(Delta::Gone(Key::new("shop", "p"))));
        talk.pod("a", json!({ "status": { "podIP": "10.0.0.77", "podIPs": [{ "ip": "10.0.0.77" }] } }));
    };
    let known = |shelf: &crate::state::Shelf| -> BTreeMap<String, String> {
        shelf.iter().map(|one| (one.name.to_string(), one.version.to_string())).collect()
    };
    for fresh in [false, true] {
        let mut talk = Talk::new();
        world(&mut talk);
        let (addresses, policies) = (known(&talk.snapshot.addresses), known(&talk.snapshot.policies));
        if fresh {
            // Another process, which has never heard of what is gone.
            talk = Talk::new();
            talk.pod("a", json!({ "status": { "podIP": "10.0.0.77", "podIPs": [{ "ip": "10.0.0.77" }] } }));
        } else {
            change(&mut talk);
        }
        talk.session = Session::new(caller(), 8);
        talk.ask(DeltaDiscoveryRequest { initial_resource_versions: addresses, ..first(ADDRESS) });
        talk.ask(DeltaDiscoveryRequest { initial_resource_versions: policies, ..first(AUTHORIZATION) });
        let pushes = talk.pushes();
        assert_eq!(names(&pushes[0]), ["Kubernetes//Pod/shop/a"], "fresh: {fresh}");
        assert_eq!(pushes[0].removed, ["Kubernetes//Pod/shop/b".into()]);
        assert_eq!((names(&pushes[1]), &pushes[1].removed[..]), (vec![], &["shop/p".into()][..]));
    }

    let mut talk = Talk::new();
    let services = (0..10_000).map(|index| fixtures::service(&format!("s{index}"), "10.1.0.1", json!({})));
    talk.happens(Event::Services(Delta::All(services.collect())));
    let all = known(&talk.snapshot.addresses);
    assert_eq!(all.len(), 10_000);
    talk.ask(DeltaDiscoveryRequest { initial_resource_versions: all, ..first(ADDRESS) });
    let bytes: usize = talk.pushes().iter().map(Push::len).sum();
    assert!(bytes < 1024, "{bytes}");
}

#[test]
fn answers_are_told_apart_and_answered_with_nothing() {
    let mut talk = Talk::new();
    talk.ask(first(ADDRESS));
    let nonce = talk.pushes()[0].nonce.clone();
    assert_eq!(talk.ask(answer(ADDRESS, &nonce, None)), Heard::Acknowledged);
    assert_eq!(talk.ask(answer(ADDRESS, "another", None)), Heard::Stale);
    assert_eq!(talk.ask(answer(ADDRESS, &nonce, Some("bad"))), Heard::Rejected("bad".into()));
    assert!(talk.pushes().is_empty());
    // A refused push changes nothing about what comes next.
    talk.pod("web-0", json!({}));
    assert_eq!(talk.update().len(), 1);
}

#[test]
fn a_push_may_go_out_before_the_last_one_was_acknowledged() {
    let mut talk = Talk::new();
    talk.ask(first(ADDRESS));
    let old = talk.pushes()[0].nonce.clone();
    talk.pod("web-0", json!({}));
    let new = talk.update()[0].nonce.clone();
    assert_eq!(talk.ask(answer(ADDRESS, &old, None)), Heard::Stale);
    assert_eq!(talk.ask(answer(ADDRESS, &new, None)), Heard::Acknowledged);
}

#[test]
fn policies_come_before_the_workloads_that_name_them_and_go_after() {
    let mut talk = Talk::new();
    talk.pod("web-0", json!({}));
    talk.ask(first(ADDRESS));
    talk.ask(first(AUTHORIZATION));
    talk.pushes();
    let spec = json!({ "selector": { "matchLabels": { "app": "web" } }, "action": "DENY", "rules": [{}] });
    talk.happens(Event::Authorizations(Delta::Put(fixtures::authorization("shop", "no", spec))));
    let order: Vec<&str> = talk.update().iter().map(|push| push.type_url).collect();
    assert_eq!(order, [AUTHORIZATION, ADDRESS]);
    talk.happens(Event::Authorizations(Delta::Gone(Key::new("shop", "no"))));
    let pushes = talk.update();
    let order: Vec<&str> = pushes.iter().map(|push| push.type_url).collect();
    assert_eq!(order, [ADDRESS, AUTHORIZATION]);
    assert_eq!(pushes[1].removed, ["shop/no".into()]);
}

#[test]
fn a_policy_newly_attached_is_sent_again_after_the_workload() {
    let mut talk = Talk::new();
    let spec = json!({ "selector": { "matchLabels": { "tier": "db" } }, "action": "DENY", "rules": [{}] });
    talk.happens(Event::Authorizations(Delta::Put(fixtures::authorization("shop", "no", spec))));
    talk.pod("web-0", json!({}));
    talk.ask(first(AUTHORIZATION));
    talk.ask(first(ADDRESS));
    talk.pushes();
    talk.pod("web-0", json!({ "metadata": { "labels": { "tier": "db" } } }));
    let pushes = talk.update();
    let order: Vec<&str> = pushes.iter().map(|push| push.type_url).collect();
    assert_eq!(order, [ADDRESS, AUTHORIZATION]);
    assert_eq!(names(&pushes[1]), ["shop/no"]);
}

#[test]
fn a_name_asked_for_by_a_client_that_follows_everything_is_answered() {
    let mut talk = Talk::new();
    talk.pod("web-0", json!({}));
    talk.ask(first(ADDRESS));
    talk.pushes();
    let mut request = answer(ADDRESS, "", None);
    request.resource_names_subscribe = vec![WEB.into(), "nobody".into()];
    assert_eq!(talk.ask(request), Heard::Subscribed);
    let pushes = talk.pushes();
    assert_eq!((names(&pushes[0]), &pushes[0].removed[..]), (vec![WEB], &["nobody".into()][..]));
}

#[test]
fn streams_that_cannot_be_served_are_told_why() {
    let without_node = DeltaDiscoveryRequest { type_url: ADDRESS.into(), ..Default::default() };
    assert_eq!(Talk::new().refused(without_node), Code::InvalidArgument);
    let mut odd = first(ADDRESS);
    odd.node = Some(Node { id: "x".into(), ..Node::default() });
    assert_eq!(Talk::new().refused(odd), Code::InvalidArgument);
    assert_eq!(Talk::new().refused(first("type.googleapis.com/envoy.Cluster")), Code::InvalidArgument);
    let mut by_name = first(AUTHORIZATION);
    by_name.resource_names_subscribe = vec!["shop/one".into()];
    assert_eq!(Talk::new().refused(by_name), Code::InvalidArgument);
    let mut wildcard = first(ADDRESS);
    wildcard.resource_names_subscribe = vec!["*".into()];
    assert_eq!(Talk::new().ask(wildcard), Heard::Subscribed);
}

#[test]
fn a_client_speaks_only_for_a_proxy_of_its_own_account() {
    let text =
        |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.into())) };
    let with = |fields: &[(&str, &str)]| {
        let fields = fields.iter().map(|(key, value)| (key.to_string(), text(value))).collect();
        let mut request = first(ADDRESS);
        request.node = Some(Node { metadata: Some(prost_types::Struct { fields }), ..node() });
        request
    };
    assert_eq!(Talk::new().refused(with(&[("NAMESPACE", "shop")])), Code::PermissionDenied);
    let other = with(&[("NAMESPACE", "ambit-system"), ("SERVICE_ACCOUNT", "someone")]);
    assert_eq!(Talk::new().refused(other), Code::PermissionDenied);
    let right = with(&[("NAMESPACE", "ambit-system"), ("SERVICE_ACCOUNT", "ztunnel")]);
    assert_eq!(Talk::new().ask(right), Heard::Subscribed);
}
