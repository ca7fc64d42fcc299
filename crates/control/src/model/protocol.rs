//! What is spoken on a port (reference/control-plane.md §1.7).

use mesh::AppProtocol;

use crate::input::{Port, Protocol};

/// From the declared protocol, else the port's name, else the number of a well-known port.
pub fn app_protocol(port: &Port) -> AppProtocol {
    if port.protocol != Protocol::Tcp {
        return AppProtocol::Unknown;
    }
    match port.app_protocol.as_deref() {
        Some("kubernetes.io/h2c") => return AppProtocol::Http2,
        Some("kubernetes.io/ws") => return AppProtocol::Http11,
        // HTTPS is TLS to a mesh of layer 4.
        Some("kubernetes.io/wss") => return AppProtocol::Tls,
        _ => {}
    }
    let text = port.app_protocol.as_deref().unwrap_or(&port.name).to_ascii_lowercase();
    if text.starts_with("grpc-web") {
        return AppProtocol::Unknown;
    }
    match text.split('-').next().unwrap_or_default() {
        "http" => AppProtocol::Http11,
        "http2" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tcp" => AppProtocol::Tcp,
        "tls" | "https" => AppProtocol::Tls,
        "mongo" | "redis" | "mysql" | "udp" => AppProtocol::Unknown,
        _ if matches!(port.port, 25 | 53 | 3306 | 27017) => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}
