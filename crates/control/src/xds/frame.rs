//! A response, written from resources that are serialized already.
//!
//! The generated type would copy every resource into messages of its own, once for each client; this writes the
//! shared bytes straight into the buffer that goes to the socket. It is field for field a `DeltaDiscoveryResponse`
//! (reference/control-plane.md §0.2); the tests read it back with the generated type.

use std::sync::Arc;

use bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::ProstDecoder;
use wire::xds::DeltaDiscoveryRequest;

use crate::state::{Name, Resource};

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
}

impl Push {
    /// Length of the message in bytes.
    pub fn len(&self) -> usize {
        let field = |tag: u32, len: usize| key_len(tag) + encoded_len_varint(len as u64) + len;
        let text = |tag: u32, text: &str| if text.is_empty() { 0 } else { field(tag, text.len()) };
        text(1, &self.version)
            + self.resources.iter().map(|resource| field(2, resource.bytes.len())).sum::<usize>()
            + text(4, self.type_url)
            + text(5, &self.nonce)
            + self.removed.iter().map(|name| field(6, name.len())).sum::<usize>()
    }

    /// Whether there is nothing in it, not even a version.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn write(&self, buffer: &mut impl BufMut) {
        fn field(buffer: &mut impl BufMut, tag: u32, bytes: &[u8]) {
            encode_key(tag, WireType::LengthDelimited, buffer);
            encode_varint(bytes.len() as u64, buffer);
            buffer.put_slice(bytes);
        }
        let text = |buffer: &mut _, tag, text: &str| {
            if !text.is_empty() {
                field(buffer, tag, text.as_bytes());
            }
        };
        text(buffer, 1, &self.version);
        for resource in &self.resources {
            field(buffer, 2, &resource.bytes);
        }
        text(buffer, 4, self.type_url);
        text(buffer, 5, &self.nonce);
        for name in &self.removed {
            field(buffer, 6, name.as_bytes());
        }
    }
}

/// Reads requests, writes [`Push`]es.
#[derive(Clone, Copy, Debug, Default)]
pub struct PushCodec;

impl Codec for PushCodec {
    type Encode = Push;
    type Decode = DeltaDiscoveryRequest;
    type Encoder = PushEncoder;
    type Decoder = ProstDecoder<DeltaDiscoveryRequest>;

    fn encoder(&mut self) -> Self::Encoder {
        PushEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::default())
    }
}

/// Writes [`Push`]es.
#[derive(Clone, Copy, Debug)]
pub struct PushEncoder;

impl Encoder for PushEncoder {
    type Item = Push;
    type Error = Status;

    fn encode(&mut self, push: Push, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(push.len());
        push.write(buffer);
        Ok(())
    }
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
        };
        let mut bytes = Vec::new();
        push.write(&mut bytes);
        assert_eq!(bytes.len(), push.len());
        let read = DeltaDiscoveryResponse::decode(&bytes[..]).unwrap();
        assert_eq!((read.system_version_info.as_str(), read.nonce.as_str()), ("v7", "n1"));
        assert_eq!(read.removed_resources, ["shop/old.shop.svc.cluster.local"]);
        assert_eq!(read.type_url, wire::type_url::ADDRESS);
        assert_eq!(read.resources.len(), 2);
        assert_eq!(read.resources[0].name, "shop/web.shop.svc.cluster.local");
        assert_eq!(read.resources[0].version, *resource.version);
        assert_eq!(read.resources[0].resource.as_ref().unwrap().type_url, wire::type_url::ADDRESS);
    }
}
