//! What is measured, and in which order: every figure for all lanes in turns.

use std::path::PathBuf;

use serde_json::Value;

use crate::lanes::{Lane, Way, World, own};
use crate::report::{Report, Sample, Unit};
use crate::system::{cpu, rss};

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
    Figure { name: "bulk_64", kind: "bulk", port: 9000, count: 64, unit: Unit::Gigabits },
    Figure { name: "keepalive_1", kind: "keepalive", port: 8080, count: 1, unit: Unit::Requests },
    Figure { name: "keepalive_32", kind: "keepalive", port: 8080, count: 32, unit: Unit::Requests },
    Figure { name: "keepalive_256", kind: "keepalive", port: 8080, count: 256, unit: Unit::Requests },
    Figure { name: "fixed_rate", kind: "rate", port: 8080, count: 32, unit: Unit::Requests },
    Figure { name: "connect_warm", kind: "connect", port: 8081, count: 8, unit: Unit::Requests },
];

const QUICK: [&str; 5] = ["bulk_1", "bulk_8", "keepalive_1", "keepalive_32", "connect_warm"];
const CUBIC: [&str; 5] = ["bulk_1", "bulk_1_reverse", "bulk_8", "bulk_64", "keepalive_32"];
const SCRAPED: usize = 200;

pub struct Options {
    quick: bool,
    rounds: usize,
    seconds: f64,
    only: Option<Vec<String>>,
    json: Option<PathBuf>,
    proxy: PathBuf,
    against: Option<PathBuf>,
}

fn options(args: &[String]) -> anyhow::Result<Options> {
    let near = own()?.with_file_name("node_proxy");
    let mut options =
        Options { quick: false, rounds: 0, seconds: 0.0, only: None, json: None, proxy: near, against: None };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| anyhow::anyhow!("{arg} needs a value"));
        match arg.as_str() {
            "--quick" => options.quick = true,
            "--rounds" => options.rounds = value()?.parse()?,
            "--seconds" => options.seconds = value()?.parse()?,
            "--only" => options.only = Some(value()?.split(',').map(str::to_owned).collect()),
            "--json" => options.json = Some(value()?.into()),
            "--proxy" => options.proxy = value()?.into(),
            "--against" => options.against = Some(value()?.into()),
            other => anyhow::bail!("unknown option {other}"),
        }
    }
    if options.rounds == 0 {
        options.rounds = if options.quick { 3 } else { 5 };
    }
    if options.seconds == 0.0 {
        options.seconds = if options.quick { 1.0 } else { 2.0 };
    }
    Ok(options)
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        match &self.only {
            Some(only) => only.iter().any(|wanted| wanted == name),
            None => !self.quick || QUICK.contains(&name),
        }
    }
}

pub fn run(args: &[String]) -> anyhow::Result<()> {
    let options = options(args)?;
    let (mut world, runtime) = World::new()?;
    let own = own()?;
    let mut report = Report::default();
    runtime.block_on(async {
        let mut lanes = Vec::new();
        lanes.push(world.lane("raw", 0, Way::Raw, 1, None, &own).await?);
        lanes.push(world.lane("floor", 1, Way::Floor, 1, None, &own).await?);
        lanes.push(world.lane("mesh", 2, Way::Mesh, 1, Some(&options.proxy), &own).await?);
        if let Some(other) = &options.against {
            lanes.push(world.lane("against", 3, Way::Mesh, 1, Some(other), &own).await?);
        }
        for (suffix, congestion) in [("", world.congestion.clone()), ("_cubic", "cubic".to_owned())] {
            let cubic = !suffix.is_empty();
            if cubic && (world.congestion == "cubic" || (options.quick && options.only.is_none())) {
                continue;
            }
            world.congestion(&lanes, &congestion)?;
            for figure in FIGURES {
                let name = format!("{}{suffix}", figure.name);
                if (cubic && !CUBIC.contains(&figure.name)) || !options.wants(&name) {
                    continue;
                }
                for round in 0..options.rounds {
                    for lane in &lanes {
                        let sample = measure(lane, figure, &options, round)?;
                        report.add(&name, figure.unit, lane.name, sample);
                    }
                }
                report.print(&name);
            }
        }
        world.congestion(&lanes, &world.congestion.clone())?;
        if options.wants("idle_connection_kib") {
            memory(&world, &mut lanes, &options, &mut report).await?;
        }
        drop(lanes);
        if options.wants("scrape_warm") || options.wants("scrape_cold") {
            scrapes(&mut world, &options, &mut report).await?;
        }
        anyhow::Ok(())
    })?;
    println!("\n{}", report.table());
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report.json())?)?;
    }
    Ok(())
}

