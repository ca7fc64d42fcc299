//! A pod at home on its worker: what its connections need, on the one thread that carries them.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use hbone::{HandshakeError, secured};
use mesh::Identity;
use tokio::runtime::Handle;

use super::Pod;
use crate::context::Context;
use crate::engine::{Loop, Role, Tunnel};
use crate::pool::{self, Dial, Dialler, Key, Pool, PoolError};
use crate::sockets::{ConnectError, Sockets};

/// A pod on its worker.
pub(crate) struct Home {
    pub(crate) context: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) worker: Loop,
    /// The pod's tunnels to others.
    pub(crate) pool: Pool<Tunnel>,
}

impl Home {
    pub(crate) fn new(context: Arc<Context>, pod: Arc<Pod>, worker: Loop) -> Rc<Self> {
        let spawner = worker.clone();
        let dialler = Dialler {
            dial: dial(&context, &pod.sockets, &worker),
            spawn: Box::new(move |work| spawner.spawn(work)),
        };
        let config = &context.config;
        let pool = Pool::new(dialler, config.pool_max_streams, config.pool_idle, pod.stop.clone());
        Rc::new(Self { context, pod, worker, pool })
    }

    /// Starts a task that ends with the pod.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        // Boxed: what is wrapped around it would hold it twice, once before it begins and once while it runs.
        let (stop, work) = (self.pod.stop.clone(), Box::pin(work));
        self.worker.spawn(self.pod.tasks.track_future(async move {
            let _ = stop.run_until_cancelled(work).await;
        }));
    }
}

impl pool::Tunnel for Tunnel {
    fn max_streams(&self) -> usize {
        Tunnel::max_streams(self)
    }

    fn is_closed(&self) -> bool {
        Tunnel::is_closed(self)
    }

    fn closed(&self) -> impl Future<Output = ()> + 'static {
        Tunnel::closed(self)
    }

    fn is_revoked(&self) -> bool {
        Tunnel::is_revoked(self)
    }

    fn cut(&self) {
        Tunnel::cut(self);
    }

    fn identity(&self) -> &Identity {
        Tunnel::identity(self)
    }

    fn peer(&self) -> std::net::SocketAddr {
        Tunnel::peer(self)
    }
}

/// Tunnels of a pod start in its namespace and under its identity. Connecting and the handshake's arithmetic are done
/// beside the data path.
fn dial(context: &Arc<Context>, sockets: &Sockets, worker: &Loop) -> Dial<Tunnel> {
    let (context, sockets, worker) = (context.clone(), sockets.clone(), worker.clone());
    Box::new(move |key: Rc<Key>| {
        let (context, sockets, worker) = (context.clone(), sockets.clone(), worker.clone());
        Box::pin(async move {
            let credential = context.certs.get(&key.source).await?;
            let until = credential.validity().not_after;
            let (hop, expected, settings) = (key.hop, key.expected.clone(), context.settings.clone());
            let failed = move |error| PoolError::Connect(Arc::new(ConnectError::Failed { to: hop, error }));
            let handshake = Handle::current().spawn(async move {
                let mut stream = sockets.connect(hop).await.map_err(|error| match error {
                    ConnectError::Timeout { to } => PoolError::Timeout(to),
                    error => PoolError::Connect(Arc::new(error)),
                })?;
                let secured = secured::client(&mut stream, hop, &credential, &expected, &settings).await?;
                Ok::<_, PoolError>((stream.into_std().map_err(failed)?, secured))
            });
            let (stream, secured) = handshake.await.map_err(|_| PoolError::Closed)??;
            let settings = &context.settings;
            let tunnel = worker.adopt(stream.into(), secured, hop, Role::Client, settings).map_err(failed)?;
            tunnel.retire_at(until);
            let within = settings.handshake_timeout;
            match tokio::time::timeout(within, tunnel.answered()).await {
                Ok(Ok(())) => Ok(tunnel),
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err(HandshakeError::Http2Timeout { peer: hop, within }.into()),
            }
        })
    })
}
