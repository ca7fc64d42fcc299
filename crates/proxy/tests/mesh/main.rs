//! Whole proxies against each other, over namespaces that the tests make: needs root.

mod control;
mod harness;
mod namespaces;

mod carrying;
mod life;
mod policies;
mod requests;
