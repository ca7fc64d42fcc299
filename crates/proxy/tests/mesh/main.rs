//! Whole proxies against each other, over namespaces that the tests make: needs root.

// The tests in `../peers` use more of it.
#[allow(dead_code)]
mod control;
mod harness;
mod namespaces;
mod resolver;

mod by_name;
mod carrying;
mod certificates;
mod life;
mod local;
mod names;
mod policies;
mod requests;
mod same_node;
mod strangers;
