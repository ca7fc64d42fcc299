//! Whole proxies against each other, over namespaces that the tests make: needs root.

// The tests in `../peers` use more of it.
#[allow(dead_code)]
mod control;
mod harness;
mod namespaces;
mod resolver;

mod carrying;
mod life;
mod names;
mod policies;
mod requests;
