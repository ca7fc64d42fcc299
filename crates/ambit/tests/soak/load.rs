//! Requests from pod to pod by IP, each client as fast as it is answered. Half of the clients keep their connection, as
//! pools do; the others make a new one for every request. Nothing is tried again: whatever goes wrong is a failure.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use netns::NetNs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests on one connection, after which a pool makes a new one.
const KEPT: usize = 1_000;

/// All clients.
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    kept: AtomicU64,
    new: AtomicU64,
    failed: std::sync::Mutex<Vec<String>>,
    stop: CancellationToken,
}

/// What became of the requests.
pub struct Outcome {
    pub kept: u64,
    pub new: u64,
    pub failed: Vec<String>,
}

impl Load {
    /// Each pod calls the two that follow it, with a client of either kind.
    pub fn start(pods: &[NetNs], ips: &[IpAddr], port: u16) -> Self {
        let shared = Arc::<Shared>::default();
        let mut tasks = JoinSet::new();
        for (at, netns) in pods.iter().enumerate() {
            for step in [1, 2] {
                let to = SocketAddr::new(ips[(at + step) % ips.len()], port);
                let keeps = (at + step) % 2 == 0;
                tasks.spawn(shared.clone().client(netns.clone(), to, keeps));
            }
        }
        Self { shared, tasks }
    }

    /// Ends the clients.
    pub async fn stop(mut self) -> Outcome {
        self.shared.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a client goes on");
        }
        Outcome {
            kept: self.shared.kept.load(Ordering::Relaxed),
            new: self.shared.new.load(Ordering::Relaxed),
            failed: std::mem::take(&mut self.shared.failed.lock().unwrap()),
        }
    }
}

impl Shared {
    async fn client(self: Arc<Self>, netns: NetNs, to: SocketAddr, keeps: bool) {
        let count = if keeps { &self.kept } else { &self.new };
        while !self.stop.is_cancelled() {
            let connection = async {
                let mut stream = bounded(dial(&netns, to)).await?;
                for _ in 0..if keeps { KEPT } else { 1 } {
                    if self.stop.is_cancelled() {
                        break;
                    }
                    bounded(request(&mut stream)).await?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, String>(())
            };
            if let Err(error) = connection.await {
                let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                let at = seconds.map(|since| since.as_secs()).unwrap_or_default();
                self.failed.lock().unwrap().push(format!("{at}: {to}, kept {keeps}: {error}"));
                // A destination that refuses must not turn this into a loop without an end to its list.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn bounded<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
}

async fn dial(netns: &NetNs, to: SocketAddr) -> Result<TcpStream, String> {
    let fault = |error: std::io::Error| format!("dialling: {error}");
    // A socket stays in the namespace that it was made in.
    let socket = netns.run(TcpSocket::new_v4).map_err(|error| error.to_string())?.map_err(fault)?;
    socket.connect(to).await.map_err(fault)
}

/// One request on a connection of its own.
pub async fn once(netns: &NetNs, to: SocketAddr) -> Result<(), String> {
    let mut stream = bounded(dial(netns, to)).await?;
    bounded(request(&mut stream)).await
}

/// One request and its whole answer.
async fn request(stream: &mut TcpStream) -> Result<(), String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: pod\r\n\r\n").await.map_err(|e| format!("sending: {e}"))?;
    let mut answer = Vec::new();
    loop {
        let read = stream.read_buf(&mut answer).await.map_err(|e| format!("reading: {e}"))?;
        if read == 0 {
            return Err(format!("the connection ended after {} bytes of the answer", answer.len()));
        }
        let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        if !head.starts_with("http/1.1 200") {
            return Err(head);
        }
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        if answer.len() >= end + 4 + length.unwrap_or_default() {
            return Ok(());
        }
    }
}
