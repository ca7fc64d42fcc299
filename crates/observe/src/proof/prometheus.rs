//! What a Prometheus says of its targets (`GET /api/v1/targets?state=active`), stripped to what the proof needs. The
//! answer of a large one is tens of megabytes, nearly all of it labels that nobody asks for.

use std::net::IpAddr;

use serde::Deserialize;

use crate::flow::{Millis, Text};

/// Targets of one Prometheus that are looked at.
pub const MAX_TARGETS: usize = 100_000;

/// One active target.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RawTarget {
    /// Its scrape pool.
    pub pool: Text,
    /// What Prometheus fetches.
    pub scrape_url: String,
    /// Whom it calls, with the port.
    pub address: String,
    /// The same as an IP address, if it can be known, and port.
    pub ip: Option<IpAddr>,
    /// Port.
    pub port: u16,
    /// Whether the scraper itself speaks TLS.
    pub https: bool,
    /// Namespace and pod that the labels name; empty when they do not.
    pub namespace: Text,
    /// See `namespace`.
    pub pod: Text,
    /// `up`, `down` or `unknown`.
    pub health: &'static str,
    /// What went wrong.
    pub last_error: String,
    /// When the last scrape began.
    pub last_scrape: Option<Millis>,
    /// How long it took, in milliseconds.
    pub duration_ms: f64,
    /// How often it is scraped.
    pub interval: Millis,
}

/// Why an answer is no list of targets.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// It is something else.
    #[error("this does not look like Prometheus' /api/v1/targets: {0}")]
    Json(#[from] serde_json::Error),
    /// It says what is wrong.
    #[error("Prometheus says: {0}")]
    Refused(String),
}

#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    data: Data,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Data {
    active_targets: Vec<Active>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Active {
    discovered_labels: Discovered,
    labels: Labels,
    scrape_pool: String,
    scrape_url: String,
    last_error: String,
    last_scrape: String,
    last_scrape_duration: f64,
    health: String,
    scrape_interval: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Discovered {
    __address__: String,
    __scrape_interval__: String,
    __meta_kubernetes_namespace: String,
    __meta_kubernetes_pod_name: String,
    __meta_kubernetes_pod_ip: String,
    __meta_kubernetes_endpoint_address_target_kind: String,
    __meta_kubernetes_endpoint_address_target_name: String,
    __meta_kubernetes_endpointslice_address_target_kind: String,
    __meta_kubernetes_endpointslice_address_target_name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Labels {
    namespace: String,
    pod: String,
}

/// Reads an answer.
pub fn parse(text: &[u8]) -> Result<Vec<RawTarget>, AnswerError> {
    let answer: Answer = serde_json::from_slice(text)?;
    if answer.status != "success" {
        return Err(AnswerError::Refused(answer.error.chars().take(300).collect()));
    }
    Ok(answer.data.active_targets.into_iter().take(MAX_TARGETS).map(target).collect())
}

fn target(active: Active) -> RawTarget {
    let found = active.discovered_labels;
    let (https, host, port) = split_url(&active.scrape_url);
    let from_label = split_authority(&found.__address__);
    let label_ip = from_label.0.parse::<IpAddr>().ok();
    let ip = host
        .parse::<IpAddr>()
        .ok()
        .or(label_ip)
        .or_else(|| found.__meta_kubernetes_pod_ip.parse().ok())
        .map(|ip| ip.to_canonical());
    let port = port.or(from_label.1).unwrap_or(if https { 443 } else { 80 });
    let of_pod = |kind: &str, name: &str| if kind == "Pod" { name.to_owned() } else { String::new() };
    let pods = [
        found.__meta_kubernetes_pod_name,
        of_pod(
            &found.__meta_kubernetes_endpointslice_address_target_kind,
            &found.__meta_kubernetes_endpointslice_address_target_name,
        ),
        of_pod(
            &found.__meta_kubernetes_endpoint_address_target_kind,
            &found.__meta_kubernetes_endpoint_address_target_name,
        ),
        active.labels.pod,
    ];
    let first = |texts: &[String]| texts.iter().find(|text| !text.is_empty()).cloned().unwrap_or_default();
    let interval = [active.scrape_interval, found.__scrape_interval__];
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    RawTarget {
        pool: cut(&active.scrape_pool, 300).into(),
        address,
        ip,
        port,
        https,
        namespace: cut(&first(&[found.__meta_kubernetes_namespace, active.labels.namespace]), 253).into(),
        pod: cut(&first(&pods), 253).into(),
        health: match active.health.as_str() {
            "up" => "up",
            "down" => "down",
            _ => "unknown",
        },
        last_error: cut(&active.last_error, 1000),
        last_scrape: time(&active.last_scrape),
        duration_ms: if active.last_scrape_duration.is_finite() {
            active.last_scrape_duration * 1000.0
        } else {
            0.0
        },
        interval: interval.iter().find_map(|text| duration(text)).unwrap_or(60_000),
        scrape_url: cut(&active.scrape_url, 2000),
    }
}

fn cut(text: &str, at_most: usize) -> String {
    text.chars().take(at_most).collect()
}

/// Scheme, host and port of a URL.
fn split_url(url: &str) -> (bool, String, Option<u16>) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let (host, port) = split_authority(authority);
    let https = scheme.eq_ignore_ascii_case("https");
    (https, host, port.or(Some(if https { 443 } else { 80 })))
}

fn split_authority(authority: &str) -> (String, Option<u16>) {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').unwrap_or((rest, ""));
        return (host.into(), rest.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host.into(), port.parse().ok()),
        _ => (authority.into(), None),
    }
}

