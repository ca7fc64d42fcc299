//! Continuous requests from pod to pod by IP, over connections that are kept open, as Go's client, curl and
//! connection pools do it: a request on a reused connection that breaks before any answer is sent once more on a
//! new one; everything else that goes wrong is a failed request.
//!
//! A few clients do it as pools of database connections do (JDBC): several connections lie idle, one is tried out
//! before it is lent, and what is sent then is never sent again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use netns::NetNs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::support::netns_of;

/// How often each client asks: often, but all together not more than two cores carry in a debug build.
fn every(pods: usize) -> Duration {
    Duration::from_millis(200.max(6 * pods as u64))
}
/// How many clients are pools, and how many connections each keeps.
const POOLS: usize = 4;
const POOLED: usize = 3;
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// All clients.
pub struct Load {
    word: std::sync::Mutex<String>,
    requests: AtomicU64,
    again: AtomicU64,
    pooled: AtomicU64,
    failed: std::sync::Mutex<Vec<String>>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
    stop: tokio_util::sync::CancellationToken,
}

/// What became of the requests.
pub struct Outcome {
    pub requests: u64,
    pub again: u64,
    pub pooled: u64,
    pub failed: Vec<String>,
}

impl Load {
    /// Each pod calls its neighbour and the one half way round.
    pub fn start(pods: &[&Pod], port: u16) -> Arc<Self> {
        let load = Arc::new(Self {
            word: std::sync::Mutex::new("word-start".to_owned()),
            requests: AtomicU64::default(),
            again: AtomicU64::default(),
            pooled: AtomicU64::default(),
            failed: std::sync::Mutex::default(),
            tasks: tokio::sync::Mutex::default(),
            stop: tokio_util::sync::CancellationToken::new(),
        });
        let mut tasks = JoinSet::new();
        for (at, pod) in pods.iter().enumerate() {
            let netns = netns_of(pod).expect("a ready pod has a process");
            if at < POOLS {
                let target = pods[(at + 1) % pods.len()];
                let ip = target.status.as_ref().and_then(|status| status.pod_ip.as_ref()).unwrap();
                let names = format!("pool of {} -> {}", pod.name_any(), target.name_any());
                let to = SocketAddr::new(ip.parse().unwrap(), port);
                tasks.spawn(load.clone().pool(names, netns.clone(), to));
            }
            for target in [at + 1, at + pods.len() / 2] {
                let target = pods[target % pods.len()];
                let ip = target.status.as_ref().and_then(|status| status.pod_ip.as_ref()).unwrap();
                let names = format!("{} -> {}", pod.name_any(), target.name_any());
                let to = SocketAddr::new(ip.parse().unwrap(), port);
                tasks.spawn(load.clone().client(names, netns.clone(), to, every(pods.len())));
            }
        }
        *load.tasks.try_lock().unwrap() = tasks;
        load
    }

    /// The word in every request from now on.
    pub fn say(&self, word: &str) {
        *self.word.lock().unwrap() = word.to_owned();
    }

    /// Requests answered so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Ends the clients.
    pub async fn stop(&self) -> Outcome {
        self.stop.cancel();
        let mut tasks = self.tasks.lock().await;
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        Outcome {
            requests: self.requests(),
            again: self.again.load(Ordering::Relaxed),
            pooled: self.pooled.load(Ordering::Relaxed),
            failed: self.failed.lock().unwrap().clone(),
        }
    }

