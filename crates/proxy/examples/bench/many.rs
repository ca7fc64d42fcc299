//! One client and many pods: a scraper's rounds, and first connections, each of which needs a tunnel.

use std::time::Duration;

use crate::figures::sample;
use crate::lanes::{Lane, Way, World};
use crate::options::Options;
use crate::report::{Report, Unit};

const PODS: usize = 200;
const SCRAPERS: usize = 50;
/// Warm rounds behind each cold one.
const WARM: usize = 3;

pub async fn run(world: &mut World, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let mut lanes = vec![
        ("raw", world.lane("raw-many", 4, Way::Raw, PODS, None).await?),
        ("floor", world.lane("floor-many", 5, Way::Floor, PODS, None).await?),
        ("mesh", world.lane("mesh-many", 6, Way::Mesh, PODS, Some(&options.proxy)).await?),
    ];
    if let Some(other) = &options.against {
        lanes.push(("against", world.lane("against-many", 7, Way::Mesh, PODS, Some(other)).await?));
    }
    for _ in 0..options.rounds {
        for (name, lane) in &mut lanes {
            if options.wants("connect_cold") {
                world.start(lane).await?;
                settle();
                report.add("connect_cold", Unit::Requests, name, first(lane)?);
            }
            if options.wants("scrape_cold") || options.wants("scrape_warm") {
                world.start(lane).await?;
                settle();
                report.add("scrape_cold", Unit::Seconds, name, scrape(lane)?);
                for _ in 0..WARM {
                    report.add("scrape_warm", Unit::Seconds, name, scrape(lane)?);
                }
            }
        }
    }
    for name in ["connect_cold", "scrape_cold", "scrape_warm"] {
        report.print(name);
    }
    Ok(())
}

/// What was started has looked at everything that it was told.
fn settle() {
    std::thread::sleep(Duration::from_millis(500));
}

fn first(lane: &Lane) -> anyhow::Result<crate::report::Sample> {
    sample(lane, &["first".into(), lane.targets(8081), "8".into(), "0".into()])
}

fn scrape(lane: &Lane) -> anyhow::Result<crate::report::Sample> {
    sample(lane, &["scrape".into(), lane.targets(9100), SCRAPERS.to_string(), "0".into()])
}
