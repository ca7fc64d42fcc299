use super::*;
use crate::config::{PROBE_SNAT_V4, PROBE_SNAT_V6};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_late_delete_does_not_take_the_address_of_the_new_pod() {
    let mut exempt = Exempt::default();
    assert!(exempt.set("job", &[ip("10.0.0.9")]));
    assert!(exempt.set("new", &[ip("10.0.0.9")]));
    assert!(!exempt.remove("job"));
    assert_eq!(exempt.by_address, BTreeMap::from([(ip("10.0.0.9"), "new".to_owned())]));
}

#[test]
fn a_pod_that_moved_gives_up_its_old_address() {
    let mut exempt = Exempt::default();
    exempt.set("a", &[ip("10.0.0.1"), ip("fd00::1")]);
    assert!(exempt.set("a", &[ip("10.0.0.2")]));
    assert!(!exempt.set("a", &[ip("::ffff:10.0.0.2")]));
    assert_eq!(exempt.addresses().copied().collect::<Vec<_>>(), [ip("10.0.0.2")]);
}

#[test]
fn the_rules_of_a_node() {
    let mut exempt = Exempt::default();
    insta::assert_snapshot!("empty", rules(&exempt, PROBE_SNAT_V4, PROBE_SNAT_V6));
    exempt.set("0b7e-1", &[ip("10.0.0.1"), ip("fd00::1")]);
    exempt.set("evil\" } ; flush ruleset", &[ip("10.0.0.2")]);
    insta::assert_snapshot!("two_pods", rules(&exempt, PROBE_SNAT_V4, PROBE_SNAT_V6));
}
