//! From environment variables to a [`Config`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::proxy_config::{self, ProxyConfig};
use super::{
    Config, Dns, FlowTarget, Headers, Keepalive, Local, Log, Own, Ports, Remote, Root, SameNode, Token,
};
use super::{known, refused, workers};

/// A variable whose value cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}={value:?} cannot be understood: {expected}")]
pub struct ConfigError {
    /// The variable.
    pub variable: String,
    /// What it holds.
    pub value: String,
    /// What it should hold.
    pub expected: String,
}

const CONTROL_IN_CLUSTER: &str = "https://ambit-control.ambit-system.svc:15012";
const CONTROL_ELSEWHERE: &str = "https://localhost:15012";

pub(super) struct Vars(BTreeMap<String, String>);

impl Vars {
    pub(super) fn new(vars: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(vars.into_iter().collect())
    }

    pub(super) fn config(mut self) -> Result<Config, ConfigError> {
        let extra = proxy_config::take_in(&mut self.0)?;
        self.with(extra)
    }

    fn with(&self, extra: ProxyConfig) -> Result<Config, ConfigError> {
        refused::check(self)?;
        let defaults = hbone::Settings::default();
        let control = match self.text("KUBERNETES_SERVICE_HOST") {
            Some(_) => CONTROL_IN_CLUSTER,
            None => CONTROL_ELSEWHERE,
        };
        let cluster_id = self.text("ISTIO_META_CLUSTER_ID").or_else(|| self.text("CLUSTER_ID"));
        let capture = self.flag("ISTIO_META_DNS_CAPTURE")?.unwrap_or(true);
        let on_demand = self.flag("XDS_ON_DEMAND")?.unwrap_or(false);
        if on_demand && capture {
            let why = "names cannot be answered by a proxy that does not know the whole mesh: set \
                       ISTIO_META_DNS_CAPTURE=false and leave pods' DNS alone, or do not set XDS_ON_DEMAND";
            return Err(error("XDS_ON_DEMAND", "true", why));
        }
        let stream_window =
            self.http2("HTTP2_STREAM_WINDOW_SIZE", 65_535, MAX_WINDOW, defaults.stream_window)?;
        Ok(Config {
            node: self.text("NODE_NAME").map(str::to_owned),
            network: self.text("NETWORK").unwrap_or_default().to_owned(),
            cluster_id: cluster_id.unwrap_or("Kubernetes").to_owned(),
            cluster_domain: self.text("CLUSTER_DOMAIN").unwrap_or("cluster.local").to_owned(),
            own: Own {
                name: self.text("POD_NAME").map(str::to_owned),
                namespace: self.text("POD_NAMESPACE").map(str::to_owned),
                service_account: self.text("SERVICE_ACCOUNT").map(str::to_owned),
                ip: self.parse("INSTANCE_IP", "expected an IP address")?,
            },
            // Set and empty switches the workload API off.
            xds: match self.0.get("XDS_ADDRESS") {
                Some(address) if address.trim().is_empty() => None,
                _ => Some(self.remote("XDS", control)?),
            },
            ca: match self.0.get("CA_ADDRESS") {
                Some(address) if address.trim().is_empty() => {
                    return Err(error(
                        "CA_ADDRESS",
                        address,
                        "without a certificate authority there is no mesh",
                    ));
                }
                _ => self.remote("CA", control)?,
            },
            on_demand,
            local: self.local()?,
            secret_ttl: self.duration("SECRET_TTL", Duration::from_secs(86400))?,
            zds: self.text("INPOD_UDS").unwrap_or("/var/run/ztunnel/ztunnel.sock").into(),
            mark: match self.parse("PACKET_MARK", "expected a number")? {
                Some(0) => {
                    let why = "without a mark the proxy would capture its own packets";
                    return Err(error("PACKET_MARK", "0", why));
                }
                mark => mark.unwrap_or(1337),
            },
            port_reuse: self.flag("INPOD_PORT_REUSE")?.unwrap_or(true),
            original_source: self.flag("ENABLE_ORIG_SRC")?,
            ipv6: self.flag("IPV6_ENABLED")?.unwrap_or(true),
            keepalive: Keepalive {
                enabled: self.flag("KEEPALIVE_ENABLED")?.unwrap_or(true),
                time: self.duration("KEEPALIVE_TIME", Duration::from_secs(180))?,
                interval: self.duration("KEEPALIVE_INTERVAL", Duration::from_secs(180))?,
                retries: self.parse("KEEPALIVE_RETRIES", "expected a number")?.unwrap_or(9),
                user_timeout: self.flag("USER_TIMEOUT_ENABLED")?.unwrap_or(false),
            },
            pool_max_streams: self.at_least_one("POOL_MAX_STREAMS_PER_CONNECTION", 100)? as usize,
            pool_idle: self.duration("POOL_UNUSED_RELEASE_TIMEOUT", Duration::from_secs(300))?,
            stream_window,
            connection_window: self.http2(
                "HTTP2_CONNECTION_WINDOW_SIZE",
                65_535,
                MAX_WINDOW,
                // All streams' windows together (docs/decisions/0005).
                stream_window.saturating_mul(defaults.max_streams).min(MAX_WINDOW),
            )?,
            frame_size: self.http2("HTTP2_FRAME_SIZE", 16_384, (1 << 24) - 1, defaults.frame_size)?,
            crl: self.text("CRL_PATH").map(PathBuf::from),
            tls12: self.flag("TLS12_ENABLED")?.unwrap_or(false),
            post_quantum_only: match self.text("COMPLIANCE_POLICY") {
                None => false,
                Some("pqc") => true,
                Some(other) => return Err(error("COMPLIANCE_POLICY", other, "only `pqc` is known")),
            },
            localhost_app_tunnel: self.flag("LOCALHOST_APP_TUNNEL")?.unwrap_or(true),
            log_verdicts: self.flag("AUTHZ_POLICY_INFO_LOGGING")?.unwrap_or(false),
            response_baggage: self.flag("ENABLE_RESPONSE_BAGGAGE")?.unwrap_or(true),
            termination_deadline: self.termination_deadline()?,
            workers: workers::count(self, std::thread::available_parallelism().map_or(2, usize::from))?,
            busy_spin: self.duration("BUSY_SPIN", Duration::ZERO)?,
            early_data: self.flag("EARLY_DATA")?.unwrap_or(true),
            same_node: match self.text("SAME_NODE") {
                None | Some("encrypt") => SameNode::Encrypt,
                Some("splice") => SameNode::Splice,
                Some(other) => return Err(error("SAME_NODE", other, "expected `encrypt` or `splice`")),
            },
            dns: Dns {
                capture,
                resolv_conf: "/etc/resolv.conf".into(),
                preferred_namespace: self.text("PREFERED_SERVICE_NAMESPACE").map(str::to_owned),
            },
            trust_domain: self.text("TRUST_DOMAIN").unwrap_or("cluster.local").to_owned(),
            flows: self.flows()?,
            log: self.log()?,
            ports: Ports {
                admin: extra.admin.unwrap_or(15000),
                stats: extra.stats.unwrap_or(15020),
                readiness: 15021,
            },
            unknown: known::unknown(self.0.keys()).into_iter().chain(extra.unknown).collect(),
        })
    }

