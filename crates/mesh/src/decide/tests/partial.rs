//! A view of a part: what has not been asked for is asked for.

use super::*;

fn call(view: &View, source: &Workload, to: &str) -> Decision {
    let destination = to.parse().unwrap();
    decide(view, &Call { source, destination, random: 0, resolved: &NOTHING_RESOLVED })
}

fn workload(name: &str, ip: &str) -> Workload {
    let identity = Identity::new("cluster.local", "default", name).unwrap();
    let mut workload = Workload::new(format!("Kubernetes//Pod/default/{name}"), name, identity);
    workload.addresses = vec![ip.parse().unwrap()];
    workload
}

#[test]
fn what_has_not_been_asked_for_is_needed_and_never_passed_through() {
    let (mut view, source) = (View::default(), workload("a", "10.0.0.1"));
    assert!(matches!(call(&view, &source, "10.0.0.2:80"), Decision::Passthrough { .. }), "all is known");
    view.set_partial();
    let lookup = Lookup::Address(NetworkAddress::new("", "10.0.0.2".parse().unwrap()));
    assert_eq!(call(&view, &source, "10.0.0.2:80"), Decision::Need(lookup.clone()));
    view.note_absent(lookup.clone());
    assert!(matches!(call(&view, &source, "10.0.0.2:80"), Decision::Passthrough { .. }), "it is not there");
    let mut other = workload("b", "10.0.0.2");
    other.tunnel = Tunnel::Hbone;
    view.insert_workload(other);
    assert!(matches!(call(&view, &source, "10.0.0.2:80"), Decision::Tunnel(_)), "it has appeared");
}

#[test]
fn a_waypoint_that_has_not_been_asked_for_is_needed() {
    let (mut view, source) = (View::default(), workload("a", "10.0.0.1"));
    view.set_partial();
    let key = ServiceKey::new("default", "waypoint.default.svc.cluster.local");
    let mut other = workload("b", "10.0.0.2");
    other.waypoint =
        Some(crate::Gateway { target: crate::GatewayTarget::Hostname(key.clone()), hbone_port: 15008 });
    view.insert_workload(other);
    assert_eq!(call(&view, &source, "10.0.0.2:80"), Decision::Need(Lookup::Service(key.clone())));
    view.note_absent(Lookup::Service(key));
    assert!(matches!(call(&view, &source, "10.0.0.2:80"), Decision::Refuse(Refusal::UnknownWaypoint { .. })));
}

#[test]
fn a_lookup_prints_as_it_was_read() {
    for text in ["/10.0.0.2", "west/fd00::1", "shop/web.shop.svc.cluster.local"] {
        assert_eq!(text.parse::<Lookup>().unwrap().to_string(), text);
    }
    assert!("nothing".parse::<Lookup>().is_err());
}
