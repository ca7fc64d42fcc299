//! A server that has said all and goes, tunnel and all.

use bytes::Bytes;
use tokio::io::AsyncReadExt;

use crate::early::{asked, saying, soon, tunnel, world};
use crate::harness::{eventually, log};
use crate::namespaces::in_a_node;
use crate::stack::send_all;

#[test]
fn a_server_that_said_all_and_is_gone_has_ended_in_good_order() {
    in_a_node(|node| async move {
        let (world, listener) = world(&node, &[]).await;
        let mut client = saying(&world, b"?").await;
        let mut server = soon(tunnel(&world, &listener)).await;
        let (request, mut respond) = soon(server.accept()).await.unwrap().unwrap();
        let mut send = respond.send_response(http::Response::new(()), false).unwrap();
        // It says all, and goes; the client has not ended its own direction meanwhile.
        let served = tokio::spawn(async move { while server.accept().await.is_some() {} });
        send_all(&mut send, Bytes::from(vec![7; 60_000])).await;
        let mut all = Vec::new();
        soon(client.read_to_end(&mut all)).await.unwrap();
        assert_eq!(all.len(), 60_000, "every byte, and then the end");
        served.abort();
        assert!(served.await.unwrap_err().is_cancelled(), "the tunnel is closed");
        eventually("the connection is told of, though the client still holds it", async || {
            !lines().is_empty()
        })
        .await;
        assert_eq!(lines()[0].get("error"), None, "and is called no failure");
        drop((client, request, send, respond));
        // Another call finds that the tunnel is gone.
        let _other = saying(&world, b"?").await;
        let _asked = asked(&world, &listener).await;
    });
}

fn lines() -> Vec<std::collections::BTreeMap<String, String>> {
    log::lines("outbound", "connection complete")
}
