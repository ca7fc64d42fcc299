//! The model test: whatever happens to objects, and whenever a client is told, cut off and comes back, in the end it
//! has exactly what a client would get that connects for the first time to a control plane that only ever saw the
//! last form of every object.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::xds::Push;

/// Something that happens.
#[derive(Clone, Debug)]
enum Step {
    /// An object is put (in one of some forms) or goes.
    Object { kind: u8, which: u8, form: u8, gone: bool },
    /// The client is told what is new; of what is sent so many pushes arrive, then the connection is cut.
    Told { cut_after: Option<u8> },
    /// A client that asks by name asks for another.
    Asks { which: u8 },
    /// The client refuses the last push.
    Refuses,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..6, 0u8..4, 0u8..4, proptest::bool::weighted(0.3))
            .prop_map(|(kind, which, form, gone)| Step::Object { kind, which, form, gone }),
        3 => proptest::option::weighted(0.4, 0u8..3).prop_map(|cut_after| Step::Told { cut_after }),
        1 => (0u8..12).prop_map(|which| Step::Asks { which }),
        1 => Just(Step::Refuses),
    ]
}

/// The event of an object, and what it is called.
fn object(kind: u8, which: u8, form: u8) -> (String, Event, Event) {
    let name = format!("x{which}");
    let key = Key::new("shop", name.as_str());
    let put = match kind {
        0 => {
            let ip = format!("10.0.0.{}", 1 + (which + form / 2) % 6);
            let over = json!({
                "metadata": { "labels": { "app": if form.is_multiple_of(2) { "web" } else { "db" } } },
                "spec": { "nodeName": if which.is_multiple_of(2) { "n1" } else { "n2" } },
                "status": {
                    "podIP": ip, "podIPs": [{ "ip": ip }],
                    "conditions": [{ "type": "Ready", "status": if form < 3 { "True" } else { "False" } }],
                },
            });
            Event::Pods(Delta::Put(fixtures::pod(&name, "", over)))
        }
        1 => {
            let over = json!({ "spec": {
                "publishNotReadyAddresses": form == 3,
                "selector": if form == 2 { Value::Null } else { json!({ "app": if form == 1 { "db" } else { "web" } }) },
            } });
            let vip = format!("10.1.0.{}", 1 + (which + form / 2) % 4);
            Event::Services(Delta::Put(fixtures::service(&name, &vip, over)))
        }
        2 => {
            let endpoints = json!({ "endpoints": [{ "addresses": [format!("192.0.2.{form}")] }] });
            Event::Slices(Delta::Put(fixtures::slice(&name, &format!("x{form}"), endpoints)))
        }
        3 => {
            let selector = match form {
                0 => json!({ "selector": { "matchLabels": { "app": "web" } } }),
                1 => json!({ "selector": { "matchLabels": { "app": "db" } } }),
                _ => json!({}),
            };
            let mut spec = json!({ "action": if form == 3 { "DENY" } else { "ALLOW" }, "rules": [{}] });
            fixtures::merge(&mut spec, selector);
            Event::Authorizations(Delta::Put(fixtures::authorization("shop", &name, spec)))
        }
        4 => {
            let mode = if form.is_multiple_of(2) { "STRICT" } else { "PERMISSIVE" };
            let mut spec = json!({ "mtls": { "mode": mode } });
            if form < 2 {
                fixtures::merge(
                    &mut spec,
                    json!({ "selector": { "matchLabels": { "app": "web" } }, "portLevelMtls": { "8080": { "mode": "PERMISSIVE" } } }),
                );
            }
            Event::Peers(Delta::Put(fixtures::peer("shop", &name, spec)))
        }
        _ => {
            let labels = json!({ "topology.kubernetes.io/zone": format!("z{form}") });
            Event::Nodes(Delta::Put(fixtures::node(
                if which.is_multiple_of(2) { "n1" } else { "n2" },
                labels,
            )))
        }
    };
    let gone = match kind {
        0 => Event::Pods(Delta::Gone(key)),
        1 => Event::Services(Delta::Gone(key)),
        2 => Event::Slices(Delta::Gone(key)),
        3 => Event::Authorizations(Delta::Gone(key)),
        4 => Event::Peers(Delta::Gone(key)),
        _ => Event::Nodes(Delta::Gone(Key::new("", if which.is_multiple_of(2) { "n1" } else { "n2" }))),
    };
    // Nodes are two, however they are called here.
    let called = if kind == 5 { format!("5/{}", which % 2) } else { format!("{kind}/{which}") };
    (called, put, gone)
}

