//! Given this view, when a pod of the namespace `shop` asks for this name, then that is told.

use std::collections::HashSet;

use mesh::{Identity, LoadBalancing, LoadBalancingMode, NetworkAddress, ServiceKey};
use proptest::prelude::*;

use super::*;

fn rules() -> Rules {
    Rules { domain: "cluster.local".into(), ipv6: true, preferred_namespace: None }
}

fn pod(namespace: &str, name: &str, addresses: &[&str]) -> Workload {
    let identity = Identity::new("cluster.local", namespace, name).unwrap();
    let mut workload = Workload::new(format!("Kubernetes//Pod/{namespace}/{name}"), name, identity);
    workload.addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
    workload
}

fn client() -> Workload {
    pod("shop", "client", &["10.0.0.1"])
}

fn service(namespace: &str, host: &str, vips: &[&str]) -> Service {
    let mut service = Service::new(host.split('.').next().unwrap(), ServiceKey::new(namespace, host));
    service.vips = vips.iter().map(|vip| NetworkAddress::new("", vip.parse().unwrap())).collect();
    service
}

fn view(services: impl IntoIterator<Item = Service>) -> View {
    let mut view = View::default();
    services.into_iter().for_each(|service| view.insert_service(service));
    view
}

fn ask(view: &View, name: &str, family: Family) -> Reply {
    let question = Question { name: Name::from_ascii(name).unwrap(), family };
    answer(view, &client(), &question, &rules(), 7)
}

/// The addresses, sorted; none when the name is forwarded.
fn told(view: &View, name: &str) -> Option<Vec<String>> {
    match ask(view, name, Family::V4) {
        Reply::Answer(answer) => {
            let mut all: Vec<String> = answer.addresses.iter().map(ToString::to_string).collect();
            all.sort();
            Some(all)
        }
        Reply::Forward => None,
    }
}

fn alias(view: &View, name: &str) -> Option<String> {
    match ask(view, name, Family::V4) {
        Reply::Answer(answer) => answer.alias.map(|alias| alias.to_ascii()),
        Reply::Forward => panic!("{name} is forwarded"),
    }
}

fn one(ip: &str) -> Option<Vec<String>> {
    Some(vec![ip.to_owned()])
}

#[test]
fn a_service_has_all_the_names_that_kubernetes_gives_it() {
    let view = view([
        service("shop", "web.shop.svc.cluster.local", &["10.96.0.1"]),
        service("other", "db.other.svc.cluster.local", &["10.96.0.2"]),
    ]);
    for (name, ip) in [
        ("web.", Some("10.96.0.1")),
        ("web.shop.", Some("10.96.0.1")),
        ("web.shop.svc.", Some("10.96.0.1")),
        ("web.shop.svc.cluster.local.", Some("10.96.0.1")),
        ("WEB.Shop.SVC.cluster.LOCAL.", Some("10.96.0.1")),
        ("web.shop.svc.cluster.local.shop.svc.cluster.local.", Some("10.96.0.1")),
        ("web.shop.svc.cluster.local.", Some("10.96.0.1")),
        ("db.other.", Some("10.96.0.2")),
        ("db.other.svc.", Some("10.96.0.2")),
        ("db.other.svc.cluster.local.", Some("10.96.0.2")),
        ("db.other.svc.cluster.local.svc.cluster.local.", Some("10.96.0.2")),
        // Another namespace's service has no short name here.
        ("db.", None),
        ("web.other.", None),
        ("web.shop.svc.cluster.local.example.", None),
        ("svc.cluster.local.", None),
        ("shop.svc.cluster.local.", None),
        ("cluster.local.", None),
        ("local.", None),
        (".", None),
    ] {
        assert_eq!(told(&view, name), ip.and_then(one), "{name}");
    }
}

#[test]
fn a_stripped_search_domain_is_told_by_a_cname_in_the_case_of_the_question() {
    let view = view([
        service("shop", "web.shop.svc.cluster.local", &["10.96.0.1"]),
        service("shop", "api.example.com", &["240.240.0.1"]),
    ]);
    for (name, expected) in [
        ("api.example.com.", None),
        ("web.shop.svc.cluster.local.", None),
        ("web.", None),
        ("API.example.com.shop.svc.cluster.local.", Some("API.example.com.")),
        ("api.example.com.svc.cluster.local.", Some("api.example.com.")),
        ("api.example.com.cluster.local.", Some("api.example.com.")),
        ("web.shop.svc.cluster.local.shop.svc.cluster.local.", Some("web.shop.svc.cluster.local.")),
    ] {
        assert_eq!(alias(&view, name).as_deref(), expected, "{name}");
    }
}

