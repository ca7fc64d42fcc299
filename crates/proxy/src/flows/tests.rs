use std::net::SocketAddr;

use mesh::{Call, NetworkAddress, Service, ServiceKey, Tunnel, View, Workload, decide};
use proptest::prelude::*;

use super::*;

fn workload(name: &str, ip: [u8; 4]) -> Workload {
    let identity = Identity::new("cluster.local", "shop", name).unwrap();
    let mut workload = Workload::new(format!("c//Pod/shop/{name}-1"), format!("{name}-1"), identity);
    workload.addresses = vec![ip.into()];
    workload.workload_name = name.into();
    workload.canonical_name = name.into();
    workload.tunnel = Tunnel::Hbone;
    workload
}

fn opening(destination: SocketAddr, view: &View) -> Opening {
    let source = workload("a", [10, 0, 0, 1]);
    let decision =
        decide(view, &Call { source: &source, destination, random: 0, resolved: &mesh::NOTHING_RESOLVED });
    Opening::outbound(&source, "10.0.0.1:5000".parse().unwrap(), &decision).unwrap()
}

fn text(flows: &Flows) -> String {
    let mut out = String::new();
    flows.encode(&mut out);
    out
}

#[test]
fn a_flow_is_counted_at_open_while_open_and_at_the_end() {
    let flows = Arc::new(Flows::default());
    let mut view = View::default();
    view.insert_workload(workload("b", [10, 0, 0, 2]));
    let flow = flows.open(opening("10.0.0.2:80".parse().unwrap(), &view));
    let at_open = text(&flows);
    assert!(at_open.contains("istio_tcp_sockets_open{reporter=\"source\"} 1"));
    assert!(!at_open.contains("connections_closed_total{"));
    flow.client_to_server(7);
    flow.server_to_client(9);
    let value = |name: &str| {
        let text = text(&flows);
        let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next().map(str::to_owned))
    };
    assert_eq!(value("istio_tcp_connections_opened_total{").as_deref(), Some("1"));
    assert_eq!(value("istio_tcp_received_bytes_total{").as_deref(), Some("7"), "client to server");
    assert_eq!(value("istio_tcp_sent_bytes_total{").as_deref(), Some("9"), "server to client");
    flow.close(Err(&Failure::Abandoned));
    assert_eq!(value("istio_tcp_connections_closed_total{").as_deref(), Some("1"));
    assert_eq!(value("istio_tcp_connections_failed_total{"), None, "no failure of ours");
}

#[test]
fn a_dropped_flow_is_closed_and_not_failed() {
    let flows = Arc::new(Flows::default());
    drop(flows.open(opening("10.0.0.2:80".parse().unwrap(), &View::default())));
    let text = text(&flows);
    assert!(text.contains("response_flags=\"-\"} 1"));
    assert!(text.contains("istio_tcp_connections_closed_total{"));
    assert!(!text.contains("istio_tcp_connections_failed_total{"));
}

#[test]
fn what_is_unknown_says_so_and_is_never_missing() {
    let flows = Arc::new(Flows::default());
    let flow = flows.open(opening("192.0.2.1:80".parse().unwrap(), &View::default()));
    let text = text(&flows);
    let line = text.lines().find(|line| line.starts_with("istio_tcp_connections_opened_total{")).unwrap();
    for label in [
        "destination_workload",
        "destination_principal",
        "destination_service",
        "destination_service_name",
        "destination_service_namespace",
        "source_principal",
        "source_zone",
        "connection_security_policy",
    ] {
        assert!(line.contains(&format!("{label}=\"unknown\"")), "{label} in {line}");
    }
    assert!(line.contains("source_workload=\"a\""));
    drop(flow);
}

#[test]
fn a_direct_call_names_the_namespace_and_no_service() {
    let mut view = View::default();
    let mut b = workload("b", [10, 0, 0, 2]);
    let key = ServiceKey::new("shop", "web.shop.svc.cluster.local");
    b.services.insert(key.clone(), vec![mesh::PortMapping { service_port: 80, target_port: 80 }]);
    view.insert_workload(b.clone());
    let mut service = Service::new("web", key);
    service.vips = vec![NetworkAddress::new("", "10.96.0.1".parse().unwrap())];
    service.ports = vec![mesh::ServicePort {
        service_port: 80,
        target_port: Some(80),
        app_protocol: mesh::AppProtocol::Unknown,
    }];
    view.insert_service(service);
    let direct = opening("10.0.0.2:80".parse().unwrap(), &view).service;
    assert_eq!((&*direct.host, &*direct.name, &*direct.namespace), ("", "", "shop"));
    let called = opening("10.96.0.1:80".parse().unwrap(), &view).service;
    assert_eq!((&*called.host, &*called.name), ("web.shop.svc.cluster.local", "web"));
    // The destination says the same of the same calls.
    let inbound = |service| {
        let any = "10.0.0.2:80".parse().unwrap();
        Opening::inbound(&b, service, None, None, None, any, any, None).service
    };
    assert_eq!(inbound(None), direct);
    let service = view.services().next().unwrap();
    assert_eq!(inbound(Some(service)), called);
}

