//! Flows come in.

pub mod parse;
