//! Medians, ratios and tables.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// What a figure is counted in, and what its processor time is divided by.
#[derive(Clone, Copy, PartialEq)]
pub enum Unit {
    /// A second; processor seconds a gigabyte.
    Gigabits,
    /// A second; processor microseconds each.
    Requests,
    /// Of one round; processor seconds of one round.
    Seconds,
    Milliseconds,
    /// The 99th percentile; processor microseconds each.
    Microseconds,
    Mebibytes,
    Kibibytes,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    pub value: f64,
    /// Seconds that the proxy or the floor worked for one piece of work.
    pub cpu: Option<f64>,
    /// … that the whole machine worked, applications included.
    pub machine: Option<f64>,
    /// Microseconds.
    pub p50: Option<f64>,
    pub p90: Option<f64>,
    pub p99: Option<f64>,
    pub p999: Option<f64>,
}

impl Sample {
    pub fn of(value: f64) -> Self {
        Self { value, ..Self::default() }
    }
}

const LANES: [&str; 4] = ["raw", "floor", "mesh", "against"];

#[derive(Default)]
pub struct Report {
    order: Vec<String>,
    figures: BTreeMap<String, (Unit, BTreeMap<&'static str, Vec<Sample>>)>,
}

/// The samples of one figure over one lane.
#[derive(Clone, Copy)]
struct Series<'a>(&'a [Sample]);

impl Series<'_> {
    fn sorted(self, of: impl Fn(&Sample) -> Option<f64>) -> Vec<f64> {
        let mut values: Vec<f64> = self.0.iter().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    fn median(self, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        let values = self.sorted(of);
        values.get(values.len() / 2).copied()
    }

    fn value(self) -> Option<f64> {
        self.median(|sample| Some(sample.value))
    }

    fn range(self) -> Option<(f64, f64)> {
        let values = self.sorted(|sample| Some(sample.value));
        Some((*values.first()?, *values.last()?))
    }

    fn json(self) -> Value {
        let (min, max) = self.range().unzip();
        json!({
            "median": self.value(), "min": min, "max": max, "rounds": self.0.len(),
            "cpu": self.median(|sample| sample.cpu), "machine": self.median(|sample| sample.machine),
            "p50_us": self.median(|sample| sample.p50), "p90_us": self.median(|sample| sample.p90),
            "p99_us": self.median(|sample| sample.p99), "p999_us": self.median(|sample| sample.p999),
        })
    }
}

fn over(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.zip(b).filter(|(_, b)| *b > 0.0).map(|(a, b)| a / b)
}

impl Report {
    pub fn add(&mut self, figure: &str, unit: Unit, lane: &'static str, sample: Sample) {
        if !self.figures.contains_key(figure) {
            self.order.push(figure.to_owned());
        }
        let (_, lanes) = self.figures.entry(figure.to_owned()).or_insert_with(|| (unit, BTreeMap::new()));
        lanes.entry(lane).or_default().push(sample);
    }

