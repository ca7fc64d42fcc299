//! Absurd and hostile objects: they harm nobody else, never crash, and each is named where somebody reads it.

use std::sync::Mutex;

use kube::core::DynamicObject;
use proptest::prelude::*;
use serde_json::Value;

use super::*;

/// What is logged while `what` runs.
pub(super) fn logged(what: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, what);
    String::from_utf8_lossy(&lines.0.lock().unwrap()).into_owned()
}

/// The well-behaved neighbours are still there and still right.
fn neighbours_are_well(world: &World) {
    assert!(world.state.snapshot.addresses.get(WEB_0).is_some());
    assert!(world.workload(WEB_0).services.contains_key(SERVICE));
    assert_eq!(world.workload(WEB_0).status, 0);
}

fn custom(name: &str, spec: Value) -> DynamicObject {
    fixtures::custom("shop", name, json!({ "spec": spec }))
}

#[test]
fn hostile_objects_harm_no_others_and_each_is_named() {
    let mut world = two_pods();
    let labels: serde_json::Map<String, Value> =
        (0..5000).map(|index| (format!("label-{index}"), "x".repeat(60).into())).collect();
    let rules: Vec<Value> = (0..3000)
        .map(|index| json!({ "from": [{ "source": { "ipBlocks": [format!("10.{}.{}.0/24", index / 250, index % 250)] } }] }))
        .collect();
    let text = logged(|| {
        let at = |ip: &str| json!({ "status": { "podIP": ip, "podIPs": [{ "ip": ip }] } });
        let many = json!({ "metadata": { "labels": labels } });
        let nobody = json!({ "spec": { "serviceAccountName": "a/b" } });
        let ports = json!({ "spec": { "ports": [
            { "name": "http", "port": 0, "targetPort": -7 }, { "name": "x".repeat(5000), "port": 70000, "targetPort": 99999 },
            { "name": "http", "port": 80, "targetPort": "" },
        ] } });
        let slice = json!({ "addressType": "FQDN", "endpoints": [{ "addresses": ["", "999.1.1.1", "::::"] }, { "addresses": [] }],
            "ports": [{ "name": null, "port": -1, "protocol": "SCTP" }] });
        world.hear(vec![
            Event::Pods(Delta::Put(fixtures::pod("many-labels", "10.0.0.50", many))),
            Event::Pods(Delta::Put(fixtures::pod("bad-ip", "", at("999.1.1.1")))),
            Event::Pods(Delta::Put(fixtures::pod("bad-account", "10.0.0.51", nobody))),
            Event::Services(Delta::Put(fixtures::service("odd-ports", "10.1.0.1", ports))),
            Event::Services(Delta::Put(fixtures::service("bad-vip", "10.1.0", json!({ "spec": { "selector": {} } })))),
            Event::Slices(Delta::Put(fixtures::slice("odd-slice", "odd-ports", slice))),
            Event::Authorizations(Delta::Put(fixtures::authorization("shop", "long", json!({
                "action": "DENY", "rules": rules, "selector": { "matchLabels": { "app": "nobody" } },
            })))),
            Event::Authorizations(Delta::Put(fixtures::authorization("shop", "odd-action", json!({ "action": "EXPLODE", "rules": [{}] })))),
            Event::Authorizations(Delta::Put(fixtures::authorization("shop", "odd-values", json!({
                "action": "DENY", "selector": { "matchLabels": { "app": "nobody" } },
                "rules": [{ "from": [{ "source": { "ipBlocks": ["1.2.3.4/99", "you"] } }], "to": [{ "operation": { "ports": ["-1", "http"] } }] }],
            })))),
            Event::Peers(Delta::Put(fixtures::peer("shop", "odd-mode", json!({
                "selector": { "matchLabels": { "app": "nobody" } },
                "mtls": { "mode": "SOMETIMES" }, "portLevelMtls": { "abc": { "mode": "STRICT" }, "99999999": {} },
            })))),
            Event::Entries(Delta::Put(fixtures::entry("odd-entry", json!({ "spec": {
                "hosts": ["*", "", "a..b", "ok.example"], "addresses": ["10.0.0.0/99", "x"], "resolution": "GUESS",
                "ports": [{ "number": 0, "name": "" }, { "number": 65535, "name": "tcp" }],
                "endpoints": [{ "address": "unix:///x" }, { "address": "" }, { "address": "300.1.1.1", "ports": { "tcp": 0 } }],
            } })))),
            Event::Written(Delta::Put(fixtures::written("odd-written", json!({ "spec": { "address": "" } })))),
            Event::Gateways(Delta::Put(fixtures::gateway("odd-gateway", json!({
                "spec": { "listeners": [{ "name": "", "port": 0, "protocol": "HBONE" }] },
                "status": { "addresses": [{ "type": "Nonsense", "value": "?" }, { "value": "" }] },
            })))),
        ]);
    });
    neighbours_are_well(&world);
    assert!(world.state.snapshot.addresses.get("Kubernetes//Pod/shop/many-labels").is_some());
    assert!(world.state.snapshot.policies.get("shop/long").is_some());
    let told = |name: &str| {
        let condition =
            world.state.snapshot.statuses.iter().any(|(of, _)| of.key.to_string() == format!("shop/{name}"));
        condition || text.lines().any(|line| line.contains(name))
    };
    for name in [
        "bad-ip",
        "bad-account",
        "bad-vip",
        "odd-action",
        "odd-values",
        "odd-mode",
        "odd-entry",
        "odd-written",
        "odd-gateway",
    ] {
        assert!(told(name), "{name} is named nowhere:\n{text}");
    }
}

