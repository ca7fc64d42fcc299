//! The application that is called: one loop for all of it, in the namespaces of one or many pods.
//!
//! Ports: 8080 answers each 100 bytes with 200; 8081 the same and closes; 9000 takes everything; 9001 gives without
//! end; 9100 answers with 100 kB and closes; 9200 tells the digest of what came, for `check`, on threads.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::load::{digest, pattern};

pub const REQUEST: usize = 100;
pub const ANSWER: usize = 200;
pub const PAGE: usize = 100_000;
pub const CHUNK: usize = 256 << 10;
/// Chunks of one bulk connection before the next one's turn.
const TURN: usize = 4;

/// What a listener's connections get.
#[derive(Clone, Copy)]
enum Manner {
    Answer { size: usize, close: bool },
    Take,
    Give,
}

const PORTS: [(u16, Manner); 5] = [
    (8080, Manner::Answer { size: ANSWER, close: false }),
    (8081, Manner::Answer { size: ANSWER, close: true }),
    (9100, Manner::Answer { size: PAGE, close: true }),
    (9000, Manner::Take),
    (9001, Manner::Give),
];
const CHECK: u16 = 9200;

/// `serve NAMESPACE…`
pub fn run(args: &[String]) -> anyhow::Result<()> {
    let spaces: Vec<netns::NetNs> = args.iter().map(netns::NetNs::open).collect::<Result<_, _>>()?;
    let Some(first) = spaces.first() else { anyhow::bail!("serve NAMESPACE…") };
    let checks = first.try_run(|| TcpListener::bind(("0.0.0.0", CHECK)))?;
    std::thread::spawn(move || {
        for stream in checks.incoming().flatten() {
            std::thread::spawn(move || check(&stream));
        }
    });
    let mut server = Server::new(&spaces)?;
    println!("ready");
    server.run()
}

struct Server {
    epoll: Epoll,
    listeners: HashMap<RawFd, (TcpListener, Manner)>,
    clients: HashMap<RawFd, Client>,
    bytes: Vec<u8>,
}

impl Server {
    fn new(spaces: &[netns::NetNs]) -> anyhow::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut listeners = HashMap::new();
        for (space, (port, manner)) in spaces.iter().flat_map(|space| PORTS.map(|port| (space, port))) {
            let listener =
                space.try_run(|| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None))?;
            listener.set_reuse_address(true)?;
            listener.bind(&std::net::SocketAddr::from(([0, 0, 0, 0], port)).into())?;
            listener.listen(4096)?;
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from(listener);
            epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, listener.as_raw_fd() as u64))?;
            listeners.insert(listener.as_raw_fd(), (listener, manner));
        }
        Ok(Self { epoll, listeners, clients: HashMap::new(), bytes: vec![b'x'; CHUNK] })
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let count = self.epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
            for event in &events[..count] {
                let fd = event.data() as RawFd;
                if self.listeners.contains_key(&fd) {
                    self.accept(fd);
                } else if let Some(client) = self.clients.get_mut(&fd)
                    && !client.go_on(&mut self.bytes)
                {
                    self.clients.remove(&fd);
                }
            }
        }
    }

    fn accept(&mut self, listener: RawFd) {
        let Some((listener, manner)) = self.listeners.get(&listener) else { return };
        while let Ok((stream, _)) = listener.accept() {
            let _ = (stream.set_nonblocking(true), stream.set_nodelay(true));
            let flags = match manner {
                Manner::Answer { .. } => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET,
                Manner::Take => EpollFlags::EPOLLIN,
                Manner::Give => EpollFlags::EPOLLOUT,
            };
            let fd = stream.as_raw_fd();
            if self.epoll.add(&stream, EpollEvent::new(flags, fd as u64)).is_ok() {
                self.clients.insert(fd, Client { stream, manner: *manner, got: 0, left: 0 });
            }
        }
    }
}

struct Client {
    stream: TcpStream,
    manner: Manner,
    /// Of a request.
    got: usize,
    /// Of an answer, still to be written.
    left: usize,
}

impl Client {
    /// False: it is done with.
    fn go_on(&mut self, bytes: &mut [u8]) -> bool {
        match self.manner {
            Manner::Answer { size, close } => self.answer(bytes, size, close),
            Manner::Take => moves(|| self.stream.read(bytes)),
            Manner::Give => moves(|| self.stream.write(bytes)),
        }
    }

    fn answer(&mut self, page: &[u8], size: usize, close: bool) -> bool {
        let mut bytes = [0; 4096];
        loop {
            while self.left > 0 {
                match self.stream.write(&page[..self.left]) {
                    Ok(count) => self.left -= count,
                    Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
                }
                if self.left == 0 && close {
                    return false;
                }
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(count) => {
                    self.got += count;
                    self.left += self.got / REQUEST * size;
                    self.got %= REQUEST;
                }
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }
}

fn moves(mut step: impl FnMut() -> io::Result<usize>) -> bool {
    for _ in 0..TURN {
        match step() {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
    true
}

/// A head (bytes wanted, whether to read slowly) and bytes until the client's end; the digest of them and what was
/// wanted go back.
fn check(mut stream: &TcpStream) -> io::Result<()> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let [a, b, c, d, slow] = head;
    let wanted = u32::from_be_bytes([a, b, c, d]);
    let (mut got, mut piece) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let count = stream.read(&mut piece)?;
        if count == 0 {
            break;
        }
        got.extend_from_slice(&piece[..count]);
        if slow == 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    stream.write_all(&digest(&got))?;
    stream.write_all(&pattern(wanted, wanted))
}