#[test]
fn described_and_known_sources_are_told_apart() {
    let b = workload("b", [10, 0, 0, 2]);
    let any = "10.0.0.2:80".parse().unwrap();
    let baggage = hbone::Baggage {
        namespace: Some("far".into()),
        workload: Some((mesh::WorkloadType::Deployment, "deploy".into())),
        service: Some("canonical".into()),
        ..hbone::Baggage::default()
    };
    let far = Opening::inbound(&b, None, None, Some(&baggage), None, any, any, None).source;
    assert_eq!((&*far.workload, &*far.app, &*far.canonical), ("deploy", "deploy", "canonical"));
    let known = workload("a", [10, 0, 0, 1]);
    let near = Opening::inbound(&b, None, Some(&known), Some(&baggage), None, any, any, None).source;
    assert_eq!((&*near.workload, &*near.namespace), ("a", "shop"));
}

#[test]
fn series_without_flows_are_dropped_only_after_a_long_rest() {
    let flows = Arc::new(Flows::default());
    let open = flows.open(opening("192.0.2.1:80".parse().unwrap(), &View::default()));
    flows.registry.sweep(Duration::ZERO);
    assert_eq!(flows.series(), 1, "a live flow keeps its series");
    drop(open);
    flows.sweep();
    assert_eq!(flows.series(), 1, "it has not rested long");
    flows.registry.sweep(Duration::ZERO);
    assert_eq!(flows.series(), 0);
}

proptest! {
    #[test]
    fn a_label_value_never_breaks_its_line(value in ".{0,60}") {
        let mut text = String::new();
        escape(&mut text, &value);
        prop_assert!(!text.contains('\n'));
        let plain = text.replace("\\\\", "").replace("\\\"", "");
        prop_assert!(!plain.contains('"'));
    }
}

#[test]
fn behind_a_gateway_a_flow_counts_under_the_labels_of_whoever_answers() {
    let flows = Arc::new(Flows::default());
    let source = workload("a", [10, 0, 0, 1]);
    let mut view = View::default();
    view.insert_workload(workload("b", [10, 0, 0, 2]));
    let late = || Opening { late: true, ..opening("10.0.0.2:80".parse().unwrap(), &view) };
    let far: Identity = "spiffe://cluster.local/ns/west/sa/web".parse().unwrap();
    let baggage = hbone::Baggage {
        namespace: Some("west".into()),
        service: Some("web".into()),
        ..hbone::Baggage::of(&source)
    };
    let flow = flows.open(late());
    assert!(!text(&flows).contains("istio_tcp_connections_opened_total{"), "nobody has answered yet");
    flow.answered(Some(&baggage), &far);
    flow.server_to_client(7);
    flow.close(Ok(()));
    let said = text(&flows);
    let line = |name: &str| {
        said.lines().find(|line| line.starts_with(&format!("{name}_total{{"))).unwrap().to_owned()
    };
    for name in ["istio_tcp_connections_opened", "istio_tcp_sent_bytes", "istio_tcp_connections_closed"] {
        let line = line(name);
        assert!(line.contains("destination_canonical_service=\"web\""), "{line}");
        assert!(line.contains("destination_workload_namespace=\"west\""), "{line}");
        assert!(line.contains("destination_principal=\"spiffe://cluster.local/ns/west/sa/web\""), "{line}");
    }
    // Nobody described itself; nobody answered at all.
    let flows = Arc::new(Flows::default());
    let flow = flows.open(late());
    flow.answered(None, &far);
    flow.close(Ok(()));
    assert!(text(&flows).contains("destination_workload=\"unknown\""));
    let flow = flows.open(late());
    flow.close(Err(&Failure::Abandoned));
    assert_eq!(
        text(&flows).matches("istio_tcp_connections_opened_total{").count(),
        2,
        "counted all the same"
    );
}

#[test]
fn a_refused_connection_is_told_to_the_observer_with_both_ends_and_its_reason() {
    let table = Arc::new(reports::Table::default());
    let flows = Flows::reporting(table.clone());
    let (mut view, source) = (View::default(), workload("a", [10, 0, 0, 1]));
    view.insert_workload(workload("b", [10, 0, 0, 2]));
    let pod =
        crate::pods::PodInfo { name: "a-1".into(), namespace: "shop".into(), service_account: "a".into() };
    let failure = Failure::Undiscovered { what: "x".into() };
    let refused = |reporter, own, src: &str, dst: &str| {
        let it = Refused {
            reporter,
            pod: &pod,
            own,
            src: src.parse().unwrap(),
            dst: Some(dst.parse().unwrap()),
            failure: &failure,
        };
        flows.refused(&view, &it);
        let rows = table.take(false).rows;
        assert_eq!((rows.len(), rows[0].1.failed), (1, 1));
        rows[0].0.pair.clone()
    };
    let pair = refused(Reporter::Source, Some(&source), "10.0.0.1:5000", "10.0.0.2:80");
    assert_eq!((&*pair.source.pod, &*pair.destination.pod, &*pair.reason), ("a-1", "b-1", "undiscovered"));
    assert_eq!((pair.port, &*pair.service.namespace, pair.verdict), (80, "shop", reports::Verdict::Failed));
    // Not even the control plane knows the pod: its name is the agent's.
    let pair = refused(Reporter::Destination, None, "10.0.0.2:5000", "10.0.0.1:15008");
    assert_eq!(
        (&*pair.source.pod, &*pair.destination.pod, &*pair.destination.namespace),
        ("b-1", "a-1", "shop")
    );
}
