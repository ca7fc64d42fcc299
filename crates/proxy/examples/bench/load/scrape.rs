//! A round of a scraper: each target once, over a new connection, so many at a time; it takes seconds.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::json;

use crate::serve::{PAGE, REQUEST};

pub fn run(targets: &[SocketAddr], at_once: usize) -> anyhow::Result<serde_json::Value> {
    let start = Instant::now();
    let next = AtomicUsize::new(0);
    let scraper = || -> anyhow::Result<()> {
        let mut page = Vec::with_capacity(PAGE);
        while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut stream = TcpStream::connect(target)?;
            stream.write_all(&[b'r'; REQUEST])?;
            page.clear();
            stream.read_to_end(&mut page)?;
            anyhow::ensure!(page.len() == PAGE, "{} bytes of {target}", page.len());
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let scrapers: Vec<_> = (0..at_once).map(|_| scope.spawn(scraper)).collect();
        let outcome =
            scrapers.into_iter().map(|one| one.join().unwrap_or_else(|_| anyhow::bail!("a scraper died")));
        outcome.collect::<anyhow::Result<()>>()
    })?;
    Ok(json!({ "rate": start.elapsed().as_secs_f64(), "work": targets.len() }))
}
