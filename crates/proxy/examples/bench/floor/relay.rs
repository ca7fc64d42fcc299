//! The loop of one end: listeners, tunnels and the streams in them.

use std::collections::HashMap;
use std::io::{IoSlice, Read};
use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::aead::Aad;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::Socket;

use super::apps::App;
use super::tunnel::{Tunnel, mark};
use super::{CREDIT, DATA, END, FRAME, HEAD, OPEN, OUTBOUND, PORT, RESET, listen, outgoing};

pub enum Slot {
    Tunnel(Box<Tunnel>),
    App(Box<App>),
}

pub struct Relay {
    pub(super) places: Vec<(netns::NetNs, Socket)>,
    pub(super) caller: bool,
    pub(super) epoll: Epoll,
    pub(super) slots: Vec<Option<Slot>>,
    pub(super) free: Vec<u64>,
    pub(super) by_peer: HashMap<IpAddr, u64>,
    pub(super) dirty: Vec<u64>,
    pub(super) ready: Vec<u64>,
    pub(super) scratch: Vec<u8>,
    /// Stream, kind, start and length of the frames of one read.
    pub(super) frames: Vec<(u32, u8, usize, usize)>,
}

/// Frames of one stream that are written at once.
const PIECES: usize = 32;
/// Added to the number of a listener.
const LISTENER: u64 = 1 << 62;

