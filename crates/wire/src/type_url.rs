//! Type URLs of the resources that travel over xDS (reference/control-plane.md 0.1).

/// Workloads and services, wrapped in an `Address`.
pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// Workloads alone.
pub const WORKLOAD: &str = "type.googleapis.com/istio.workload.Workload";
/// Authorization policies.
pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
