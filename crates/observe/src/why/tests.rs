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
    let sidecar = Pod { enrolled: false, sidecar: true, ..pod("shop", "car-0", "n1", 5) };
    let left_out = Pod { enrolled: false, excluded: true, ..pod("kube-system", "dns-0", "n1", 4) };
    let late = Pod { enrolled: false, opted_in: true, ..pod("legacy", "late-0", "n1", 3) };
    let fine = [pod("shop", "cart-0", "n1", 1), pod("shop", "web-0", "n2", 2)];
    let pods = fine.into_iter().chain([out, opted, host, mesh, sidecar, left_out, late]);
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
    let (car, dns) = (place("shop", "car-0", "n1"), place("kube-system", "dns-0", "n1"));
    let (node, internet) = (outside("192.168.0.1"), outside("203.0.113.9"));
    let table: &[(&Place, &Place, &str, Code)] = &[
        (&old, &cart, "", Code::SrcNotEnrolled),
        (&cart, &old, "not_enrolled", Code::DstNotEnrolled),
        (&cart, &db, "not_enrolled", Code::OptedOut),
        (&cart, &exporter, "host_network", Code::DstHostNetwork),
        (&exporter, &cart, "", Code::SrcHostNetwork),
        (&cart, &car, "not_enrolled", Code::Sidecar),
        (&dns, &cart, "", Code::NamespaceExcluded),
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
fn a_pod_outside_the_mesh_has_its_own_reason_whomever_it_talks_to() {
    let directory = directory();
    let of = |namespace: &str, name: &str| {
        let pod = directory.pod(&namespace.into(), &name.into()).unwrap();
        code_outside(pod).map(|code| super::outside(code, &place(namespace, name, "n1"), &directory))
    };
    let code = |namespace: &str, name: &str| of(namespace, name).map(|why| why.code);
    assert_eq!(code("shop", "cart-0"), None);
    assert_eq!(code("ambit-system", "ambit-proxy-0"), None, "the mesh's own pods need not be in it");
    assert_eq!(code("shop", "db-0"), Some(Code::OptedOut));
    assert_eq!(code("shop", "car-0"), Some(Code::Sidecar));
    assert_eq!(code("kube-system", "exporter-0"), Some(Code::HostNetwork));
    // Its namespace's label would not bring it in, so that is not what is advised.
    let dns = of("kube-system", "dns-0").unwrap();
    assert_eq!((dns.code, &*dns.command), (Code::NamespaceExcluded, ""));
    assert!(dns.text.contains("kube-system/dns-0") && dns.fix.contains("EXCLUDE_NAMESPACES"), "{dns:?}");
    let old = of("legacy", "old-0").unwrap();
    assert_eq!(old.code, Code::NotEnrolled);
    assert_eq!(old.command, "kubectl label namespace legacy istio.io/dataplane-mode=ambient");
    // Asked for by its own label and still not in: the agent knows.
    let late = of("legacy", "late-0").unwrap();
    assert_eq!((late.code, &*late.command), (Code::NotEnrolled, "ambit explain pod legacy/late-0"));
}

#[test]
fn hostile_names_never_reach_a_command() {
    let evil = place("x; rm -rf /", "$(reboot)", "n1");
    let cart = place("shop", "cart-0", "n1");
    let every = [
        Code::SrcNotEnrolled,
        Code::NotEnrolled,
        Code::Sidecar,
        Code::NamespaceExcluded,
        Code::OptedOut,
        Code::PodPredatesEnrolment,
        Code::DeniedByPolicy,
    ];
    for code in every {
        for policy in ["a/$(reboot)", "`id`", ""] {
            let why = explain(code, &evil, &evil, &"".into(), policy, &Directory::default());
            assert!(!why.command.contains(['$', ';', '`']), "{}", why.command);
            let _ = explain(code, &evil, &cart, &"".into(), policy, &Directory::default());
        }
    }
}
