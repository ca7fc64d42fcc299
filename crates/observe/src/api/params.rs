//! Query strings, read once into types that cannot be wrong.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Problem;
use crate::flow::Millis;
use crate::graph::{self, Filter, Hubs, Level, words};
use crate::model::{Proof, Target};

const MAX_QUERY: usize = 8_192;
const HOUR: u64 = 3_600;

/// A query string whose errors are this API's.
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let bad = |text: String| Problem(StatusCode::BAD_REQUEST, text);
        if parts.uri.query().is_some_and(|query| query.len() > MAX_QUERY) {
            return Err(bad(format!("the query string is longer than {MAX_QUERY} bytes")));
        }
        let query = axum::extract::Query::<T>::try_from_uri(&parts.uri);
        query
            .map(|query| Self(query.0))
            .map_err(|error| bad(format!("the query string cannot be read: {error}")))
    }
}

/// `window`, `at` and the filter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct WindowParams {
    window: Option<String>,
    at: Option<String>,
    ns: String,
    q: String,
    state: String,
}

fn number(name: &str, text: &str) -> Result<u64, String> {
    text.trim().parse().map_err(|_| format!("{name}={text:?} is no whole number"))
}

impl WindowParams {
    /// Length of the window in seconds, in whole buckets.
    pub fn seconds(&self) -> Result<u64, String> {
        let Some(text) = self.window.as_deref().filter(|text| !text.is_empty()) else { return Ok(300) };
        let seconds = number("window", text)?;
        if (1..=HOUR).contains(&seconds) {
            Ok(seconds.div_ceil(10) * 10)
        } else {
            Err(format!(
                "window={seconds} is not between 10 and {HOUR} seconds: that is how far back flows are kept"
            ))
        }
    }

    /// End of the window; none is now.
    pub fn at(&self, now: Millis) -> Result<Option<Millis>, String> {
        let Some(text) = self.at.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
        let at = number("at", text)?;
        if at > now {
            return Err(format!("at={at} lies in the future"));
        }
        if at + HOUR * 1000 < now {
            return Err(format!("at={at} is more than an hour ago, which is how far back flows are kept"));
        }
        Ok(Some(at))
    }

    /// Which rows.
    pub fn filter(&self) -> Result<Filter, String> {
        if self.q.chars().count() > 200 {
            return Err("q is longer than 200 characters".into());
        }
        Filter::new(&self.ns, &self.q, &self.state)
    }
}

/// Parameters of a graph.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct GraphParams {
    #[serde(flatten)]
    pub(super) window: WindowParams,
    level: String,
    hubs: String,
    expand: String,
    focus: String,
    limit: Option<String>,
    pub(super) last_event_id: Option<String>,
}

impl GraphParams {
    /// Which graph.
    pub fn query(&self) -> Result<graph::Query, String> {
        let level = match self.level.as_str() {
            "" | "auto" => None,
            "namespace" | "ns" => Some(Level::Namespace),
            "workload" => Some(Level::Workload),
            "pod" => Some(Level::Pod),
            other => {
                return Err(format!("level={other:?} is not known; write namespace, workload, pod or auto"));
            }
        };
        let hubs = match self.hubs.as_str() {
            "" | "trunks" => Hubs::Trunks,
            "edges" => Hubs::Edges,
            "hide" => Hubs::Hide,
            "only" => Hubs::Only,
            other => return Err(format!("hubs={other:?} is not known; write trunks, edges, hide or only")),
        };
        Ok(graph::Query {
            level,
            filter: self.window.filter()?,
            hubs,
            expand: words(&self.expand).map(ToOwned::to_owned).collect(),
            focus: Some(self.focus.clone()).filter(|focus| !focus.is_empty()),
            limit: limit(self.limit.as_deref(), 20_000)?,
        })
    }
}

fn limit(text: Option<&str>, default: usize) -> Result<usize, String> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(default) };
    match number("limit", text)? {
        limit @ 1..=20_000 => Ok(limit as usize),
        other => Err(format!("limit={other} is not between 1 and 20000")),
    }
}

/// Parameters of lists.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ListParams {
    #[serde(flatten)]
    pub(super) window: WindowParams,
    pub(super) source: Option<String>,
    pub(super) target: Option<String>,
    prometheus: String,
    pool: String,
    proof: String,
    health: String,
    limit: Option<String>,
    offset: Option<String>,
}

/// Which targets.
#[derive(Debug)]
pub struct Wanted {
    filter: Filter,
    prometheus: String,
    pool: String,
    proofs: Vec<Proof>,
    health: String,
}

impl ListParams {
    pub(super) fn filter(&self) -> Result<Filter, String> {
        self.window.filter()
    }

    pub(super) fn limit(&self) -> Result<usize, Problem> {
        limit(self.limit.as_deref(), 1_000).map_err(|text| Problem(StatusCode::BAD_REQUEST, text))
    }

    pub(super) fn offset(&self) -> Result<usize, Problem> {
        let bad = |text| Problem(StatusCode::BAD_REQUEST, text);
        match self.offset.as_deref().filter(|text| !text.is_empty()) {
            Some(text) => Ok(usize::try_from(number("offset", text).map_err(bad)?).unwrap_or(usize::MAX)),
            None => Ok(0),
        }
    }

    pub(super) fn targets(&self) -> Result<Wanted, String> {
        let mut proofs = Vec::new();
        for word in words(&self.proof) {
            let proof = Proof::ALL.into_iter().find(|proof| proof.word() == word).ok_or_else(|| {
                format!("proof={word:?} is not known; write proven, one_sided, plaintext, denied or unproven")
            })?;
            proofs.push(proof);
        }
        if !matches!(self.health.as_str(), "" | "up" | "down" | "unknown") {
            return Err(format!("health={:?} is not known; write up, down or unknown", self.health));
        }
        Ok(Wanted {
            filter: self.window.filter()?,
            prometheus: self.prometheus.clone(),
            pool: self.pool.clone(),
            proofs,
            health: self.health.clone(),
        })
    }
}

impl Wanted {
    /// Whether a target is wanted.
    pub fn takes(&self, target: &Target) -> bool {
        let is = |wanted: &str, value: &str| wanted.is_empty() || wanted == value;
        let text = &self.filter.text;
        let has = |value: &str| value.to_lowercase().contains(text);
        is(&self.prometheus, &target.prometheus)
            && is(&self.pool, &target.pool)
            && is(&self.health, target.health)
            && (self.proofs.is_empty() || self.proofs.contains(&target.proof))
            && (self.filter.namespaces.is_empty() || self.filter.namespaces.contains(&*target.namespace))
            && (text.is_empty()
                || has(&target.scrape_url)
                || has(&target.namespace)
                || has(&target.pod)
                || has(&target.workload)
                || has(&target.pool)
                || has(&target.source_identity)
                || has(&target.destination_identity)
                || has(&target.last_error))
    }
}
