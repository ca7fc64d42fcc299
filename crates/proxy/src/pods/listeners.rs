//! The listeners of a pod, and the tasks that belong to it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh::{HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT};
use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::Socket;

use super::connections::Basis;
use super::{Home, Pod};
use crate::context::Context;
use crate::dns;
use crate::path::{self, Accepted};
use crate::sockets::{Held, Listener, canonical};

/// Connections accepted before others get their turn.
const BATCH: usize = 64;
const SWEEP: Duration = Duration::from_secs(30);
const SWEEP_SOONEST: Duration = Duration::from_millis(250);

/// Which of a pod's ports a connection came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    Outbound,
    Tunnel,
    Plaintext,
}

/// Opens the listeners of `pod`, all or none, and serves them.
pub(crate) fn start(context: &Arc<Context>, pod: &Arc<Pod>) -> io::Result<()> {
    let named = |port: u16, what: &str| {
        pod.sockets.listen(port, port == OUTBOUND_PORT).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => "; is an application of the pod using this port?",
                _ => "",
            };
            io::Error::new(error.kind(), format!("cannot listen on port {port} ({what}): {error}{hint}"))
        })
    };
    let dns = dns::open(context, &pod.sockets).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => "; is an application of the pod using this port?",
            _ => "",
        };
        let port = dns::PORT;
        io::Error::new(error.kind(), format!("cannot listen on port {port} (DNS): {error}{hint}"))
    })?;
    let tunnel = named(HBONE_PORT, "tunnels")?;
    let plaintext = named(INBOUND_PLAINTEXT_PORT, "captured inbound")?;
    let outbound = named(OUTBOUND_PORT, "captured outbound")?;
    if let Some(dns) = dns {
        dns::serve(context, pod, dns);
    }
    let listeners = vec![(Port::Tunnel, tunnel), (Port::Plaintext, plaintext), (Port::Outbound, outbound)];
    move_in(context, pod, listeners);
    Ok(())
}

/// Opens only the tunnel port, for the proxy's own pod.
pub(crate) fn serve_own(context: &Arc<Context>, pod: &Arc<Pod>) -> io::Result<()> {
    move_in(context, pod, vec![(Port::Tunnel, pod.sockets.listen(HBONE_PORT, false)?)]);
    Ok(())
}

/// Gives the pod a home on a worker, and serves its listeners there until it stops.
fn move_in(context: &Arc<Context>, pod: &Arc<Pod>, listeners: Vec<(Port, Listener)>) {
    let (context, pod) = (context.clone(), pod.clone());
    let worker = context.workers.home();
    let at = worker.clone();
    // Counted from now on, so that a drain waits for it.
    let alive = pod.tasks.token();
    worker.tell(move |it| {
        let home = Home::new(context, pod, it.clone());
        for (port, listener) in listeners {
            let here = home.clone();
            home.spawn(async move {
                tokio::select! {
                    () = here.pod.drain.cancelled() => {}
                    () = accept(&here, listener, port) => {}
                }
            });
        }
        it.spawn(async move {
            upkeep(&home).await;
            home.pool.clear();
            at.leave();
        });
        drop(alive);
    });
}

async fn accept(home: &Rc<Home>, listener: Listener, port: Port) {
    let Listener { socket, transparent } = listener;
    let watched = match home.worker.watch(TcpListener::from(socket)) {
        Ok(watched) => watched,
        Err(error) => {
            return tracing::error!(pod = %home.pod.info.name, ?port, %error, "cannot wait for connections");
        }
    };
    let mut turn = 0;
    loop {
        match accept_one(watched.get()) {
            Ok(Some((socket, peer))) => {
                let accepted = Accepted { socket: Held::new(socket), peer, transparent };
                let here = home.clone();
                home.spawn(async move {
                    match port {
                        Port::Outbound => path::outbound(&here, accepted).await,
                        // Boxed, so that they do not make the others as large as themselves.
                        Port::Tunnel => Box::pin(path::inbound_tunnel(&here, accepted)).await,
                        Port::Plaintext => Box::pin(path::inbound_plaintext(&here, accepted)).await,
                    }
                });
                turn += 1;
                if turn % BATCH == 0 {
                    tokio::task::yield_now().await;
                }
            }
            Ok(None) => watched.readable().await,
            // One connection that died before it was accepted is no reason to pause; a lack of descriptors is.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => {
                tracing::warn!(pod = %home.pod.info.name, ?port, %error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// The next connection, if there is one. Its options are those of the listener.
fn accept_one(listener: &TcpListener) -> io::Result<Option<(Socket, SocketAddr)>> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    match acceptfrom_with(listener, flags) {
        Ok((socket, peer)) => {
            let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
            let peer = peer.ok_or_else(|| io::Error::other("a connection from nowhere"))?;
            Ok(Some((socket.into(), canonical(peer))))
        }
        Err(error) => match io::Error::from(error) {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        },
    }
}

/// Judges live connections anew when something changed, and lets go of unused tunnels; until the pod stops.
async fn upkeep(home: &Home) {
    let Home { context, pod, pool, .. } = home;
    let watch = async {
        let mut changes = context.views.changes();
        // Often enough for what was asked for to be seen.
        let often = (context.config.pool_idle / 2).clamp(SWEEP_SOONEST, SWEEP);
        let mut sweep = tokio::time::interval(often);
        let mut basis = Basis::default();
        let mut revoked = context.settings.rules.revocations.changes();
        loop {
            tokio::select! {
                _ = sweep.tick() => pool.sweep(Instant::now()),
                Ok(()) = revoked.changed() => pool.cut_revoked(),
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let view = context.views.load();
                    let Some(workload) = pod.find(&view, context.config.node.as_deref()) else { continue };
                    let now = Basis::of(&view, &workload);
                    if !basis.same(&now) {
                        basis = now;
                        pod.connections.judge(&view, &workload);
                    }
                }
            }
        }
    };
    let _ = pod.stop.run_until_cancelled(watch).await;
}
