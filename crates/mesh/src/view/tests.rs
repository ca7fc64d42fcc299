//! The indexes never disagree with the objects.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::Identity;

fn pod(name: &str, address: &str, tunnel: Tunnel) -> Workload {
    let identity = Identity::new("cluster.local", "default", "sa").unwrap();
    let mut workload = Workload::new(format!("Kubernetes//Pod/default/{name}"), name, identity);
    workload.addresses = vec![address.parse().unwrap()];
    workload.tunnel = tunnel;
    workload
}

fn at(address: &str) -> NetworkAddress {
    NetworkAddress::new("", address.parse::<IpAddr>().unwrap())
}

#[test]
fn a_workload_that_moves_leaves_its_old_address() {
    let mut view = View::default();
    view.insert_workload(pod("a", "10.0.0.1", Tunnel::None));
    view.insert_workload(pod("a", "10.0.0.2", Tunnel::None));
    assert!(view.workload_by_address(&at("10.0.0.1")).is_none());
    assert_eq!(&*view.workload_by_address(&at("10.0.0.2")).unwrap().name, "a");
}

#[test]
fn of_several_owners_of_an_address_the_pod_with_a_tunnel_wins() {
    let mut view = View::default();
    let mut entry = pod("entry", "10.0.0.1", Tunnel::Hbone);
    entry.uid = "Kubernetes/networking.istio.io/WorkloadEntry/default/entry".into();
    view.insert_workload(entry);
    view.insert_workload(pod("finished", "10.0.0.1", Tunnel::None));
    assert_eq!(&*view.workload_by_address(&at("10.0.0.1")).unwrap().name, "finished");
    view.insert_workload(pod("running", "10.0.0.1", Tunnel::Hbone));
    assert_eq!(&*view.workload_by_address(&at("10.0.0.1")).unwrap().name, "running");
    view.remove_workload("Kubernetes//Pod/default/running");
    assert_eq!(&*view.workload_by_address(&at("10.0.0.1")).unwrap().name, "finished");
}

#[test]
fn a_pod_is_found_by_what_the_node_agent_says_of_it() {
    let mut view = View::default();
    let mut workload = pod("a", "10.0.0.1", Tunnel::Hbone);
    workload.node = "node-1".into();
    view.insert_workload(workload);
    assert!(view.workload_by_name("default", "a", "sa", Some("node-1")).is_some());
    assert!(view.workload_by_name("default", "a", "sa", None).is_some());
    assert!(view.workload_by_name("default", "a", "sa", Some("node-2")).is_none());
    assert!(view.workload_by_name("default", "a", "other", None).is_none());
}

#[test]
fn the_longest_block_wins_without_an_exact_vip() {
    let mut view = View::default();
    for (name, block) in [("wide", "10.0.0.0/8"), ("narrow", "10.1.0.0/16")] {
        let mut service = Service::new(name, ServiceKey::new("default", format!("{name}.example")));
        service.cidr_vips = vec![("".into(), block.parse().unwrap())];
        view.insert_service(service);
    }
    assert_eq!(&*view.service_by_vip(&at("10.1.2.3"), "default").unwrap().name, "narrow");
    assert_eq!(&*view.service_by_vip(&at("10.2.2.3"), "default").unwrap().name, "wide");
    assert!(view.service_by_vip(&at("11.0.0.1"), "default").is_none());
}

proptest! {
    /// After any history of inserts and removals, nothing is found that is not there, and all is found that is.
    #[test]
    fn indexes_follow_any_history(steps in proptest::collection::vec((0u8..4, 0u8..4, any::<bool>()), 0..40)) {
        let mut view = View::default();
        let mut expected = std::collections::BTreeMap::new();
        for (name, address, insert) in steps {
            let uid = format!("Kubernetes//Pod/default/p{name}");
            if insert {
                view.insert_workload(pod(&format!("p{name}"), &format!("10.0.0.{address}"), Tunnel::Hbone));
                expected.insert(uid, address);
            } else {
                prop_assert_eq!(view.remove_workload(&uid).is_some(), expected.remove(&uid).is_some());
            }
        }
        for address in 0u8..4 {
            let found = view.workload_by_address(&at(&format!("10.0.0.{address}")));
            prop_assert_eq!(found.is_some(), expected.values().any(|owned| *owned == address));
            if let Some(found) = found {
                prop_assert_eq!(expected.get(&*found.uid), Some(&address));
            }
        }
        prop_assert_eq!(view.workloads().count(), expected.len());
    }
}
