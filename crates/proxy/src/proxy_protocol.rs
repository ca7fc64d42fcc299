//! The PROXY protocol header, version 2, that precedes a stream to the application of a waypoint: who called, what was
//! asked for, and the identity that the caller proved (reference/data-plane.md §5.2).

use std::net::{IpAddr, SocketAddr};

use mesh::Identity;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
const UNSPECIFIED: u8 = 0x00;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
/// Type of the value that holds the caller's identity as text.
const IDENTITY: u8 = 0xd0;

/// The header. Addresses of two families cannot stand in one header: then it holds none.
pub(crate) fn header(source: SocketAddr, destination: SocketAddr, identity: Option<&Identity>) -> Vec<u8> {
    let mut body = Vec::with_capacity(128);
    let family = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            body.extend(from.octets());
            body.extend(to.octets());
            TCP4
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            body.extend(from.octets());
            body.extend(to.octets());
            TCP6
        }
        _ => UNSPECIFIED,
    };
    if family != UNSPECIFIED {
        body.extend(source.port().to_be_bytes());
        body.extend(destination.port().to_be_bytes());
    }
    let identity = identity.map(ToString::to_string).unwrap_or_default();
    if let (false, Ok(length)) = (identity.is_empty(), u16::try_from(identity.len())) {
        body.push(IDENTITY);
        body.extend(length.to_be_bytes());
        body.extend(identity.as_bytes());
    }
    let mut header = SIGNATURE.to_vec();
    header.extend([PROXY, family]);
    // Names of Kubernetes are far shorter than what fits.
    header.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
    header.extend(body);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_and_the_proven_identity_stand_in_the_header() {
        let identity: Identity = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let bytes =
            header("10.0.0.1:1000".parse().unwrap(), "10.96.0.1:80".parse().unwrap(), Some(&identity));
        assert_eq!(&bytes[..12], b"\r\n\r\n\x00\r\nQUIT\n");
        assert_eq!(bytes[12..14], [0x21, 0x11]);
        assert_eq!(usize::from(u16::from_be_bytes([bytes[14], bytes[15]])), bytes.len() - 16);
        assert_eq!(bytes[16..28], [10, 0, 0, 1, 10, 96, 0, 1, 3, 232, 0, 80]);
        assert_eq!(bytes[28..31], [0xd0, 0, 21]);
        assert_eq!(&bytes[31..], b"spiffe://td/ns/a/sa/b");
    }

    #[test]
    fn ipv6_has_a_form_of_its_own_and_mixed_families_have_none() {
        let six = header("[2001:db8::1]:1".parse().unwrap(), "[2001:db8::2]:2".parse().unwrap(), None);
        assert_eq!((six[13], six.len()), (0x21, 16 + 36));
        let mixed = header("10.0.0.1:1".parse().unwrap(), "[2001:db8::2]:2".parse().unwrap(), None);
        assert_eq!((mixed[13], mixed.len()), (0x00, 16));
    }
}
