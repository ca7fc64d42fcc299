//! The proof that a scrape is mutual TLS: both proxies saw its bytes grow, with the expected identities at both ends.

use std::collections::{BTreeMap, BTreeSet};

/// The byte counters of one proxy at one moment: labels → bytes.
#[derive(Clone, Debug, Default)]
pub struct Counters(BTreeMap<BTreeMap<String, String>, f64>);

const SENT: &str = "istio_tcp_sent_bytes_total";

impl Counters {
    /// Reads the counters out of a proxy's `/metrics`.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(series).collect())
    }

    /// What has grown since `earlier`: labels and by how much.
    pub fn growth<'a>(
        &'a self,
        earlier: &'a Self,
    ) -> impl Iterator<Item = (&'a BTreeMap<String, String>, f64)> {
        let grown = |(labels, now): (&'a BTreeMap<String, String>, &f64)| {
            let before = earlier.0.get(labels).copied().unwrap_or(0.0);
            (*now > before).then(|| (labels, now - before))
        };
        self.0.iter().filter_map(grown)
    }
}

/// A line `name{a="b",…} value` of the byte counter.
fn series(line: &str) -> Option<(BTreeMap<String, String>, f64)> {
    let rest = line.strip_prefix(SENT)?.strip_prefix('{')?;
    let mut labels = BTreeMap::new();
    let mut rest = rest;
    loop {
        let (name, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        labels.insert(name.to_owned(), value);
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None => {
                let value = after.strip_prefix('}')?.split_whitespace().next()?;
                return Some((labels, value.parse().ok()?));
            }
        }
    }
}

/// The text up to the closing quote, unescaped, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

/// A scraped pod, as the proof knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scraped {
    /// Namespace.
    pub namespace: String,
    /// Pod name.
    pub pod: String,
    /// Name of the workload, as in the metrics.
    pub workload: String,
    /// `spiffe://…`
    pub identity: String,
    /// Node it runs on.
    pub node: String,
}

/// What both proxies saw of the scrapes of one pod.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Bytes the scraper's proxy saw over mutual TLS.
    pub source: f64,
    /// Bytes the scraped pod's proxy saw over mutual TLS.
    pub destination: f64,
    /// Bytes either saw in plaintext.
    pub plaintext: f64,
}

impl Seen {
    /// Both proxies agree that it is mutual TLS.
    pub fn proven(&self) -> bool {
        self.source > 0.0 && self.destination > 0.0
    }
}

/// Labels of a series, and by how many bytes it has grown.
type Grown = (BTreeMap<String, String>, f64);

/// Judges every scraped pod by what grew at each node's proxy; `scraper` is the identity that must have called.
pub fn judge(
    scraped: &BTreeSet<Scraped>,
    scraper: (&str, &str),
    grown: &BTreeMap<String, Vec<Grown>>,
) -> BTreeMap<Scraped, Seen> {
    let (scraper_node, scraper_identity) = scraper;
    let judge_one = |pod: &Scraped| {
        let sum = |node: &str, reporter: &str, secure: bool| -> f64 {
            let series = grown.get(node).into_iter().flatten();
            let of_pod = series.filter(|(labels, _)| {
                let is = |name: &str, value: &str| labels.get(name).is_some_and(|v| v == value);
                is("reporter", reporter)
                    && is("destination_workload", &pod.workload)
                    && is("destination_workload_namespace", &pod.namespace)
                    && is("source_workload", "prometheus")
                    && if secure {
                        is("connection_security_policy", "mutual_tls")
                            && is("source_principal", scraper_identity)
                            && is("destination_principal", &pod.identity)
                    } else {
                        !is("connection_security_policy", "mutual_tls")
                    }
            });
            of_pod.map(|(_, bytes)| bytes).sum()
        };
        let seen = Seen {
            source: sum(scraper_node, "source", true),
            destination: sum(&pod.node, "destination", true),
            plaintext: sum(scraper_node, "source", false) + sum(&pod.node, "destination", false),
        };
        (pod.clone(), seen)
    };
    scraped.iter().map(judge_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRAPER: &str = "spiffe://cluster.local/ns/monitoring/sa/prometheus";
    const WEB: &str = "spiffe://cluster.local/ns/app/sa/web";

    fn line(reporter: &str, security: &str, source: &str, bytes: u32) -> String {
        format!(
            "{SENT}{{reporter=\"{reporter}\",source_workload=\"prometheus\",source_principal=\"{source}\",\
             destination_workload=\"web\",destination_workload_namespace=\"app\",destination_principal=\"{WEB}\",\
             connection_security_policy=\"{security}\"}} {bytes}"
        )
    }

    fn judged(node_1: (&str, &str), node_2: (&str, &str)) -> Seen {
        let pod = Scraped {
            namespace: "app".into(),
            pod: "web-1".into(),
            workload: "web".into(),
            identity: WEB.into(),
            node: "node2".into(),
        };
        let grown = [("node1", node_1), ("node2", node_2)].map(|(node, (before, after))| {
            let (before, after) = (Counters::parse(before), Counters::parse(after));
            let growth = after.growth(&before).map(|(labels, bytes)| (labels.clone(), bytes)).collect();
            (node.to_owned(), growth)
        });
        judge(&[pod.clone()].into(), ("node1", SCRAPER), &grown.into())[&pod]
    }

    #[test]
    fn both_proxies_must_have_seen_mutual_tls_with_both_identities() {
        let source = line("source", "mutual_tls", SCRAPER, 10);
        let destination = line("destination", "mutual_tls", SCRAPER, 10);
        assert!(judged(("", &source), ("", &destination)).proven());
        assert!(!judged(("", &source), ("", "")).proven(), "one-sided");
        assert!(!judged((&source, &source), ("", &destination)).proven(), "nothing has grown at the source");
        let foreign = line("destination", "mutual_tls", "spiffe://cluster.local/ns/x/sa/y", 10);
        assert!(!judged(("", &source), ("", &foreign)).proven(), "another caller");
        let plaintext = line("destination", "unknown", "unknown", 7);
        let seen = judged(("", &source), ("", &plaintext));
        assert!(!seen.proven() && seen.plaintext == 7.0);
    }

    #[test]
    fn hostile_lines_are_passed_over() {
        for text in
            ["", SENT, "istio_tcp_sent_bytes_total{", "istio_tcp_sent_bytes_total{a=\"b} 1", "x{a=\"b\"} 1"]
        {
            assert_eq!(Counters::parse(text).0.len(), 0, "{text}");
        }
        let escaped = Counters::parse("istio_tcp_sent_bytes_total{a=\"b\\\"c\\n\"} 2 123");
        assert_eq!(escaped.0.keys().next().unwrap()["a"], "b\"c\n");
    }
}
