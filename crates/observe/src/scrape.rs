//! Asks every Prometheus for its targets, now and then: bounded in time and size, gentle with large ones.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::watch;

use crate::cluster::Candidate;
use crate::flow::Text;
use crate::observer::Observer;
use crate::proof::Scraper;
use crate::proof::prometheus::parse;

const PATIENCE: Duration = Duration::from_secs(10);
const LARGEST: usize = 128 << 20;
/// At most so often; and a Prometheus that takes long is asked less often.
const EVERY: Duration = Duration::from_secs(5);
const GENTLE: u32 = 20;
const AT_ONCE: usize = 8;
/// Prometheis that are found by themselves, at most.
const MOST: usize = 64;

/// A Prometheus that was named on the command line: `[NAMESPACE/POD=]URL`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Named {
    pub pod: Option<(String, String)>,
    pub url: String,
}

impl std::str::FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pod, url) = match text.split_once('=').filter(|(before, _)| !before.contains("://")) {
            Some((pod, url)) => {
                let (namespace, name) = pod
                    .split_once('/')
                    .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
                    .ok_or_else(|| format!("{pod:?} is no pod; write NAMESPACE/POD=URL"))?;
                (Some((namespace.to_owned(), name.to_owned())), url)
            }
            None => (None, text),
        };
        let uri: http::Uri = url.parse().map_err(|_| format!("{url:?} is no URL"))?;
        match (uri.scheme_str(), uri.host()) {
            (Some("http"), Some(_)) => Ok(Self { pod, url: url.trim_end_matches('/').to_owned() }),
            (Some("https"), _) => Err(format!(
                "{url:?}: the observer speaks plain HTTP to Prometheus; inside the mesh that is mutual TLS all the same"
            )),
            _ => Err(format!("{url:?} is no URL; write http://HOST:PORT")),
        }
    }
}

/// One Prometheus, between two polls.
struct Polled {
    scraper: Scraper,
    next: Instant,
}

/// Polls until the process ends.
pub async fn poll(
    observer: Arc<Observer>,
    named: Vec<Named>,
    mut candidates: watch::Receiver<Vec<Candidate>>,
) {
    let client: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut known: HashMap<Text, Polled> = HashMap::new();
    loop {
        let wanted = wanted(&observer, &named, &candidates.borrow_and_update());
        known.retain(|id, _| wanted.iter().any(|scraper| scraper.id == *id));
        let now = Instant::now();
        for scraper in wanted {
            let polled =
                known.entry(scraper.id.clone()).or_insert(Polled { scraper: scraper.clone(), next: now });
            (polled.scraper.url, polled.scraper.namespace, polled.scraper.pod) =
                (scraper.url, scraper.namespace, scraper.pod);
        }
        let due: Vec<Text> =
            known.iter().filter(|(_, polled)| polled.next <= now).map(|(id, _)| id.clone()).collect();
        let asked = futures::stream::iter(due).map(|id| {
            let url = known.get(&id).map(|polled| polled.scraper.url.clone()).unwrap_or_default();
            let client = &client;
            async move {
                let begun = Instant::now();
                (id, ask(client, &url).await, begun.elapsed())
            }
        });
        let answers: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
        let at = observer.now();
        for (id, answer, took) in answers {
            let Some(polled) = known.get_mut(&id) else { continue };
            polled.next = Instant::now() + EVERY.max(took * GENTLE).min(Duration::from_secs(120));
            match answer {
                Ok(targets) => {
                    polled.scraper.targets = Arc::new(targets);
                    polled.scraper.polled = Some(at);
                    polled.scraper.error = String::new();
                }
                Err(error) => {
                    if polled.scraper.error.is_empty() {
                        tracing::warn!(prometheus = %id, error, "a Prometheus does not tell its targets");
                    }
                    polled.scraper.error = error;
                }
            }
        }
        let mut scrapers: Vec<Scraper> = known.values().map(|polled| polled.scraper.clone()).collect();
        scrapers.sort_by(|a, b| a.id.cmp(&b.id));
        // Judging many targets is not for the threads that serve sockets.
        let judging = observer.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || judging.set_scrapers(scrapers)).await {
            tracing::error!(%error, "the targets could not be judged");
        }
        let next = known.values().map(|polled| polled.next).min();
        let next = next.unwrap_or_else(|| Instant::now() + EVERY);
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => {}
            changed = candidates.changed() => if changed.is_err() {
                // Nobody looks for more; those that are known go on.
                tokio::time::sleep_until(next.into()).await;
            },
        }
    }
}

/// Those that were named, then those that were found.
fn wanted(observer: &Observer, named: &[Named], candidates: &[Candidate]) -> Vec<Scraper> {
    let directory = observer.directory();
    let mut wanted: Vec<Scraper> = Vec::new();
    for named in named {
        let (namespace, pod): (Text, Text) = match &named.pod {
            Some((namespace, pod)) => (namespace.as_str().into(), pod.as_str().into()),
            None => {
                let uri: Option<http::Uri> = named.url.parse().ok();
                let host = uri.as_ref().and_then(http::Uri::host).unwrap_or_default();
                let ip: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
                let pod = ip.and_then(|ip| directory.pod_at(ip));
                pod.map(|pod| (pod.namespace.clone(), pod.name.clone())).unwrap_or_default()
            }
        };
        let id: Text =
            if pod.is_empty() { named.url.as_str().into() } else { format!("{namespace}/{pod}").into() };
        wanted.push(Scraper { id, url: named.url.clone(), namespace, pod, ..Scraper::default() });
    }
    for candidate in candidates.iter().take(MOST) {
        let id: Text = format!("{}/{}", candidate.namespace, candidate.pod).into();
        if !wanted.iter().any(|scraper| scraper.id == id) {
            let (namespace, pod) = (candidate.namespace.clone(), candidate.pod.clone());
            wanted.push(Scraper {
                id,
                url: format!("http://{}", candidate.api),
                namespace,
                pod,
                ..Scraper::default()
            });
        }
    }
    wanted
}

async fn ask(
    client: &Client<HttpConnector, Empty<Bytes>>,
    url: &str,
) -> Result<Vec<crate::proof::prometheus::RawTarget>, String> {
    let uri: http::Uri =
        format!("{url}/api/v1/targets?state=active").parse().map_err(|_| format!("{url} is no URL"))?;
    let asked = async {
        let answer = client.get(uri).await.map_err(|error| {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{url} cannot be reached{cause}; does a policy keep the observer out?")
        })?;
        let status = answer.status();
        if !status.is_success() {
            return Err(format!("{url}/api/v1/targets answers {status}; is this a Prometheus?"));
        }
        let body = Limited::new(answer.into_body(), LARGEST).collect().await;
        body.map(|body| body.to_bytes()).map_err(|error| format!("the answer of {url} broke off: {error}"))
    };
    let body = tokio::time::timeout(PATIENCE, asked).await;
    let body = body.map_err(|_| format!("{url} did not answer within {PATIENCE:?}"))??;
    tokio::task::spawn_blocking(move || parse(&body))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())
}
