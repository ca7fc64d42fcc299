//! Connections of the plain HTTP ports: anybody in the cluster may open one, so none may cost more than a while.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tower::ServiceExt;

/// Time a client has for the head of a request, the next one of its connection included. Longer than Prometheus
/// usually waits between two scrapes.
const HEAD: Duration = Duration::from_secs(75);
/// How long a connection may live: after that its present answer is the last.
const LIFE: Duration = Duration::from_secs(600);
/// How long that one may take to be read.
const GRACE: Duration = Duration::from_secs(60);

/// Serves pages until dropped, and all connections with it.
pub(crate) async fn serve(listener: TcpListener, pages: Router) {
    let mut open = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true);
                open.spawn(converse(stream, peer, pages.clone()));
            }
            Err(error) => {
                // Out of descriptors, or the peer gave up while queued: the queue is still there in a moment.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        while open.try_join_next().is_some() {}
    }
}

/// One connection. What goes wrong on it is its client's own affair.
fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    pages: Router,
) -> impl Future<Output = ()> + Send {
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = pages.clone().oneshot(request);
        async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    async move {
        let mut connection = std::pin::pin!(connection);
        if tokio::time::timeout(LIFE, connection.as_mut()).await.is_err() {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(GRACE, connection).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::Instant;

    use super::*;

    const REQUEST: &[u8] = b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n";

    /// The client's end of a connection; it takes in no more of what it does not read than a socket would.
    fn client() -> DuplexStream {
        let (near, far) = tokio::io::duplex(1 << 12);
        let pages = Router::new()
            .route("/who", get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.to_string() }))
            .route("/much", get(|| async { "x".repeat(1 << 20) }));
        tokio::spawn(converse(far, "10.0.0.9:1234".parse().unwrap(), pages));
        near
    }

    /// Reads until the connection ends; when that was, and what was read.
    async fn end(client: &mut DuplexStream) -> (Duration, String) {
        let begun = Instant::now();
        let mut said = Vec::new();
        let all = tokio::time::timeout(Duration::from_secs(36_000), client.read_to_end(&mut said)).await;
        let _ = all.expect("an end");
        (begun.elapsed(), String::from_utf8_lossy(&said).into_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_says_nothing_half_a_request_or_nothing_more_is_let_go() {
        for (said, answers) in [(&b""[..], 0), (&REQUEST[..20], 0), (REQUEST, 1)] {
            let mut client = client();
            client.write_all(said).await.unwrap();
            let (after, answer) = end(&mut client).await;
            assert!((HEAD..HEAD * 2).contains(&after), "{after:?}");
            assert_eq!(answer.matches("200 OK").count(), answers, "{answer}");
            assert_eq!(answer.matches("10.0.0.9:1234").count(), answers, "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_on_and_on_or_does_not_read_is_let_go_at_the_age_of_connections() {
        let begun = Instant::now();
        let mut busy = client();
        let mut answer = [0; 4096];
        while busy.write_all(REQUEST).await.is_ok() && busy.read(&mut answer).await.is_ok_and(|read| read > 0)
        {
            assert!(begun.elapsed() <= LIFE + GRACE, "it goes on and on");
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        assert!(begun.elapsed() >= LIFE);

        let mut deaf = client();
        deaf.write_all(b"GET /much HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        tokio::time::sleep(LIFE + GRACE + GRACE).await;
        let (after, answer) = end(&mut deaf).await;
        assert_eq!(after, Duration::ZERO);
        assert!(answer.len() < 1 << 20, "{}", answer.len());
    }
}
