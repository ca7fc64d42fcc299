//! An application's connection, joined with a stream of a tunnel.

use std::io::{self, IoSlice, Write};

use socket2::Socket;

use super::relay::{Relay, Slot};
use super::tunnel::{BACKLOG, mark};
use super::{BURST, CREDIT, END, FRAME, RECORD, RESET, WINDOW};

/// Bytes that were passed on are forgotten in steps of so many.
const MUCH: usize = 1 << 20;

pub struct App {
    pub socket: Socket,
    pub tunnel: u64,
    pub stream: u32,
    pub readable: bool,
    pub writable: bool,
    /// The peer is done, which one read more will tell.
    pub hup: bool,
    /// Others come first; it goes on next turn.
    pub queued: bool,
    /// Bytes that the far side still takes.
    pub credit: usize,
    /// Bytes passed on, not yet given back to the far side.
    pub owed: usize,
    /// What the application has not taken yet, from `taken` on.
    pub pending: Vec<u8>,
    pub taken: usize,
    pub read_done: bool,
    pub peer_done: bool,
    /// Records that the next read has room for.
    pub burst: usize,
}

impl App {
    pub fn new(socket: Socket, tunnel: u64) -> Self {
        Self {
            socket,
            tunnel,
            stream: 0,
            readable: false,
            writable: false,
            hup: false,
            queued: false,
            credit: WINDOW,
            owed: 0,
            pending: Vec::new(),
            taken: 0,
            read_done: false,
            peer_done: false,
            burst: 1,
        }
    }

    /// Passes on what waits; the number of bytes, or that the application is gone.
    fn settle(&mut self) -> Result<usize, ()> {
        let mut moved = 0;
        while self.writable && self.taken < self.pending.len() {
            match (&self.socket).write(&self.pending[self.taken..]) {
                Ok(count) => {
                    self.taken += count;
                    moved += count;
                }
                Err(error) => {
                    self.writable = false;
                    if error.kind() != io::ErrorKind::WouldBlock {
                        return Err(());
                    }
                }
            }
        }
        if self.taken == self.pending.len() {
            self.pending = Vec::new();
            self.taken = 0;
        } else if self.taken > MUCH {
            self.pending.drain(..self.taken);
            self.taken = 0;
        }
        Ok(moved)
    }
}

impl Relay {
    /// From the application into the tunnel.
    pub(super) fn pull(&mut self, token: u64) {
        let Some(Some(Slot::App(mut app))) = self.slots.get_mut(token as usize).map(Option::take) else {
            return;
        };
        let home = app.tunnel;
        let Some(Some(Slot::Tunnel(tunnel))) = self.slots.get_mut(home as usize) else {
            self.slots[token as usize] = Some(Slot::App(app));
            return;
        };
        let mut over = false;
        for turn in 0.. {
            if !app.readable || app.read_done || app.queued {
                break;
            }
            if turn == 4 {
                app.queued = true;
                self.ready.push(token);
                break;
            }
            if tunnel.waiting() > BACKLOG {
                tunnel.send();
            }
            if tunnel.waiting() > BACKLOG || app.credit == 0 {
                tunnel.blocked.push(token);
                break;
            }
            mark(&mut self.dirty, tunnel, home);
            match tunnel.pull(&app.socket, app.stream, app.credit.min(app.burst * (RECORD - FRAME))) {
                Ok((0, _)) => {
                    tunnel.frame(app.stream, END, &[]);
                    app.read_done = true;
                    app.readable = false;
                }
                Ok((read, room)) => {
                    app.credit -= read;
                    app.readable = app.hup || read == room;
                    app.burst = if read == room { (app.burst * 4).min(BURST) } else { app.burst };
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => app.readable = false,
                Err(_) => {
                    tunnel.frame(app.stream, RESET, &[]);
                    over = true;
                    break;
                }
            }
        }
        over |= app.read_done && app.peer_done && app.pending.is_empty();
        if over {
            tunnel.streams.remove(&app.stream);
            self.free.push(token);
        } else {
            self.slots[token as usize] = Some(Slot::App(app));
        }
    }

    /// From the tunnel to the application: pieces that lie apart are written at once.
    pub(super) fn push(&mut self, token: u64, pieces: &[IoSlice<'_>]) {
        let Some(Some(Slot::App(mut app))) = self.slots.get_mut(token as usize).map(Option::take) else {
            return;
        };
        let mut moved = 0;
        let mut failed = false;
        if app.pending.is_empty() && app.writable && !pieces.is_empty() {
            match (&app.socket).write_vectored(pieces) {
                Ok(count) => moved = count,
                Err(error) => failed = error.kind() != io::ErrorKind::WouldBlock,
            }
        }
        let mut skip = moved;
        for piece in pieces {
            let done = skip.min(piece.len());
            app.pending.extend_from_slice(&piece[done..]);
            skip -= done;
        }
        // Less than everything: the socket is full until the poller says otherwise.
        app.writable &= app.pending.len() == app.taken || pieces.is_empty();
        match app.settle() {
            Ok(count) => moved += count,
            Err(()) => failed = true,
        }
        app.owed += moved;
        if app.peer_done && app.pending.is_empty() && !app.read_done {
            let _ = app.socket.shutdown(std::net::Shutdown::Write);
        }
        let over = failed || (app.read_done && app.peer_done && app.pending.is_empty());
        let home = app.tunnel;
        if let Some(Some(Slot::Tunnel(tunnel))) = self.slots.get_mut(home as usize) {
            if app.owed >= WINDOW / 2 {
                tunnel.frame(app.stream, CREDIT, &(app.owed as u32).to_be_bytes());
                app.owed = 0;
                mark(&mut self.dirty, tunnel, home);
            }
            if failed {
                tunnel.frame(app.stream, RESET, &[]);
                mark(&mut self.dirty, tunnel, home);
            }
            if over {
                tunnel.streams.remove(&app.stream);
            }
        }
        match over {
            true => self.free.push(token),
            false => self.slots[token as usize] = Some(Slot::App(app)),
        }
    }
}
