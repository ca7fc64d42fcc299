//! What crosses process borders: the protobuf and gRPC types of the workload API, authorization policies, delta
//! xDS, the certificate authority and ZDS, and their conversion to and from the types of [`mesh`].
//!
//! Conversions live here and nowhere else. What comes from a peer is judged here, once: a resource that cannot be
//! understood is refused with a reason that names the field, and never panics.

#[allow(missing_docs, clippy::all)]
pub mod workload {
    //! `istio.workload`: workloads and services.
    tonic::include_proto!("istio.workload");
}
#[allow(missing_docs, clippy::all)]
pub mod security {
    //! `istio.security`: authorization policies.
    tonic::include_proto!("istio.security");
}
#[allow(missing_docs, clippy::all)]
pub mod xds {
    //! Delta xDS.
    tonic::include_proto!("envoy.service.discovery.v3");
}
#[allow(missing_docs, clippy::all)]
pub mod ca {
    //! `istio.v1.auth`: the certificate authority.
    tonic::include_proto!("istio.v1.auth");
}
#[allow(missing_docs, clippy::all)]
pub mod zds {
    //! `istio.workload.zds`: node agent to node proxy.
    tonic::include_proto!("istio.workload.zds");
}

#[allow(missing_docs, clippy::all)]
pub mod flow {
    //! `ambit.flow.v1`: flows, from node proxies to the observer.
    tonic::include_proto!("ambit.flow.v1");
}

mod convert;
mod local;
pub mod type_url;

pub use convert::{Address, ConvertError};
pub use local::{Local, LocalError};
