//! `ambit demo`: the story of the mesh on one machine, told by real programs. A lab of two nodes, a Prometheus that
//! scrapes every pod by IP, an eavesdropper on the wire, two labels, and the proof that every scrape has become
//! mutual TLS with no pod restarted and no scrape lost.
//!
//! It does what a user would do, with the same commands, and measures all it reports; nothing in the report is
//! assumed.

mod capture;

mod prometheus;
mod proof;
mod report;
mod steps;

use std::path::PathBuf;
use std::time::Duration;

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the lab.
    pub name: String,
    /// End when the proof is done.
    pub once: bool,
    /// Where to write the report.
    pub report: Option<PathBuf>,
}

/// The namespaces that get a label.
const ENROLLED: [&str; 2] = ["bookinfo", "monitoring"];
/// Everything that the demo runs besides the mesh.
const MANIFESTS: &str = include_str!("manifests.yaml");
/// Prometheus scrapes this often.
const SCRAPE_INTERVAL: Duration = Duration::from_secs(2);
/// No step may take longer than this without having got anywhere.
const PATIENCE: Duration = Duration::from_secs(180);

/// Runs the demo; true when everything held.
pub async fn run(options: Options) -> anyhow::Result<bool> {
    let directory = tempfile::Builder::new().prefix("ambit-demo-").tempdir()?;
    let lab = steps::Lab::new(&options.name, directory.path())?;
    let result = tokio::select! {
        result = tell(&options, &lab) => result,
        _ = tokio::signal::ctrl_c() => {
            say("Interrupted");
            Ok(false)
        }
    };
    say("Taking the lab down");
    let down = lab.down().await;
    let held = result?;
    down?;
    Ok(held)
}

async fn tell(options: &Options, lab: &steps::Lab) -> anyhow::Result<bool> {
    let mut story = steps::Story::begin(lab).await?;
    story.install().await?;
    story.before().await?;
    story.enrol().await?;
    let report = story.after().await?;
    report.print();
    if let Some(path) = &options.report {
        report.write(path)?;
        say(&format!("Report written to {}", path.display()));
    }
    if options.once {
        return Ok(report.held());
    }
    story.stay().await?;
    Ok(report.held())
}

/// One line of progress.
fn say(text: &str) {
    eprintln!("  {text}");
}

/// The title of a chapter.
fn chapter(text: &str) {
    eprintln!("\n▶ {text}");
}
