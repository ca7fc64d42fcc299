//! What went wrong for users of meshes elsewhere, played again with whole proxies, spoken to from outside only: needs
//! root. Sizes are those that CI bears; `AMBIT_TEST_ROUNDS` makes the long ones longer.

#[allow(dead_code)]
#[path = "../mesh/control.rs"]
mod control;
#[allow(dead_code)]
#[path = "../mesh/harness.rs"]
mod harness;
#[allow(dead_code)]
#[path = "../mesh/namespaces.rs"]
mod namespaces;

mod clean_ends;
mod crowds;
mod forgotten;
mod stalled;
mod unfinished;