fn measure(lane: &Lane, figure: &Figure, options: &Options, round: usize) -> anyhow::Result<Sample> {
    let own = own()?;
    let mut args = vec![
        if figure.kind == "rate" { "keepalive".into() } else { figure.kind.to_owned() },
        lane.targets(figure.port),
        figure.count.to_string(),
        options.seconds.to_string(),
    ];
    if figure.kind == "rate" {
        args.push("10000".into());
    }
    if round == 0 {
        // The tunnel is there, and the code is in memory.
        let mut warm = args.clone();
        warm[3] = "0.1".into();
        lane.load(&own, &warm)?.line()?;
    }
    let before = lane.worker().map(cpu);
    let mut load = lane.load(&own, &args)?;
    let said: Value = serde_json::from_str(&load.line()?)?;
    let used = lane.worker().map(cpu).zip(before).map_or(0.0, |(after, before)| after - before);
    load.finish()?;
    let number = |name: &str| said[name].as_f64();
    if let Some(failed) = said["failed"].as_u64().filter(|failed| *failed > 0) {
        eprintln!("{} over {}: {failed} failed", figure.name, lane.name);
    }
    Ok(Sample {
        rate: number("rate").unwrap_or(0.0),
        cpu: used / number("work").filter(|work| *work > 0.0).unwrap_or(1.0),
        p50: number("p50"),
        p99: number("p99"),
        p999: number("p999"),
    })
}

/// Memory at rest, with idle connections, and after them.
async fn memory(
    world: &World,
    lanes: &mut [Lane],
    options: &Options,
    report: &mut Report,
) -> anyhow::Result<()> {
    let own = own()?;
    for lane in lanes.iter_mut().filter(|lane| lane.name == "mesh" || lane.name == "against") {
        let program = if lane.name == "mesh" { Some(&options.proxy) } else { options.against.as_ref() };
        world.start(lane, program.map(PathBuf::as_path), &own).await?;
        let Some(pid) = lane.worker() else { continue };
        std::thread::sleep(std::time::Duration::from_secs(1));
        let idle = rss(pid);
        report.add("idle_rss_mib", Unit::Mebibytes, lane.name, Sample::of(idle / 1024.0));
        for (name, count) in [("idle_connection_kib_1k", 1000), ("idle_connection_kib", 5000)] {
            let before = rss(pid);
            let args = ["idle".into(), lane.targets(8080), count.to_string(), "0".into()];
            let mut load = lane.load(&own, &args)?;
            load.line()?;
            std::thread::sleep(std::time::Duration::from_millis(500));
            let with = rss(pid);
            report.add(name, Unit::Kibibytes, lane.name, Sample::of((with - before) / f64::from(count)));
            load.finish()?;
            std::thread::sleep(std::time::Duration::from_secs(2));
        }
        report.add("after_rss_mib", Unit::Mebibytes, lane.name, Sample::of(rss(pid) / 1024.0));
    }
    for name in ["idle_rss_mib", "idle_connection_kib_1k", "idle_connection_kib", "after_rss_mib"] {
        report.print(name);
    }
    Ok(())
}

/// One client, many pods.
async fn scrapes(world: &mut World, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let own = own()?;
    let mut lanes = vec![
        world.lane("rawm", 4, Way::Raw, SCRAPED, None, &own).await?,
        world.lane("floorm", 5, Way::Floor, SCRAPED, None, &own).await?,
        world.lane("meshm", 6, Way::Mesh, SCRAPED, Some(&options.proxy), &own).await?,
    ];
    if let Some(other) = &options.against {
        lanes.push(world.lane("againstm", 7, Way::Mesh, SCRAPED, Some(other), &own).await?);
    }
    let one = |lane: &Lane| -> anyhow::Result<Sample> {
        let args = ["scrape".into(), lane.targets(9100), "50".into(), "0".into()];
        let before = lane.worker().map(cpu);
        let mut load = lane.load(&own, &args)?;
        let said: Value = serde_json::from_str(&load.line()?)?;
        let used = lane.worker().map(cpu).zip(before).map_or(0.0, |(after, before)| after - before);
        load.finish()?;
        Ok(Sample { rate: said["rate"].as_f64().unwrap_or(0.0), cpu: used, ..Sample::default() })
    };
    for _ in 0..options.rounds {
        for lane in &mut lanes {
            let program = if lane.name == "meshm" { Some(&options.proxy) } else { options.against.as_ref() };
            world.start(lane, program.map(PathBuf::as_path), &own).await?;
            std::thread::sleep(std::time::Duration::from_millis(1500));
            let name = lane.name.trim_end_matches('m');
            let name = ["raw", "floor", "mesh", "against"]
                .into_iter()
                .find(|known| *known == name)
                .unwrap_or("mesh");
            report.add("scrape_cold", Unit::Seconds, name, one(lane)?);
            for _ in 0..3 {
                report.add("scrape_warm", Unit::Seconds, name, one(lane)?);
            }
        }
    }
    report.print("scrape_cold");
    report.print("scrape_warm");
    Ok(())
}
