use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hbone::{Credential, Head, Server, Settings};
use tokio::sync::Semaphore;
use tokio::task::{LocalSet, spawn_local};

use super::*;
use crate::testing::{credential, identity};

/// Peers in memory: each accepts every stream and keeps it open.
struct Peers {
    credential: Arc<Credential>,
    max_streams: u32,
    /// Handshakes begin only as permits are there.
    gate: Semaphore,
    handshakes: AtomicUsize,
    failing: AtomicBool,
    kill: CancellationToken,
}

/// The pool as the asynchronous tunnels of tests and of inner tunnels know it.
impl Tunnel for hbone::Tunnel {
    fn max_streams(&self) -> usize {
        self.max_streams()
    }

    fn is_closed(&self) -> bool {
        self.is_closed()
    }

    fn closed(&self) -> impl Future<Output = ()> + 'static {
        self.closed()
    }

    fn is_revoked(&self) -> bool {
        self.is_revoked()
    }

    fn cut(&self) {
        self.cut();
    }

    fn identity(&self) -> &Identity {
        self.identity()
    }

    fn peer(&self) -> SocketAddr {
        self.peer()
    }
}

/// On one thread, as on a worker.
fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

fn peers(max_streams: u32, permits: usize) -> Arc<Peers> {
    Arc::new(Peers {
        credential: credential(),
        max_streams,
        gate: Semaphore::new(permits),
        handshakes: AtomicUsize::new(0),
        failing: AtomicBool::new(false),
        kill: CancellationToken::new(),
    })
}

impl Peers {
    fn pool(self: &Arc<Self>, max_streams: usize) -> Pool<hbone::Tunnel> {
        let peers = self.clone();
        let dialler = Dialler {
            dial: Box::new(move |key: Rc<Key>| {
                let peers = peers.clone();
                Box::pin(async move { peers.handshake(&key).await })
            }),
            spawn: Box::new(|work| drop(spawn_local(work))),
        };
        Pool::new(dialler, max_streams, Duration::from_secs(300), CancellationToken::new())
    }

    async fn handshake(&self, key: &Key) -> Result<hbone::Tunnel, PoolError> {
        self.handshakes.fetch_add(1, Ordering::SeqCst);
        if key.hop.port() == 1 {
            return std::future::pending().await;
        }
        self.gate.acquire().await.unwrap().forget();
        if self.failing.load(Ordering::SeqCst) {
            return Err(PoolError::Timeout(key.hop));
        }
        let (near, far) = tokio::io::duplex(1 << 20);
        let (credential, kill) = (self.credential.clone(), self.kill.clone());
        let settings = Settings { max_streams: self.max_streams, ..Settings::default() };
        let (hop, served) = (key.hop, settings.clone());
        tokio::spawn(kill.run_until_cancelled_owned(async move {
            let mut server = Server::handshake(far, hop, &credential, &served).await.unwrap();
            let mut kept = Vec::new();
            while let Some(request) = server.next().await {
                kept.push(request.responder.accept(None));
            }
        }));
        Ok(hbone::Tunnel::handshake(near, hop, &self.credential, &key.expected, &settings).await?)
    }

    fn handshakes(&self) -> usize {
        self.handshakes.load(Ordering::SeqCst)
    }
}

fn key(port: u16) -> Key {
    Key {
        source: identity(),
        expected: vec![identity()],
        source_ip: IpAddr::from([10, 0, 0, 1]),
        hop: SocketAddr::from(([10, 0, 0, 2], port)),
    }
}

async fn acquire_many(
    pool: &Pool<hbone::Tunnel>,
    count: usize,
) -> Vec<Result<Lease<hbone::Tunnel>, PoolError>> {
    futures::future::join_all((0..count).map(|_| pool.acquire(key(15008)))).await
}

/// Lets spawned tasks come to rest.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn the_first_callers_share_one_handshake() {
    local(async {
        let peers = peers(100, 0);
        let pool = peers.pool(100);
        let calls = spawn_local({
            let pool = pool.clone();
            async move { acquire_many(&pool, 100).await }
        });
        settle().await;
        assert_eq!(peers.handshakes(), 1, "all wait for one");
        peers.gate.add_permits(100);
        assert!(calls.await.unwrap().iter().all(Result::is_ok));
        assert_eq!(peers.handshakes(), 1);
        assert_eq!(pool.tunnels(), 1);
    });
}

