//! TLS before the control plane, as in production: a foreign proxy speaks nothing else to it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::control::Control;

/// Takes connections at any port of `address` and passes what is in them to `control` at `behind`; the port.
pub async fn start(control: &Control, address: IpAddr, behind: SocketAddr) -> anyhow::Result<u16> {
    let (certificate, key) = control.serving_certificate(address);
    let mut config =
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((address, 0)).await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut near = acceptor.accept(socket).await?;
                let mut far = TcpStream::connect(behind).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            });
        }
    });
    Ok(port)
}
