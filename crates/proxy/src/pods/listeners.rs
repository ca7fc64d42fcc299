//! The listeners of a pod, and the tasks that belong to it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh::{HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT};
use tokio::net::TcpListener;

use super::Pod;
use super::connections::Basis;
use crate::context::Context;
use crate::dns;
use crate::path::{self, Accepted};
use crate::sockets::{Listener, canonical};

const SWEEP: Duration = Duration::from_secs(30);

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
        pod.sockets.listen(port).map_err(|error| {
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
    serve(context, pod, tunnel, Port::Tunnel);
    serve(context, pod, plaintext, Port::Plaintext);
    serve(context, pod, outbound, Port::Outbound);
    upkeep(context, pod);
    Ok(())
}

/// Opens only the tunnel port, for the proxy's own pod.
pub(crate) fn serve_own(context: &Arc<Context>, pod: &Arc<Pod>) -> io::Result<()> {
    serve(context, pod, pod.sockets.listen(HBONE_PORT)?, Port::Tunnel);
    upkeep(context, pod);
    Ok(())
}

fn serve(context: &Arc<Context>, pod: &Arc<Pod>, listener: Listener, port: Port) {
    let (context, pod) = (context.clone(), pod.clone());
    let task = pod.clone();
    task.tasks.spawn(async move {
        let Listener { tcp, transparent } = listener;
        tokio::select! {
            () = pod.stop.cancelled() => {}
            () = pod.drain.cancelled() => {}
            () = accept(&context, &pod, &tcp, transparent, port) => {}
        }
    });
}

async fn accept(context: &Arc<Context>, pod: &Arc<Pod>, tcp: &TcpListener, transparent: bool, port: Port) {
    loop {
        let (stream, peer) = match tcp.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // One connection that died before it was accepted is no reason to pause; a lack of descriptors is.
                let ours = !matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::Interrupted
                );
                if ours {
                    tracing::warn!(pod = %pod.info.name, ?port, %error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                continue;
            }
        };
        pod.sockets.tune(&stream, port != Port::Tunnel);
        let accepted = Accepted { stream, peer: canonical(peer), transparent };
        let (context, pod) = (context.clone(), pod.clone());
        let task = pod.clone();
        task.tasks.spawn(async move {
            let stop = pod.stop.clone();
            let serve = async {
                match port {
                    Port::Outbound => path::outbound(&context, &pod, accepted).await,
                    Port::Tunnel => path::inbound_tunnel(&context, &pod, accepted).await,
                    Port::Plaintext => path::inbound_plaintext(&context, &pod, accepted).await,
                }
            };
            let _ = stop.run_until_cancelled(serve).await;
        });
    }
}

/// Judges live connections anew when something changed, and lets go of unused tunnels.
fn upkeep(context: &Arc<Context>, pod: &Arc<Pod>) {
    let (context, pod) = (context.clone(), pod.clone());
    tokio::spawn(async move {
        let stop = pod.stop.clone();
        let watch = async {
            let mut changes = context.views.changes();
            let mut sweep = tokio::time::interval(SWEEP);
            let mut basis = Basis::default();
            let mut revoked = context.settings.rules.revocations.changes();
            loop {
                tokio::select! {
                    _ = sweep.tick() => pod.pool.sweep(Instant::now()),
                    Ok(()) = revoked.changed() => pod.pool.cut_revoked(),
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
        let _ = stop.run_until_cancelled(watch).await;
    });
}
