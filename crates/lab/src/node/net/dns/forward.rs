//! Questions that are not the cluster's: asked of the host's resolvers, from the host's network namespace, with a
//! bound. On a machine without a network that is a quick "no".

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::Over;
use crate::node::layout;
use crate::node::net::inside;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long each resolver of the host has. Clients give up after some five seconds.
const EACH_WITHIN: Duration = Duration::from_secs(2);
/// How many of them are asked.
const AT_MOST: usize = 2;

/// The host's resolvers.
#[derive(Clone, Debug)]
pub(super) struct Forward {
    servers: Vec<SocketAddr>,
}

impl Forward {
    /// Those of the host's `resolv.conf`, which is read once; `not` is the cluster's own resolver.
    pub fn from_host(not: IpAddr) -> Self {
        // Unreadable is the same as empty: nobody to ask.
        let path = inside(layout::RESOLV_CONF, Path::new(RESOLV_CONF));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        Self { servers: servers(&text, not) }
    }

    /// The answer of the first resolver that gives one, as it came but for the question's own id.
    pub async fn ask(&self, question: &[u8], over: Over) -> Option<Vec<u8>> {
        for server in &self.servers {
            let asked = async {
                match over {
                    Over::Udp => by_udp(*server, question).await,
                    Over::Tcp => by_tcp(*server, question).await,
                }
            };
            match tokio::time::timeout(EACH_WITHIN, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, "the host's resolver did not answer: {error}"),
                Err(_) => tracing::debug!(%server, "the host's resolver did not answer in time"),
            }
        }
        None
    }
}

fn servers(resolv_conf: &str, not: IpAddr) -> Vec<SocketAddr> {
    let lines = resolv_conf.lines().map(str::trim);
    let addresses = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
    });
    addresses.filter(|ip| *ip != not).take(AT_MOST).map(|ip| SocketAddr::new(ip, 53)).collect()
}

async fn by_udp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let from: IpAddr = match server {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    // A port and an id of its own for each question, and only the asked address is heard: no answer can be
    // slipped in from aside.
    let socket = UdpSocket::bind(SocketAddr::new(from, 0)).await?;
    socket.connect(server).await?;
    let id: [u8; 2] = rand::random();
    let mut asked = question.to_vec();
    set_id(&mut asked, id);
    socket.send(&asked).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if length >= 12 && buffer[..2] == id {
            let mut answer = buffer[..length].to_vec();
            set_id(&mut answer, [question[0], question[1]]);
            return Ok(answer);
        }
    }
}

async fn by_tcp(server: SocketAddr, question: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], question].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

fn set_id(message: &mut [u8], id: [u8; 2]) {
    if let Some(place) = message.get_mut(..2) {
        place.copy_from_slice(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_resolvers_are_those_of_its_resolv_conf() {
        let text = "# comment\nsearch a b\nnameserver 10.96.0.10\n nameserver 192.0.2.1\nnameserver x\n\
                    nameserver fe80::1%eth0\nnameserver 2001:db8::1\nnameserver 192.0.2.3\n";
        assert_eq!(
            servers(text, "10.96.0.10".parse().unwrap()),
            ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()]
        );
    }

    /// A question of twelve bytes with the id 0x0102, as short as one can be.
    const QUESTION: [u8; 12] = [1, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    #[tokio::test]
    async fn only_an_answer_to_the_question_asked_is_passed_on() {
        let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let forward = Forward { servers: vec![upstream.local_addr().unwrap()] };
        let resolver = async {
            let mut asked = [0; 64];
            let (length, peer) = upstream.recv_from(&mut asked).await.unwrap();
            let mut forged = asked;
            forged[0] ^= 1;
            upstream.send_to(&forged[..length], peer).await.unwrap();
            upstream.send_to(&[asked[0], asked[1]], peer).await.unwrap();
            asked[3] = 0x80;
            upstream.send_to(&asked[..length], peer).await.unwrap();
        };
        let (answer, ()) = futures::join!(forward.ask(&QUESTION, Over::Udp), resolver);
        assert_eq!(answer.unwrap(), [1, 2, 1, 0x80, 0, 0, 0, 0, 0, 0, 0, 0], "under the client's own id");
    }

    #[tokio::test]
    async fn with_nobody_to_ask_there_is_no_answer() {
        assert_eq!(Forward { servers: Vec::new() }.ask(&QUESTION, Over::Udp).await, None);
        // Bound and not listening: nobody else can answer there meanwhile.
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let servers = vec![closed.local_addr().unwrap()];
        assert_eq!(Forward { servers }.ask(&QUESTION, Over::Tcp).await, None);
    }
}