    async fn client(self: Arc<Self>, names: String, netns: NetNs, to: SocketAddr, every: Duration) {
        let mut kept: Option<TcpStream> = None;
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let word = self.word.lock().unwrap().clone();
            let reused = kept.is_some();
            let mut result = bounded(self.ask(&mut kept, &netns, to, &word)).await;
            if let (Err(Fault { unanswered: true, .. }), true) = (&result, reused) {
                kept = None;
                self.again.fetch_add(1, Ordering::Relaxed);
                result = bounded(self.ask(&mut kept, &netns, to, &word)).await;
            }
            match result {
                Ok(()) => {
                    self.requests.fetch_add(1, Ordering::Relaxed);
                }
                Err(fault) => {
                    kept = None;
                    self.failed.lock().unwrap().push(format!("{names}, {word}: {}", fault.text));
                }
            }
        }
    }

    async fn pool(self: Arc<Self>, names: String, netns: NetNs, to: SocketAddr) {
        let mut idle: std::collections::VecDeque<TcpStream> = std::collections::VecDeque::new();
        let mut ticks = tokio::time::interval(Duration::from_millis(300));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let mut lent = None;
            if idle.len() >= POOLED {
                // The one that has been idle longest, if it is still good.
                while let Some(mut stream) = idle.pop_front() {
                    if bounded(request(&mut stream, "/healthz")).await.is_ok() {
                        lent = Some(stream);
                        break;
                    }
                }
            }
            let word = self.word.lock().unwrap().clone();
            let result = bounded(async {
                let mut stream = match lent {
                    Some(stream) => stream,
                    None => dial(&netns, to).await?,
                };
                request(&mut stream, &format!("/{word}")).await?;
                Ok(stream)
            })
            .await;
            match result {
                Ok(stream) => {
                    idle.push_back(stream);
                    self.pooled.fetch_add(1, Ordering::Relaxed);
                }
                Err(fault) => self.failed.lock().unwrap().push(format!("{names}, {word}: {}", fault.text)),
            }
        }
    }

    async fn ask(
        &self,
        kept: &mut Option<TcpStream>,
        netns: &NetNs,
        to: SocketAddr,
        word: &str,
    ) -> Result<(), Fault> {
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => dial(netns, to).await?,
        };
        request(&mut stream, &format!("/{word}")).await?;
        *kept = Some(stream);
        Ok(())
    }
}

struct Fault {
    /// Nothing of an answer had come.
    unanswered: bool,
    text: String,
}

async fn bounded<T>(work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let late = |_| Err(Fault { unanswered: false, text: format!("no answer within {PATIENCE:?}") });
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(late)
}

async fn dial(netns: &NetNs, to: SocketAddr) -> Result<TcpStream, Fault> {
    let fault = |error: std::io::Error| Fault { unanswered: false, text: format!("dialling: {error}") };
    // A socket stays in the namespace that it was made in.
    let socket = netns.run(TcpSocket::new_v4).unwrap().map_err(fault)?;
    socket.connect(to).await.map_err(fault)
}

/// One request and its whole answer.
async fn request(stream: &mut TcpStream, path: &str) -> Result<String, Fault> {
    let text = format!("GET {path} HTTP/1.1\r\nhost: pod\r\n\r\n");
    let broken = |unanswered: bool, text: String| Fault { unanswered, text };
    stream.write_all(text.as_bytes()).await.map_err(|e| broken(true, format!("sending: {e}")))?;
    let mut answer = Vec::new();
    loop {
        let mut part = [0; 16 * 1024];
        let read = stream.read(&mut part).await;
        match read {
            Ok(0) => return Err(broken(answer.is_empty(), "the connection ended".to_owned())),
            Ok(n) => answer.extend_from_slice(&part[..n]),
            Err(error) => return Err(broken(answer.is_empty(), format!("reading: {error}"))),
        }
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        if !head.starts_with("HTTP/1.1 200") {
            return Err(broken(false, head.to_owned()));
        }
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
        let length: usize = length.and_then(|n| n.parse().ok()).unwrap_or_default();
        if body.len() >= length {
            return Ok(body.to_owned());
        }
    }
}

/// One request on a connection of its own, from inside `netns`.
pub async fn get(netns: &NetNs, ip: &str, port: u16, path: &str) -> Result<String, String> {
    let work = async {
        let mut stream = dial(netns, SocketAddr::new(ip.parse().unwrap(), port)).await?;
        request(&mut stream, path).await
    };
    bounded(work).await.map_err(|fault| fault.text)
}
