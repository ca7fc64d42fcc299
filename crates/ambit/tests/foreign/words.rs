//! The same state and the same traffic in the same words: dumps, metrics and log fields of both proxies side by side.
//!
//! What differs on purpose is listed here and in `docs/reference/interoperability.md`; anything else that differs is a
//! failure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::seen::Labels;
use crate::support::eventually;
use crate::traffic::{PATIENCE, answering, ask};
use crate::world::{PORT, Place, Side, World};

/// The resolver of a lab's pods.
const RESOLVER: &str = "10.96.0.10:53";

/// Each path to a leaf of a value, with the leaf.
fn leaves(value: &Value, at: &str, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            fields.iter().for_each(|(name, value)| leaves(value, &format!("{at}/{name}"), into));
        }
        Value::Array(items) if !items.is_empty() => {
            items
                .iter()
                .enumerate()
                .for_each(|(number, value)| leaves(value, &format!("{at}/{number}"), into));
        }
        leaf => _ = into.insert(at.to_owned(), leaf.clone()),
    }
}

/// Where two dumps of the same list differ, item by item.
fn differences(foreign: &Value, ours: &Value, list: &str, key: &str) -> BTreeSet<String> {
    let of = |dump: &Value| -> BTreeMap<String, Value> {
        let items = dump[list].as_array().cloned().unwrap_or_default();
        items.into_iter().map(|item| (item[key].as_str().unwrap_or_default().to_owned(), item)).collect()
    };
    let (foreign, ours) = (of(foreign), of(ours));
    let mut found = BTreeSet::new();
    for name in foreign.keys().chain(ours.keys()).collect::<BTreeSet<_>>() {
        let (mut theirs, mut mine) = (BTreeMap::new(), BTreeMap::new());
        leaves(foreign.get(name).unwrap_or(&Value::Null), "", &mut theirs);
        leaves(ours.get(name).unwrap_or(&Value::Null), "", &mut mine);
        for path in theirs.keys().chain(mine.keys()).collect::<BTreeSet<_>>() {
            if theirs.get(path) != mine.get(path) {
                found.insert(format!("{list} {name} {path}: {:?} / {:?}", theirs.get(path), mine.get(path)));
            }
        }
    }
    found
}

/// Asks the resolver that pods of a lab have, by UDP, for an address; what is answered is no matter here.
async fn resolve(from: &Place, name: &str) {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = from.netns.try_run(|| std::net::UdpSocket::bind("0.0.0.0:0")).unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = tokio::net::UdpSocket::from_std(socket).unwrap();
    socket.connect(RESOLVER).await.unwrap();
    socket.send(&question).await.unwrap();
    let mut answer = [0; 1500];
    let received = tokio::time::timeout(PATIENCE, socket.recv(&mut answer)).await;
    let length = received.unwrap_or_else(|_| panic!("{}: no answer for {name}", from.name)).unwrap();
    assert_eq!(&answer[..2], &question[..2], "{} {name}: {:?}", from.name, &answer[..length]);
}

/// Series of the flows that were the same from either side, with the names of the sides taken out.
async fn flows(world: &World, side: Side) -> BTreeSet<(String, Labels)> {
    let metrics = world.metrics(side).await;
    let (own, other) = (side.name(), side.other().name());
    let mut found = BTreeSet::new();
    for name in [
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
        "istio_tcp_connections_failed_total",
        "istio_tcp_sent_bytes_total",
        "istio_tcp_received_bytes_total",
        "istio_dns_requests_total",
        "istio_dns_upstream_requests_total",
    ] {
        for (labels, _) in metrics.series(name, &[]) {
            let neutral = |value: &str| value.replace(own, "NEAR").replace(other, "FAR");
            let mut labels: Labels =
                labels.iter().map(|(label, value)| (label.clone(), neutral(value))).collect();
            for zone in ["source_zone", "destination_zone"] {
                labels.entry(zone.to_owned()).and_modify(|zone| *zone = zone_of(side, zone).to_owned());
            }
            // The scrapes and probes of the lab itself come to one side only.
            if labels.values().any(|value| value.contains("NEAR-0")) {
                found.insert((name.to_owned(), labels));
            }
        }
    }
    found
}

/// Whose zone it is, seen from a side.
fn zone_of(side: Side, zone: &str) -> &'static str {
    match (side, zone) {
        (Side::Foreign, "zone1") | (Side::Ours, "zone2") => "NEAR",
        (Side::Foreign, "zone2") | (Side::Ours, "zone1") => "FAR",
        _ => "elsewhere",
    }
}

/// Ours in the words of a ztunnel, any of them: where a pod was called directly, ours says so at both ends and names its
/// namespace, while a ztunnel leaves the namespace unknown, or where it receives guesses the service by the port.
fn as_ztunnel_says(labels: &Labels) -> Vec<Labels> {
    let of = |label: &str| labels.get(label).map_or("", String::as_str);
    if of("destination_service") != "unknown" {
        return vec![labels.clone()];
    }
    let with = |changes: &[(&str, &str)]| {
        let mut labels = labels.clone();
        labels.extend(changes.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())));
        labels
    };
    let mut said = vec![with(&[("destination_service_namespace", "unknown")])];
    if of("reporter") == "destination" && of("response_flags") == "-" {
        said.push(with(&[
            ("destination_service", "NEAR.meeting.svc.cluster.local"),
            ("destination_service_name", "NEAR"),
            ("destination_service_namespace", "meeting"),
        ]));
    }
    said
}

