//! Both ends of a tunnel against each other, in memory.

mod faults;
mod pki;
mod streams;

use std::net::SocketAddr;

use hbone::{Credential, HandshakeError, Server, Settings, Tunnel};
use mesh::Identity;
use tokio::io::DuplexStream;

/// What both ends say of a handshake between `client`, which expects `expected`, and `server`.
async fn handshake(
    client: &Credential,
    server: &Credential,
    expected: &[Identity],
    settings: &Settings,
) -> (Result<Tunnel, HandshakeError>, Result<Server<DuplexStream>, HandshakeError>) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let peer: SocketAddr = "10.0.0.9:15008".parse().unwrap();
    let serving = async {
        let mut server = Server::handshake(far, peer, server, settings).await?;
        // The client waits for an answer inside the tunnel: the server has to move for that.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(200), server.next()).await;
        Ok(server)
    };
    tokio::join!(Tunnel::handshake(near, peer, client, expected, settings), serving)
}
