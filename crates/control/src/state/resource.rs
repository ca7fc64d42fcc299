//! A resource, serialized once and shared by every client.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use wire::{security, type_url, workload, xds};
use xxhash_rust::xxh64::xxh64;

/// Name of a resource in xDS.
pub type Name = Arc<str>;

/// What a resource can be found by, besides its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// An address of it, `network/ip` or `network/ip/length`.
    Alias,
    /// A service that it is a workload of.
    Service,
    /// The node that it runs on.
    Node,
}

/// A resource as it travels: the bytes of an xDS `Resource`, ready to be copied into a response.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Name.
    pub name: Name,
    /// Lower-case hex XXH64 of the content, the same in every replica.
    pub version: Arc<str>,
    /// The serialized xDS `Resource`: name, version and content.
    pub bytes: Bytes,
    /// Whether it is a service.
    pub service: bool,
    pub(super) links: Box<[(Link, Name)]>,
}

impl Resource {
    /// A workload.
    ///
    /// `resend` names services for which the workload must be sent again although it is the same: a ztunnel drops
    /// an unhealthy endpoint as it arrives unless its service takes all, so when the service turns to taking all,
    /// the endpoint needs a new version (reference/control-plane.md §3.5).
    pub fn workload(workload: &mesh::Workload, resend: &[&mesh::ServiceKey]) -> Self {
        let mut salt = 0;
        for service in resend {
            salt = xxh64(service.to_string().as_bytes(), salt);
        }
        let alias = |ip: &std::net::IpAddr| (Link::Alias, format!("{}/{ip}", workload.network).into());
        let service = |key: &mesh::ServiceKey| (Link::Service, key.to_string().into());
        let node = (!workload.node.is_empty()).then(|| (Link::Node, workload.node.clone()));
        let links = workload.addresses.iter().map(alias);
        let links = links.chain(workload.services.keys().map(service)).chain(node).collect();
        let content = workload::Address::from(workload);
        Self { links, ..Self::encode(workload.uid.clone(), type_url::ADDRESS, &content, salt) }
    }

    /// A service.
    pub fn service(service: &mesh::Service) -> Self {
        let name = service.key.to_string().into();
        let vips = service.vips.iter().map(|vip| format!("{}/{}", vip.network, vip.ip));
        let ranges = service.cidr_vips.iter().map(|(network, range)| format!("{network}/{range}"));
        let links = vips.chain(ranges).map(|alias| (Link::Alias, alias.into())).collect();
        let content = workload::Address::from(service);
        Self { links, service: true, ..Self::encode(name, type_url::ADDRESS, &content, 0) }
    }

    /// A policy.
    pub fn policy(policy: &mesh::Policy) -> Self {
        Self::encode(policy.key(), type_url::AUTHORIZATION, &security::Authorization::from(policy), 0)
    }

    /// What it can be found by, of one kind.
    pub fn links(&self, kind: Link) -> impl Iterator<Item = &Name> {
        self.links.iter().filter(move |(one, _)| *one == kind).map(|(_, name)| name)
    }

    /// Every name that it goes by.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        std::iter::once(&self.name).chain(self.links(Link::Alias))
    }

    fn encode(name: Name, type_url: &str, content: &impl Message, salt: u64) -> Self {
        let value = content.encode_to_vec();
        let version: Arc<str> = format!("{:x}", xxh64(&value, salt)).into();
        let resource = xds::Resource {
            version: version.to_string(),
            resource: Some(prost_types::Any { type_url: type_url.into(), value }),
            name: name.to_string(),
            ..Default::default()
        };
        let bytes = resource.encode_to_vec().into();
        Self { name, version, bytes, service: false, links: Box::default() }
    }
}
