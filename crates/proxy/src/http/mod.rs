//! The proxy's own servers: admin (loopback only), metrics, readiness (reference/enrolment.md §6).

mod admin;
mod dump;
mod process;
mod profile;
mod stats;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::logging::LogHandle;
use crate::ready::Readiness;
use crate::xds;

/// What the servers show.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) context: Arc<Context>,
    pub(crate) readiness: Readiness,
    pub(crate) xds: Arc<xds::Stats>,
    pub(crate) log: Option<LogHandle>,
    /// Starts the graceful end.
    pub(crate) quit: CancellationToken,
}

/// The servers' listeners, bound before anything else so that a port already taken is an error at the start.
pub(crate) struct Listeners {
    admin: TcpListener,
    admin6: Option<TcpListener>,
    stats: TcpListener,
    readiness: TcpListener,
}

impl Listeners {
    pub(crate) async fn bind(context: &Context) -> io::Result<Self> {
        let ports = context.config.ports;
        Ok(Self {
            admin: bind(Ipv4Addr::LOCALHOST.into(), ports.admin, "admin").await?,
            admin6: match context.config.ipv6 && ports.admin != 0 {
                // A node without IPv6 has no such address.
                true => bind(Ipv6Addr::LOCALHOST.into(), ports.admin, "admin").await.ok(),
                false => None,
            },
            stats: bind_all(context.config.ipv6, ports.stats, "metrics").await?,
            readiness: bind_all(context.config.ipv6, ports.readiness, "readiness").await?,
        })
    }

    /// Serves until `stop`.
    pub(crate) async fn serve(self, shown: Shown, stop: CancellationToken) {
        let serve = |listener: TcpListener, router: Router| {
            let stop = stop.clone();
            async move {
                let server = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
                if let Err(error) = server.await {
                    tracing::error!(%error, "an HTTP server of the proxy ended");
                }
            }
        };
        let servers = async {
            tokio::join!(
                serve(self.admin, admin::router(shown.clone())),
                async {
                    match self.admin6 {
                        Some(admin) => serve(admin, admin::router(shown.clone())).await,
                        None => std::future::pending().await,
                    }
                },
                serve(self.stats, stats::router(shown.clone())),
                serve(self.readiness, readiness(shown.readiness.clone())),
            );
        };
        tokio::select! {
            () = servers => {}
            // Clients that keep their connections open do not keep the process.
            () = stop.cancelled() => {}
        }
    }
}

async fn bind(ip: IpAddr, port: u16, what: &str) -> io::Result<TcpListener> {
    let address = SocketAddr::new(ip, port);
    TcpListener::bind(address).await.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot listen on {address} ({what}): {error}; is another proxy running?"),
        )
    })
}

async fn bind_all(ipv6: bool, port: u16, what: &str) -> io::Result<TcpListener> {
    if ipv6 {
        match bind(Ipv6Addr::UNSPECIFIED.into(), port, what).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            // No IPv6 on this node.
            Err(_) => {}
            bound => return bound,
        }
    }
    bind(Ipv4Addr::UNSPECIFIED.into(), port, what).await
}

fn readiness(readiness: Readiness) -> Router {
    let ready = move || async move {
        let pending = readiness.list();
        if pending.is_empty() {
            return (StatusCode::OK, "ready\n".to_owned());
        }
        (StatusCode::INTERNAL_SERVER_ERROR, format!("not ready, pending: {}\n", pending.join(", ")))
    };
    Router::new().route("/healthz/ready", get(ready))
}

fn text(status: StatusCode, body: impl Into<String>) -> Response {
    (status, body.into()).into_response()
}
