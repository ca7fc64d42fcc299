use http::HeaderValue;
use mesh::{Identity, Workload, WorkloadType};
use proptest::prelude::*;

use super::*;

fn request(authority: &str) -> Request<()> {
    let uri = Uri::builder().authority(authority).build().unwrap();
    Request::builder().method(Method::CONNECT).uri(uri).body(()).unwrap()
}

#[test]
fn a_head_is_read_as_it_was_written() {
    let mut workload =
        Workload::new("Kubernetes//Pod/shop/web-1", "web-1", Identity::new("td", "shop", "web").unwrap());
    workload.workload_name = "web".into();
    workload.workload_type = WorkloadType::Deployment;
    workload.canonical_revision = "v1".into();
    workload.locality.zone = "z1".into();
    let head = Head {
        authority: Authority::Address("10.0.0.1:80".parse().unwrap()),
        baggage: Some(Baggage::of(&workload)),
        forwarded: Some(Forwarded {
            client: Some("10.0.0.2:4711".parse().unwrap()),
            host: Some("web.shop.svc.cluster.local".into()),
        }),
        trace: Some(TraceParent { trace_id: 0xabc, parent_id: 0xdef }),
        network: Some("west".into()),
    };
    let request = head.request().unwrap();
    assert_eq!(request.uri().path(), "", "CONNECT has no path");
    assert!(request.uri().scheme().is_none(), "and no scheme");
    assert_eq!(
        request.headers()["baggage"],
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web-1,\
         service.version=v1,cloud.availability_zone=z1"
    );
    assert_eq!(request.headers()["forwarded"], "for=\"10.0.0.2:4711\";host=web.shop.svc.cluster.local");
    assert_eq!(request.headers()["traceparent"], "00-00000000000000000000000000000abc-0000000000000def-00");
    assert_eq!(Head::parse(&request).unwrap(), head);
}

#[test]
fn destinations_are_addresses_or_hostnames_with_a_port() {
    let address = |text: &str| Authority::Address(text.parse().unwrap());
    assert_eq!(parse_authority("10.0.0.1:80"), Ok(address("10.0.0.1:80")));
    assert_eq!(parse_authority("[2001:db8::1]:80"), Ok(address("[2001:db8::1]:80")));
    assert_eq!(parse_authority("[::ffff:10.0.0.1]:80"), Ok(address("10.0.0.1:80")), "v4-mapped is v4");
    assert_eq!(parse_authority("web.svc:80"), Ok(Authority::Hostname("web.svc".into(), 80)));
    for text in [
        "",
        ":80",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:+80",
        "10.0.0.1:65536",
        "2001:db8::1:80:",
        "web",
        "we b:80",
        "user@web:80",
        "[::1:80",
        "web/x:80",
    ] {
        assert!(parse_authority(text).is_err(), "{text:?}");
    }
}

#[test]
fn what_is_not_connect_is_refused() {
    let mut other = request("10.0.0.1:80");
    *other.method_mut() = Method::GET;
    assert_eq!(Head::parse(&other), Err(HeadError::NotConnect("GET".into())));
}

#[test]
fn baggage_of_others_is_read_leniently() {
    let parse = |lines: &[&str]| {
        Baggage::parse(&lines.iter().map(|l| HeaderValue::from_str(l).unwrap()).collect::<Vec<_>>())
    };
    assert_eq!(parse(&[]), None);
    let both = parse(&["k8s.namespace.name = a , x=y", "k8s.job.name=j=ignored,service.name="]).unwrap();
    assert_eq!(both.namespace.as_deref(), Some("a"));
    assert_eq!(both.workload, Some((WorkloadType::Job, "j".into())));
    assert_eq!(both.service, None, "an empty value is absent");
    let bad = [HeaderValue::from_bytes(b"service.name=\xff").unwrap()];
    assert_eq!(Baggage::parse(&bad), None, "not visible ASCII: ignored as a whole");
}

#[test]
fn forwarded_takes_the_first_host_and_strips_quotes() {
    let parse = |text: &str| Forwarded::parse(&HeaderValue::from_str(text).unwrap()).unwrap();
    assert_eq!(parse("for=x; host=\"a.b\";host=c").host.as_deref(), Some("a.b"));
    assert_eq!(parse("for=\"[::1]:5\"").client, Some("[::1]:5".parse().unwrap()));
    assert_eq!(parse("nonsense"), Forwarded::default());
}

#[test]
fn a_traceparent_of_another_shape_is_ignored() {
    let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(TraceParent::parse(good.as_bytes()).unwrap().parent_id, 0xb7ad_6b71_6920_3331);
    for text in [
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
        "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "",
    ] {
        assert_eq!(TraceParent::parse(text.as_bytes()), None, "{text}");
    }
}

proptest! {
    #[test]
    fn no_header_makes_the_parsers_panic(
        baggage in proptest::collection::vec(any::<u8>(), 0..200),
        forwarded in proptest::collection::vec(any::<u8>(), 0..200),
        trace in proptest::collection::vec(any::<u8>(), 0..60),
        network in proptest::collection::vec(any::<u8>(), 0..60),
    ) {
        let mut request = request("10.0.0.1:80");
        for (name, value) in [(BAGGAGE, baggage), (FORWARDED, forwarded), (TRACEPARENT, trace), (FORWARDED_NETWORK, network)] {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                request.headers_mut().append(name, value);
            }
        }
        prop_assert!(Head::parse(&request).is_ok());
    }

    #[test]
    fn traceparents_are_read_as_written_and_55_bytes_never_panic(
        trace_id in any::<u128>(), parent_id in any::<u64>(), bytes in proptest::collection::vec(any::<u8>(), 55),
    ) {
        let trace = TraceParent { trace_id, parent_id };
        prop_assert_eq!(TraceParent::parse(trace.to_string().as_bytes()), Some(trace));
        let _ = TraceParent::parse(&bytes);
    }

    #[test]
    fn no_text_makes_the_destination_parser_panic(text in ".{0,100}") {
        if let Ok(authority) = parse_authority(&text) {
            prop_assert_eq!(parse_authority(&authority.to_string()), Ok(authority));
        }
    }
}
