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