#[test]
fn tunnels_are_added_as_the_peers_limit_demands_and_no_more() {
    local(async {
        for (allowed, ours, expected) in [(10, 100, 20), (200, 100, 2), (200, 50, 4)] {
            let peers = peers(allowed, 1000);
            let pool = peers.pool(ours);
            let leases = acquire_many(&pool, 200).await;
            assert!(leases.iter().all(Result::is_ok));
            assert_eq!(peers.handshakes(), expected, "peer allows {allowed}, we use {ours}");
            let mut streams = Vec::new();
            for lease in &leases {
                let head = Head::to(mesh::Authority::Address("10.0.0.2:80".parse().unwrap()));
                streams.push(lease.as_ref().unwrap().tunnel.open(&head).await.unwrap());
            }
        }
    });
}

#[test]
fn a_tunnel_is_used_again_after_its_streams_ended() {
    local(async {
        let peers = peers(10, 1000);
        let pool = peers.pool(100);
        for _ in 0..100 {
            drop(pool.acquire(key(15008)).await.unwrap());
        }
        assert_eq!(peers.handshakes(), 1);
    });
}

#[test]
fn unused_tunnels_are_let_go_and_a_bursts_surplus_earlier() {
    local(async {
        let peers = peers(10, 1000);
        let pool = peers.pool(100);
        drop(acquire_many(&pool, 50).await);
        assert_eq!(pool.tunnels(), 5);
        let now = Instant::now();
        pool.sweep(now + Duration::from_secs(5));
        assert_eq!(pool.tunnels(), 5);
        pool.sweep(now + Duration::from_secs(60));
        assert_eq!(pool.tunnels(), 1, "few again afterwards");
        pool.sweep(now + Duration::from_secs(301));
        assert_eq!(pool.tunnels(), 0);
    });
}

#[test]
fn a_used_tunnel_is_never_let_go() {
    local(async {
        let peers = peers(10, 1000);
        let pool = peers.pool(100);
        let lease = pool.acquire(key(15008)).await.unwrap();
        pool.sweep(Instant::now() + Duration::from_secs(3600));
        assert_eq!(pool.tunnels(), 1);
        drop(lease);
    });
}

#[test]
fn a_dead_tunnel_is_discarded_at_once() {
    local(async {
        let peers = peers(10, 1000);
        let pool = peers.pool(100);
        let lease = pool.acquire(key(15008)).await.unwrap();
        peers.kill.cancel();
        lease.tunnel.closed().await;
        drop(lease);
        settle().await;
        assert_eq!(pool.tunnels(), 0);
    });
}

#[test]
fn a_failed_handshake_fails_those_who_waited_for_it_and_the_next_call_tries_anew() {
    local(async {
        let peers = peers(10, 0);
        peers.failing.store(true, Ordering::SeqCst);
        let pool = peers.pool(100);
        peers.gate.add_permits(1);
        let failed = acquire_many(&pool, 30).await;
        assert!(failed.iter().all(|result| matches!(result, Err(PoolError::Timeout(_)))));
        assert_eq!(peers.handshakes(), 1);
        peers.failing.store(false, Ordering::SeqCst);
        peers.gate.add_permits(1);
        assert!(pool.acquire(key(15008)).await.is_ok());
    });
}

#[test]
fn a_slow_handshake_delays_its_own_callers_only() {
    local(async {
        let peers = peers(10, 1000);
        let pool = peers.pool(100);
        let stuck = spawn_local({
            let pool = pool.clone();
            async move { pool.acquire(key(1)).await.map(drop) }
        });
        settle().await;
        assert!(pool.acquire(key(15008)).await.is_ok());
        assert!(!stuck.is_finished());
        stuck.abort();
    });
}

#[test]
fn a_place_given_back_goes_to_whoever_waits() {
    local(async {
        let peers = peers(1, 1);
        let pool = peers.pool(100);
        let first = pool.acquire(key(15008)).await.unwrap();
        let second = spawn_local({
            let pool = pool.clone();
            async move { pool.acquire(key(15008)).await }
        });
        settle().await;
        assert!(!second.is_finished(), "the only tunnel is full and the next handshake hangs");
        drop(first);
        assert!(second.await.unwrap().is_ok());
    });
}

#[test]
fn a_caller_that_gave_up_leaves_its_place_to_others() {
    local(async {
        let peers = peers(1, 0);
        let pool = peers.pool(100);
        let gone = spawn_local({
            let pool = pool.clone();
            async move { pool.acquire(key(15008)).await.map(drop) }
        });
        settle().await;
        gone.abort();
        let _ = gone.await;
        peers.gate.add_permits(1);
        assert!(pool.acquire(key(15008)).await.is_ok());
        assert_eq!(peers.handshakes(), 1);
    });
}

#[test]
fn a_peer_that_allows_no_streams_is_an_error_and_not_a_storm_of_handshakes() {
    local(async {
        let peers = peers(0, 1000);
        let pool = peers.pool(100);
        assert!(matches!(pool.acquire(key(15008)).await, Err(PoolError::NoStreams(_))));
        settle().await;
        assert_eq!(peers.handshakes(), 1);
    });
}
