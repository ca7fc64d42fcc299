use super::*;
use crate::flow::End;
use crate::testing::pod;

fn place(namespace: &str, name: &str, node: &str) -> Place {
    Place::new(End { namespace: namespace.into(), pod: name.into(), node: node.into(), ..End::default() })
}

fn outside(address: &str) -> Place {
    Place::new(End { address: address.parse().ok(), ..End::default() })
}

fn directory() -> Directory {
    let out = Pod { enrolled: false, ..pod("legacy", "old-0", "n1", 9) };
    let opted = Pod { enrolled: false, opted_out: true, ..pod("shop", "db-0", "n2", 8) };
    let host = Pod { enrolled: false, host_network: true, ..pod("kube-system", "exporter-0", "n1", 7) };
    let mesh = Pod { enrolled: false, mesh: true, ..pod("ambit-system", "ambit-proxy-0", "n1", 6) };
    let pods = [pod("shop", "cart-0", "n1", 1), pod("shop", "web-0", "n2", 2), out, opted, host, mesh];
    Directory::new(
        pods,
        [([192, 168, 0, 1].into(), "n1".into())],
        [("shop".into(), true), ("legacy".into(), false)],
    )
}

#[test]
fn every_plaintext_has_its_reason() {
    let directory = directory();
    let (cart, web) = (place("shop", "cart-0", "n1"), place("shop", "web-0", "n2"));
    let (old, db) = (place("legacy", "old-0", "n1"), place("shop", "db-0", "n2"));
    let (exporter, proxy) =
        (place("kube-system", "exporter-0", "n1"), place("ambit-system", "ambit-proxy-0", "n1"));
    let (node, internet) = (outside("192.168.0.1"), outside("203.0.113.9"));
    let table: &[(&Place, &Place, &str, Code)] = &[
        (&old, &cart, "", Code::SrcNotEnrolled),
        (&cart, &old, "not_enrolled", Code::DstNotEnrolled),
        (&cart, &db, "not_enrolled", Code::OptedOut),
        (&cart, &exporter, "host_network", Code::DstHostNetwork),
        (&exporter, &cart, "", Code::SrcHostNetwork),
        (&node, &cart, "", Code::NodeProbe),
        (&node, &web, "", Code::SrcHostNetwork),
        (&internet, &cart, "", Code::SrcOutside),
        (&cart, &internet, "unknown_destination", Code::DstOutside),
        (&cart, &web, "passthrough_service", Code::PassthroughService),
        (&cart, &web, "predates_enrolment", Code::PodPredatesEnrolment),
        (&cart, &proxy, "not_enrolled", Code::MeshComponent),
        (&cart, &web, "", Code::PermissiveFallback),
    ];
    for (source, target, reason, code) in table {
        let case = Case { source, target, reason, directory: &directory, reporting: &|_| true };
        assert_eq!(case.plaintext(), *code, "{} → {} {reason}", source.name(), target.name());
    }
    let silent = Case {
        source: &cart,
        target: &web,
        reason: "",
        directory: &directory,
        reporting: &|node| node != "n1",
    };
    assert_eq!(silent.plaintext(), Code::ProxyDown);
}

#[test]
fn the_cure_is_a_command_that_can_be_pasted() {
    let directory = directory();
    let (old, cart) = (place("legacy", "old-0", "n1"), place("shop", "cart-0", "n1"));
    let why = explain(Code::SrcNotEnrolled, &old, &cart, &"".into(), "", &directory);
    assert_eq!(why.command, "kubectl label namespace legacy istio.io/dataplane-mode=ambient");
    let why = explain(Code::DeniedByPolicy, &old, &cart, &"DENY".into(), "shop/allow-nothing#1", &directory);
    assert_eq!(why.command, "kubectl describe authorizationpolicy -n shop allow-nothing");
    assert!(why.text.contains("shop/allow-nothing"));
}

#[test]
fn hostile_names_never_reach_a_command() {
    let evil = place("x; rm -rf /", "$(reboot)", "n1");
    let cart = place("shop", "cart-0", "n1");
    let every = [Code::SrcNotEnrolled, Code::OptedOut, Code::PodPredatesEnrolment, Code::DeniedByPolicy];
    for code in every {
        for policy in ["a/$(reboot)", "`id`", ""] {
            let why = explain(code, &evil, &evil, &"".into(), policy, &Directory::default());
            assert!(!why.command.contains(['$', ';', '`']), "{}", why.command);
            let _ = explain(code, &evil, &cart, &"".into(), policy, &Directory::default());
        }
    }
}