#[test]
fn a_wildcard_answers_for_names_below_it_and_never_by_a_cname() {
    let view = view([
        service("shop", "*.example.com", &["240.240.0.1"]),
        service("shop", "*.deep.example.com", &["240.240.0.2"]),
        service("shop", "exact.deep.example.com", &["240.240.0.3"]),
    ]);
    for (name, ip) in [
        ("a.example.com.", Some("240.240.0.1")),
        ("a.b.example.com.", Some("240.240.0.1")),
        ("a.deep.example.com.", Some("240.240.0.2")),
        ("exact.deep.example.com.", Some("240.240.0.3")),
        ("a.exact.deep.example.com.", Some("240.240.0.2")),
        ("a.example.com.shop.svc.cluster.local.", Some("240.240.0.1")),
        ("example.com.", None),
        ("aexample.com.", None),
        // Nobody's host is called so; the wildcard itself is not a name to ask for.
        ("*.example.com.", None),
    ] {
        assert_eq!(told(&view, name), ip.and_then(one), "{name}");
    }
    assert_eq!(alias(&view, "a.example.com.shop.svc.cluster.local."), None);
}

#[test]
fn a_headless_service_has_the_addresses_of_its_ready_endpoints() {
    let host = "stores.shop.svc.cluster.local";
    let key = ServiceKey::new("shop", host);
    let mut headless = service("shop", host, &[]);
    let mut all = view([headless.clone()]);
    let mut endpoint = |name: &str, addresses: &[&str], change: &dyn Fn(&mut Workload)| {
        let mut workload = pod("shop", name, addresses);
        workload.services.insert(key.clone(), Vec::new());
        change(&mut workload);
        all.insert_workload(workload);
    };
    endpoint("s1", &["10.0.1.1", "10.0.1.99", "fd00::1"], &|_| ());
    endpoint("s2", &["10.0.1.2", "fd00::2"], &|_| ());
    endpoint("unready", &["10.0.1.3"], &|workload| workload.health = Health::Unhealthy);
    endpoint("far", &["10.0.1.4"], &|workload| workload.network = "far".into());
    endpoint("twin", &["10.0.1.2"], &|_| ());
    let v4 = |view: &View| told(view, host).unwrap();
    assert_eq!(v4(&all), ["10.0.1.1", "10.0.1.2"], "one for each endpoint, each once");
    let v6 = |view: &View| match ask(view, host, Family::V6) {
        Reply::Answer(answer) => answer.addresses.len(),
        Reply::Forward => panic!("forwarded"),
    };
    assert_eq!(v6(&all), 2);

    headless.load_balancing = Some(LoadBalancing {
        routing_preference: Vec::new(),
        mode: LoadBalancingMode::Unspecified,
        health_policy: HealthPolicy::AllowAll,
    });
    all.insert_service(headless.clone());
    assert_eq!(v4(&all), ["10.0.1.1", "10.0.1.2", "10.0.1.3"], "those not ready are wanted");

    for (families, expected) in
        [(IpFamilies::Ipv4Only, (3, 0)), (IpFamilies::Ipv6Only, (0, 2)), (IpFamilies::Dual, (3, 2))]
    {
        headless.ip_families = families;
        all.insert_service(headless.clone());
        assert_eq!((v4(&all).len(), v6(&all)), expected, "{families:?}");
    }
}

#[test]
fn without_addresses_of_its_own_only_a_service_of_the_cluster_is_known() {
    let view = view([
        service("shop", "www.example.com", &[]),
        service("shop", "empty.shop.svc.cluster.local", &[]),
        service("shop", "fake.shop.svc.cluster.local.example", &[]),
    ]);
    assert_eq!(told(&view, "www.example.com."), None);
    assert_eq!(told(&view, "fake.shop.svc.cluster.local.example."), None);
    assert_eq!(told(&view, "empty."), Some(Vec::new()), "it exists; there is nothing to tell");
}

#[test]
fn a_known_name_without_an_address_of_the_family_is_empty_and_not_forwarded() {
    let view = view([service("shop", "web.shop.svc.cluster.local", &["10.96.0.1"])]);
    assert_eq!(ask(&view, "web.", Family::V6), Reply::Answer(Answer::default()));
    let stripped = "web.shop.svc.cluster.local.shop.svc.cluster.local.";
    assert_eq!(ask(&view, stripped, Family::V6), Reply::Answer(Answer::default()));
}

