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
