//! Starts the lab's API server alone and prints the path of a kubeconfig for it; runs until Ctrl-C.
//!
//! `cargo run -p ambit-lab --example api [KUBECONFIG]`

use std::net::TcpListener;

use anyhow::Context;
use lab::api::{Config, Server};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("bind a free port of the loopback")?;
    let server = Server::start(Config {
        listeners: vec![listener],
        sans: vec!["10.96.0.1".into()],
        service_cidr: "10.96.0.0/16".parse()?,
    })
    .await?;
    let path = match std::env::args_os().nth(1) {
        Some(path) => path.into(),
        None => std::env::temp_dir().join(format!("ambit-api-{}.kubeconfig", std::process::id())),
    };
    let text = serde_json::to_string_pretty(&server.admin_kubeconfig("ambit-lab"))?;
    std::fs::write(&path, text).with_context(|| format!("write the kubeconfig to {}", path.display()))?;
    println!("{}", path.display());
    eprintln!("serving {} until Ctrl-C", server.url());
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}
