//! How the control plane grows: `cargo xtask bench control`, and `cargo xtask bench control secure` for the same with
//! TLS and tokens.
//!
//! A mesh is made up and told to the real owner of the state; the real xDS server serves it over loopback to clients
//! in a process of their own, so that memory and processor time are the control plane's alone. What is measured ends at
//! the moment the last client has the bytes. When it is to be secure, connections are TLS and each client has a token
//! of its own, which an API server reviews that runs beside the clients; the mesh itself is never an API server's.

mod clients;
mod mesh;
mod process;
mod secure;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use control::auth::{Authenticator, Caller, Reviewer, Verdict};
use control::metrics::Metrics;
use control::state::{Delta, Event, Snapshot, State, own};
use control::xds::AdsServer;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};

/// One proxy's changes that are timed.
const CHANGES: usize = 200;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    match words[..] {
        ["clients", address, count, ref secured @ ..] => {
            let count = count.parse().expect("a number");
            runtime.block_on(async {
                let calls = match secured.first() {
                    Some(place) => secure::calls(address, std::path::Path::new(place), count).await,
                    None => secure::plain(address, count),
                };
                clients::run(calls).await;
            });
        }
        ["one", pods, count, ref how @ ..] => {
            let (pods, count) = (pods.parse().expect("a number"), count.parse().expect("a number"));
            runtime.block_on(measure(pods, count, !how.is_empty()));
        }
        ["secure", ref words @ ..] => sizes(words, &["secure"]),
        ref words => sizes(words, &[]),
    }
}

/// Each size in a process of its own: memory that one has had is not counted for the next.
fn sizes(words: &[&str], how: &[&str]) {
    let clients = words.first().copied().unwrap_or("500");
    let sizes = if words.len() > 1 { &words[1..] } else { &["1000", "10000", "100000"][..] };
    println!(
        "| pods | services | policies | nodes | clients | first sync | all clients have it | full state | change → last client p50 | p99 | a pod's restart | CPU | RSS (peak) |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for pods in sizes {
        let program = std::env::current_exe().expect("this program");
        let status =
            Command::new(program).args(["one", pods, clients]).args(how).status().expect("a process");
        assert!(status.success(), "{status}");
    }
}

/// Takes every token for a node proxy's.
struct Anybody;

impl Reviewer for Anybody {
    fn review<'a>(
        &'a self,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Verdict, Box<dyn std::error::Error + Send + Sync>>> {
        let account = "ambit-system/ztunnel".parse().expect("an account");
        Box::pin(std::future::ready(Ok(Verdict::Is(Caller { account, pod: None }))))
    }
}

/// The clients' process, and what it says.
struct Clients {
    process: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Clients {
    /// Starts it. The clients themselves start with the first question.
    fn start(address: SocketAddr, count: usize, secured: Option<&std::path::Path>) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["clients", &address.to_string(), &count.to_string()])
            .args(secured)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process of clients");
        let ask = process.stdin.take().expect("its input");
        let answers = BufReader::new(process.stdout.take().expect("its output"));
        let mut clients = Self { process, ask, answers };
        // What it says first is that everything is prepared.
        clients.next();
        clients
    }

    /// The numbers of the next line.
    fn next(&mut self) -> Vec<u64> {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        let numbers: Result<Vec<u64>, _> = line.split_whitespace().map(str::parse).collect();
        numbers.expect("numbers")
    }

    /// Waits until every client has had so many pushes since the start; when that was, and bytes of one client.
    fn until(&mut self, pushes: usize) -> (u64, u64) {
        writeln!(self.ask, "{pushes}").expect("a question");
        self.ask.flush().expect("a question");
        match self.next()[..] {
            [at, bytes] => (at, bytes),
            ref other => panic!("{other:?}"),
        }
    }
}

