//! What is measured, and in which order: every figure for all lanes in turns.

use serde_json::Value;

use crate::lanes::{Lane, Way, World};
use crate::options::Options;
use crate::report::{Report, Sample, Unit};
use crate::system::{cpu, machine};
use crate::{many, memory};

struct Figure {
    name: &'static str,
    kind: &'static str,
    port: u16,
    count: usize,
    unit: Unit,
}

const FIGURES: &[Figure] = &[
    Figure { name: "bulk_1", kind: "bulk", port: 9000, count: 1, unit: Unit::Gigabits },
    Figure { name: "bulk_1_reverse", kind: "reverse", port: 9001, count: 1, unit: Unit::Gigabits },
    Figure { name: "bulk_8", kind: "bulk", port: 9000, count: 8, unit: Unit::Gigabits },
    Figure { name: "bulk_8_reverse", kind: "reverse", port: 9001, count: 8, unit: Unit::Gigabits },
    Figure { name: "bulk_64", kind: "bulk", port: 9000, count: 64, unit: Unit::Gigabits },
    Figure { name: "bulk_64_reverse", kind: "reverse", port: 9001, count: 64, unit: Unit::Gigabits },
    Figure { name: "keepalive_1", kind: "keepalive", port: 8080, count: 1, unit: Unit::Requests },
    Figure { name: "keepalive_32", kind: "keepalive", port: 8080, count: 32, unit: Unit::Requests },
    Figure { name: "keepalive_256", kind: "keepalive", port: 8080, count: 256, unit: Unit::Requests },
    Figure { name: "fixed_rate", kind: "rate", port: 8080, count: 32, unit: Unit::Microseconds },
    Figure { name: "connect_warm", kind: "connect", port: 8081, count: 8, unit: Unit::Requests },
];

/// Requests a second at the fixed rate: well below what any lane can do.
const RATE: f64 = 5000.0;
const CHECKS: usize = 80;
const CHECKS_QUICK: usize = 16;

pub fn run(options: &Options) -> anyhow::Result<()> {
    let (mut world, runtime) = World::new(&options.set)?;
    let mut report = Report::default();
    let outcome = runtime.block_on(all(&mut world, options, &mut report));
    println!("\n{}", report.table());
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report.json())?)?;
    }
    outcome
}

/// Looks whether bytes come through unharmed, and no more.
pub fn check_only(options: &Options) -> anyhow::Result<()> {
    let (mut world, runtime) = World::new(&options.set)?;
    runtime.block_on(async { check(&pairs(&mut world, options).await?, CHECKS) })
}

/// A pair of pods for each way.
async fn pairs(world: &mut World, options: &Options) -> anyhow::Result<Vec<Lane>> {
    let mut lanes = vec![
        world.lane("raw", 0, Way::Raw, 1, None).await?,
        world.lane("floor", 1, Way::Floor, 1, None).await?,
        world.lane("mesh", 2, Way::Mesh, 1, Some(&options.proxy)).await?,
    ];
    if let Some(other) = &options.against {
        lanes.push(world.lane("against", 3, Way::Mesh, 1, Some(other)).await?);
    }
    Ok(lanes)
}

async fn all(world: &mut World, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let mut lanes = pairs(world, options).await?;
    check(&lanes, if options.quick { CHECKS_QUICK } else { CHECKS })?;
    let default = world.congestion.clone();
    for (suffix, congestion) in [("", default.as_str()), ("_cubic", "cubic")] {
        let wanted: Vec<_> =
            FIGURES.iter().filter(|figure| options.wants(&format!("{}{suffix}", figure.name))).collect();
        if wanted.is_empty() {
            continue;
        }
        world.congestion(&mut lanes, congestion).await?;
        for figure in wanted {
            let name = format!("{}{suffix}", figure.name);
            for round in 0..options.rounds {
                for lane in &lanes {
                    report.add(&name, figure.unit, lane.name, measure(lane, figure, options.seconds, round)?);
                }
            }
            report.print(&name);
        }
    }
    for lane in &mut lanes {
        lane.stop();
    }
    if options.wants("scrape_warm") || options.wants("scrape_cold") || options.wants("connect_cold") {
        many::run(world, options, report).await?;
    }
    if options.wants("idle_connection_kib") || options.wants("idle_rss_mib") {
        memory::idle(world, &mut lanes, report).await?;
    }
    if options.wants("workloads") {
        memory::crowds(world, &mut lanes, report).await?;
    }
    Ok(())
}

/// Whether what goes in comes out: a lane that cheats is not measured.
fn check(lanes: &[Lane], count: usize) -> anyhow::Result<()> {
    for lane in lanes {
        let args = ["check".into(), lane.targets(9200), count.to_string(), "0".into()];
        lane.load(&args)?
            .line()
            .map_err(|error| error.context(format!("{} does not carry bytes unharmed", lane.name)))?;
    }
    println!(
        "{count} transfers both ways unharmed over each of {}",
        lanes.iter().map(|lane| lane.name).collect::<Vec<_>>().join(", ")
    );
    Ok(())
}

fn measure(lane: &Lane, figure: &Figure, seconds: f64, round: usize) -> anyhow::Result<Sample> {
    let mut args = vec![
        if figure.kind == "rate" { "keepalive".into() } else { figure.kind.to_owned() },
        lane.targets(figure.port),
        figure.count.to_string(),
        seconds.to_string(),
    ];
    if figure.kind == "rate" {
        args.push(RATE.to_string());
    }
    if round == 0 {
        // The tunnel is there, and the code is in memory.
        let mut warm = args.clone();
        warm[3] = "0.1".into();
        lane.load(&warm)?.line()?;
    }
    let mut sample = sample(lane, &args)?;
    if figure.unit == Unit::Microseconds {
        sample.value = sample.p99.unwrap_or_default();
    }
    Ok(sample)
}

/// Runs a load over a lane and looks at what it cost.
pub fn sample(lane: &Lane, args: &[String]) -> anyhow::Result<Sample> {
    let (busy, before) = (machine(), lane.worker().map(cpu));
    let mut load = lane.load(args)?;
    let line = load
        .line()
        .map_err(|error| error.context(format!("{} over {}: {}", args[0], lane.name, lane.said())))?;
    let said: Value = serde_json::from_str(&line)?;
    let used = lane.worker().map(cpu).zip(before).map(|(after, before)| after - before);
    let busy = machine() - busy;
    load.finish()?;
    let number = |name: &str| said[name].as_f64();
    if let Some(failed) = said["failed"].as_u64().filter(|failed| *failed > 0) {
        eprintln!("{} over {}: {failed} failed", args[0], lane.name);
    }
    // A round of scrapes is one piece of work.
    let work = number("work").filter(|work| *work > 0.0 && args[0] != "scrape").unwrap_or(1.0);
    Ok(Sample {
        value: number("rate").unwrap_or_default(),
        cpu: used.map(|used| used / work),
        machine: Some(busy / work),
        p50: number("p50"),
        p90: number("p90"),
        p99: number("p99"),
        p999: number("p999"),
    })
}
