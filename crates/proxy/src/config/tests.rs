use super::*;

fn config(vars: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::from_vars(vars.iter().map(|(name, value)| ((*name).into(), (*value).into())))
}

#[test]
fn without_variables_the_defaults_of_the_reference_hold() {
    let config = config(&[]).unwrap();
    assert_eq!(config.mark, 1337);
    assert_eq!(config.zds, PathBuf::from("/var/run/ztunnel/ztunnel.sock"));
    assert_eq!(config.pool_max_streams, 100);
    assert_eq!(config.pool_idle, Duration::from_secs(300));
    assert_eq!(config.keepalive.time, Duration::from_secs(180));
    assert_eq!(config.keepalive.retries, 9);
    assert_eq!(config.secret_ttl, Duration::from_secs(86400));
    assert_eq!(config.termination_deadline, Duration::from_secs(5));
    assert_eq!(config.cluster_id, "Kubernetes");
    assert_eq!(config.original_source, None);
    assert_eq!(config.ca.address, "https://localhost:15012");
}

#[test]
fn in_kubernetes_the_control_plane_is_ours() {
    let config = config(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")]).unwrap();
    assert_eq!(config.xds.unwrap().address, "https://ambit-control.ambit-system.svc:15012");
    assert_eq!(config.ca.address, "https://ambit-control.ambit-system.svc:15012");
}

#[test]
fn an_address_without_scheme_means_tls() {
    let config = config(&[("XDS_ADDRESS", "istiod.istio-system.svc:15012")]).unwrap();
    assert_eq!(config.xds.unwrap().address, "https://istiod.istio-system.svc:15012");
}

#[test]
fn an_empty_xds_address_switches_it_off_and_an_empty_ca_address_is_an_error() {
    assert!(config(&[("XDS_ADDRESS", "")]).unwrap().xds.is_none());
    assert_eq!(config(&[("CA_ADDRESS", "")]).unwrap_err().variable, "CA_ADDRESS");
}

#[test]
fn the_grace_period_leaves_time_to_exit() {
    let deadline =
        |grace| config(&[("TERMINATION_GRACE_PERIOD_SECONDS", grace)]).unwrap().termination_deadline;
    assert_eq!(deadline("30"), Duration::from_secs(25));
    assert_eq!(deadline("10"), Duration::from_secs(9));
    assert_eq!(deadline("1"), Duration::from_secs(1));
    let both = [("TERMINATION_GRACE_PERIOD_SECONDS", "30"), ("CONNECTION_TERMINATION_DEADLINE", "1500ms")];
    assert_eq!(config(&both).unwrap().termination_deadline, Duration::from_millis(1500));
}

#[test]
fn a_malformed_value_is_an_error_that_names_the_variable() {
    for (name, value) in [
        ("PACKET_MARK", "blue"),
        ("INPOD_PORT_REUSE", "maybe"),
        ("KEEPALIVE_TIME", "180"),
        ("KEEPALIVE_TIME", "9999999999999999999h"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "0"),
        ("HTTP2_FRAME_SIZE", "1"),
        ("ZTUNNEL_WORKER_THREADS", "many"),
        ("INSTANCE_IP", "here"),
        ("XDS_ADDRESS", "ftp://x"),
        ("CA_ADDRESS", "https:///"),
        ("PROXY_MODE", "dedicated"),
    ] {
        assert_eq!(config(&[(name, value)]).unwrap_err().variable, name, "{name}={value}");
    }
}

#[test]
fn a_token_is_never_printed() {
    let config = config(&[("AUTH_TOKEN", "secret-token")]).unwrap();
    assert_eq!(config.ca.token, Token::Literal("secret-token".into()));
    assert!(!format!("{config:?}").contains("secret-token"));
    assert!(!serde_json::to_string(&config).unwrap().contains("secret-token"));
}

#[test]
fn a_misspelt_variable_is_noticed_and_what_kubernetes_sets_is_not() {
    let vars = [
        ("HTTP2_STREAM_WINDOW", "1"),
        ("POOL_UNUSED_RELEASE_TIMEOUT", "5m"),
        ("XDS_HEADER_X", "y"),
        ("XDS_PROXY_SERVICE_HOST", "10.0.0.1"),
        ("HOME", "/"),
    ];
    assert_eq!(config(&vars).unwrap().unknown, ["HTTP2_STREAM_WINDOW"]);
}

#[test]
fn flows_are_reported_only_by_a_proxy_that_knows_who_it_is() {
    let error = config(&[("FLOW_ADDRESS", "observe:15011")]).unwrap_err();
    assert!(error.to_string().contains("NODE_NAME"), "{error}");
    let vars = [
        ("FLOW_ADDRESS", "https://ambit-observe.ambit-system.svc:15011"),
        ("NODE_NAME", "n1"),
        ("POD_NAME", "p"),
        ("POD_NAMESPACE", "ambit-system"),
        ("SERVICE_ACCOUNT", "ambit-proxy"),
    ];
    let target = config(&vars).unwrap().flows.unwrap();
    assert_eq!(target.address, "ambit-observe.ambit-system.svc:15011");
    assert_eq!(target.account, ("ambit-system".into(), "ambit-observe".into()));
    for wrong in ["observe", "observe:x", "observe:15011/path"] {
        let vars: Vec<_> = vars.iter().copied().skip(1).chain([("FLOW_ADDRESS", wrong)]).collect();
        assert_eq!(config(&vars).unwrap_err().variable, "FLOW_ADDRESS", "{wrong}");
    }
}

#[test]
fn the_windows_of_all_streams_fit_into_that_of_the_connection_unless_told_otherwise() {
    let window = |vars: &[(&str, &str)]| config(vars).unwrap().connection_window;
    assert_eq!(window(&[]), 200 * (4 << 20));
    assert_eq!(window(&[("HTTP2_STREAM_WINDOW_SIZE", "65535")]), 200 * 65_535);
    assert_eq!(window(&[("HTTP2_CONNECTION_WINDOW_SIZE", "16777216")]), 16 << 20);
    assert!(config(&[("COMPLIANCE_POLICY", "fips")]).is_err());
}

#[test]
fn a_proxy_config_stands_in_for_variables_and_the_environment_wins() {
    let yaml = "concurrency: 7\ndiscoveryAddress: istiod.x:15012\nproxyAdminPort: 16000\nstatsPort: 16020\n\
                drainDuration: 45s\nproxyMetadata:\n  DNS_CAPTURE: false\n  ISTIO_META_CLUSTER_ID: west\n";
    let read = config(&[("PROXY_CONFIG", yaml)]).unwrap();
    assert_eq!(
        (read.workers, read.ports.admin, read.ports.stats, read.ports.readiness),
        (7, 16000, 16020, 15021)
    );
    assert_eq!(read.xds.unwrap().address, "https://istiod.x:15012");
    assert_eq!((read.dns.capture, &*read.cluster_id), (false, "west"));
    assert_eq!(read.unknown, ["PROXY_CONFIG: drainDuration"]);
    let both = [("PROXY_CONFIG", yaml), ("ZTUNNEL_WORKER_THREADS", "3"), ("XDS_ADDRESS", "other:1")];
    let read = config(&both).unwrap();
    assert_eq!((read.workers, read.xds.unwrap().address.as_str()), (3, "https://other:1"));
    for wrong in ["[", "concurrency: many", "statsPort: 0"] {
        assert_eq!(config(&[("PROXY_CONFIG", wrong)]).unwrap_err().variable, "PROXY_CONFIG", "{wrong}");
    }
}

#[test]
fn what_will_not_be_followed_is_refused_with_the_reason_and_the_default_may_be_said() {
    for (name, value) in [
        ("PROXY_MODE", "dedicated"),
        ("PROXY_WORKLOAD_INFO", "ns/pod/account"),
        ("ENABLE_PROXY", "false"),
        ("UNSTABLE_ENABLE_SOCKS5", "true"),
        ("FAKE_CA", "true"),
        ("ISTIO_META_DNS_PROXY_ADDR", "0.0.0.0:53"),
        ("PACKET_MARK", "0"),
        ("LOG_FORMAT", "xml"),
        ("RUST_LOG", "info,=x="),
        ("XDS_ON_DEMAND", "true"),
    ] {
        let error = config(&[(name, value)]).unwrap_err();
        assert_eq!(error.variable, name);
        assert!(error.expected.len() > 20, "{error}");
    }
    let said = [
        ("PROXY_MODE", "shared"),
        ("ENABLE_PROXY", "true"),
        ("UNSTABLE_ENABLE_SOCKS5", "false"),
        ("INPOD_ENABLED", "true"),
        ("LOG_FORMAT", "json"),
        ("ISTIO_META_DNS_PROXY_ADDR", "127.0.0.1:15053"),
    ];
    let read = config(&said).unwrap();
    assert!(read.log.json && read.unknown.is_empty(), "{:?}", read.unknown);
}

#[test]
fn asking_by_name_goes_only_without_dns() {
    let read = config(&[("XDS_ON_DEMAND", "true"), ("ISTIO_META_DNS_CAPTURE", "false")]).unwrap();
    assert!(read.on_demand);
}

#[test]
fn a_local_mesh_comes_from_one_place() {
    assert_eq!(config(&[("LOCAL_XDS_PATH", "/x")]).unwrap().local, Some(Local::File("/x".into())));
    assert_eq!(
        config(&[("LOCAL_XDS", "workloads: []")]).unwrap().local,
        Some(Local::Text("workloads: []".into()))
    );
    assert!(config(&[("LOCAL_XDS_PATH", "/x"), ("LOCAL_XDS", "workloads: []")]).is_err());
}

#[test]
fn every_variable_of_the_reference_is_known() {
    // reference/data-plane.md §12, in its order.
    for name in "ENABLE_PROXY NETWORK NODE_NAME PROXY_MODE PROXY_WORKLOAD_INFO PACKET_MARK KEEPALIVE_ENABLED KEEPALIVE_TIME \
                 KEEPALIVE_INTERVAL KEEPALIVE_RETRIES USER_TIMEOUT_ENABLED INPOD_UDS INPOD_PORT_REUSE CLUSTER_ID \
                 ISTIO_META_CLUSTER_ID CLUSTER_DOMAIN LOCAL_XDS_PATH LOCAL_XDS XDS_ADDRESS CA_ADDRESS XDS_ON_DEMAND \
                 XDS_ROOT_CA CA_ROOT_CA ALT_XDS_HOSTNAME ALT_CA_HOSTNAME AUTH_TOKEN SECRET_TTL XDS_HEADER_X CA_HEADER_X \
                 ZTUNNEL_WORKER_THREADS ZTUNNEL_CPU_LIMIT ZTUNNEL_RESOURCE_CPU_LIMIT ZTUNNEL_RESOURCE_CPU_REQUEST \
                 POOL_MAX_STREAMS_PER_CONNECTION POOL_UNUSED_RELEASE_TIMEOUT CONNECTION_TERMINATION_DEADLINE \
                 TERMINATION_GRACE_PERIOD_SECONDS ENABLE_ORIG_SRC IPV6_ENABLED HTTP2_STREAM_WINDOW_SIZE \
                 HTTP2_CONNECTION_WINDOW_SIZE HTTP2_FRAME_SIZE UNSTABLE_ENABLE_SOCKS5 CRL_PATH LOCALHOST_APP_TUNNEL \
                 ENABLE_RESPONSE_BAGGAGE PREFERED_SERVICE_NAMESPACE AUTHZ_POLICY_INFO_LOGGING TLS12_ENABLED \
                 COMPLIANCE_POLICY POD_NAME POD_NAMESPACE SERVICE_ACCOUNT INSTANCE_IP TRUST_DOMAIN RUST_LOG LOG_FORMAT \
                 PROXY_CONFIG ISTIO_META_DNS_CAPTURE"
        .split_whitespace()
    {
        let name = name.to_owned();
        assert!(known::unknown([name.clone()].iter()).is_empty(), "{name}");
    }
}

#[test]
fn a_header_is_never_printed_with_its_value() {
    let config = config(&[("XDS_HEADER_X_KEY", "hidden-value")]).unwrap();
    assert_eq!(config.xds.as_ref().unwrap().headers.0, [("x_key".into(), "hidden-value".into())]);
    let printed = format!("{config:?}{}", serde_json::to_string(&config).unwrap());
    assert!(printed.contains("x_key") && !printed.contains("hidden-value"), "{printed}");
}