async fn measure(pods: usize, count: usize, secured: bool) {
    let made = mesh::Mesh::of(pods);
    let (services, policies, nodes) = (made.services, made.policies, made.nodes);
    let events_all = made.events();
    process::give_back();
    let resting = process::cpu();
    let (events, heard) = mpsc::channel(1024);
    let (publish, mut snapshots) = watch::channel(Snapshot::default());
    tokio::spawn(own(State::new(mesh::settings()), heard, publish));
    let start = Instant::now();
    for event in events_all {
        events.send(event).await.expect("the state listens");
    }
    let synced = snapshots.wait_for(Snapshot::synced).await.expect("a snapshot").clone();
    let first_sync = start.elapsed();
    let held = synced.addresses.len() + synced.policies.len();
    drop(synced);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let port = secured.then(secure::Port::new);
    let place = port.as_ref().map(|port| port.place().to_owned());
    let mut clients = tokio::task::spawn_blocking(move || Clients::start(address, count, place.as_deref()))
        .await
        .expect("clients");
    let reviewer: Arc<dyn Reviewer> = match &port {
        Some(port) => Arc::new(port.reviewer().await),
        None => Arc::new(Anybody),
    };
    let metrics = Arc::new(Metrics::default());
    let authenticator = Authenticator::new(
        reviewer,
        "Kubernetes".into(),
        "cluster.local".into(),
        vec!["ambit-system/ztunnel".parse().expect("an account")],
        metrics.clone(),
    );
    let server = tonic::transport::Server::builder().add_service(AdsServer::new(
        snapshots.clone(),
        authenticator,
        metrics,
        Arc::default(),
    ));
    match &port {
        Some(port) => drop(tokio::spawn(server.serve_with_incoming(port.incoming(listener)))),
        None => {
            let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            drop(tokio::spawn(server.serve_with_incoming(incoming)));
        }
    }

    let start = process::now();
    // Both types are answered once.
    let asked = tokio::task::spawn_blocking(move || {
        let answer = clients.until(2);
        (clients, answer)
    });
    let ((mut clients, (all, full)), mut pushes) = (asked.await.expect("clients"), 2);

    // One pod's change at a time, each waited for at the last client.
    let mut times: Vec<u64> = Vec::new();
    for turn in 0..CHANGES {
        let sent = process::now();
        let pod = mesh::changed(turn % pods, turn);
        events.send(Event::Pods(Delta::Put(pod))).await.expect("the state listens");
        pushes += 1;
        let asked = tokio::task::spawn_blocking(move || {
            let answer = clients.until(pushes);
            (clients, answer)
        });
        let (back, (at, _)) = asked.await.expect("clients");
        clients = back;
        times.push(at.saturating_sub(sent));
    }
    times.sort_unstable();

    // A pod is replaced: gone, there without an address, with one, ready.
    let (_, before) = tokio::task::block_in_place(|| clients.until(pushes));
    for step in mesh::restart() {
        events.send(step.event).await.expect("the state listens");
        pushes += step.pushes;
        tokio::task::block_in_place(|| clients.until(pushes));
    }
    let (_, after) = tokio::task::block_in_place(|| clients.until(pushes));

    let percent =
        |share: usize| Duration::from_nanos(times[(times.len() * share / 100).min(times.len() - 1)]);
    let (resident, peak) = process::memory();
    println!(
        "| {pods} | {services} | {policies} | {nodes} | {count} | {:.2} s | {:.2} s | {:.1} MB, {held} resources | {:.1} ms | {:.1} ms | {} B | {:.1} s | {} MB ({} MB) |",
        first_sync.as_secs_f64(),
        Duration::from_nanos(all.saturating_sub(start)).as_secs_f64(),
        full as f64 / 1e6,
        percent(50).as_secs_f64() * 1e3,
        percent(99).as_secs_f64() * 1e3,
        after - before,
        process::cpu() - resting,
        resident,
        peak,
    );
    drop(clients.ask);
    let _ = clients.process.wait();
}