    fn series(&self, figure: &str, lane: &str) -> Option<Series<'_>> {
        Some(Series(self.figures.get(figure)?.1.get(lane)?))
    }

    /// One figure, as soon as it is there.
    pub fn print(&self, figure: &str) {
        let Some((unit, _)) = self.figures.get(figure) else { return };
        print!("{figure:<24}");
        let raw = self.series(figure, "raw").and_then(Series::value);
        for lane in LANES {
            let Some(series) = self.series(figure, lane) else { continue };
            print!("  {lane} {}", show(*unit, series.value().unwrap_or_default()));
            let ratio =
                over(series.value(), raw).filter(|_| lane != "raw").map(|ratio| format!("{ratio:.2} of raw"));
            let cpu = series.median(|sample| sample.cpu).map(|cpu| show_cpu(*unit, cpu));
            let notes: Vec<String> = ratio.into_iter().chain(cpu).collect();
            if !notes.is_empty() {
                print!(" ({})", notes.join(", "));
            }
            let (p50, p99) = (series.median(|sample| sample.p50), series.median(|sample| sample.p99));
            if let Some((p50, p99)) = p50.zip(p99) {
                print!(" p50 {p50:.0} p99 {p99:.0} µs");
            }
        }
        println!();
    }

    /// `{figure: {raw, floor, mesh, ratio, of_floor, cpu, cpu_floor, …}}`; more of each lane under `lanes`.
    pub fn json(&self) -> Value {
        let mut all = Map::new();
        for name in &self.order {
            let value = |lane: &str| self.series(name, lane).and_then(Series::value);
            let cpu =
                |lane: &str| self.series(name, lane).and_then(|series| series.median(|sample| sample.cpu));
            let lanes =
                LANES.into_iter().filter_map(|lane| Some((lane.to_owned(), self.series(name, lane)?.json())));
            let mut figure = json!({
                "raw": value("raw"), "floor": value("floor"), "mesh": value("mesh"),
                "ratio": over(value("mesh"), value("raw")), "of_floor": over(value("mesh"), value("floor")),
                "cpu": cpu("mesh"), "cpu_floor": cpu("floor"), "lanes": lanes.collect::<Map<_, _>>(),
            });
            if value("against").is_some() {
                figure["against"] = json!(value("against"));
                figure["cpu_against"] = json!(cpu("against"));
            }
            all.insert(name.clone(), figure);
        }
        Value::Object(all)
    }

    /// For people, in Markdown.
    pub fn table(&self) -> String {
        let against = self.figures.values().any(|(_, lanes)| lanes.contains_key("against"));
        let mut heads = vec![
            "figure",
            "raw",
            "floor",
            "mesh",
            "of raw",
            "of floor",
            "CPU",
            "CPU floor",
            "machine: raw, floor, mesh",
        ];
        if against {
            heads.extend(["against", "of raw", "CPU against"]);
        }
        let mut text = format!("| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
        for name in &self.order {
            let Some((unit, _)) = self.figures.get(name) else { continue };
            let none = || "–".to_owned();
            let cell = |lane: &str| {
                self.series(name, lane).map_or_else(none, |series| {
                    let middle = show(*unit, series.value().unwrap_or_default());
                    match series.range() {
                        Some((low, high)) if series.0.len() > 1 => {
                            format!("{middle} ({}–{})", number(*unit, low), number(*unit, high))
                        }
                        _ => middle,
                    }
                })
            };
            let cpu = |lane: &str| {
                let used = self.series(name, lane).and_then(|series| series.median(|sample| sample.cpu));
                used.map_or_else(none, |used| show_cpu(*unit, used))
            };
            let machine = |lane: &str| {
                let used = self.series(name, lane).and_then(|series| series.median(|sample| sample.machine));
                used.map_or_else(none, |used| show_cpu(*unit, used))
            };
            let value = |lane: &str| self.series(name, lane).and_then(Series::value);
            let ratio =
                |a: &str, b: &str| over(value(a), value(b)).map_or_else(none, |ratio| format!("{ratio:.2}"));
            let mut row = vec![
                name.clone(),
                cell("raw"),
                cell("floor"),
                cell("mesh"),
                ratio("mesh", "raw"),
                ratio("mesh", "floor"),
                cpu("mesh"),
                cpu("floor"),
                format!("{}, {}, {}", machine("raw"), machine("floor"), machine("mesh")),
            ];
            if against {
                row.extend([cell("against"), ratio("against", "raw"), cpu("against")]);
            }
            text.push_str(&format!("| {} |\n", row.join(" | ")));
        }
        text.push('\n');
        text.push_str(&self.latencies());
        text
    }

    /// How long single requests took.
    fn latencies(&self) -> String {
        let mut text =
            "| µs: p50 / p90 / p99 / p99.9 | raw | floor | mesh | against |\n|---|---|---|---|---|\n"
                .to_owned();
        for name in &self.order {
            let cell = |lane: &str| {
                let series = self.series(name, lane)?;
                let of = |pick: fn(&Sample) -> Option<f64>| series.median(pick);
                let (p50, p90) = (of(|sample| sample.p50)?, of(|sample| sample.p90)?);
                let (p99, p999) = (of(|sample| sample.p99)?, of(|sample| sample.p999)?);
                Some(format!("{p50:.0} / {p90:.0} / {p99:.0} / {p999:.0}"))
            };
            let cells = LANES.map(|lane| cell(lane).unwrap_or_else(|| "–".to_owned()));
            if cells.iter().any(|cell| cell != "–") {
                text.push_str(&format!("| {name} | {} |\n", cells.join(" | ")));
            }
        }
        text
    }
}

fn number(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Gigabits => format!("{value:.2}"),
        Unit::Requests | Unit::Milliseconds | Unit::Microseconds => format!("{value:.0}"),
        Unit::Seconds => format!("{value:.3}"),
        Unit::Mebibytes | Unit::Kibibytes => format!("{value:.1}"),
    }
}

fn show(unit: Unit, value: f64) -> String {
    let name = match unit {
        Unit::Gigabits => " Gb/s",
        Unit::Requests => "/s",
        Unit::Seconds => " s",
        Unit::Milliseconds => " ms",
        Unit::Microseconds => " µs",
        Unit::Mebibytes => " MiB",
        Unit::Kibibytes => " KiB",
    };
    format!("{}{name}", number(unit, value))
}

fn show_cpu(unit: Unit, cpu: f64) -> String {
    match unit {
        Unit::Gigabits => format!("{cpu:.2} s/GB"),
        Unit::Requests | Unit::Microseconds => format!("{:.1} µs", cpu * 1e6),
        Unit::Seconds => format!("{cpu:.3} s"),
        _ => String::new(),
    }
}
