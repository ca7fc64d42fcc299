//! The floor: a bare relay, the least that any proxy must do which copies bytes into one encrypted connection a
//! destination.
//!
//! `floor NEAR FAR…`: one thread for the caller's namespace, one for the callees', each a loop over a poller; AES-128-GCM
//! sealed in place, records of 16 KiB, many records a read, many streams a record, one flush a turn, the client's address
//! passed on. No policy, no accounting, no identities, no HTTP/2, a fixed key: not a proxy, only a measure. It is
//! checked like the others that what goes in comes out (`bench check`).

mod apps;
mod relay;
mod tunnel;

use std::io;
use std::net::SocketAddr;

use aws_lc_rs::aead::{AES_128_GCM, LessSafeKey, Nonce, UnboundKey};
use socket2::{Domain, Socket, Type};

use relay::Relay;

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

/// What the namespace's own congestion control carries, until somebody sets another.
fn outgoing() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_mark(1337)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// One direction of a tunnel.
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
