//! The application that is called: one thread and one loop for small answers, a thread a connection for bulk.
//!
//! Ports: 8080 answers each 100 bytes with 200; 8081 the same and closes; 9000 takes everything; 9001 gives without
//! end; 9100 answers with 100 kB and closes.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

pub const REQUEST: usize = 100;
pub const ANSWER: usize = 200;
pub const PAGE: usize = 100_000;
const CHUNK: usize = 256 << 10;

/// `serve NAMESPACE…`
pub fn run(args: &[String]) -> anyhow::Result<()> {
    let spaces: Vec<netns::NetNs> = args.iter().map(netns::NetNs::open).collect::<Result<_, _>>()?;
    for (port, give) in [(9000, false), (9001, true)] {
        let Some(space) = spaces.first() else { anyhow::bail!("serve NAMESPACE…") };
        let listener = space.try_run(|| TcpListener::bind(("0.0.0.0", port)))?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || bulk(stream, give));
            }
        });
    }
    answer(&spaces)
}

fn bulk(mut stream: TcpStream, give: bool) {
    let mut bytes = vec![0_u8; CHUNK];
    loop {
        let done = if give { stream.write(&bytes) } else { stream.read(&mut bytes) };
        if !matches!(done, Ok(count) if count > 0) {
            return;
        }
    }
}

/// What a listener's connections get.
#[derive(Clone, Copy)]
struct Manner {
    size: usize,
    close: bool,
}

struct Client {
    stream: TcpStream,
    manner: Manner,
    /// Of a request.
    got: usize,
    /// Of an answer, still to be written.
    left: usize,
}

fn answer(spaces: &[netns::NetNs]) -> anyhow::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let manners = [
        (8080, Manner { size: ANSWER, close: false }),
        (8081, Manner { size: ANSWER, close: true }),
        (9100, Manner { size: PAGE, close: true }),
    ];
    let mut listeners = HashMap::new();
    for (space, (port, manner)) in spaces.iter().flat_map(|space| manners.map(|manner| (space, manner))) {
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
    let page = vec![b'x'; PAGE];
    let mut clients: HashMap<RawFd, Client> = HashMap::new();
    let mut events = [EpollEvent::empty(); 256];
    println!("ready");
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
        for event in &events[..count] {
            let fd = event.data() as RawFd;
            if let Some((listener, manner)) = listeners.get(&fd) {
                while let Ok((stream, _)) = listener.accept() {
                    let _ = (stream.set_nonblocking(true), stream.set_nodelay(true));
                    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
                    let _ = epoll.add(&stream, EpollEvent::new(flags, stream.as_raw_fd() as u64));
                    let client = Client { stream, manner: *manner, got: 0, left: 0 };
                    clients.insert(client.stream.as_raw_fd(), client);
                }
            } else if let Some(client) = clients.get_mut(&fd)
                && !client.go_on(&page)
            {
                clients.remove(&fd);
            }
        }
    }
}

impl Client {
    /// False: it is done with.
    fn go_on(&mut self, page: &[u8]) -> bool {
        let mut bytes = [0; 4096];
        loop {
            while self.left > 0 {
                match self.stream.write(&page[..self.left]) {
                    Ok(count) => self.left -= count,
                    Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
                }
                if self.left == 0 && self.manner.close {
                    return false;
                }
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(count) => {
                    self.got += count;
                    while self.got >= REQUEST {
                        self.got -= REQUEST;
                        self.left += self.manner.size;
                    }
                }
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
    }
}
