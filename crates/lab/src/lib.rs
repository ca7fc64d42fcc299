//! A whole cluster on one Linux machine: a Kubernetes API in memory, its controllers, and nodes whose pods are
//! network namespaces. It exists so that the mesh can be run, tested and shown without a cluster; everything
//! above it is the production code talking to this API.

pub mod api;
pub mod app;
pub mod controllers;
pub mod discover;
pub mod node;
pub mod up;
