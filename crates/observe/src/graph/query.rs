//! What is asked for, read from the query string once, and which rows answer it.

use std::collections::BTreeSet;

use crate::flow::Text;
use crate::model::State;
use crate::store::place::Place;
use crate::table::Row;

/// Which namespaces the asker may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Visible {
    /// Everything.
    All,
    /// Pairs of which one end lies in one of these.
    Namespaces(BTreeSet<Text>),
}

impl Visible {
    /// Whether a namespace may be seen.
    pub fn namespace(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(some) => some.contains(namespace),
        }
    }

    /// Whether a pair may be seen.
    pub fn pair(&self, source: &Place, target: &Place) -> bool {
        self.namespace(&source.end.namespace) || self.namespace(&target.end.namespace)
    }
}

/// Of what a node of the graph is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Level {
    Namespace,
    Workload,
    Pod,
}

impl Level {
    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Workload => "workload",
            Self::Pod => "pod",
        }
    }
}

/// What becomes of the traffic of hubs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Hubs {
    #[default]
    Trunks,
    Edges,
    Hide,
    Only,
}

/// Which rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Filter {
    pub namespaces: BTreeSet<String>,
    /// Lower case.
    pub text: String,
    pub states: BTreeSet<u8>,
}

/// Which graph.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Query {
    /// None: whatever fits.
    pub level: Option<Level>,
    pub filter: Filter,
    pub hubs: Hubs,
    pub expand: BTreeSet<String>,
    pub focus: Option<String>,
    pub limit: usize,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            level: None,
            filter: Filter::default(),
            hubs: Hubs::default(),
            expand: BTreeSet::new(),
            focus: None,
            limit: 20_000,
        }
    }
}

impl Filter {
    /// Reads the parameters `ns`, `q` and `state`.
    pub fn new(ns: &str, q: &str, states: &str) -> Result<Self, String> {
        let mut wanted = BTreeSet::new();
        for word in words(states) {
            let state = State::ALL.into_iter().find(|state| state.word() == word).ok_or_else(|| {
                let known: Vec<_> = State::ALL.iter().map(|state| state.word()).collect();
                format!("state {word:?} is not known; write some of {}", known.join(", "))
            })?;
            wanted.insert(state.rank());
        }
        let namespaces = words(ns).map(ToOwned::to_owned).collect();
        Ok(Self { namespaces, text: q.trim().to_lowercase(), states: wanted })
    }

    /// Whether a row is wanted.
    pub fn takes(&self, row: &Row) -> bool {
        (self.states.is_empty() || self.states.contains(&row.state.rank()))
            && self.takes_namespaces(&row.source.end.namespace, &row.target.end.namespace)
            && self.takes_text(row)
    }

    fn takes_namespaces(&self, source: &str, target: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.contains(source) || self.namespaces.contains(target)
    }

    fn takes_text(&self, row: &Row) -> bool {
        if self.text.is_empty() {
            return true;
        }
        let has = |text: &str| text.to_lowercase().contains(&self.text);
        let end = |place: &Place| {
            let end = &place.end;
            let texts = [&end.namespace, &end.pod, &end.workload, &end.canonical_name, &end.node];
            texts.into_iter().any(|text| has(text)) || end.address.is_some_and(|ip| has(&ip.to_string()))
        };
        end(&row.source)
            || end(&row.target)
            || has(&row.service)
            || has(&row.reason)
            || has(&row.policy)
            || row.identities.as_ref().is_some_and(|pair| has(&pair.source) || has(&pair.destination))
            || row.port.to_string() == self.text
    }
}

/// The words of a comma-separated list.
pub fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|word| !word.is_empty())
}
