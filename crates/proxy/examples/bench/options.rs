//! What a run is asked for.

use std::path::PathBuf;

/// The figures by which the data path is tuned.
const QUICK: [&str; 5] = ["bulk_1", "bulk_8", "keepalive_1", "keepalive_32", "connect_warm"];
/// What congestion control can make a difference to.
const CUBIC: [&str; 6] = [
    "bulk_1_cubic",
    "bulk_1_reverse_cubic",
    "bulk_8_cubic",
    "bulk_64_cubic",
    "keepalive_32_cubic",
    "connect_warm_cubic",
];

pub const USAGE: &str = "bench run|check [--quick] [--rounds N] [--seconds N] [--only FIGURE,…] [--json FILE] \
[--proxy PATH] [--against PATH] [--set NAME=VALUE]";

pub struct Options {
    pub quick: bool,
    pub rounds: usize,
    pub seconds: f64,
    only: Option<Vec<String>>,
    pub json: Option<PathBuf>,
    pub proxy: PathBuf,
    pub against: Option<PathBuf>,
    /// Further variables of the proxy, not of the one it is compared with.
    pub set: Vec<(String, String)>,
}

impl Options {
    pub fn parse(args: &[String]) -> anyhow::Result<Self> {
        let near = std::env::current_exe()?.with_file_name("node_proxy");
        let mut options = Self {
            quick: false,
            rounds: 0,
            seconds: 0.0,
            only: None,
            json: None,
            proxy: near,
            against: None,
            set: Vec::new(),
        };
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
                "--set" => {
                    let (name, value) =
                        value()?.split_once('=').ok_or_else(|| anyhow::anyhow!("--set wants NAME=VALUE"))?;
                    options.set.push((name.into(), value.into()));
                }
                other => anyhow::bail!("unknown option {other}; usage: {USAGE}"),
            }
        }
        for program in std::iter::once(&options.proxy).chain(&options.against) {
            anyhow::ensure!(program.is_file(), "{} is not there: build it first", program.display());
        }
        if options.rounds == 0 {
            options.rounds = if options.quick { 3 } else { 5 };
        }
        if options.seconds == 0.0 {
            options.seconds = if options.quick { 1.0 } else { 2.0 };
        }
        Ok(options)
    }

    /// Whether a figure is to be taken.
    pub fn wants(&self, name: &str) -> bool {
        match &self.only {
            Some(only) => only.iter().any(|wanted| wanted == name),
            None if self.quick => QUICK.contains(&name),
            None => !name.ends_with("_cubic") || CUBIC.contains(&name),
        }
    }
}
