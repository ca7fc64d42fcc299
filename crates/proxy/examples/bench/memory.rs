//! Memory at rest, with idle connections, after they are gone, and with many workloads known.

use std::time::Duration;

use crate::figures::sample;
use crate::lanes::{Lane, World};
use crate::report::{Report, Sample, Unit};
use crate::system::{descriptors, rss};

/// Until nothing moves any more.
const REST: Duration = Duration::from_secs(2);
/// Until closed connections and what they needed are forgotten.
const FORGET: Duration = Duration::from_secs(4);

fn proxies(lanes: &mut [Lane]) -> impl Iterator<Item = &mut Lane> {
    lanes.iter_mut().filter(|lane| lane.name == "mesh" || lane.name == "against")
}

/// Connections that are open at once, at most: the proxy has a descriptor for each end, and some more.
fn most() -> u64 {
    const WANTED: u64 = 10_000;
    let most = (descriptors().saturating_sub(1000) / 2).min(WANTED);
    if most < WANTED {
        eprintln!("{most} idle connections instead of {WANTED}: descriptors are limited (RLIMIT_NOFILE)");
    }
    most
}

/// Two pods, and connections between them that say nothing; each has both its ends in the one proxy.
pub async fn idle(world: &World, lanes: &mut [Lane], report: &mut Report) -> anyhow::Result<()> {
    for lane in proxies(lanes) {
        world.start(lane).await?;
        let Some(pid) = lane.worker() else { continue };
        if let Some(took) = lane.took() {
            report.add(
                "start_to_ready_ms",
                Unit::Milliseconds,
                lane.name,
                Sample::of(took.as_secs_f64() * 1e3),
            );
        }
        tokio::time::sleep(REST).await;
        report.add("idle_rss_mib", Unit::Mebibytes, lane.name, Sample::of(rss(pid) / 1024.0));
        for (name, count) in [
            ("idle_connection_kib_1k", 1000),
            ("idle_connection_kib_5k", 5000),
            ("idle_connection_kib", most()),
        ] {
            let before = rss(pid);
            let mut load = lane.load(&["idle".into(), lane.targets(8080), count.to_string(), "0".into()])?;
            load.line()?;
            tokio::time::sleep(REST).await;
            report.add(name, Unit::Kibibytes, lane.name, Sample::of((rss(pid) - before) / count as f64));
            load.finish()?;
            if count == 5000 {
                tokio::time::sleep(FORGET).await;
                report.add("rss_after_5k_mib", Unit::Mebibytes, lane.name, Sample::of(rss(pid) / 1024.0));
            }
        }
        lane.stop();
    }
    for name in [
        "start_to_ready_ms",
        "idle_rss_mib",
        "idle_connection_kib_1k",
        "idle_connection_kib_5k",
        "rss_after_5k_mib",
        "idle_connection_kib",
    ] {
        report.print(name);
    }
    Ok(())
}

/// Many workloads known: what they cost in memory and at the start, and that they cost a connection nothing.
pub async fn crowds(world: &World, lanes: &mut [Lane], report: &mut Report) -> anyhow::Result<()> {
    let mut known = 0;
    for (count, suffix) in [(0, "0"), (10_000, "10k"), (100_000, "100k")] {
        world.crowd(known, count);
        known = count;
        for lane in proxies(lanes) {
            world.start(lane).await?;
            let Some(pid) = lane.worker() else { continue };
            tokio::time::sleep(REST).await;
            let took = lane.took().unwrap_or_default().as_secs_f64() * 1e3;
            report.add(
                &format!("start_to_ready_ms_{suffix}"),
                Unit::Milliseconds,
                lane.name,
                Sample::of(took),
            );
            report.add(
                &format!("rss_mib_{suffix}"),
                Unit::Mebibytes,
                lane.name,
                Sample::of(rss(pid) / 1024.0),
            );
            let args = ["connect".into(), lane.targets(8081), "8".into(), "2".into()];
            report.add(&format!("connect_warm_{suffix}"), Unit::Requests, lane.name, sample(lane, &args)?);
            lane.stop();
        }
        for name in ["start_to_ready_ms", "rss_mib", "connect_warm"] {
            report.print(&format!("{name}_{suffix}"));
        }
    }
    Ok(())
}
