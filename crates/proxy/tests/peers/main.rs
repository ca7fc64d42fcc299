//! Proxies against peers that are not proxies: the observer, hostile and foreign clients and servers. Needs root.

#[allow(dead_code)]
#[path = "../mesh/control.rs"]
mod control;
#[allow(dead_code)]
#[path = "../mesh/harness.rs"]
mod harness;
#[allow(dead_code)]
#[path = "../mesh/namespaces.rs"]
mod namespaces;

mod early;
mod foreign;
mod gateways;
mod gone;
mod reporting;
mod stack;
