//! A lab node by itself: `node spawn FILE` starts one from a configuration file and stays; the node's processes
//! are this same program, called `node lab node --config FILE` as `ambit` would be.

use std::path::PathBuf;

use lab::node::{Config, run, spawn};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["spawn", file] => {
            let mut node = spawn(&read(file)?)?;
            tokio::select! {
                ended = node.wait() => println!("node ended: {}", ended?),
                _ = tokio::signal::ctrl_c() => {}
            }
            Ok(())
        }
        ["lab", "node", "--config", file] => {
            let config = read(file)?;
            let outcome = run(config).await;
            if let Err(error) = &outcome {
                eprintln!("{error:#}");
            }
            outcome
        }
        _ => anyhow::bail!("usage: node spawn FILE"),
    }
}

fn read(file: &str) -> anyhow::Result<Config> {
    Ok(serde_json::from_slice(&std::fs::read(PathBuf::from(file))?)?)
}