impl Relay {
    pub fn new(spaces: Vec<netns::NetNs>, caller: bool) -> anyhow::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut places = Vec::new();
        for (at, space) in spaces.into_iter().enumerate() {
            let listener = space.try_run(|| listen(if caller { OUTBOUND } else { PORT }))?;
            epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER + at as u64))?;
            places.push((space, listener));
        }
        Ok(Self {
            places,
            caller,
            epoll,
            slots: Vec::new(),
            free: Vec::new(),
            by_peer: HashMap::new(),
            dirty: Vec::new(),
            ready: Vec::new(),
            scratch: vec![0; 320 << 10],
            frames: Vec::new(),
        })
    }

    pub fn run(mut self) -> anyhow::Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let wait = if self.ready.is_empty() && self.dirty.is_empty() {
                EpollTimeout::NONE
            } else {
                EpollTimeout::ZERO
            };
            let count = self.epoll.wait(&mut events, wait).unwrap_or(0);
            for token in std::mem::take(&mut self.ready) {
                if let Some(Some(Slot::App(app))) = self.slots.get_mut(token as usize) {
                    app.queued = false;
                    self.pull(token);
                }
            }
            for event in &events[..count] {
                self.event(event.data(), event.events())?;
            }
            for token in std::mem::take(&mut self.dirty) {
                self.flush(token);
            }
        }
    }

    fn event(&mut self, token: u64, flags: EpollFlags) -> anyhow::Result<()> {
        if token >= LISTENER {
            let place = (token - LISTENER) as usize;
            for _ in 0..64 {
                let Ok((socket, peer)) = self.places[place].1.accept() else { break };
                socket.set_nonblocking(true)?;
                let peer = peer.as_socket().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.ip());
                match self.caller {
                    true => self.accepted(socket)?,
                    false => drop(self.tunnel(socket, peer, place)?),
                }
            }
            return Ok(());
        }
        let (readable, writable) = (
            flags.intersects(
                EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR,
            ),
            flags.contains(EpollFlags::EPOLLOUT),
        );
        match self.slots.get_mut(token as usize) {
            Some(Some(Slot::Tunnel(tunnel))) => {
                if writable && !tunnel.writable {
                    tunnel.writable = true;
                    mark(&mut self.dirty, tunnel, token);
                }
                if readable {
                    self.receive(token)?;
                }
            }
            Some(Some(Slot::App(app))) => {
                app.readable |= readable;
                app.hup |=
                    flags.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
                if writable && !app.writable {
                    app.writable = true;
                    self.push(token, &[]);
                }
                if readable {
                    self.pull(token);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn insert(&mut self, slot: Slot) -> u64 {
        let token = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u64
        });
        self.slots[token as usize] = Some(slot);
        token
    }

    fn register(&self, socket: &Socket, token: u64) -> anyhow::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        Ok(self.epoll.add(socket, EpollEvent::new(flags, token))?)
    }

    fn tunnel(&mut self, socket: Socket, peer: IpAddr, place: usize) -> anyhow::Result<u64> {
        let tunnel = Tunnel::new(socket, self.caller, peer, place)?;
        let token = self.insert(Slot::Tunnel(Box::new(tunnel)));
        if let Some(Slot::Tunnel(tunnel)) = &self.slots[token as usize] {
            self.register(&tunnel.socket, token)?;
        }
        Ok(token)
    }

    /// A caller's connection: the tunnel of its destination, and a stream in it.
    fn accepted(&mut self, socket: Socket) -> anyhow::Result<()> {
        let Some(to) = socket.original_dst_v4()?.as_socket() else { return Ok(()) };
        let token = match self.by_peer.get(&to.ip()) {
            Some(token) => *token,
            None => {
                let dialled = self.places[0].0.try_run(outgoing)?;
                let _ = dialled.connect(&SocketAddr::new(to.ip(), PORT).into());
                let token = self.tunnel(dialled, to.ip(), 0)?;
                self.by_peer.insert(to.ip(), token);
                token
            }
        };
        let app = self.app(socket, token);
        let Some(Slot::Tunnel(tunnel)) = &mut self.slots[token as usize] else { return Ok(()) };
        tunnel.next += 1;
        let stream = tunnel.next;
        tunnel.streams.insert(stream, app);
        tunnel.frame(stream, OPEN, &to.port().to_be_bytes());
        mark(&mut self.dirty, tunnel, token);
        let Some(Slot::App(new)) = &mut self.slots[app as usize] else { return Ok(()) };
        new.stream = stream;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.epoll.add(&new.socket, EpollEvent::new(flags, app))?;
        Ok(())
    }

    pub(super) fn app(&mut self, socket: Socket, tunnel: u64) -> u64 {
        self.insert(Slot::App(Box::new(App::new(socket, tunnel))))
    }

    /// From the application into the tunnel.    /// From the network: whole records, opened where they lie.
    fn receive(&mut self, token: u64) -> anyhow::Result<()> {
        for _ in 0..4 {
            let mut scratch = std::mem::take(&mut self.scratch);
            let more = self.read(token, &mut scratch);
            self.scratch = scratch;
            if !more? {
                return Ok(());
            }
        }
        // The poller tells changes only: there may be more.
        if let Some(Some(Slot::Tunnel(tunnel))) = self.slots.get(token as usize) {
            let flags =
                EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
            self.epoll.modify(&tunnel.socket, &mut EpollEvent::new(flags, token))?;
        }
        Ok(())
    }

    fn read(&mut self, token: u64, scratch: &mut [u8]) -> anyhow::Result<bool> {
        let Some(Some(Slot::Tunnel(tunnel))) = self.slots.get_mut(token as usize) else { return Ok(false) };
        let carried = tunnel.carry.len();
        scratch[..carried].copy_from_slice(&tunnel.carry);
        let read = match (&tunnel.socket).read(&mut scratch[carried..]) {
            Ok(0) => return Ok(false),
            Ok(read) => read,
            Err(_) => return Ok(false),
        };
        let filled = carried + read;
        let mut at = 0;
        let mut frames = std::mem::take(&mut self.frames);
        while filled - at >= HEAD {
            let length = u32::from_be_bytes(scratch[at..at + HEAD].try_into()?) as usize;
            if filled - at < HEAD + length {
                break;
            }
            let nonce = tunnel.open.nonce();
            let start = at + HEAD;
            let opened =
                tunnel.open.key.open_in_place(nonce, Aad::empty(), &mut scratch[start..start + length]);
            let end = start + opened.map_err(|_| anyhow::anyhow!("cannot decrypt"))?.len();
            let mut frame = start;
            while frame < end {
                let stream = u32::from_be_bytes(scratch[frame..frame + 4].try_into()?);
                let word = u32::from_be_bytes(scratch[frame + 4..frame + 8].try_into()?);
                let (kind, size) = ((word >> 24) as u8, (word & 0xff_ffff) as usize);
                frames.push((stream, kind, frame + FRAME, size));
                frame += FRAME + size;
            }
            at += HEAD + length;
        }
        tunnel.carry.clear();
        tunnel.carry.extend_from_slice(&scratch[at..filled]);
        let mut next = 0;
        while let Some(&(stream, kind, start, size)) = frames.get(next) {
            if kind != DATA {
                self.act(token, stream, kind, &scratch[start..start + size])?;
                next += 1;
                continue;
            }
            let mut pieces = [IoSlice::new(&[]); PIECES];
            let of_stream = frames[next..].iter().take_while(|frame| frame.0 == stream && frame.1 == DATA);
            let mut count = 0;
            for (piece, (_, _, start, size)) in pieces.iter_mut().zip(of_stream) {
                *piece = IoSlice::new(&scratch[*start..start + size]);
                count += 1;
            }
            next += count;
            self.deliver(token, stream, &pieces[..count]);
        }
        frames.clear();
        self.frames = frames;
        Ok(filled == scratch.len())
    }

    fn deliver(&mut self, token: u64, stream: u32, pieces: &[IoSlice<'_>]) {
        let Some(Some(Slot::Tunnel(tunnel))) = self.slots.get(token as usize) else { return };
        if let Some(app) = tunnel.streams.get(&stream).copied() {
            self.push(app, pieces);
        }
    }

    /// What a frame of the peer asks for.
    fn act(&mut self, token: u64, stream: u32, kind: u8, payload: &[u8]) -> anyhow::Result<()> {
        let Some(Some(Slot::Tunnel(tunnel))) = self.slots.get_mut(token as usize) else { return Ok(()) };
        if kind == OPEN {
            let (client, place) = (tunnel.peer, tunnel.place);
            let port = u16::from_be_bytes(payload.try_into()?);
            let own = tunnel.socket.local_addr()?.as_socket().map(|address| address.ip());
            let Some(own) = own else { return Ok(()) };
            let dialled = self.places[place].0.try_run(|| {
                let socket = outgoing()?;
                socket.set_tcp_congestion(b"cubic")?;
                socket.set_ip_transparent_v4(true)?;
                socket.set_freebind_v4(true)?;
                socket.bind(&SocketAddr::new(client, 0).into())?;
                let _ = socket.connect(&SocketAddr::new(own, port).into());
                Ok(socket)
            })?;
            let app = self.app(dialled, token);
            let Some(Slot::App(new)) = &mut self.slots[app as usize] else { return Ok(()) };
            new.stream = stream;
            new.writable = true;
            let flags =
                EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
            self.epoll.add(&new.socket, EpollEvent::new(flags, app))?;
            let Some(Some(Slot::Tunnel(tunnel))) = self.slots.get_mut(token as usize) else { return Ok(()) };
            tunnel.streams.insert(stream, app);
            return Ok(());
        }
        let Some(app) = tunnel.streams.get(&stream).copied() else { return Ok(()) };
        match kind {
            END => {
                if let Some(Some(Slot::App(it))) = self.slots.get_mut(app as usize) {
                    it.peer_done = true;
                }
                self.push(app, &[]);
            }
            RESET => {
                tunnel.streams.remove(&stream);
                if let Some(Slot::App(it)) = self.slots[app as usize].take() {
                    let _ = it.socket.set_linger(Some(std::time::Duration::ZERO));
                    self.free.push(app);
                }
            }
            CREDIT => {
                if let Some(Some(Slot::App(it))) = self.slots.get_mut(app as usize) {
                    it.credit += u32::from_be_bytes(payload.try_into()?) as usize;
                }
                self.pull(app);
            }
            _ => {}
        }
        Ok(())
    }

    /// Sends what has gathered; who had to wait goes on.
    fn flush(&mut self, token: u64) {
        let Some(Some(Slot::Tunnel(tunnel))) = self.slots.get_mut(token as usize) else { return };
        tunnel.dirty = false;
        tunnel.send();
        if tunnel.start == tunnel.end {
            for app in std::mem::take(&mut tunnel.blocked) {
                self.pull(app);
            }
        }
    }
}
