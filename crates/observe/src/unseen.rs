//! Scrapes that no node proxy saw, on Prometheus' own word: it answered for them, and an end is outside the mesh, so
//! they went in plaintext past every proxy. Without them the graph would be empty before the first label, and its
//! percentages would be of too little.
//!
//! Pure. A scrape stands here only while the last one went that way, and it never makes anything look better: a row of
//! the table is added, or what the proxies said of the same pair is called plaintext.

use std::collections::HashMap;
use std::sync::Arc;

use crate::flow::{Millis, Text};
use crate::model::{Bytes, Connections, State};
use crate::store::place::Place;
use crate::table::{Row, Window};
use crate::why::Code;

/// The reason code of such a row, where a proxy's would stand.
pub const REASON: &str = "unseen";

/// One scrape that went past the mesh.
#[derive(Clone, Debug)]
pub struct Unseen {
    /// The Prometheus.
    pub source: Arc<Place>,
    /// The pod, or the address, that answered.
    pub target: Arc<Place>,
    /// On which port.
    pub port: u16,
    /// Why it is plaintext.
    pub code: Code,
    /// When it was last scraped.
    pub at: Millis,
}

/// Adds what Prometheus knows to what the proxies said in a window that ends now.
pub fn add(rows: &mut Vec<Row>, unseen: &[Unseen], window: Window) {
    if unseen.is_empty() || !window.live {
        return;
    }
    let key = |source: &Place, target: &Place, port: u16| (source.id.clone(), target.id.clone(), port);
    let known: HashMap<(Text, Text, u16), usize> =
        rows.iter().enumerate().map(|(at, row)| (key(&row.source, &row.target, row.port), at)).collect();
    for scrape in unseen.iter().filter(|scrape| scrape.at >= window.from()) {
        let known = known.get(&key(&scrape.source, &scrape.target, scrape.port));
        match known.and_then(|at| rows.get_mut(*at)) {
            Some(row) if matches!(row.state, State::Plaintext | State::Mixed) => {}
            Some(row) => {
                row.state = State::Plaintext;
                row.code = Some(scrape.code);
                row.reason = REASON.into();
                row.last_activity = row.last_activity.max(Some(scrape.at));
                row.unseen = true;
            }
            None => rows.push(Row {
                source: scrape.source.clone(),
                target: scrape.target.clone(),
                port: scrape.port,
                state: State::Plaintext,
                bytes: Bytes::default(),
                connections: Connections::default(),
                code: Some(scrape.code),
                reason: REASON.into(),
                policy: "".into(),
                service: "".into(),
                identities: None,
                last_activity: Some(scrape.at),
                stale_ms: None,
                unseen: true,
            }),
        }
    }
}

#[cfg(test)]
mod tests;
