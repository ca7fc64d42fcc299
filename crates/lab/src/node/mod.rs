//! A node of the lab: sandboxes, containers, volumes and the kubelet loop that drives them.
//!
//! It knows the Kubernetes API and nothing of who serves it, so it joins a real API server as well as the lab's.

pub mod border;
mod config;

pub use config::Config;
