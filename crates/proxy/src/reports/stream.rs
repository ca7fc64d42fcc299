//! The stream to the observer: gRPC over mutual TLS under the proxy's own identity. It is dialled again, with back-off,
//! for as long as the proxy lives.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh::Identity;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use wire::flow::flow_stream_client::FlowStreamClient;
use wire::flow::{FromProxy, Hello, Welcome, from_observer, from_proxy};

use super::outbox::Dictionary;
use super::{Reports, unix_ms};
use crate::certs::Certs;
use crate::grpc::text_of;

const CONNECT: Duration = Duration::from_secs(5);
const GREETING: Duration = Duration::from_secs(15);
/// Acks must come within this time, or the stream is dialled anew.
const SILENCE: Duration = Duration::from_secs(60);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Definitions of workloads hold as long as the stream, and the observer bounds them.
const MAX_WORKLOADS: usize = 100_000;

/// The observer, and who we are to it.
pub(crate) struct Observer {
    /// `host:port`.
    pub(crate) address: String,
    /// The identity that it must prove.
    pub(crate) expected: Identity,
    /// Our own.
    pub(crate) identity: Identity,
    pub(crate) node: String,
    pub(crate) pod_namespace: String,
    pub(crate) pod_name: String,
    pub(crate) certs: Certs,
    pub(crate) rules: hbone::tls::Rules,
}

impl Observer {
    /// Brings batches there, for ever.
    pub(super) async fn serve(&self, reports: &Reports) {
        let mut pause = FIRST_RETRY;
        let mut said = String::new();
        loop {
            let reason = self.once(reports, &mut pause, &mut said).await;
            reports.0.connected.store(false, Ordering::Relaxed);
            if reason != said {
                tracing::warn!(observer = self.address, reason, "flows cannot be reported, trying again");
                said = reason;
            }
            sleep(pause.mul_f64(0.8 + 0.4 * rand::random::<f64>())).await;
            pause = (pause * 2).min(LAST_RETRY);
        }
    }

    /// One stream, until it ends; why it did.
    async fn once(&self, reports: &Reports, pause: &mut Duration, said: &mut String) -> String {
        match self.stream(reports, pause, said).await {
            Ok(()) => "the observer ended the stream".to_owned(),
            Err(reason) => reason,
        }
    }

    async fn stream(&self, reports: &Reports, pause: &mut Duration, said: &mut String) -> Result<(), String> {
        let channel = self.connect().await?;
        let (messages, outgoing) = mpsc::channel(4);
        let hello = Hello {
            node: self.node.clone(),
            pod_namespace: self.pod_namespace.clone(),
            pod_name: self.pod_name.clone(),
            epoch: reports.0.outbox.lock().epoch,
            clock_ms: unix_ms(),
            version: format!("ambit {}", env!("CARGO_PKG_VERSION")),
        };
        // There is room for the first.
        let _ = messages.try_send(FromProxy { message: Some(from_proxy::Message::Hello(hello)) });
        let mut client = FlowStreamClient::new(channel);
        let answer = timeout(GREETING, client.push(ReceiverStream::new(outgoing))).await;
        let answer = answer.map_err(|_| format!("no answer to our greeting within {GREETING:?}"))?;
        let mut answers = answer.map_err(|status| text_of(&status))?.into_inner();
        let first = timeout(GREETING, answers.message()).await;
        let first = first.map_err(|_| format!("no welcome within {GREETING:?}"))?;
        let welcome = match first.map_err(|status| text_of(&status))?.and_then(|answer| answer.message) {
            Some(from_observer::Message::Welcome(welcome)) => welcome,
            _ => return Err("it did not say welcome first".into()),
        };
        let Welcome { known, applied, max_pairs, interval_ms, .. } = welcome;
        tracing::info!(observer = self.address, known, applied, max_pairs, interval_ms, "flows are reported");
        reports.0.outbox.lock().welcome(known, applied);
        reports.0.interval_ms.store(interval_ms, Ordering::Relaxed);
        reports.0.connected.store(true, Ordering::Relaxed);
        (*pause, *said) = (FIRST_RETRY, String::new());

        let mut dictionary = Dictionary::bounded(max_pairs);
        while dictionary.workloads() < MAX_WORKLOADS {
            let unsent = reports.0.outbox.lock().has_unsent();
            tokio::select! {
                permit = messages.reserve(), if unsent => {
                    let permit = permit.map_err(|_| "the stream broke".to_owned())?;
                    let batch = reports.0.outbox.lock().next(&mut dictionary, &reports.0.table);
                    if let Some(batch) = batch {
                        permit.send(FromProxy { message: Some(from_proxy::Message::Batch(batch)) });
                    }
                }
                answer = timeout(SILENCE, answers.message()) => {
                    let answer = answer.map_err(|_| format!("nothing was acknowledged within {SILENCE:?}"))?;
                    let Some(answer) = answer.map_err(|status| text_of(&status))? else { return Ok(()) };
                    if let Some(from_observer::Message::Ack(ack)) = answer.message {
                        reports.0.outbox.lock().acknowledge(ack.sequence);
                        reports.0.acknowledged.fetch_add(1, Ordering::Relaxed);
                        reports.0.delivered.notify_waiters();
                        if ack.rows_refused > 0 {
                            reports.0.refused.fetch_add(ack.rows_refused.into(), Ordering::Relaxed);
                            let (rows, reason) = (ack.rows_refused, ack.reason);
                            tracing::debug!(rows, reason, "the observer did not take all rows");
                        }
                    }
                }
                () = reports.0.news.notified(), if !unsent => {}
            }
        }
        Err("it has been told of as many workloads as one stream may name".into())
    }

    async fn connect(&self) -> Result<Channel, String> {
        let credential = self.certs.get(&self.identity).await.map_err(|error| error.to_string())?;
        let config =
            hbone::tls::client_config(&credential, std::slice::from_ref(&self.expected), &self.rules);
        let config = config.map_err(|error| error.to_string())?;
        let address = self.address.clone();
        let dial = move |_: Uri| {
            let (config, address) = (config.clone(), address.clone());
            async move {
                let tcp = timeout(CONNECT, TcpStream::connect(&address)).await;
                let tcp = tcp.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
                tcp.set_nodelay(true)?;
                let peer: SocketAddr = tcp.peer_addr()?;
                // Goes nowhere: SNI is switched off, and identities are what is checked.
                let name = ServerName::IpAddress(peer.ip().into());
                let tls = tokio_rustls::TlsConnector::from(config).connect(name, tcp);
                let tls = timeout(CONNECT, tls).await;
                let tls = tls.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
                Ok::<_, std::io::Error>(TokioIo::new(tls))
            }
        };
        // The scheme is that of HTTP/2 inside; TLS is ours.
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).map_err(|e| text_of(&e))?;
        let endpoint = endpoint
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true);
        let channel = timeout(3 * CONNECT, endpoint.connect_with_connector(tower::service_fn(dial))).await;
        channel.map_err(|_| format!("no connection within {:?}", 3 * CONNECT))?.map_err(|e| text_of(&e))
    }
}
