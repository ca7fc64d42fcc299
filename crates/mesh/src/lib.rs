//! The domain of the mesh, pure: who exists ([`Workload`], [`Service`], [`Identity`]), what is allowed
//! ([`Policy`]), what is known of it all at one moment ([`View`]), and the two decisions made from that:
//! [`decide`] (where a connection goes and how it is secured) and [`authorize`] (whether it may).
//!
//! Nothing here waits, locks, reads a clock, throws dice, or knows of protobuf or Kubernetes. Names are those of
//! `docs/architecture.md`.

mod address;
mod arrive;
mod authorize;
mod decide;
mod gateway;
mod identity;
mod policy;
mod ports;
mod reason;
mod service;
mod unproven;
mod view;
mod workload;

pub use address::{Cidr, CidrError, NetworkAddress};
pub use arrive::{Arrival, NotHere, arrive};
pub use authorize::{Connection, DryRun, RuleRef, Verdict, authorize, dry_run};
pub use decide::{
    Authority, Call, Decision, Inner, NOTHING_RESOLVED, Plaintext, Resolved, Route, Via, decide,
};
pub use gateway::{Gateway, GatewayTarget};
pub use identity::{Identity, IdentityError};
pub use policy::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch};
pub use ports::{HBONE_PORT, INBOUND_PLAINTEXT_PORT, MESH_PORTS, OUTBOUND_PORT};
pub use reason::{Refusal, ResponseFlag};
pub use service::{
    AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, RoutingScope, Service,
    ServiceKey, ServicePort, Visibility, WeightedWaypoint,
};
pub use unproven::{Caller, Unproven, unproven};
pub use view::{Lookup, View};
pub use workload::{
    ApplicationTunnel, Health, Locality, NetworkMode, PortMapping, Tunnel, Uid, Workload, WorkloadType,
};
