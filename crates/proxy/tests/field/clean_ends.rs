//! A server that ends in good order is seen to end in good order, even when its pod goes right afterwards.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{World, log};
use crate::namespaces::in_a_node;

const CLIENTS: usize = 50;
/// So many of them have not read their last answer when the server ends.
const SLOW: usize = 10;
const LAST: usize = 64 << 10;

#[test]
fn clients_of_a_drained_server_see_every_byte_and_then_its_end() {
    in_a_node(|node| async move {
        let World { a, b, pa, pb, control: _control, .. } = World::new(&node).await;
        let to = b.at(8080);
        let listener = b.listen(8080);
        let mut clients = Vec::new();
        let mut servers = Vec::new();
        for _ in 0..CLIENTS {
            let mut client = a.connect(to).await.unwrap();
            client.write_all(b"first").await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            server.read_exact(&mut [0; 5]).await.unwrap();
            server.write_all(b"kept alive").await.unwrap();
            client.read_exact(&mut [0; 10]).await.unwrap();
            clients.push(client);
            servers.push(server);
        }
        // SIGTERM: what is owed is answered, then each connection ends with FIN.
        for (number, server) in servers.iter_mut().enumerate() {
            if number < SLOW {
                server.write_all(&vec![7; LAST]).await.unwrap();
            }
            server.shutdown().await.unwrap();
        }
        // 200 ms later the process exits, and its namespace goes with the pod.
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop((servers, listener));
        assert_eq!(pb.agent.delete("b").await, "");
        drop(b);
        for (number, mut client) in clients.into_iter().enumerate() {
            let mut rest = Vec::new();
            let read = tokio::time::timeout(Duration::from_secs(10), client.read_to_end(&mut rest)).await;
            let read = read.unwrap_or_else(|_| panic!("client {number} is left hanging"));
            read.unwrap_or_else(|error| {
                panic!("client {number} of {CLIENTS}: {error} after {} bytes", rest.len())
            });
            assert_eq!(rest.len(), if number < SLOW { LAST } else { 0 }, "client {number}");
        }
        crate::harness::eventually("the client's proxy calls all of it a normal end", async || {
            let metrics = pa.metrics().await;
            let closed = [("response_flags", "-")];
            metrics.sum("istio_tcp_connections_closed_total", &closed) == CLIENTS as u64
        })
        .await;
        let lines = log::lines("outbound", "connection complete");
        assert_eq!(lines.len(), CLIENTS);
        let faults: Vec<_> = lines.iter().filter_map(|line| line.get("error")).collect();
        assert!(faults.is_empty(), "{faults:?}");
    });
}
