//! A resource, serialized once and shared by every client.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use wire::{security, type_url, workload, xds};
use xxhash_rust::xxh64::xxh64;

/// Name of a resource in xDS.
pub type Name = Arc<str>;

/// A resource as it travels: the bytes of an xDS `Resource`, ready to be copied into a response.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Name.
    pub name: Name,
    /// Lower-case hex XXH64 of the content, the same in every replica.
    pub version: Arc<str>,
    /// The serialized xDS `Resource`: name, version and content.
    pub bytes: Bytes,
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
        Self::encode(workload.uid.clone(), type_url::ADDRESS, &workload::Address::from(workload), salt)
    }

    /// A service.
    pub fn service(service: &mesh::Service) -> Self {
        let name = service.key.to_string().into();
        Self::encode(name, type_url::ADDRESS, &workload::Address::from(service), 0)
    }

    /// A policy.
    pub fn policy(policy: &mesh::Policy) -> Self {
        Self::encode(policy.key(), type_url::AUTHORIZATION, &security::Authorization::from(policy), 0)
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
        Self { name, version, bytes: resource.encode_to_vec().into() }
    }
}