    pub(super) fn text(&self, variable: &str) -> Option<&str> {
        self.0.get(variable).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    fn parse<T: std::str::FromStr>(&self, variable: &str, expected: &str) -> Result<Option<T>, ConfigError> {
        let parsed =
            self.text(variable).map(|value| value.parse().map_err(|_| error(variable, value, expected)));
        parsed.transpose()
    }

    pub(super) fn flag(&self, variable: &str) -> Result<Option<bool>, ConfigError> {
        let parsed = self.text(variable).map(|value| match value.to_ascii_lowercase().as_str() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(error(variable, value, "expected `true` or `false`")),
        });
        parsed.transpose()
    }

    fn duration(&self, variable: &str, default: Duration) -> Result<Duration, ConfigError> {
        let Some(value) = self.text(variable) else { return Ok(default) };
        duration(value)
            .ok_or_else(|| error(variable, value, "expected a duration such as 500ms, 30s, 5m or 24h"))
    }

    fn at_least_one(&self, variable: &str, default: u32) -> Result<u32, ConfigError> {
        match self.parse(variable, "expected a number")? {
            Some(0) => Err(error(variable, "0", "expected a number of at least 1")),
            other => Ok(other.unwrap_or(default)),
        }
    }

    fn http2(&self, variable: &str, least: u32, most: u32, default: u32) -> Result<u32, ConfigError> {
        let value: u32 = self.parse(variable, "expected a number of bytes")?.unwrap_or(default);
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        Err(error(
            variable,
            &value.to_string(),
            &format!("expected a number of bytes from {least} to {most}"),
        ))
    }

    fn remote(&self, which: &str, default: &str) -> Result<Remote, ConfigError> {
        let variable = format!("{which}_ADDRESS");
        let address = self.text(&variable).unwrap_or(default);
        let full = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
        let uri: Result<http::Uri, _> = full.parse();
        let usable = uri.is_ok_and(|uri| {
            uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https")) && uri.path() == "/"
        });
        if !usable {
            return Err(error(&variable, address, "expected https://host:port"));
        }
        let root = self.text(&format!("{which}_ROOT_CA"));
        let root = match root.unwrap_or("./var/run/secrets/istio/root-cert.pem") {
            "SYSTEM" => Root::System,
            text if text.contains("-----BEGIN") => Root::Pem(text.to_owned()),
            path => Root::File(path.into()),
        };
        let prefix = format!("{which}_HEADER_");
        let headers = self.0.iter().filter_map(|(name, value)| Some((name.strip_prefix(&prefix)?, value)));
        Ok(Remote {
            address: full,
            root,
            alt_hostname: self.text(&format!("ALT_{which}_HOSTNAME")).map(str::to_owned),
            token: self.token(),
            headers: Headers(
                headers.map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect(),
            ),
        })
    }