/// A name that a client may ask for.
fn name(which: u8) -> String {
    match which {
        0..4 => format!("shop/x{which}.shop.svc.cluster.local"),
        4..8 => format!("/10.0.0.{}", which - 3),
        _ => format!("/10.1.0.{}", which - 7),
    }
}

type Held = BTreeMap<String, String>;

/// A client and what it has.
struct Client {
    session: Session,
    asked: BTreeSet<String>,
    addresses: Held,
    policies: Held,
}

impl Client {
    fn connect(by_name: bool, asked: BTreeSet<String>, held: (Held, Held), snapshot: &Snapshot) -> Self {
        let mut client =
            Self { session: Session::new(caller(), 7), asked, addresses: held.0, policies: held.1 };
        let value = prost_types::value::Kind::StringValue("n1".into());
        let fields = [("NODE_NAME".to_string(), prost_types::Value { kind: Some(value) })].into();
        let mut address = first(ADDRESS);
        address.node = Some(Node { metadata: Some(prost_types::Struct { fields }), ..node() });
        address.initial_resource_versions = client.addresses.clone();
        if by_name {
            address.resource_names_subscribe =
                std::iter::once("*".into()).chain(client.asked.clone()).collect();
            address.resource_names_unsubscribe = vec!["*".into()];
            // What a client has counts as asked for, as far as it is there.
            let there = client.addresses.keys().filter(|name| snapshot.addresses.get(name).is_some());
            client.asked.extend(there.cloned().collect::<Vec<_>>());
        }
        let mut policy = first(AUTHORIZATION);
        policy.initial_resource_versions = client.policies.clone();
        client.session.request(address, snapshot).unwrap();
        client.session.request(policy, snapshot).unwrap();
        client
    }

    /// Everything on the way arrives, or the connection is cut after so many pushes.
    fn hears(&mut self, cut_after: Option<u8>) {
        let mut arrived = 0;
        while cut_after.is_none_or(|cut| arrived < cut) {
            let Some(push) = self.session.take() else { break };
            self.takes(push);
            arrived += 1;
        }
    }

    fn takes(&mut self, push: Push) {
        let held = if push.type_url == ADDRESS { &mut self.addresses } else { &mut self.policies };
        for resource in push.resources {
            held.insert(resource.name.to_string(), resource.version.to_string());
        }
        for name in push.removed {
            held.remove(&*name);
        }
    }
}

fn run(by_name: bool, steps: Vec<Step>) {
    let mut state = State::new(settings());
    let mut snapshot = Snapshot::default();
    let mut last: BTreeMap<String, Event> = BTreeMap::new();
    let mut client = Client::connect(by_name, BTreeSet::new(), Default::default(), &snapshot);
    for step in steps {
        match step {
            Step::Object { kind, which, form, gone } => {
                let (called, put, goes) = object(kind, which, form);
                if gone {
                    last.remove(&called);
                    state.apply(goes);
                } else {
                    last.insert(called, put.clone());
                    state.apply(put);
                }
                if let Some(new) = state.flush() {
                    snapshot = new;
                }
            }
            Step::Told { cut_after } => {
                client.session.update(&snapshot).unwrap();
                client.hears(cut_after);
                if cut_after.is_some() {
                    let held = (client.addresses, client.policies);
                    client = Client::connect(by_name, client.asked, held, &snapshot);
                }
            }
            Step::Asks { which } if by_name => {
                let mut request = answer(ADDRESS, "", None);
                request.resource_names_subscribe = vec![name(which)];
                client.asked.insert(name(which));
                client.session.request(request, &snapshot).unwrap();
            }
            Step::Asks { .. } => {}
            Step::Refuses => {
                client.session.request(answer(ADDRESS, "x", Some("no")), &snapshot).unwrap();
            }
        }
    }
    client.session.update(&snapshot).unwrap();
    client.hears(None);

    let mut fresh = State::new(settings());
    for event in last.into_values() {
        fresh.apply(event);
    }
    let snapshot = fresh.flush().unwrap_or_default();
    let mut newcomer = Client::connect(by_name, client.asked.clone(), Default::default(), &snapshot);
    newcomer.hears(None);
    assert_eq!(client.addresses, newcomer.addresses);
    assert_eq!(client.policies, newcomer.policies);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_client_that_follows_everything_ends_up_as_one_that_connects_for_the_first_time(
        steps in proptest::collection::vec(step(), 0..60)
    ) {
        run(false, steps);
    }

    #[test]
    fn a_client_that_asks_by_name_ends_up_as_one_that_connects_for_the_first_time(
        steps in proptest::collection::vec(step(), 0..60)
    ) {
        run(true, steps);
    }
}
