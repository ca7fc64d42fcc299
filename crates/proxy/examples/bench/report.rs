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
    Mebibytes,
    Kibibytes,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    pub rate: f64,
    pub cpu: f64,
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub p999: Option<f64>,
}

impl Sample {
    pub fn of(rate: f64) -> Self {
        Self { rate, ..Self::default() }
    }
}

#[derive(Default)]
pub struct Report {
    order: Vec<String>,
    figures: BTreeMap<String, (Unit, BTreeMap<&'static str, Vec<Sample>>)>,
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

impl Report {
    pub fn add(&mut self, figure: &str, unit: Unit, lane: &'static str, sample: Sample) {
        if !self.figures.contains_key(figure) {
            self.order.push(figure.to_owned());
        }
        let (_, lanes) = self.figures.entry(figure.to_owned()).or_insert_with(|| (unit, BTreeMap::new()));
        lanes.entry(lane).or_default().push(sample);
    }

    fn lane(&self, figure: &str, lane: &str) -> Option<(Unit, &[Sample])> {
        let (unit, lanes) = self.figures.get(figure)?;
        Some((*unit, lanes.get(lane)?))
    }

    pub fn print(&self, figure: &str) {
        let Some((unit, lanes)) = self.figures.get(figure) else { return };
        print!("{figure:<22}");
        for lane in ["raw", "floor", "mesh", "against"] {
            let Some(samples) = lanes.get(lane) else { continue };
            let rate = median(samples, |sample| sample.rate);
            print!("  {lane} {}", show(*unit, rate));
            if lane != "raw" {
                let raw =
                    lanes.get("raw").map(|raw| median(raw, |sample| sample.rate)).filter(|raw| *raw > 0.0);
                let ratio = raw.map_or(String::new(), |raw| format!(" {:.2} of raw", rate / raw));
                let cpu = show_cpu(*unit, median(samples, |sample| sample.cpu));
                print!(" ({}, {cpu})", ratio.trim());
            }
            if let (Some(p50), Some(p99)) = (samples[0].p50, samples[0].p99) {
                let p999 = samples[0].p999.map_or(String::new(), |p999| format!(" p99.9 {p999:.0}"));
                print!(" p50 {p50:.0} p99 {p99:.0}{p999}");
            }
        }
        println!();
    }

    pub fn json(&self) -> Value {
        let mut all = Map::new();
        for name in &self.order {
            let rate =
                |lane: &str| self.lane(name, lane).map(|(_, samples)| median(samples, |sample| sample.rate));
            let cpu =
                |lane: &str| self.lane(name, lane).map(|(_, samples)| median(samples, |sample| sample.cpu));
            let over =
                |a: Option<f64>, b: Option<f64>| a.zip(b).filter(|(_, b)| *b > 0.0).map(|(a, b)| a / b);
            let mut figure = json!({
                "raw": rate("raw"), "floor": rate("floor"), "mesh": rate("mesh"),
                "ratio": over(rate("mesh"), rate("raw")), "of_floor": over(rate("mesh"), rate("floor")),
                "cpu": cpu("mesh"), "cpu_floor": cpu("floor"),
            });
            if let Some(other) = rate("against") {
                figure["against"] = json!(other);
                figure["cpu_against"] = json!(cpu("against"));
            }
            all.insert(name.clone(), figure);
        }
        Value::Object(all)
    }

    pub fn table(&self) -> String {
        let against = self.figures.values().any(|(_, lanes)| lanes.contains_key("against"));
        let mut text = String::from("| figure | raw | floor | mesh | of raw | of floor | CPU | CPU floor |");
        text.push_str(if against { " against | CPU against |\n" } else { "\n" });
        text.push_str("|---|---|---|---|---|---|---|---|");
        text.push_str(if against { "---|---|\n" } else { "\n" });
        for name in &self.order {
            let Some((unit, lanes)) = self.figures.get(name) else { continue };
            let cell = |lane: &str| {
                lanes.get(lane).map_or("–".to_owned(), |samples| {
                    let mut rates: Vec<f64> = samples.iter().map(|sample| sample.rate).collect();
                    rates.sort_by(f64::total_cmp);
                    let (low, high) = (rates[0], rates[rates.len() - 1]);
                    let middle = show(*unit, median(samples, |sample| sample.rate));
                    if rates.len() == 1 {
                        middle
                    } else {
                        format!("{middle} ({}–{})", show(*unit, low), show(*unit, high))
                    }
                })
            };
            let cpu = |lane: &str| {
                let used = lanes.get(lane).map(|samples| median(samples, |sample| sample.cpu));
                used.filter(|used| *used > 0.0).map_or("–".to_owned(), |used| show_cpu(*unit, used))
            };
            let rate = |lane: &str| lanes.get(lane).map(|samples| median(samples, |sample| sample.rate));
            let over = |other: &str| match (rate("mesh"), rate(other)) {
                (Some(mesh), Some(other)) if other > 0.0 => format!("{:.2}", mesh / other),
                _ => "–".to_owned(),
            };
            text.push_str(&format!(
                "| {name} | {} | {} | {} | {} | {} | {} | {} |",
                cell("raw"),
                cell("floor"),
                cell("mesh"),
                over("raw"),
                over("floor"),
                cpu("mesh"),
                cpu("floor"),
            ));
            if against {
                text.push_str(&format!(" {} | {} |", cell("against"), cpu("against")));
            }
            text.push('\n');
        }
        text
    }
}

fn show(unit: Unit, rate: f64) -> String {
    match unit {
        Unit::Gigabits => format!("{rate:.2} Gb/s"),
        Unit::Requests => format!("{rate:.0}/s"),
        Unit::Seconds => format!("{rate:.3} s"),
        Unit::Mebibytes => format!("{rate:.1} MiB"),
        Unit::Kibibytes => format!("{rate:.1} KiB"),
    }
}

fn show_cpu(unit: Unit, cpu: f64) -> String {
    match unit {
        Unit::Gigabits => format!("{cpu:.2} s/GB"),
        Unit::Requests => format!("{:.1} µs", cpu * 1e6),
        Unit::Seconds => format!("{cpu:.3} s"),
        _ => String::new(),
    }
}
