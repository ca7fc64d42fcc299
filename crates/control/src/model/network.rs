//! Gateways of other networks: the way to what lives there (reference/control-plane.md §1.8).

use std::net::IpAddr;
use std::sync::Arc;

use mesh::{GatewayTarget, Identity, IdentityError, NetworkAddress, ServiceKey, Uid, Workload};

use super::Settings;
use crate::input::{self, Address, Key, REMOTE};

/// A gateway through which a network is entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkGateway {
    /// The network it leads into.
    pub network: Arc<str>,
    /// Namespace and account of its instances, which its certificate names.
    pub account: Key,
    /// Where it is.
    pub address: Address,
    /// Port of its tunnels.
    pub port: u16,
}

/// The gateways that a Gateway stands for: each of its addresses, at the port of its first listener for tunnels.
pub fn network_gateways(gateway: &input::Gateway) -> Vec<NetworkGateway> {
    let Some(network) = gateway.network.as_ref().filter(|network| !network.is_empty()) else {
        return Vec::new();
    };
    let Some(listener) = gateway.listeners.iter().find(|listener| listener.protocol == "HBONE") else {
        return Vec::new();
    };
    if &*gateway.class != REMOTE || listener.port == 0 {
        return Vec::new();
    }
    let generated = || format!("{}-{REMOTE}", gateway.key.name).into();
    let account = Key::new(gateway.key.namespace.clone(), gateway.account.clone().unwrap_or_else(generated));
    let at = |address: &Address| NetworkGateway {
        network: network.clone(),
        account: account.clone(),
        address: address.clone(),
        port: listener.port,
    };
    gateway.addresses.iter().map(at).collect()
}

impl NetworkGateway {
    /// Unique name of the workload that it is.
    pub fn uid(&self) -> Uid {
        let address = match &self.address {
            Address::Hostname(name) => name.to_string(),
            Address::Ip(ip) => ip.to_string(),
        };
        mesh::Gateway::network_uid(&self.network, &address, self.port)
    }

    /// How workloads of its network name it.
    pub fn target(&self) -> mesh::Gateway {
        let target = match &self.address {
            Address::Hostname(name) => {
                GatewayTarget::Hostname(ServiceKey::new(self.account.namespace.clone(), name.clone()))
            }
            Address::Ip(ip) => GatewayTarget::Address(NetworkAddress::new(self.network.clone(), *ip)),
        };
        mesh::Gateway { target, hbone_port: self.port }
    }

    /// The workload that it is: without it no proxy knows whom to expect there.
    pub fn workload(&self, settings: &Settings) -> Result<Workload, IdentityError> {
        let Key { namespace, name } = self.account.clone();
        let identity = Identity::new(settings.trust_domain.clone(), namespace, name)?;
        let uid = self.uid();
        let mut workload = Workload::new(uid.clone(), uid, identity);
        workload.network = self.network.clone();
        workload.cluster = settings.cluster.clone();
        // As of every workload that is no pod's: nothing is known of an application.
        workload.canonical_name = "".into();
        workload.canonical_revision = "".into();
        workload.workload_name = "".into();
        match &self.address {
            Address::Hostname(name) => workload.hostname = Some(name.clone()),
            Address::Ip(ip) => workload.addresses = vec![IpAddr::to_canonical(ip)],
        }
        Ok(workload)
    }
}
