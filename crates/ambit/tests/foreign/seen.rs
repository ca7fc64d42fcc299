//! What a proxy says of itself: metrics, dump and access log, read from where users read them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpSocket;

use crate::world::{Side, World};

pub type Labels = BTreeMap<String, String>;

/// One scrape.
pub struct Metrics(Vec<(String, Labels, f64)>);

impl Metrics {
    /// Parses the text format; a line that is not understood is a fault of who wrote it.
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(lines.map(|line| sample(line).unwrap_or_else(|| panic!("no sample: {line}"))).collect())
    }

    /// The sum of all series of a name that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name, labels).map(|(_, value)| value).sum()
    }

    pub fn series<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = (&'a Labels, f64)> {
        self.0.iter().filter_map(move |(series, has, value)| {
            let fits =
                labels.iter().all(|(name, wanted)| has.get(*name).is_some_and(|value| value == wanted));
            (series == name && fits).then_some((has, *value))
        })
    }

    /// Each name that begins with one of `prefixes`, and the names of its labels.
    pub fn names(&self, prefixes: &[&str]) -> BTreeMap<String, BTreeSet<String>> {
        let mut names = BTreeMap::<_, BTreeSet<String>>::new();
        for (name, labels, _) in &self.0 {
            if prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                names.entry(name.clone()).or_default().extend(labels.keys().cloned());
            }
        }
        names
    }
}

fn sample(line: &str) -> Option<(String, Labels, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let close = closing(after)?;
            labels.insert(label.to_owned(), after[..close].to_owned());
            rest = after[close + 1..].strip_prefix(',').unwrap_or(&after[close + 1..]);
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some((name.to_owned(), labels, value))
}

/// Where the quote is that ends a label's value.
fn closing(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, char)| {
        let end = char == '"' && !escaped;
        escaped = char == '\\' && !escaped;
        end.then_some(at)
    })
}

/// One line of an access log: its message and its fields, without quotes.
#[derive(Clone, Debug)]
pub struct Access {
    pub level: String,
    pub message: String,
    pub order: Vec<String>,
    pub fields: Labels,
}

impl Access {
    pub fn get(&self, field: &str) -> &str {
        self.fields.get(field).map_or("", String::as_str)
    }

    fn parse(line: &str) -> Option<Self> {
        let [_, level, "access", message, mut rest] = line.splitn(5, '\t').collect::<Vec<_>>()[..] else {
            return None;
        };
        let (mut fields, mut order) = (Labels::new(), Vec::new());
        while let Some((name, after)) = rest.trim_start().split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => {
                    let close = closing(quoted)?;
                    (&quoted[..close], &quoted[close + 1..])
                }
                None => after.split_at(after.find(' ').unwrap_or(after.len())),
            };
            order.push(name.to_owned());
            fields.insert(name.to_owned(), value.to_owned());
            rest = after;
        }
        Some(Self { level: level.to_owned(), message: message.to_owned(), order, fields })
    }
}

impl World {
    pub async fn metrics(&self, side: Side) -> Metrics {
        Metrics::parse(&self.get(side, 15020, "/metrics").await)
    }

    pub async fn dump(&self, side: Side) -> Value {
        serde_json::from_str(&self.get(side, 15000, "/config_dump").await).expect("a dump is JSON")
    }

    pub async fn access_log(&self, side: Side) -> Vec<Access> {
        self.log(side).await.lines().filter_map(Access::parse).collect()
    }

    async fn get(&self, side: Side, port: u16, path: &str) -> String {
        let netns = self.proxy_netns(side).await;
        let socket = netns.try_run(TcpSocket::new_v4).unwrap();
        let stream = socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(connection);
        let request = http::Request::get(path).header("host", "proxy").body(Empty::<bytes::Bytes>::new());
        let answer = sender.send_request(request.unwrap()).await.unwrap();
        assert!(answer.status().is_success(), "{side:?} {path}: {}", answer.status());
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        driver.abort();
        String::from_utf8(body.to_vec()).unwrap()
    }
}
