//! How a waypoint or a network gateway is named.

use std::sync::Arc;

use crate::{NetworkAddress, ServiceKey, Uid};

/// Where a waypoint or network gateway is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gateway {
    /// By service name or by address.
    pub target: GatewayTarget,
    /// The port its HBONE listener has: a service port when found by name.
    pub hbone_port: u16,
}

impl Gateway {
    /// Unique name of the workload that a gateway of another network is.
    pub fn network_uid(network: &str, address: &str, port: u16) -> Uid {
        format!("NetworkGateway/{network}/{address}/{port}").into()
    }
}

/// The two ways to name a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GatewayTarget {
    /// A service or workload with this namespace and hostname.
    Hostname(ServiceKey),
    /// A service VIP or a workload's address.
    Address(NetworkAddress),
}

impl GatewayTarget {
    /// Text as in dumps: `namespace/hostname` or `network/ip`.
    pub fn label(&self) -> Arc<str> {
        match self {
            Self::Hostname(key) => key.to_string().into(),
            Self::Address(address) => address.to_string().into(),
        }
    }
}
