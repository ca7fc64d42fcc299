//! The configuration dump, in the shape that `istioctl ztunnel-config` reads (reference/enrolment.md §6.2).

mod config;

use std::collections::BTreeSet;
use std::time::SystemTime;

use base64::Engine;
use hbone::Credential;
use mesh::{
    Action, Clause, Gateway, Health, HealthPolicy, IpFamilies, LoadBalancingMode, Locality, Match,
    NetworkMode, Policy, RoutingScope, Rule, Scope, Service, ServiceKey, StringMatch, Tunnel, View,
    Visibility, Workload, WorkloadType,
};
use serde_json::{Map, Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certs::State;
use crate::context::Context;

/// Everything.
pub(super) fn dump(context: &Context) -> Value {
    let view = context.views.load();
    let mut workloads: Vec<_> = view.workloads().collect();
    workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
    let mut services: Vec<_> = view.services().collect();
    services.sort_by(|a, b| (&a.key.hostname, &a.key).cmp(&(&b.key.hostname, &b.key)));
    let mut policies: Vec<_> = view.policies().collect();
    policies.sort_by_key(|policy| policy.key());
    json!({
        "workloads": workloads.into_iter().map(|w| workload(w)).collect::<Vec<_>>(),
        "services": services.into_iter().map(|s| service(&view, s)).collect::<Vec<_>>(),
        "policies": policies.into_iter().map(|p| policy(p)).collect::<Vec<_>>(),
        "stagedServices": staged(&view),
        "staticConfig": {
            "workloads": context.local.workloads.iter().map(workload).collect::<Vec<_>>(),
            "services": context.local.services.iter().map(|s| service(&view, s)).collect::<Vec<_>>(),
            "policies": context.local.policies.iter().map(policy).collect::<Vec<_>>(),
        },
        "version": {
            "version": env!("CARGO_PKG_VERSION"),
            "gitRevision": option_env!("AMBIT_GIT_REVISION").unwrap_or("unknown"),
            "rustVersion": env!("CARGO_PKG_RUST_VERSION"),
            "buildProfile": if cfg!(debug_assertions) { "debug" } else { "release" },
            "buildStatus": option_env!("AMBIT_BUILD_STATUS").unwrap_or("unknown"),
            "istioVersion": "unknown",
            "cryptoProvider": "aws-lc",
        },
        "config": config::shape(&context.config),
        "certificates": certificates(context),
        "workloadState": pods(context),
    })
}

fn pods(context: &Context) -> Value {
    let pods = context.pods.lock().clone();
    let state = |state: &crate::pods::PodState| {
        let info = json!({
            "name": state.info.name,
            "namespace": state.info.namespace,
            "serviceAccount": state.info.service_account,
        });
        match &state.pod {
            Ok(pod) => json!({ "state": "Up", "connections": pod.connections.dump(), "info": info }),
            Err(reason) => json!({ "state": "Pending", "reason": reason, "info": info }),
        }
    };
    pods.iter().map(|(uid, pod)| (uid.clone(), state(pod))).collect::<Map<_, _>>().into()
}

/// Leaves out what says nothing.
fn sparse(fields: Vec<(&str, Value)>) -> Value {
    let says = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    };
    let kept = fields.into_iter().filter(|(_, value)| says(value));
    kept.map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>().into()
}

fn merge(mut base: Value, more: Value) -> Value {
    if let (Value::Object(base), Value::Object(more)) = (&mut base, more) {
        base.extend(more);
    }
    base
}

fn texts<T: ToString>(items: impl IntoIterator<Item = T>) -> Value {
    items.into_iter().map(|item| Value::String(item.to_string())).collect::<Vec<_>>().into()
}

fn gateway(gateway: &Gateway) -> Value {
    json!({ "destination": &*gateway.target.label(), "hboneMtlsPort": gateway.hbone_port })
}

