//! Where a call goes, and whether it may.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mesh::{
    Action, Call, Clause, Connection, Decision, Identity, Match, NOTHING_RESOLVED, NetworkAddress, Policy,
    PortMapping, Rule, Scope, Service, ServiceKey, ServicePort, StringMatch, Tunnel, View, Workload,
};

fn address(number: usize) -> IpAddr {
    Ipv4Addr::from(0x0a00_0001 + number as u32).into()
}

fn workload(number: usize) -> anyhow::Result<Workload> {
    let name = format!("pod-{number}");
    let identity = Identity::new("cluster.local", "bench", format!("account-{}", number % 100))?;
    let mut workload = Workload::new(format!("Kubernetes//Pod/bench/{name}"), &*name, identity);
    workload.namespace = "bench".into();
    workload.addresses = vec![address(number)];
    workload.tunnel = Tunnel::Hbone;
    Ok(workload)
}

/// A direct call among so many workloads.
pub fn decide(known: usize) -> anyhow::Result<Box<dyn FnMut()>> {
    let mut view = View::default();
    for number in 0..known {
        view.insert_workload(workload(number)?);
    }
    let source = workload(0)?;
    let destination = SocketAddr::new(address(known / 2), 9090);
    run(view, source, destination)
}

/// A call to a service with so many endpoints.
pub fn service(endpoints: usize) -> anyhow::Result<Box<dyn FnMut()>> {
    let mut view = View::default();
    let key = ServiceKey::new("bench", "web.bench.svc.cluster.local");
    let vip: IpAddr = Ipv4Addr::new(10, 96, 0, 1).into();
    let mut service = Service::new("web", key.clone());
    service.vips = vec![NetworkAddress::new("", vip)];
    service.ports =
        vec![ServicePort { service_port: 80, target_port: Some(8080), app_protocol: Default::default() }];
    view.insert_service(service);
    for number in 0..endpoints {
        let mut workload = workload(number)?;
        workload.services.insert(key.clone(), vec![PortMapping { service_port: 80, target_port: 8080 }]);
        view.insert_workload(workload);
    }
    run(view, workload(0)?, SocketAddr::new(vip, 80))
}

fn run(view: View, source: Workload, destination: SocketAddr) -> anyhow::Result<Box<dyn FnMut()>> {
    let mut random = 0_u64;
    let mut decide = move || {
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let call = Call {
            source: &source,
            destination: black_box(destination),
            random,
            resolved: &NOTHING_RESOLVED,
        };
        mesh::decide(&view, &call)
    };
    anyhow::ensure!(matches!(decide(), Decision::Tunnel(_)), "the call should go through a tunnel");
    Ok(Box::new(move || {
        black_box(decide());
    }))
}

/// So many policies of the namespace, of which the last one allows.
pub fn authorize(policies: usize) -> anyhow::Result<Box<dyn FnMut()>> {
    let mut view = View::default();
    let destination = workload(1)?;
    for number in 0..policies {
        let principal = match number + 1 == policies {
            true => "cluster.local/ns/bench/sa/account-0".to_owned(),
            false => format!("cluster.local/ns/other/sa/account-{number}"),
        };
        let matches =
            vec![Match { principals: vec![StringMatch::Exact(principal.into())], ..Match::default() }];
        view.insert_policy(Policy {
            name: format!("policy-{number}").into(),
            namespace: "bench".into(),
            scope: Scope::Namespace,
            action: Action::Allow,
            rules: vec![Rule { clauses: vec![Clause { matches }] }],
            dry_run: false,
        });
    }
    view.insert_workload(destination.clone());
    let connection = Connection {
        identity: Some(workload(0)?.identity),
        source_ip: address(0),
        destination: SocketAddr::new(address(1), 8080),
    };
    anyhow::ensure!(
        mesh::authorize(&view, &destination, &connection).is_allowed(),
        "the call should be allowed"
    );
    Ok(Box::new(move || {
        black_box(mesh::authorize(&view, &destination, black_box(&connection)));
    }))
}
