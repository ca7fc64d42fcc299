//! Addresses as the mesh knows them: an IP within a network, and blocks of them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// An IP address within a network. The same IP on another network is another place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// Name of the network; empty is the default network.
    pub network: Arc<str>,
    /// The address, never IPv4-mapped.
    pub ip: IpAddr,
}

impl NetworkAddress {
    /// `ip` on `network`, v4-mapped addresses unmapped.
    pub fn new(network: impl Into<Arc<str>>, ip: IpAddr) -> Self {
        Self { network: network.into(), ip: ip.to_canonical() }
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.ip)
    }
}

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr(ipnet::IpNet);

/// Why a block of addresses is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no address block: write an IP address or address/prefix length")]
pub struct CidrError {
    /// What was given.
    pub text: String,
}

impl Cidr {
    /// `address/prefix`, host bits cleared. A prefix longer than the address is refused.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, CidrError> {
        ipnet::IpNet::new(address, prefix)
            .map(|net| Self(net.trunc()))
            .map_err(|_| CidrError { text: format!("{address}/{prefix}") })
    }

    /// Whether `ip` lies within.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(&ip.to_canonical())
    }

    /// Prefix length in bits.
    pub fn prefix(&self) -> u8 {
        self.0.prefix_len()
    }

    /// The first address of the block.
    pub fn network(&self) -> IpAddr {
        self.0.network()
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || CidrError { text: text.chars().take(100).collect() };
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self(ipnet::IpNet::from(ip)));
        }
        text.parse::<ipnet::IpNet>().map(|net| Self(net.trunc())).map_err(|_| error())
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