fn workload(w: &Workload) -> Value {
    let kind = match w.workload_type {
        WorkloadType::Deployment => "deployment",
        WorkloadType::CronJob => "cronjob",
        WorkloadType::Pod => "pod",
        WorkloadType::Job => "job",
    };
    let tunnel = w.application_tunnel.map(|tunnel| {
        json!({ "protocol": if tunnel.proxy_protocol { "PROXY" } else { "NONE" }, "port": tunnel.port })
    });
    // Whoever says one of the three says all, as readers of ztunnel's dump expect.
    let Locality { region, zone, subzone } = &w.locality;
    let nowhere = [region, zone, subzone].iter().all(|part| part.is_empty());
    let locality = (!nowhere).then(|| json!({ "region": &**region, "zone": &**zone, "subzone": &**subzone }));
    let always = json!({
        "workloadIps": texts(&w.addresses),
        "protocol": match w.tunnel { Tunnel::Hbone => "HBONE", Tunnel::None => "TCP" },
        "networkMode": match w.network_mode {
            NetworkMode::Standard => "Standard",
            NetworkMode::HostNetwork => "HostNetwork",
        },
        "name": &*w.name,
        "namespace": &*w.namespace,
        "status": match w.health { Health::Healthy => "Healthy", Health::Unhealthy => "Unhealthy" },
        "clusterId": &*w.cluster,
        "capacity": w.capacity,
    });
    let sometimes = sparse(vec![
        ("uid", json!(&*w.uid)),
        ("waypoint", json!(w.waypoint.as_ref().map(gateway))),
        ("networkGateway", json!(w.network_gateway.as_ref().map(gateway))),
        ("trustDomain", json!(w.identity.trust_domain())),
        ("serviceAccount", json!(w.identity.service_account())),
        ("network", json!(&*w.network)),
        ("workloadName", json!(&*w.workload_name)),
        ("workloadType", json!(kind)),
        ("canonicalName", json!(&*w.canonical_name)),
        ("canonicalRevision", json!(&*w.canonical_revision)),
        ("hostname", json!(w.hostname.as_deref())),
        ("node", json!(&*w.node)),
        ("nativeTunnel", json!(w.native_tunnel)),
        ("applicationTunnel", json!(tunnel)),
        ("authorizationPolicies", texts(&w.policies)),
        ("locality", json!(locality)),
        ("services", texts(w.services.keys())),
    ]);
    merge(always, sometimes)
}

/// The endpoints of a service, by the uid of the workload.
fn endpoints(view: &View, key: &ServiceKey) -> Map<String, Value> {
    let endpoint = |w: &std::sync::Arc<Workload>| {
        let ports = w.services.get(key).into_iter().flatten();
        let ports = ports.map(|port| (port.service_port.to_string(), json!(port.target_port)));
        let status = if w.health == Health::Healthy { "Healthy" } else { "Unhealthy" };
        let ports: Map<String, Value> = ports.collect();
        (w.uid.to_string(), json!({ "workloadUid": &*w.uid, "port": ports, "status": status }))
    };
    view.endpoints(key).map(endpoint).collect()
}

/// Endpoints whose service nobody has told of yet.
fn staged(view: &View) -> Value {
    let named: BTreeSet<&ServiceKey> =
        view.workloads().flat_map(|workload| workload.services.keys()).collect();
    let staged = named.into_iter().filter(|key| view.service(key).is_none());
    staged.map(|key| (key.to_string(), endpoints(view, key).into())).collect::<Map<_, _>>().into()
}

fn service(view: &View, s: &Service) -> Value {
    let endpoints = endpoints(view, &s.key);
    let ports: Map<String, Value> =
        s.ports.iter().map(|p| (p.service_port.to_string(), json!(p.target_port.unwrap_or(0)))).collect();
    let cidrs =
        s.cidr_vips.iter().map(|(network, cidr)| json!({ "network": &**network, "cidr": cidr.to_string() }));
    let weighted = s.weighted_waypoints.iter();
    let weighted = weighted.map(|w| json!({ "destination": gateway(&w.gateway), "weight": w.weight }));
    let balancing = s.load_balancing.as_ref().map(|lb| {
        let scope = |scope: &RoutingScope| match scope {
            RoutingScope::Region => "Region",
            RoutingScope::Zone => "Zone",
            RoutingScope::Subzone => "Subzone",
            RoutingScope::Node => "Node",
            RoutingScope::Cluster => "Cluster",
            RoutingScope::Network => "Network",
        };
        json!({
            "routingPreferences": lb.routing_preference.iter().map(scope).collect::<Vec<_>>(),
            "mode": match lb.mode {
                LoadBalancingMode::Unspecified => "Standard",
                LoadBalancingMode::Strict => "Strict",
                LoadBalancingMode::Failover => "Failover",
                LoadBalancingMode::Passthrough => "Passthrough",
            },
            "healthPolicy": match lb.health_policy {
                HealthPolicy::OnlyHealthy => "OnlyHealthy",
                HealthPolicy::AllowAll => "AllowAll",
            },
        })
    });
    let families = match s.ip_families {
        IpFamilies::Automatic => None,
        IpFamilies::Ipv4Only => Some("IPv4"),
        IpFamilies::Ipv6Only => Some("IPv6"),
        IpFamilies::Dual => Some("Dual"),
    };
    let always = json!({
        "name": &*s.name,
        "namespace": &*s.key.namespace,
        "hostname": &*s.key.hostname,
        "vips": texts(&s.vips),
        "ports": ports,
        "endpoints": endpoints,
        "subjectAltNames": texts(&s.subject_alt_names),
        "canonical": s.canonical,
        "visibility": match s.visibility {
            Visibility::Public => "Public",
            Visibility::Namespace => "Namespace",
        },
    });
    let sometimes = sparse(vec![
        ("cidrVips", cidrs.collect::<Vec<_>>().into()),
        ("waypoint", json!(s.waypoint.as_ref().map(gateway))),
        ("weightedWaypoints", weighted.collect::<Vec<_>>().into()),
        ("loadBalancer", json!(balancing)),
        ("ipFamilies", json!(families)),
    ]);
    merge(always, sometimes)
}

