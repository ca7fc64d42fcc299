use super::*;
use crate::config::{PROBE_SNAT_V4, PROBE_SNAT_V6};

fn options() -> Options {
    Options {
        ipv6: true,
        dns: false,
        ingress: false,
        virtual_interfaces: vec![],
        probe_v4: PROBE_SNAT_V4,
        probe_v6: PROBE_SNAT_V6,
    }
}

#[test]
fn the_rules_of_a_pod() {
    insta::assert_snapshot!("default", rules(&options()));
    insta::assert_snapshot!("dns", rules(&Options { dns: true, ..options() }));
    insta::assert_snapshot!("ingress", rules(&Options { ingress: true, ..options() }));
    insta::assert_snapshot!("v4_only", rules(&Options { ipv6: false, ..options() }));
    let virtual_interfaces = vec!["vm0".to_owned(), "vm1".to_owned()];
    insta::assert_snapshot!("virtual_interfaces", rules(&Options { virtual_interfaces, ..options() }));
    insta::assert_snapshot!("without_capture", rules_without_capture());
    insta::assert_snapshot!("removal", removal());
}

#[test]
fn annotations_change_the_rules_and_nonsense_in_them_does_not() {
    let of = |pairs: &[(&str, &str)]| {
        options().of_pod(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    };
    let (changed, warnings) = of(&[
        ("ambient.istio.io/bypass-inbound-capture", "true"),
        ("ambient.istio.io/dns-capture", "T"),
        ("istio.io/reroute-virtual-interfaces", " vm0, ,vm1 "),
    ]);
    assert!(warnings.is_empty());
    assert_eq!(changed.virtual_interfaces, ["vm0", "vm1"]);
    assert!(changed.ingress && changed.dns);
    let (same, warnings) = of(&[
        ("ambient.istio.io/dns-capture", "yes"),
        ("istio.io/reroute-virtual-interfaces", "x\" accept; flush ruleset #,far-too-long-a-name"),
    ]);
    assert_eq!(same, options());
    assert_eq!(warnings.len(), 3);
}
