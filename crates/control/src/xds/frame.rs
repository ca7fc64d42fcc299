//! A response, written from resources that are serialized already.
//!
//! The generated type would copy every resource into messages of its own, once for each client; this writes the
//! shared bytes straight into the buffer that goes to the socket. It is field for field a `DeltaDiscoveryResponse`
//! (reference/control-plane.md §0.2); the tests read it back with the generated type.

use std::sync::Arc;

use bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::state::{Link, Name, Resource};

/// A response on a delta stream.
#[derive(Clone, Debug, Default)]
pub struct Push {
    /// State of the whole it was made from.
    pub version: String,
    /// Type of the resources.
    pub type_url: &'static str,
    /// What the client answers with.
    pub nonce: String,
    /// New and changed resources.
    pub resources: Vec<Arc<Resource>>,
    /// Names that are gone.
    pub removed: Vec<Name>,
    /// Whether resources say by what other names they go, as clients that ask by name need it.
    pub aliases: bool,
}

impl Push {
    /// Length of the message in bytes.
    pub fn len(&self) -> usize {
        let field = |tag: u32, len: usize| key_len(tag) + encoded_len_varint(len as u64) + len;
        let text = |tag: u32, text: &str| if text.is_empty() { 0 } else { field(tag, text.len()) };
        text(1, &self.version)
            + self.resources.iter().map(|resource| field(2, self.resource_len(resource))).sum::<usize>()
            + text(4, self.type_url)
            + text(5, &self.nonce)
            + self.removed.iter().map(|name| field(6, name.len())).sum::<usize>()
    }

    /// Whether there is nothing in it, not even a version.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes everything but resources and removed names; those follow one by one, in whatever order.
    pub(super) fn write_head(&self, buffer: &mut impl BufMut) {
        let mut text = |tag, text: &str| {
            if !text.is_empty() {
                field(buffer, tag, text.as_bytes());
            }
        };
        text(1, &self.version);
        text(4, self.type_url);
        text(5, &self.nonce);
    }

    /// Length of a resource. A message may be continued by fields that are written behind it.
    fn resource_len(&self, resource: &Resource) -> usize {
        let alias = |name: &Name| key_len(4) + encoded_len_varint(name.len() as u64) + name.len();
        let aliases = resource.links(Link::Alias).filter(|_| self.aliases).map(alias).sum::<usize>();
        resource.bytes.len() + aliases
    }

    pub(super) fn write_resource(&self, resource: &Resource, buffer: &mut impl BufMut) {
        encode_key(2, WireType::LengthDelimited, buffer);
        encode_varint(self.resource_len(resource) as u64, buffer);
        buffer.put_slice(&resource.bytes);
        for alias in resource.links(Link::Alias).filter(|_| self.aliases) {
            field(buffer, 4, alias.as_bytes());
        }
    }

    pub(super) fn write_removed(name: &str, buffer: &mut impl BufMut) {
        field(buffer, 6, name.as_bytes());
    }
}

fn field(buffer: &mut impl BufMut, tag: u32, bytes: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(bytes.len() as u64, buffer);
    buffer.put_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use wire::xds::DeltaDiscoveryResponse;

    #[test]
    fn a_push_reads_back_as_a_delta_response() {
        let service = mesh::Service::new("web", mesh::ServiceKey::new("shop", "web.shop.svc.cluster.local"));
        let resource = Arc::new(Resource::service(&service));
        let push = Push {
            version: "v7".into(),
            type_url: wire::type_url::ADDRESS,
            nonce: "n1".into(),
            resources: vec![resource.clone(), resource.clone()],
            removed: vec!["shop/old.shop.svc.cluster.local".into()],
            aliases: false,
        };
        let length = push.len();
        let mut writing = super::super::body::Writing::new(push);
        let message = std::iter::from_fn(|| writing.piece()).collect::<Vec<_>>().concat();
        assert_eq!(message[..5], [&[0][..], &(length as u32).to_be_bytes()].concat());
        assert_eq!(message.len(), length + 5);
        let read = DeltaDiscoveryResponse::decode(&message[5..]).unwrap();
        assert_eq!((read.system_version_info.as_str(), read.nonce.as_str()), ("v7", "n1"));
        assert_eq!(read.removed_resources, ["shop/old.shop.svc.cluster.local"]);
        assert_eq!(read.type_url, wire::type_url::ADDRESS);
        assert_eq!(read.resources.len(), 2);
        assert_eq!(read.resources[0].name, "shop/web.shop.svc.cluster.local");
        assert_eq!(read.resources[0].version, *resource.version);
        assert_eq!(read.resources[0].resource.as_ref().unwrap().type_url, wire::type_url::ADDRESS);
    }

    #[test]
    fn a_client_that_asks_by_name_reads_the_other_names_of_a_resource() {
        let mut service =
            mesh::Service::new("web", mesh::ServiceKey::new("shop", "web.shop.svc.cluster.local"));
        service.vips = vec![mesh::NetworkAddress::new("n", "10.1.0.1".parse().unwrap())];
        service.cidr_vips = vec![("".into(), "10.2.0.0/16".parse().unwrap())];
        let resources = vec![Arc::new(Resource::service(&service))];
        for aliases in [true, false] {
            let push = Push { aliases, resources: resources.clone(), ..Push::default() };
            let length = push.len();
            let mut writing = super::super::body::Writing::new(push);
            let message = std::iter::from_fn(|| writing.piece()).collect::<Vec<_>>().concat();
            assert_eq!(message.len(), length + 5);
            let read = DeltaDiscoveryResponse::decode(&message[5..]).unwrap();
            let wanted: &[&str] = if aliases { &["n/10.1.0.1", "/10.2.0.0/16"] } else { &[] };
            assert_eq!(read.resources[0].aliases, wanted);
            assert_eq!(read.resources[0].name, "shop/web.shop.svc.cluster.local");
        }
    }

    #[test]
    fn a_large_push_is_written_in_pieces() {
        let service = mesh::Service::new("web", mesh::ServiceKey::new("shop", "web.shop.svc.cluster.local"));
        let resource = Arc::new(Resource::service(&service));
        let resources = std::iter::repeat_n(resource, 10_000).collect();
        let push = Push { type_url: wire::type_url::ADDRESS, resources, ..Push::default() };
        let length = push.len();
        let mut writing = super::super::body::Writing::new(push);
        let pieces: Vec<bytes::Bytes> = std::iter::from_fn(|| writing.piece()).collect();
        assert!(pieces.len() > 5 && pieces.iter().all(|piece| piece.len() < 80_000));
        let message = pieces.concat();
        assert_eq!(message.len(), length + 5);
        assert_eq!(DeltaDiscoveryResponse::decode(&message[5..]).unwrap().resources.len(), 10_000);
    }
}