    /// Where flows are reported to; needs to know who we are.
    fn flows(&self) -> Result<Option<FlowTarget>, ConfigError> {
        let variable = "FLOW_ADDRESS";
        let Some(value) = self.text(variable) else { return Ok(None) };
        let address = value.strip_prefix("https://").unwrap_or(value).trim_end_matches('/');
        let uri: Result<http::Uri, _> = format!("http://{address}").parse();
        let usable =
            uri.is_ok_and(|uri| uri.host().is_some() && uri.port_u16().is_some() && uri.path() == "/");
        if !usable {
            return Err(error(variable, value, "expected host:port of the observer's flow stream"));
        }
        for needed in ["NODE_NAME", "POD_NAME", "POD_NAMESPACE", "SERVICE_ACCOUNT"] {
            if self.text(needed).is_none() {
                let why = format!("flows are reported under the proxy's own identity, which needs {needed}");
                return Err(error(variable, value, &why));
            }
        }
        let namespace = self.text("POD_NAMESPACE").unwrap_or_default();
        let account = match self.text("FLOW_ACCOUNT") {
            None => (namespace.to_owned(), "ambit-observe".to_owned()),
            Some(account) => match account.split_once('/') {
                Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                    (namespace.to_owned(), name.to_owned())
                }
                _ => return Err(error("FLOW_ACCOUNT", account, "expected namespace/service-account")),
            },
        };
        Ok(Some(FlowTarget { address: address.to_owned(), account }))
    }

    /// A path when it looks like one, else the token itself.
    fn token(&self) -> Token {
        match self.0.get("AUTH_TOKEN").map(|token| token.trim()) {
            Some("") => Token::None,
            Some(token) if token.contains('/') || std::path::Path::new(token).exists() => {
                Token::File(token.into())
            }
            Some(token) => Token::Literal(token.to_owned()),
            None => Token::File(PathBuf::from("./var/run/secrets/tokens/istio-token")),
        }
    }

    fn termination_deadline(&self) -> Result<Duration, ConfigError> {
        if self.text("CONNECTION_TERMINATION_DEADLINE").is_some() {
            return self.duration("CONNECTION_TERMINATION_DEADLINE", Duration::ZERO);
        }
        let grace: Option<u64> =
            self.parse("TERMINATION_GRACE_PERIOD_SECONDS", "expected a number of seconds")?;
        let seconds = match grace {
            Some(grace) if grace > 10 => grace - 5,
            Some(grace) => grace.saturating_sub(1).max(1),
            None => 5,
        };
        Ok(Duration::from_secs(seconds))
    }

    /// Objects of the mesh from a file, or written into the variable itself.
    fn local(&self) -> Result<Option<Local>, ConfigError> {
        match (self.text("LOCAL_XDS_PATH"), self.text("LOCAL_XDS")) {
            (None, None) => Ok(None),
            (Some(path), None) => Ok(Some(Local::File(path.into()))),
            (None, Some(text)) => Ok(Some(Local::Text(text.to_owned()))),
            (Some(path), Some(_)) => {
                Err(error("LOCAL_XDS_PATH", path, "LOCAL_XDS is set as well: which of the two is meant?"))
            }
        }
    }

    fn log(&self) -> Result<Log, ConfigError> {
        let level = self.text("RUST_LOG").unwrap_or("info");
        if let Err(problem) = tracing_subscriber::EnvFilter::try_new(level) {
            return Err(error(
                "RUST_LOG",
                level,
                &format!("expected levels such as info,access=off: {problem}"),
            ));
        }
        let json = match self.text("LOG_FORMAT") {
            None | Some("plain" | "text") => false,
            Some("json") => true,
            Some(other) => return Err(error("LOG_FORMAT", other, "expected `json` or `plain`")),
        };
        Ok(Log { level: level.to_owned(), json })
    }
}

const MAX_WINDOW: u32 = (1 << 31) - 1;

pub(super) fn error(variable: &str, value: &str, expected: &str) -> ConfigError {
    ConfigError { variable: variable.into(), value: value.into(), expected: expected.into() }
}

/// `50us`, `500ms`, `30s`, `5m`, `24h`, also joined as in `1h30m`. A bare number is refused: its unit is a guess.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|end| *end > 0)?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let part = match &rest[..unit] {
            "us" => Duration::from_micros(number),
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            _ => return None,
        };
        total = total.checked_add(part)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(total)
}