fn policy(p: &Policy) -> Value {
    let rule = |rule: &Rule| {
        let clause = |clause: &Clause| Value::from(clause.matches.iter().map(matching).collect::<Vec<_>>());
        Value::from(rule.clauses.iter().map(clause).collect::<Vec<_>>())
    };
    json!({
        "name": &*p.name,
        "namespace": &*p.namespace,
        "scope": match p.scope {
            Scope::Global => "Global",
            Scope::Namespace => "Namespace",
            Scope::WorkloadSelector => "WorkloadSelector",
        },
        "action": match p.action { Action::Allow => "Allow", Action::Deny => "Deny" },
        "dryRun": p.dry_run,
        "rules": p.rules.iter().map(rule).collect::<Vec<_>>(),
    })
}

fn matching(m: &Match) -> Value {
    let strings = |matches: &[StringMatch]| {
        let one = |m: &StringMatch| match m {
            StringMatch::Exact(text) => json!({ "Exact": &**text }),
            StringMatch::Prefix(text) => json!({ "Prefix": &**text }),
            StringMatch::Suffix(text) => json!({ "Suffix": &**text }),
            StringMatch::Presence => json!({ "Presence": [] }),
        };
        Value::from(matches.iter().map(one).collect::<Vec<_>>())
    };
    let accounts = |accounts: &[mesh::ServiceAccountMatch]| {
        let one = |a: &mesh::ServiceAccountMatch| json!({ "namespace": &*a.namespace, "serviceAccount": &*a.service_account });
        Value::from(accounts.iter().map(one).collect::<Vec<_>>())
    };
    sparse(vec![
        ("namespaces", strings(&m.namespaces)),
        ("notNamespaces", strings(&m.not_namespaces)),
        ("principals", strings(&m.principals)),
        ("notPrincipals", strings(&m.not_principals)),
        ("serviceAccounts", accounts(&m.service_accounts)),
        ("notServiceAccounts", accounts(&m.not_service_accounts)),
        ("sourceIps", texts(&m.source_ips)),
        ("notSourceIps", texts(&m.not_source_ips)),
        ("destinationIps", texts(&m.destination_ips)),
        ("notDestinationIps", texts(&m.not_destination_ips)),
        ("destinationPorts", json!(m.destination_ports)),
        ("notDestinationPorts", json!(m.not_destination_ports)),
    ])
}

fn certificates(context: &Context) -> Value {
    let entry = |(identity, state): (mesh::Identity, State)| {
        let (text, chain, roots, failing) = match &state {
            State::Initializing => ("Initializing".to_owned(), vec![], vec![], None),
            State::Unavailable(error) => (format!("Unavailable: {error}"), vec![], vec![], None),
            State::Available(credential, failing) => {
                let list = |certificates: &[_]| certificates.iter().map(certificate).collect::<Vec<_>>();
                let held: &Credential = credential;
                ("Available".to_owned(), list(held.chain()), list(held.root_certificates()), failing.clone())
            }
        };
        let base = json!({ "identity": identity.to_string(), "state": text, "certChain": chain, "rootCerts": roots });
        let since = failing.as_ref().map(|failing| moment(failing.since));
        let why = failing.map(|failing| failing.reason);
        merge(base, sparse(vec![("renewalFailing", json!(why)), ("renewalFailingSince", json!(since))]))
    };
    context.certs.snapshot().into_iter().map(entry).collect::<Vec<_>>().into()
}

/// RFC 3339, seconds.
fn moment(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let stamp = jiff::Timestamp::from_second(i64::try_from(seconds).unwrap_or_default());
    stamp.map(|stamp| stamp.to_string()).unwrap_or_default()
}

fn certificate(der: &rustls_pki_types::CertificateDer<'static>) -> Value {
    let engine = base64::engine::general_purpose::STANDARD;
    let body = engine.encode(der);
    let lines: Vec<&str> =
        body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
    let Ok((_, parsed)) = X509Certificate::from_der(der) else { return json!({ "pem": engine.encode(pem) }) };
    let time =
        |seconds: i64| jiff::Timestamp::from_second(seconds).map(|t| t.to_string()).unwrap_or_default();
    json!({
        "pem": engine.encode(pem),
        "serialNumber": parsed.tbs_certificate.serial.to_string(),
        "validFrom": time(parsed.validity().not_before.timestamp()),
        "expirationTime": time(parsed.validity().not_after.timestamp()),
    })
}