/// RFC 3339; the zero time of Go means never.
fn time(text: &str) -> Option<Millis> {
    let at: jiff::Timestamp = text.parse().ok()?;
    Millis::try_from(at.as_millisecond()).ok().filter(|at| *at > 0)
}

/// Prometheus' durations: `1m30s`, `500ms`.
fn duration(text: &str) -> Option<Millis> {
    let mut rest = text;
    let mut sum = 0u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let millis = match &rest[..unit] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            _ => return None,
        };
        sum = sum.checked_add(number.checked_mul(millis)?)?;
        rest = &rest[unit..];
    }
    (sum > 0).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_where_they_are() {
        let json = r#"{"status":"success","data":{"activeTargets":[
            {"scrapeUrl":"http://10.0.0.1:9102/metrics","health":"up","lastScrape":"2026-01-02T03:04:05.678901234+01:00",
             "lastScrapeDuration":0.0025,"scrapeInterval":"1m30s","scrapePool":"p",
             "discoveredLabels":{"__meta_kubernetes_namespace":"shop","__meta_kubernetes_pod_name":"cart-0"}},
            {"scrapeUrl":"https://[2001:db8::1]/metrics","health":"down","lastScrape":"0001-01-01T00:00:00Z"},
            {"scrapeUrl":"http://cart.shop:8080/m","labels":{"namespace":"shop","pod":"cart-1"},
             "discoveredLabels":{"__address__":"10.0.0.2:8080","__scrape_interval__":"500ms"}}
        ],"droppedTargets":[{"anything":1}]}}"#;
        let targets = parse(json.as_bytes()).unwrap();
        assert_eq!(targets[0].ip, Some("10.0.0.1".parse().unwrap()));
        assert_eq!((targets[0].port, targets[0].interval, &*targets[0].pod), (9102, 90_000, "cart-0"));
        assert_eq!(targets[0].last_scrape, Some(1_767_319_445_678));
        assert_eq!((targets[1].address.as_str(), targets[1].port), ("[2001:db8::1]:443", 443));
        assert!(targets[1].https && targets[1].last_scrape.is_none());
        assert_eq!((targets[2].ip, targets[2].port), (Some("10.0.0.2".parse().unwrap()), 8080));
        assert_eq!((&*targets[2].pod, targets[2].interval), ("cart-1", 500));
    }

    #[test]
    fn what_is_no_answer_of_prometheus_is_refused() {
        assert!(parse(b"<html>").is_err());
        assert!(
            matches!(parse(br#"{"status":"error","error":"no"}"#), Err(AnswerError::Refused(why)) if why == "no")
        );
    }
}