#[test]
fn without_ipv6_no_ipv6_address_is_told() {
    let view = view([service("shop", "web.shop.svc.cluster.local", &["10.96.0.1", "fd00::1"])]);
    let question = Question { name: Name::from_ascii("web.").unwrap(), family: Family::V6 };
    let found = |ipv6| answer(&view, &client(), &question, &Rules { ipv6, ..rules() }, 0);
    assert_eq!(found(false), Reply::Answer(Answer::default()));
    assert_ne!(found(true), Reply::Answer(Answer::default()));
}

#[test]
fn who_may_not_see_a_service_is_sent_to_the_worlds_resolvers() {
    let mut private = service("other", "db.other.svc.cluster.local", &["10.96.0.2"]);
    private.visibility = Visibility::Namespace;
    let mut own = service("shop", "mine.shop.svc.cluster.local", &["10.96.0.3"]);
    own.visibility = Visibility::Namespace;
    let view = view([private, own]);
    assert_eq!(told(&view, "db.other."), None);
    assert_eq!(told(&view, "mine."), one("10.96.0.3"));
}

#[test]
fn of_several_services_the_own_then_the_canonical_then_the_preferred_then_the_first_is_meant() {
    let host = "api.example.com";
    let rules = Rules { preferred_namespace: Some("preferred".into()), ..rules() };
    let question = Question { name: Name::from_ascii(host).unwrap(), family: Family::V4 };
    let mut all = View::default();
    for (namespace, ip, canonical) in [
        ("b", "240.0.0.2", false),
        ("a", "240.0.0.1", false),
        ("preferred", "240.0.0.3", false),
        ("z", "240.0.0.4", true),
        ("shop", "240.0.0.5", false),
    ] {
        let mut service = service(namespace, host, &[ip]);
        service.canonical = canonical;
        all.insert_service(service);
        let expected = if namespace == "b" {
            "240.0.0.2"
        } else if namespace == "a" {
            "240.0.0.1"
        } else {
            ip
        };
        let Reply::Answer(found) = answer(&all, &client(), &question, &rules, 0) else { panic!("forwarded") };
        assert_eq!(found.addresses, [expected.parse::<IpAddr>().unwrap()], "with {namespace}");
    }
}

#[test]
fn only_addresses_on_the_clients_network_are_told_and_never_a_block() {
    let mut web = service("shop", "web.shop.svc.cluster.local", &["10.96.0.1", "0.0.0.0"]);
    web.vips.push(NetworkAddress::new("far", "10.96.0.2".parse().unwrap()));
    web.cidr_vips = vec![("".into(), "10.97.0.0/16".parse().unwrap())];
    let mut far = service("shop", "far.shop.svc.cluster.local", &[]);
    far.vips.push(NetworkAddress::new("far", "10.96.0.9".parse().unwrap()));
    let view = view([web, far]);
    assert_eq!(told(&view, "web."), one("10.96.0.1"));
    assert_eq!(told(&view, "far."), Some(Vec::new()));
}

#[test]
fn every_order_of_the_addresses_comes_up() {
    let view =
        view([service("shop", "web.shop.svc.cluster.local", &["10.96.0.1", "10.96.0.2", "10.96.0.3"])]);
    let question = Question { name: Name::from_ascii("web.").unwrap(), family: Family::V4 };
    let orders: HashSet<Vec<IpAddr>> = (0..200)
        .map(|random| match answer(&view, &client(), &question, &rules(), random) {
            Reply::Answer(answer) => answer.addresses,
            Reply::Forward => panic!("forwarded"),
        })
        .collect();
    assert_eq!(orders.len(), 6);
}

proptest! {
    /// Whatever is asked, the same is answered, the answer has only addresses of the family, and nothing panics.
    #[test]
    fn any_name_has_one_answer(
        labels in proptest::collection::vec("(web|shop|svc|cluster|local|\\*|[a-z\\-_A-Z]{1,3}|.{1,8})", 0..9),
        v6: bool, random: u64,
    ) {
        let view = view([
            service("shop", "web.shop.svc.cluster.local", &["10.96.0.1", "fd00::1"]),
            service("shop", "*.local", &["10.96.0.2"]),
        ]);
        let Ok(name) = Name::from_labels(labels.iter().map(|label| label.as_bytes())) else { return Ok(()) };
        let question = Question { name, family: if v6 { Family::V6 } else { Family::V4 } };
        let first = answer(&view, &client(), &question, &rules(), random);
        prop_assert_eq!(&first, &answer(&view, &client(), &question, &rules(), random));
        if let Reply::Answer(answer) = first {
            prop_assert!(answer.addresses.iter().all(|ip| ip.is_ipv6() == v6));
        }
    }
}
