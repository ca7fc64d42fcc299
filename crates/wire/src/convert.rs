//! Conversions between the wire and the types of [`mesh`].
//!
//! Towards the wire nothing can fail. From the wire everything is judged: what a real client refuses is refused
//! (reference/control-plane.md §11.2), each refusal naming the field.

mod policy;
mod service;
#[cfg(test)]
mod tests;
mod workload;

use std::net::IpAddr;
use std::sync::Arc;

use mesh::{Gateway, GatewayTarget, NetworkAddress, ServiceKey};

use crate::workload as pb;

/// Why a resource of a peer cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct ConvertError {
    /// Path of the field, such as `workload.addresses`.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl ConvertError {
    fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self { field, reason: reason.into() }
    }
}

/// A resource of the workload API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A workload.
    Workload(mesh::Workload),
    /// A service.
    Service(mesh::Service),
}

impl TryFrom<pb::Address> for Address {
    type Error = ConvertError;

    fn try_from(address: pb::Address) -> Result<Self, Self::Error> {
        match address.r#type {
            Some(pb::address::Type::Workload(workload)) => workload.try_into().map(Self::Workload),
            Some(pb::address::Type::Service(service)) => service.try_into().map(Self::Service),
            None => Err(ConvertError::new("address.type", "neither a workload nor a service")),
        }
    }
}

impl From<&mesh::Workload> for pb::Address {
    fn from(workload: &mesh::Workload) -> Self {
        Self { r#type: Some(pb::address::Type::Workload(workload.into())) }
    }
}

impl From<&mesh::Service> for pb::Address {
    fn from(service: &mesh::Service) -> Self {
        Self { r#type: Some(pb::address::Type::Service(service.into())) }
    }
}

fn ip_from_bytes(field: &'static str, bytes: &[u8]) -> Result<IpAddr, ConvertError> {
    let ip = if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        IpAddr::from(v4)
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        IpAddr::from(v6).to_canonical()
    } else {
        return Err(ConvertError::new(field, format!("an address has 4 or 16 bytes, not {}", bytes.len())));
    };
    Ok(ip)
}

fn ip_to_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn port(field: &'static str, port: u32) -> Result<u16, ConvertError> {
    u16::try_from(port).map_err(|_| ConvertError::new(field, format!("{port} is no port")))
}

/// An enum of the wire by number; an unknown number is refused.
fn known<T: TryFrom<i32>>(field: &'static str, number: i32) -> Result<T, ConvertError> {
    T::try_from(number).map_err(|_| ConvertError::new(field, format!("unknown value {number}")))
}

fn gateway(field: &'static str, gateway: pb::GatewayAddress) -> Result<Gateway, ConvertError> {
    use pb::gateway_address::Destination;
    let target = match gateway.destination {
        Some(Destination::Hostname(name)) => {
            GatewayTarget::Hostname(ServiceKey::new(name.namespace, name.hostname))
        }
        Some(Destination::Address(address)) => {
            let ip = ip_from_bytes(field, &address.address)?;
            GatewayTarget::Address(NetworkAddress::new(address.network, ip))
        }
        None => return Err(ConvertError::new(field, "a gateway needs a destination")),
    };
    Ok(Gateway { target, hbone_port: port(field, gateway.hbone_mtls_port)? })
}

fn gateway_to_wire(gateway: &Gateway) -> pb::GatewayAddress {
    use pb::gateway_address::Destination;
    let destination = match &gateway.target {
        GatewayTarget::Hostname(key) => Destination::Hostname(pb::NamespacedHostname {
            namespace: key.namespace.to_string(),
            hostname: key.hostname.to_string(),
        }),
        GatewayTarget::Address(address) => Destination::Address(network_address(address)),
    };
    pb::GatewayAddress { destination: Some(destination), hbone_mtls_port: gateway.hbone_port.into() }
}

fn network_address(address: &NetworkAddress) -> pb::NetworkAddress {
    pb::NetworkAddress {
        network: address.network.to_string(),
        address: ip_to_bytes(address.ip),
        length: None,
    }
}

fn or_default(text: String, default: &str) -> Arc<str> {
    if text.is_empty() { default.into() } else { text.into() }
}
