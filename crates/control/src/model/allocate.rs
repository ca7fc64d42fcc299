//! Addresses for ServiceEntries that have none (reference/control-plane.md §1.5): one IPv4 of `240.240.0.0/16` and one
//! IPv6 of `2001:2::/48` a host.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use crate::input::ServiceEntry;

/// Addresses of the block, without its first and last.
const ROOM: u32 = 0xfffe;

fn pair(slot: u32) -> [IpAddr; 2] {
    let [_, _, high, low] = slot.to_be_bytes();
    let v6 = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, u16::from_be_bytes([high, low]));
    [IpAddr::V4(Ipv4Addr::new(240, 240, high, low)), IpAddr::V6(v6)]
}

/// What a ServiceEntry is to have, host by host: what it has and `keeps` stays, the rest is given from what is `free`,
/// first tried where the host's hash says, so that replicas agree.
pub fn allocation(
    entry: &ServiceEntry,
    keeps: impl Fn(&IpAddr) -> bool,
    free: impl Fn(&IpAddr) -> bool,
) -> Vec<(Arc<str>, IpAddr)> {
    if !entry.wants_addresses() {
        return Vec::new();
    }
    let mut given: Vec<(Arc<str>, IpAddr)> = Vec::new();
    let mut used: HashSet<IpAddr> = HashSet::new();
    for host in &entry.hosts {
        let have = entry.allocated.get(host).map(Vec::as_slice).unwrap_or_default();
        let kept = match have {
            [first, second] if have.iter().all(&keeps) => Some([*first, *second]),
            _ => None,
        };
        let start = (xxh64(format!("{}/{host}", entry.key.namespace).as_bytes(), 0) % u64::from(ROOM)) as u32;
        let fresh = || {
            let mut slots = (0..ROOM).map(|step| pair((start + step) % ROOM + 1));
            slots.find(|pair| pair.iter().all(|ip| free(ip) && !used.contains(ip)))
        };
        let Some(pair) = kept.or_else(fresh) else {
            tracing::error!(service_entry = %entry.key, %host, "no address is left for it");
            continue;
        };
        used.extend(pair);
        given.extend(pair.map(|ip| (host.clone(), ip)));
    }
    given
}
