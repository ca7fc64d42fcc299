//! The floor: a bare relay, the least that any proxy must do which copies bytes into one encrypted connection a
//! destination.
//!
//! `floor NEAR FAR…`: one thread for the caller's namespace, one for the callees', each a loop over a poller; AES-128-GCM
//! sealed in place, records of 16 KiB, many records a read, many streams a record, one flush a turn, the client's address
//! passed on. No policy, no accounting, no identities, no HTTP/2: not a proxy, only a measure.

use std::collections::HashMap;
use std::io::{self, IoSliceMut, Read, Write};
use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Socket, Type};

const PORT: u16 = 15008;
const OUTBOUND: u16 = 15001;
const RECORD: usize = 16 << 10;
const TAG: usize = 16;
/// Length of a record; stream, kind and length of a frame.
const HEAD: usize = 4;
const FRAME: usize = 8;
const SLOT: usize = HEAD + RECORD + TAG;
const BURST: usize = 16;
/// Bytes of a stream that may be on their way or waiting at the far side.
const WINDOW: usize = 4 << 20;

const OPEN: u8 = 0;
const DATA: u8 = 1;
const END: u8 = 2;
const RESET: u8 = 3;
const CREDIT: u8 = 4;

pub fn run(args: &[String]) -> anyhow::Result<()> {
    let [near, far @ ..] = args else { anyhow::bail!("floor NEAR FAR…") };
    let open = |paths: &[String]| paths.iter().map(netns::NetNs::open).collect::<Result<Vec<_>, _>>();
    let ends = [(open(std::slice::from_ref(near))?, true), (open(far)?, false)];
    let threads = ends.map(|(places, caller)| {
        std::thread::spawn(move || -> anyhow::Result<()> {
            let relay = Relay::new(places, caller)?;
            println!("ready");
            relay.run()
        })
    });
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a relay died"))??;
    }
    Ok(())
}

fn listen(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.set_mark(1337)?;
    socket.set_tcp_nodelay(true)?;
    if port == OUTBOUND {
        socket.set_tcp_congestion(b"cubic")?;
    }
    socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into())?;
    socket.listen(4096)?;
    Ok(socket)
}

fn outgoing() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_mark(1337)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

struct Tunnel {
    socket: Socket,
    seal: Cipher,
    open: Cipher,
    /// Sealed from `start`, open record from `record`, filled to `end`.
    out: Vec<u8>,
    start: usize,
    record: Option<usize>,
    end: usize,
    carry: Vec<u8>,
    writable: bool,
    dirty: bool,
    streams: HashMap<u32, u64>,
    next: u32,
    blocked: Vec<u64>,
    peer: IpAddr,
    place: usize,
}

struct Cipher {
    key: LessSafeKey,
    count: u64,
}