#[test]
fn services_that_claim_one_address_are_both_published_whole() {
    let mut world = two_pods();
    let thief = fixtures::service("thief", "10.1.0.1", json!({ "spec": { "selector": { "app": "thief" } } }));
    let (changed, removed, _) = world.hear(vec![Event::Services(Delta::Put(thief))]);
    assert_eq!((changed, removed), (vec!["shop/thief.shop.svc.cluster.local".to_string()], vec![]));
    neighbours_are_well(&world);
}

/// Anything that JSON can say.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!("10.0.0.1/200")),
        Just(json!("*")),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-z]{1,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Replaces what stands at a place by `with`.
fn replace(value: &mut Value, path: &[usize], with: Value) {
    let next = match (path, &mut *value) {
        ([], _) => None,
        ([first, ..], Value::Object(map)) if !map.is_empty() => {
            let index = first % map.len();
            map.values_mut().nth(index)
        }
        ([first, ..], Value::Array(list)) if !list.is_empty() => {
            let index = first % list.len();
            list.get_mut(index)
        }
        _ => None,
    };
    match next {
        Some(next) => replace(next, &path[1..], with),
        None => *value = with,
    }
}

/// Specs that use everything there is.
fn specs() -> Vec<Value> {
    vec![
        json!({ "selector": { "matchLabels": { "app": "web" } }, "action": "DENY", "targetRefs": [{ "kind": "Service", "name": "web", "group": "" }],
            "rules": [{ "from": [{ "source": { "principals": ["a/*"], "ipBlocks": ["10.0.0.0/8"], "notNamespaces": ["x"] } }],
                "to": [{ "operation": { "ports": ["80"], "methods": ["GET"] } }], "when": [{ "key": "source.ip", "values": ["::1"] }] }] }),
        json!({ "selector": { "matchLabels": { "app": "web" } }, "mtls": { "mode": "STRICT" }, "portLevelMtls": { "80": { "mode": "DISABLE" } } }),
        json!({ "hosts": ["a.example"], "addresses": ["10.9.0.0/16"], "resolution": "STATIC", "location": "MESH_INTERNAL", "exportTo": ["*"],
            "ports": [{ "number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080 }], "workloadSelector": { "labels": { "app": "web" } },
            "endpoints": [{ "address": "10.9.0.1", "ports": { "http": 81 }, "labels": { "a": "b" }, "network": "n", "locality": "r/z/s", "weight": 3, "serviceAccount": "s" }] }),
        json!({ "address": "10.9.0.2", "ports": { "http": 81 }, "labels": { "app": "web" }, "serviceAccount": "s", "network": "n", "locality": "r" }),
        json!({ "gatewayClassName": "istio-waypoint", "addresses": [{ "type": "IPAddress", "value": "10.9.0.3" }],
            "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE", "allowedRoutes": { "namespaces": { "from": "Selector", "selector": { "matchLabels": { "a": "b" } } } } }] }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever stands anywhere in an object of a kind whose schema is not ours: it is read or refused with its name.
    #[test]
    fn whatever_stands_in_an_object_it_is_read_or_refused_with_its_name(
        which in 0usize..5, path in proptest::collection::vec(0usize..6, 1..7), with in anything()
    ) {
        let mut spec = specs().swap_remove(which);
        replace(&mut spec, &path, with);
        let object = custom("odd", spec);
        let mut world = two_pods();
        let read = match which {
            0 => object.try_into().map(|one| Event::Authorizations(Delta::Put(one))),
            1 => object.try_into().map(|one| Event::Peers(Delta::Put(one))),
            2 => object.try_into().map(|one| Event::Entries(Delta::Put(one))),
            3 => object.try_into().map(|one| Event::Written(Delta::Put(one))),
            _ => object.try_into().map(|one| Event::Gateways(Delta::Put(one))),
        };
        match read {
            Ok(event) => drop(world.hear(vec![event])),
            Err(error) => prop_assert!(error.to_string().contains("shop/odd"), "{error}"),
        }
        prop_assert!(world.state.snapshot.addresses.get(WEB_0).is_some());
        prop_assert!(world.state.snapshot.addresses.get(WEB_1).is_some());
    }
}