/// What both have counted has the same labels with the same values.
async fn same_series(world: &World) {
    eventually("the same series at both", || async {
        let [theirs, ours] = [flows(world, Side::Foreign).await, flows(world, Side::Ours).await];
        let said = |(name, labels): &(String, Labels)| -> Vec<(String, Labels)> {
            as_ztunnel_says(labels).into_iter().map(|labels| (name.clone(), labels)).collect()
        };
        let possible: BTreeSet<_> = ours.iter().flat_map(said).collect();
        let theirs_alone: Vec<_> = theirs.difference(&possible).collect();
        let ours_alone: Vec<_> =
            ours.iter().filter(|one| !said(one).iter().any(|one| theirs.contains(one))).collect();
        if theirs_alone.is_empty() && ours_alone.is_empty() && !ours.is_empty() {
            return Ok(());
        }
        Err(format!("only at the foreign proxy {theirs_alone:?}\nonly at ours {ours_alone:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a foreign proxy in AMBIT_FOREIGN_PROXY"]
async fn both_describe_the_same_mesh_in_the_same_words() {
    let world = World::new("z1w").await;
    let principals = [world.place(Side::Foreign, 1).identity().trim_start_matches("spiffe://").to_owned()];
    let rules = serde_json::json!({"selector": {"matchLabels": {"app": "ours-1"}}, "action": "DENY",
        "rules": [{"from": [{"source": {"principals": principals, "notNamespaces": ["a*"], "ipBlocks": ["10.0.0.0/8"]}}],
            "to": [{"operation": {"ports": ["81"]}}]}]});
    world.apply("AuthorizationPolicy", "some", rules).await;
    world.apply("PeerAuthentication", "strict", serde_json::json!({"mtls": {"mode": "STRICT"}})).await;

    let dumps = eventually("both to know the policies", || async {
        let dumps = [world.dump(Side::Foreign).await, world.dump(Side::Ours).await];
        let count = |dump: &Value| dump["policies"].as_array().map_or(0, Vec::len);
        match [count(&dumps[0]), count(&dumps[1])] {
            [theirs, ours] if theirs == ours && ours >= 2 => Ok(dumps),
            counts => Err(format!("{counts:?}")),
        }
    })
    .await;
    if let Some(dir) = std::env::var_os("AMBIT_FOREIGN_KEEP") {
        for (side, dump) in Side::BOTH.iter().zip(&dumps) {
            let file = std::path::Path::new(&dir).join(format!("{}.json", side.name()));
            std::fs::write(file, serde_json::to_string_pretty(dump).unwrap()).unwrap();
        }
    }
    let mut found = BTreeSet::new();
    for (list, key) in [("workloads", "uid"), ("services", "hostname"), ("policies", "name")] {
        found.extend(differences(&dumps[0], &dumps[1], list, key));
    }
    assert!(found.is_empty(), "foreign / ours:\n{found:#?}");

    // The same traffic from and to either: each has been client and server, allowed and denied.
    let _answering = Side::BOTH.map(|side| answering(world.place(side, 0).listen(PORT)));
    for side in Side::BOTH {
        for to in [world.place(side.other(), 0).at(PORT), world.service(side.other()).await] {
            assert_eq!(ask(world.place(side, 0), to, "word").await.as_deref(), Ok("WORD"));
        }
        let _ = ask(world.place(side, 0), world.place(side.other(), 0).at(PORT + 1), "nobody listens").await;
    }
    for side in Side::BOTH {
        for name in ["ours.meeting.svc.cluster.local", "foreign.meeting", "nobody.example"] {
            resolve(world.place(side, 0), name).await;
        }
    }
    same_series(&world).await;
    let [theirs, ours] = [world.metrics(Side::Foreign).await, world.metrics(Side::Ours).await];
    let prefixes = ["istio_tcp", "istio_dns", "istio_xds", "workload_manager"];
    let (theirs, ours) = (theirs.names(&prefixes), ours.names(&prefixes));
    for (name, labels) in &theirs {
        let has = ours.get(name).unwrap_or_else(|| panic!("ours lacks {name}"));
        let missing: Vec<_> = labels.difference(has).collect();
        assert!(missing.is_empty(), "{name} of ours lacks {missing:?}");
        let more: Vec<_> = has.difference(labels).collect();
        assert!(more.is_empty(), "{name} of ours has {more:?} beside");
    }

    // Lines of the access log: the same fields in the same order.
    for direction in ["outbound", "inbound"] {
        let mut orders = Vec::new();
        for side in Side::BOTH {
            let order = eventually("a line in the access log", || async {
                let log = world.access_log(side).await;
                let mut fits = log.iter().filter(|line| {
                    let good = line.message == "connection complete" && line.get("error").is_empty();
                    good && line.get("direction") == direction && !line.get("dst.service").is_empty()
                });
                fits.next().map(|line| line.order.clone()).ok_or_else(|| format!("{log:#?}"))
            })
            .await;
            orders.push(order);
        }
        assert_eq!(orders[0], orders[1], "{direction}: foreign, ours");
    }
}
