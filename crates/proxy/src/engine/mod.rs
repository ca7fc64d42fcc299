//! The data path: a loop a core, run to completion (docs/decisions/0009).
//!
//! Each worker is a thread with its own poller. A pod is at home on one worker: its listeners, its tunnels, their
//! streams and the sockets joined with them. What becomes readable is carried from socket to frame to record by the
//! thread that woke, and each tunnel is flushed once a turn. No lock, no channel and no task stands between a byte's
//! arrival and its departure. Set-up work is done in tasks on the same thread ([`tasks`]), which may wait for the
//! runtime beside it: it dials, makes handshakes, fetches certificates.
//!
//! This module knows sockets, tunnels and streams; it knows nothing of pods, policies or decisions.

mod core;
mod handles;
mod outbox;
mod pair;
mod pipe;
mod slots;
mod stream;
mod tasks;
mod tunnel;
mod worker;

pub(crate) use handles::{Early, Joined, Loop, Request, Stream, Tunnel};
pub(crate) use stream::Role;
pub(crate) use worker::{Tuning, Workers};
