//! Plaintext connections that would be tunnelled if they were made now.
//!
//! A destination may join the mesh a moment after a connection to it was opened. A client that keeps its connections
//! alive, as Prometheus does for as long as it scrapes, would go on in plaintext for ever. So such a connection is
//! ended, as any server may end a kept-alive connection, once it is idle: the last thing that moved was an answer, and
//! nothing has moved for a moment. The client dials anew, through the mesh. A request in flight is never cut.

use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mesh::{Call, Decision, NOTHING_RESOLVED, View, Workload, decide};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::copy::Meter;
use crate::views::Views;

/// Quiet for so many milliseconds after an answer is idle.
const QUIET: u64 = 200;

/// Waits until a call of `source` to `destination` would go through a tunnel.
pub(crate) async fn tunnelled(views: &Views, source: &Workload, destination: SocketAddr) {
    let would_be = |view: &View| {
        // Which endpoint the dice would choose makes no difference: one that takes tunnels is enough.
        let call = Call { source, destination, random: 0, resolved: &NOTHING_RESOLVED };
        matches!(decide(view, &call), Decision::Tunnel(_))
    };
    let mut changes = views.changes();
    while !would_be(&views.load()) {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// A meter that also knows when a connection is idle.
pub(crate) struct Watched<'a, M> {
    meter: &'a M,
    start: Instant,
    /// Milliseconds after `start`.
    last: AtomicU64,
    answered: AtomicBool,
}

impl<'a, M: Meter> Watched<'a, M> {
    pub(crate) fn new(meter: &'a M) -> Self {
        // Before the first request there is nothing to be lost.
        Self { meter, start: Instant::now(), last: AtomicU64::new(0), answered: AtomicBool::new(true) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn moved(&self, answer: bool, now: u64) {
        self.last.store(now, Ordering::Relaxed);
        self.answered.store(answer, Ordering::Relaxed);
    }

    /// After how many milliseconds it is worth looking (again); none: it is quiet after an answer.
    fn look_again(&self, now: u64) -> Option<u64> {
        let due = self.last.load(Ordering::Relaxed).saturating_add(QUIET);
        match due.checked_sub(now) {
            None | Some(0) => (!self.answered.load(Ordering::Relaxed)).then_some(QUIET),
            later => later,
        }
    }

    /// Waits until the connection between these sockets is idle.
    pub(crate) async fn idle(&self, client: &TcpStream, server: &TcpStream) {
        loop {
            let again = match self.look_again(self.now()) {
                None if !waiting(client) && !waiting(server) => return,
                None => QUIET,
                Some(again) => again,
            };
            sleep(Duration::from_millis(again)).await;
        }
    }
}

impl<M: Meter> Meter for Watched<'_, M> {
    fn client_to_server(&self, bytes: u64) {
        self.moved(false, self.now());
        self.meter.client_to_server(bytes);
    }

    fn server_to_client(&self, bytes: u64) {
        self.moved(true, self.now());
        self.meter.server_to_client(bytes);
    }
}

/// Whether bytes have arrived that nobody has read yet.
fn waiting(socket: &TcpStream) -> bool {
    SockRef::from(socket).peek(&mut [MaybeUninit::uninit(); 1]).is_ok_and(|bytes| bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    struct Nothing;

    impl Meter for Nothing {
        fn client_to_server(&self, _: u64) {}
        fn server_to_client(&self, _: u64) {}
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[test]
    fn a_connection_is_idle_only_when_quiet_after_an_answer() {
        let watched = Watched::new(&Nothing);
        watched.moved(false, 1_000);
        assert!(watched.look_again(3_600_000).is_some(), "a request is in flight, however long it takes");
        watched.moved(true, 5_000);
        assert_eq!(watched.look_again(5_050), Some(QUIET - 50), "it has just moved");
        assert_eq!(watched.look_again(5_000 + QUIET), None);
    }

    #[tokio::test]
    async fn bytes_that_nobody_has_read_are_noticed() {
        let (mut client, server) = pair().await;
        assert!(!waiting(&server));
        client.write_all(b"GET /").await.unwrap();
        server.readable().await.unwrap();
        assert!(waiting(&server));
    }

    #[tokio::test]
    async fn a_destination_that_joins_the_mesh_is_noticed() {
        let pod = |name: &str, address: &str| {
            let identity = mesh::Identity::new("cluster.local", "default", name).unwrap();
            let mut workload = Workload::new(format!("Kubernetes//Pod/default/{name}"), name, identity);
            workload.addresses = vec![address.parse().unwrap()];
            workload
        };
        let (source, mut other) = (pod("a", "10.0.0.1"), pod("b", "10.0.0.2"));
        let views = Views::default();
        let publish = |other: &Workload| {
            let mut view = View::default();
            view.insert_workload(other.clone());
            views.publish(view);
        };
        publish(&other);
        let waiting = tunnelled(&views, &source, "10.0.0.2:9080".parse().unwrap());
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        publish(&other);
        assert!(futures::poll!(&mut waiting).is_pending());
        other.tunnel = mesh::Tunnel::Hbone;
        publish(&other);
        waiting.await;
    }
}
