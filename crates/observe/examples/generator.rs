//! A cluster that does not exist, served as if it did: for work on the web UI and for measurements.
//!
//!     cargo run -p ambit-observe --example generator -- --pods 100 --port 8089

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use observe::api::auth::Gate;
use observe::fixture::{FakeProxy, Fixture};
use observe::ingest::parse::{self, Workloads};
use observe::store::{Limits, Session};
use observe::{Observer, api};

#[derive(Parser)]
struct Args {
    /// Pods that one Prometheus scrapes
    #[arg(long, default_value_t = 100)]
    pods: usize,
    /// Port of the API, on loopback
    #[arg(long, default_value_t = 8089)]
    port: u16,
    /// The same seed makes the same cluster
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Minutes of past to make before serving
    #[arg(long, default_value_t = 6)]
    history: u64,
    /// After this many seconds the proxy of node-001 falls silent
    #[arg(long)]
    silence: Option<u64>,
}

struct Feed {
    proxy: FakeProxy,
    workloads: Workloads,
    session: Session,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let fixture = Fixture::new(args.pods, args.seed);
    let observer = Arc::new(Observer::new(Limits::default(), Observer::wall_clock()));
    observer.set_directory(Arc::new(fixture.directory()));
    let begun = Instant::now();
    let now = observer.now() / 1000 * 1000;
    let mut feeds = Vec::new();
    for proxy in fixture.proxies() {
        let hello = proxy.hello(now);
        let session = observer.with_store(|store| -> anyhow::Result<Session> {
            let identity = "spiffe://cluster.local/ns/ambit-system/sa/ambit-proxy";
            let greeting = parse::greeting(&hello, identity, &mut store.texts)?;
            Ok(store.greet(&greeting, observer.now())?.0)
        })?;
        feeds.push(Feed { proxy, workloads: Workloads::default(), session });
    }
    let mut at = now - args.history * 60_000;
    while at < now {
        feed(&observer, &mut feeds, at, at + 10_000)?;
        at += 10_000;
    }
    observer.set_scrapers(vec![fixture.scraper(observer.now())?]);
    let bytes = observer.with_store(|store| store.heap_bytes());
    println!(
        "{} pods, {} minutes of history: {} KiB in the store, made in {:?}",
        args.pods,
        args.history,
        bytes / 1024,
        begun.elapsed()
    );

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async move {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
        let listener = tokio::net::TcpListener::bind(address).await?;
        println!("http://{address}/");
        let (shared, silence) = (observer.clone(), args.silence);
        std::thread::spawn(move || {
            let begun = Instant::now();
            loop {
                std::thread::sleep(Duration::from_millis(1000 - shared.now() % 1000));
                let now = shared.now() / 1000 * 1000;
                if silence.is_some_and(|after| begun.elapsed().as_secs() >= after) {
                    feeds.retain(|feed| feed.proxy.node != 1);
                }
                if let Err(error) = feed(&shared, &mut feeds, at, now) {
                    eprintln!("{error}");
                    return;
                }
                at = now;
                if now / 1000 % 5 == 0 {
                    shared.tick();
                    match fixture.scraper(now) {
                        Ok(scraper) => shared.set_scrapers(vec![scraper]),
                        Err(error) => eprintln!("{error}"),
                    }
                }
            }
        });
        let router = api::router(observer, Gate::Open, Arc::new(|| Ok(())));
        observe::serve::serve(listener, router, "the API").await;
        Ok(())
    })
}

/// What happened in a span of time, by the way real flows take.
fn feed(observer: &Observer, feeds: &mut [Feed], from: u64, to: u64) -> anyhow::Result<()> {
    let directory = observer.directory();
    for feed in feeds {
        for message in feed.proxy.batches(from, to) {
            observer.with_store(|store| -> anyhow::Result<()> {
                let batch = parse::batch(message, &mut feed.workloads, &mut store.texts, &directory)?;
                let applied = store.apply(&mut feed.session, &batch, observer.now(), &directory)?;
                if let Some(reason) = applied.reason {
                    anyhow::bail!("{} rows refused: {reason}", applied.refused);
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}
