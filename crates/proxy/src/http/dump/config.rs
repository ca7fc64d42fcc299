//! The configuration as other tools name it (reference/enrolment.md §6.3), followed by what only this proxy has.
//! Tokens, the values of headers and the local mesh are never shown.

use serde_json::{Map, Value, json};

use crate::config::{Config, Keepalive, Remote, Root};

/// The values in force.
pub(super) fn shape(c: &Config) -> Value {
    let any = if c.ipv6 { "[::]" } else { "0.0.0.0" };
    let listen = |port: u16| json!({ "SocketAddr": format!("{any}:{port}") });
    let local = |port: u16| json!({ "Localhost": [c.ipv6, port] });
    let address = |remote: &Remote| remote.address.clone();
    let own = &c.own;
    let identity = own.namespace.as_ref().zip(own.service_account.as_ref());
    let identity = identity
        .map(|(namespace, account)| format!("spiffe://{}/ns/{namespace}/sa/{account}", c.trust_domain));
    let Keepalive { enabled, time, interval, retries, user_timeout } = c.keepalive;
    let mut shape = json!({
        "proxy": true,
        "dnsProxy": c.dns.capture,
        "windowSize": c.stream_window,
        "connectionWindowSize": c.connection_window,
        "frameSize": c.frame_size,
        "poolMaxStreamsPerConn": c.pool_max_streams,
        "poolUnusedReleaseTimeout": c.pool_idle,
        "socks5Addr": null,
        "adminAddr": local(c.ports.admin),
        "statsAddr": listen(c.ports.stats),
        "readinessAddr": listen(c.ports.readiness),
        "inboundAddr": listen(mesh::HBONE_PORT),
        "inboundPlaintextAddr": listen(mesh::INBOUND_PLAINTEXT_PORT),
        "outboundAddr": listen(mesh::OUTBOUND_PORT),
        "dnsProxyAddr": local(crate::dns::PORT),
        "illegalPorts": mesh::MESH_PORTS,
        "network": c.network,
        "localNode": c.node,
        "proxyMode": "Shared",
        "proxyWorkloadInformation": null,
        "clusterId": c.cluster_id,
        "clusterDomain": c.cluster_domain,
        "caAddress": c.ca.address,
        "caRootCert": root(&c.ca.root),
        "altCaHostname": c.ca.alt_hostname,
        "xdsAddress": c.xds.as_ref().map(address),
        "xdsRootCert": c.xds.as_ref().map(|xds| root(&xds.root)),
        "altXdsHostname": c.xds.as_ref().and_then(|xds| xds.alt_hostname.clone()),
        "preferedServiceNamespace": c.dns.preferred_namespace,
        "secretTtl": c.secret_ttl,
        "xdsOnDemand": c.on_demand,
        "fakeCa": false,
        "fakeSelfInbound": false,
        "selfTerminationDeadline": c.termination_deadline,
    });
    let more = json!({
        "numWorkerThreads": c.workers,
        "requireOriginalSource": c.original_source,
        "inpodUds": c.zds,
        "inpodPortReuse": c.port_reuse,
        "packetMark": c.mark,
        "socketConfig": {
            "keepaliveEnabled": enabled,
            "keepaliveTime": time,
            "keepaliveInterval": interval,
            "keepaliveRetries": retries,
            "userTimeoutEnabled": user_timeout,
        },
        "xdsHeaders": c.xds.as_ref().map(header_names).unwrap_or_default(),
        "caHeaders": header_names(&c.ca),
        "localhostAppTunnel": c.localhost_app_tunnel,
        "ztunnelIdentity": identity,
        "ztunnelWorkload": own,
        "ipv6Enabled": c.ipv6,
        "crlPath": c.crl,
        "enableEnhancedBaggage": c.response_baggage,
        "tls12Enabled": c.tls12,
        "postQuantumOnly": c.post_quantum_only,
        "authzPolicyInfoLogging": c.log_verdicts,
        "busySpin": c.busy_spin,
        "earlyData": c.early_data,
        "sameNode": c.same_node,
        "flows": c.flows,
        "log": c.log,
        "unknown": c.unknown,
    });
    if let (Value::Object(shape), Value::Object(more)) = (&mut shape, more) {
        shape.extend(more);
    }
    shape
}

fn root(root: &Root) -> Value {
    match root {
        Root::File(path) => json!({ "File": path }),
        Root::Pem(_) => json!("Static"),
        Root::System => json!("Default"),
    }
}

fn header_names(remote: &Remote) -> Map<String, Value> {
    remote.headers.0.iter().map(|(name, _)| (name.clone(), "…".into())).collect()
}
