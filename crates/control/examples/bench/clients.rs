//! Node proxies that only count: each on a connection of its own, acknowledging what it gets as a proxy does.

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use prost::Message;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic::transport::Endpoint;
use tonic::{Request, Status};
use wire::type_url::{ADDRESS, AUTHORIZATION};
use wire::xds::{DeltaDiscoveryRequest, Node};

use crate::process::now;

/// What a client looks at of a response; resources are skipped over.
#[derive(Clone, PartialEq, Message)]
struct Looked {
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
}

#[derive(Clone, Copy, Default)]
struct Counting;

impl Codec for Counting {
    type Encode = DeltaDiscoveryRequest;
    type Decode = Bytes;
    type Encoder = tonic_prost::ProstEncoder<DeltaDiscoveryRequest>;
    type Decoder = Raw;

    fn encoder(&mut self) -> Self::Encoder {
        tonic_prost::ProstEncoder::new(tonic::codec::BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        Raw
    }
}

struct Raw;

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Pushes that all have had, and when the last of them had each.
#[derive(Default)]
struct Board {
    /// By number of the push: how many clients have it, and since when the last one.
    had: parking_lot::Mutex<Vec<(usize, u64)>>,
    bytes: AtomicU64,
    connected: AtomicUsize,
    news: Notify,
}

/// How the clients call.
pub struct Calls {
    /// Where the server is, and what it must prove.
    pub endpoint: Endpoint,
    /// A token for each client.
    pub tokens: Vec<String>,
    /// What must live as long as they do.
    pub beside: Option<lab::api::Server>,
}

/// Runs the clients from the first question on; answers each number on standard input, once all have had so many pushes, with when that was
/// and the bytes that the first client has had.
pub async fn run(calls: Calls) {
    let (board, count) = (Arc::new(Board::default()), calls.tokens.len());
    println!("0");
    let mut begun = false;
    let (asked, mut questions) = mpsc::channel::<usize>(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let Ok(number) = line.trim().parse() else { return };
            if asked.blocking_send(number).is_err() {
                return;
            }
        }
    });
    while let Some(pushes) = questions.recv().await {
        if !std::mem::replace(&mut begun, true) {
            for (index, token) in calls.tokens.iter().enumerate() {
                tokio::spawn(client(calls.endpoint.clone(), token.clone(), index, board.clone()));
            }
        }
        loop {
            let news = board.news.notified();
            let at = board.had.lock().get(pushes - 1).filter(|(have, _)| *have == count).map(|(_, at)| *at);
            if let Some(at) = at {
                println!("{at} {}", board.bytes.load(Ordering::Relaxed));
                break;
            }
            if tokio::time::timeout(Duration::from_secs(600), news).await.is_err() {
                panic!("no push for ten minutes");
            }
        }
    }
    drop(calls.beside);
}

async fn client(endpoint: Endpoint, token: String, index: usize, board: Arc<Board>) {
    let endpoint = endpoint.initial_stream_window_size(4 << 20).initial_connection_window_size(4 << 20);
    let channel = endpoint.connect().await.expect("a connection");
    board.connected.fetch_add(1, Ordering::Relaxed);
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(1 << 30);
    let (requests, sent) = mpsc::channel(16);
    let node = Node {
        id: format!("ztunnel~10.0.0.1~ztunnel-{index}.ambit-system~ambit-system.svc.cluster.local"),
        ..Node::default()
    };
    for type_url in [AUTHORIZATION, ADDRESS] {
        let (node, type_url) = (Some(node.clone()), type_url.to_string());
        let first = DeltaDiscoveryRequest { node, type_url, ..DeltaDiscoveryRequest::default() };
        requests.send(first).await.expect("a stream");
    }
    grpc.ready().await.expect("a connection");
    let mut request = Request::new(ReceiverStream::new(sent));
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
    let path = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
    let path = http::uri::PathAndQuery::from_static(path);
    let mut responses = grpc.streaming(request, path, Counting).await.expect("a stream").into_inner();
    let mut number = 0;
    while let Ok(Some(response)) = responses.message().await {
        let at = now();
        if index == 0 {
            board.bytes.fetch_add(response.len() as u64, Ordering::Relaxed);
        }
        {
            let mut had = board.had.lock();
            if had.len() <= number {
                had.resize(number + 1, (0, 0));
            }
            if let Some((have, last)) = had.get_mut(number) {
                (*have, *last) = (*have + 1, (*last).max(at));
            }
        }
        number += 1;
        board.news.notify_waiters();
        let looked = Looked::decode(response).expect("a response");
        let ack = DeltaDiscoveryRequest {
            type_url: looked.type_url,
            response_nonce: looked.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        if requests.send(ack).await.is_err() {
            return;
        }
    }
}
