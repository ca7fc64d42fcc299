//! The application that calls: `load KIND TARGETS COUNT SECONDS [RATE]`; what it saw is printed as JSON.

mod bulk;
mod check;
mod idle;
mod requests;
mod scrape;
mod timer;

use std::net::SocketAddr;
use std::time::Duration;

pub use check::{digest, pattern};

pub fn run(args: &[String]) -> anyhow::Result<()> {
    let [kind, targets, count, seconds, rest @ ..] = args else {
        anyhow::bail!("load KIND TARGETS COUNT SECONDS [RATE]")
    };
    let targets: Vec<SocketAddr> = targets.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let Some(first) = targets.first().copied() else { anyhow::bail!("no target") };
    let (count, time) = (count.parse()?, Duration::from_secs_f64(seconds.parse()?));
    let rate: f64 = rest.first().map_or(Ok(0.0), |rate| rate.parse())?;
    let report = match kind.as_str() {
        "bulk" => bulk::run(first, count, time, false)?,
        "reverse" => bulk::run(first, count, time, true)?,
        "keepalive" => requests::run(&targets, count, time, rate, requests::Manner::Kept)?,
        "connect" => requests::run(&targets, count, time, 0.0, requests::Manner::New)?,
        "first" => requests::once(&targets, count)?,
        "scrape" => scrape::run(&targets, count)?,
        "check" => check::run(first, count)?,
        "idle" => return idle::run(first, count),
        other => anyhow::bail!("unknown load {other}"),
    };
    println!("{report}");
    Ok(())
}
