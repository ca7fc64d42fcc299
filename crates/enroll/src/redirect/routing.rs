//! The routing half of the redirection: packets with the connection mark are delivered locally.
//!
//! `ip rule add fwmark 0x111/0xfff lookup 100 priority 32764` and `ip route add local default dev lo table 100`,
//! for each family, spoken over netlink.

use std::io;

use netns::NetNs;
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::{CONN_MARK, Error, MARK_MASK};
use crate::netlink::{CREATE, EXCLUSIVE, Netlink, REPLACE, put};

const TABLE: u8 = 100;
const PRIORITY: u32 = 32764;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTN_LOCAL: u8 = 2;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_HOST: u8 = 254;
const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;
const FR_ACT_TO_TBL: u8 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const V4: u8 = libc::AF_INET as u8;
const V6: u8 = libc::AF_INET6 as u8;
/// The loopback interface is the first of every network namespace.
const LOOPBACK: u32 = 1;

/// Adds rule and route; what is there already is left as it is.
pub(super) fn add(namespace: &NetNs, ipv6: bool) -> Result<(), Error> {
    let mut netlink = open(namespace)?;
    for family in families(namespace, ipv6) {
        netlink
            .request(RTM_NEWROUTE, CREATE | REPLACE, &route(family))
            .map_err(|source| Error::Routing { what: "add the local route of table 100", source })?;
        match netlink.request(RTM_NEWRULE, CREATE | EXCLUSIVE, &rule(family)) {
            Err(error) if error.raw_os_error() == Some(Errno::EEXIST as i32) => {}
            result => {
                result.map_err(|source| Error::Routing { what: "add the rule for table 100", source })?
            }
        }
    }
    Ok(())
}

/// Removes rule and route of both families; what is not there is no error.
pub(super) fn remove(namespace: &NetNs) -> Result<(), Error> {
    let mut netlink = open(namespace)?;
    let mut failed = None;
    for family in [V4, V6] {
        // A predecessor that was interrupted may have added the rule more than once.
        for _ in 0..16 {
            match netlink.request(RTM_DELRULE, 0, &rule(family)) {
                Ok(()) => {}
                Err(error) if is_absent(&error) => break,
                Err(source) => {
                    failed = Some(Error::Routing { what: "remove the rule for table 100", source });
                    break;
                }
            }
        }
        match netlink.request(RTM_DELROUTE, 0, &route(family)) {
            Err(error) if !is_absent(&error) => {
                failed = Some(Error::Routing { what: "remove the local route of table 100", source: error });
            }
            _ => {}
        }
    }
    failed.map_or(Ok(()), Err)
}

fn open(namespace: &NetNs) -> Result<Netlink, Error> {
    Netlink::open(namespace, SockProtocol::NetlinkRoute)
        .map_err(|source| Error::Routing { what: "open a netlink socket", source })
}

fn families(namespace: &NetNs, ipv6: bool) -> Vec<u8> {
    if ipv6 && has_ipv6(namespace) { vec![V4, V6] } else { vec![V4] }
}

/// Whether IPv6 can be used in a namespace at all.
pub(super) fn has_ipv6(namespace: &NetNs) -> bool {
    namespace
        .run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6"))
        .is_ok_and(|flag| flag.is_ok_and(|flag| flag.trim() == "0"))
}

fn is_absent(error: &io::Error) -> bool {
    let absent = [Errno::ENOENT, Errno::ESRCH, Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP, Errno::ENODEV];
    error.raw_os_error().is_some_and(|code| absent.iter().any(|errno| *errno as i32 == code))
}

fn route(family: u8) -> Vec<u8> {
    let mut body = vec![family, 0, 0, 0, TABLE, RTPROT_BOOT, RT_SCOPE_HOST, RTN_LOCAL, 0, 0, 0, 0];
    put(&mut body, RTA_OIF, &LOOPBACK.to_ne_bytes());
    put(&mut body, RTA_TABLE, &u32::from(TABLE).to_ne_bytes());
    body
}

fn rule(family: u8) -> Vec<u8> {
    let mut body = vec![family, 0, 0, 0, TABLE, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
    put(&mut body, FRA_PRIORITY, &PRIORITY.to_ne_bytes());
    put(&mut body, FRA_FWMARK, &CONN_MARK.to_ne_bytes());
    put(&mut body, FRA_FWMASK, &MARK_MASK.to_ne_bytes());
    put(&mut body, FRA_TABLE, &u32::from(TABLE).to_ne_bytes());
    body
}
