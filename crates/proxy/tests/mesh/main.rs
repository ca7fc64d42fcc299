//! Whole proxies against each other, over namespaces that the tests make: needs root.

mod control;
mod harness;
mod namespaces;
mod resolver;

mod carrying;
mod life;
mod names;
mod policies;
mod requests;