impl Cipher {
    fn new(direction: u8) -> anyhow::Result<Self> {
        let key = UnboundKey::new(&AES_128_GCM, &[direction; 16]).map_err(|_| anyhow::anyhow!("no key"))?;
        Ok(Self { key: LessSafeKey::new(key), count: 0 })
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.count.to_be_bytes());
        self.count += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

struct App {
    socket: Socket,
    tunnel: u64,
    stream: u32,
    readable: bool,
    writable: bool,
    hup: bool,
    queued: bool,
    credit: usize,
    owed: usize,
    pending: Vec<u8>,
    read_done: bool,
    peer_done: bool,
    burst: usize,
}

enum Slot {
    Tunnel(Box<Tunnel>),
    App(Box<App>),
}

struct Relay {
    places: Vec<(netns::NetNs, Socket)>,
    caller: bool,
    epoll: Epoll,
    slots: Vec<Option<Slot>>,
    free: Vec<u64>,
    by_peer: HashMap<IpAddr, u64>,
    dirty: Vec<u64>,
    ready: Vec<u64>,
    scratch: Vec<u8>,
}

/// Added to the number of a listener.
const LISTENER: u64 = 1 << 62;

impl Relay {
    fn new(spaces: Vec<netns::NetNs>, caller: bool) -> anyhow::Result<Self> {
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
        })
    }

    fn run(mut self) -> anyhow::Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let wait = if self.ready.is_empty() { EpollTimeout::NONE } else { EpollTimeout::ZERO };
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
        let (up, down) = (Cipher::new(1)?, Cipher::new(2)?);
        let (seal, open) = if self.caller { (up, down) } else { (down, up) };
        let tunnel = Tunnel {
            socket,
            seal,
            open,
            out: vec![0; 3 * BURST * SLOT],
            start: 0,
            record: None,
            end: 0,
            carry: Vec::new(),
            writable: false,
            dirty: false,
            streams: HashMap::new(),
            next: 0,
            blocked: Vec::new(),
            peer,
            place,
        };
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

    fn app(&mut self, socket: Socket, tunnel: u64) -> u64 {
        self.insert(Slot::App(Box::new(App {
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
            read_done: false,
            peer_done: false,
            burst: 1,
        })))
    }

    /// From the application into the tunnel.
    fn pull(&mut self, token: u64) {
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
            if tunnel.end - tunnel.start > 256 << 10 {
                tunnel.send();
            }
            if tunnel.end - tunnel.start > 256 << 10 || app.credit == 0 {
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

    /// From the tunnel to the application.
    fn push(&mut self, token: u64, bytes: &[u8]) {
        let Some(Some(Slot::App(mut app))) = self.slots.get_mut(token as usize).map(Option::take) else {
            return;
        };
        let mut rest = bytes;
        let mut moved = 0;
        let mut over = false;
        if !app.pending.is_empty() {
            app.pending.extend_from_slice(rest);
            rest = &[];
            while app.writable && !app.pending.is_empty() {
                match (&app.socket).write(&app.pending) {
                    Ok(count) => {
                        app.pending.drain(..count);
                        moved += count;
                    }
                    Err(error) => {
                        app.writable = false;
                        over |= error.kind() != io::ErrorKind::WouldBlock;
                    }
                }
            }
        }
        while app.writable && !rest.is_empty() {
            match (&app.socket).write(rest) {
                Ok(count) => {
                    app.writable = count == rest.len();
                    rest = &rest[count..];
                    moved += count;
                }
                Err(error) => {
                    app.writable = false;
                    over |= error.kind() != io::ErrorKind::WouldBlock;
                }
            }
        }
        app.pending.extend_from_slice(rest);
        app.owed += moved;
        if app.peer_done && app.pending.is_empty() && !app.read_done {
            let _ = app.socket.shutdown(std::net::Shutdown::Write);
        }
        over |= app.read_done && app.peer_done && app.pending.is_empty();
        let home = app.tunnel;
        if let Some(Some(Slot::Tunnel(tunnel))) = self.slots.get_mut(home as usize) {
            if app.owed >= WINDOW / 2 {
                tunnel.frame(app.stream, CREDIT, &(app.owed as u32).to_be_bytes());
                app.owed = 0;
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
        let mut pieces: Vec<(u32, u8, usize, usize)> = Vec::new();
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
                pieces.push((stream, kind, frame + FRAME, size));
                frame += FRAME + size;
            }
            at += HEAD + length;
        }
        tunnel.carry.clear();
        tunnel.carry.extend_from_slice(&scratch[at..filled]);
        for (stream, kind, start, size) in pieces {
            let payload = &scratch[start..start + size];
            self.act(token, stream, kind, payload)?;
        }
        Ok(filled == scratch.len())
    }

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
            DATA => self.push(app, payload),
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

fn mark(dirty: &mut Vec<u64>, tunnel: &mut Tunnel, token: u64) {
    if !tunnel.dirty {
        tunnel.dirty = true;
        dirty.push(token);
    }
}

impl Tunnel {
    fn begin(&mut self) -> usize {
        *self.record.get_or_insert_with(|| {
            let start = self.end;
            self.end += HEAD;
            start
        })
    }

    fn close(&mut self) {
        let Some(start) = self.record.take() else { return };
        if self.end == start + HEAD {
            self.end = start;
            return;
        }
        let nonce = self.seal.nonce();
        let payload = &mut self.out[start + HEAD..self.end];
        let Ok(tag) = self.seal.key.seal_in_place_separate_tag(nonce, Aad::empty(), payload) else { return };
        self.out[self.end..self.end + TAG].copy_from_slice(tag.as_ref());
        self.end += TAG;
        let length = (self.end - start - HEAD) as u32;
        self.out[start..start + HEAD].copy_from_slice(&length.to_be_bytes());
    }

    fn frame(&mut self, stream: u32, kind: u8, payload: &[u8]) {
        let start = self.begin();
        if self.end + FRAME + payload.len() > start + HEAD + RECORD {
            self.close();
            self.begin();
        }
        let at = self.end;
        if at + SLOT > self.out.len() {
            self.out.resize(self.out.len() + SLOT, 0);
        }
        self.out[at..at + 4].copy_from_slice(&stream.to_be_bytes());
        let word = u32::from(kind) << 24 | payload.len() as u32;
        self.out[at + 4..at + 8].copy_from_slice(&word.to_be_bytes());
        self.out[at + FRAME..at + FRAME + payload.len()].copy_from_slice(payload);
        self.end += FRAME + payload.len();
    }

    /// What was read, and what there was room for.
    fn pull(&mut self, from: &Socket, stream: u32, most: usize) -> io::Result<(usize, usize)> {
        let first = self.begin();
        if first + HEAD + RECORD < self.end + 256 {
            self.close();
        }
        let first = self.begin();
        let mut slices: [IoSliceMut<'_>; BURST] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let (mut used, mut room) = (0, 0);
        let mut left = first + HEAD + RECORD - self.end;
        let mut rest = &mut self.out[self.end..];
        while used < BURST && room < most && rest.len() >= left + TAG {
            let take = (left - FRAME).min(most - room);
            let (_, after) = rest.split_at_mut(FRAME);
            let (place, after) = after.split_at_mut(take);
            slices[used] = IoSliceMut::new(place);
            used += 1;
            room += take;
            let skip = left - FRAME - take + TAG + HEAD;
            rest = match after.get_mut(skip..) {
                Some(rest) => rest,
                None => break,
            };
            left = RECORD;
        }
        let mut from = from;
        let read =
            if used == 1 { from.read(&mut slices[0])? } else { from.read_vectored(&mut slices[..used])? };
        let mut todo = read;
        while todo > 0 {
            let start = self.begin();
            let size = (start + HEAD + RECORD - self.end - FRAME).min(todo);
            let at = self.end;
            self.out[at..at + 4].copy_from_slice(&stream.to_be_bytes());
            let word = u32::from(DATA) << 24 | size as u32;
            self.out[at + 4..at + 8].copy_from_slice(&word.to_be_bytes());
            self.end += FRAME + size;
            todo -= size;
            if todo > 0 {
                self.close();
            }
        }
        Ok((read, room))
    }

    fn send(&mut self) {
        self.close();
        while self.writable && self.start < self.end {
            match (&self.socket).write(&self.out[self.start..self.end]) {
                Ok(count) => self.start += count,
                Err(_) => self.writable = false,
            }
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start > self.out.len() / 2 {
            self.out.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }
}
