//! What Prometheus itself says, by its HTTP API.

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde::Deserialize;
use serde_json::Value;

use crate::port_forward;

/// The Prometheus of the demo.
#[derive(Clone)]
pub struct Prometheus {
    pods: Api<Pod>,
    pod: String,
}

/// An active target.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// `up`, `down` or `unknown`.
    pub health: String,
    /// What went wrong at the last scrape.
    #[serde(default)]
    pub last_error: String,
    /// Job, namespace, pod …
    pub labels: std::collections::BTreeMap<String, String>,
}

impl Target {
    /// A label of the target.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// One series of an instant query.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Labels.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Value.
    pub value: f64,
}

impl Prometheus {
    /// The Prometheus in this pod.
    pub fn new(pods: Api<Pod>, pod: String) -> Self {
        Self { pods, pod }
    }

    async fn api(&self, path: &str) -> anyhow::Result<Value> {
        let text = port_forward::get(&self.pods, &self.pod, 9090, path).await?;
        let mut answer: Value =
            serde_json::from_str(&text).context("Prometheus answered something that is no JSON")?;
        if answer["status"] != "success" {
            bail!("Prometheus says: {}", answer["error"]);
        }
        Ok(answer["data"].take())
    }

    /// The active targets of a job.
    pub async fn targets(&self, job: &str) -> anyhow::Result<Vec<Target>> {
        let mut data = self.api("/api/v1/targets?state=active").await?;
        let targets: Vec<Target> = serde_json::from_value(data["activeTargets"].take())?;
        Ok(targets.into_iter().filter(|target| target.label("job") == job).collect())
    }

    /// An instant query.
    pub async fn query(&self, query: &str) -> anyhow::Result<Vec<Sample>> {
        let mut data = self.api(&format!("/api/v1/query?query={}", percent_encode(query))).await?;
        #[derive(Deserialize)]
        struct Series {
            metric: std::collections::BTreeMap<String, String>,
            value: (f64, String),
        }
        let series: Vec<Series> = serde_json::from_value(data["result"].take())?;
        let sample = |series: Series| Ok(Sample { value: series.value.1.parse()?, labels: series.metric });
        series.into_iter().map(sample).collect()
    }

    /// A query whose answer is one number; nothing at all counts as 0.
    pub async fn number(&self, query: &str) -> anyhow::Result<f64> {
        Ok(self.query(query).await?.first().map_or(0.0, |sample| sample.value))
    }
}

fn percent_encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_encoded_for_a_url() {
        assert_eq!(percent_encode("sum(x{a=\"b\"})"), "sum%28x%7Ba%3D%22b%22%7D%29");
    }
}
