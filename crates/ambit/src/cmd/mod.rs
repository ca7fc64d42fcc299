//! The subcommands, one module each.
pub mod agent;
pub mod cni;
pub mod control;
pub mod install;
pub mod lab;
pub mod proxy;
