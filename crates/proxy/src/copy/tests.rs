use std::cell::Cell;
use std::collections::VecDeque;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// An end that follows a script: what it sends, how much it takes at once, and what goes wrong.
#[derive(Default)]
struct Scripted {
    sends: VecDeque<io::Result<Vec<u8>>>,
    /// Without it the end never finishes sending.
    ends: bool,
    takes: usize,
    fails_writing: Option<io::ErrorKind>,
    gone: Option<io::ErrorKind>,
    got: Vec<u8>,
    finished: bool,
    reset: bool,
}

impl End for Scripted {
    fn poll_data(&mut self, _: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        if let Some(Err(error)) = self.sends.front() {
            return Poll::Ready(Err(error.kind().into()));
        }
        match self.sends.front() {
            Some(Ok(data)) => Poll::Ready(Ok(data)),
            _ if self.ends => Poll::Ready(Ok(&[])),
            _ => Poll::Pending,
        }
    }

    fn consume(&mut self, amount: usize) {
        if let Some(Ok(data)) = self.sends.front_mut() {
            data.drain(..amount);
            if data.is_empty() {
                self.sends.pop_front();
            }
        }
    }

    fn poll_write(&mut self, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(kind) = self.fails_writing {
            return Poll::Ready(Err(kind.into()));
        }
        let amount = data.len().min(self.takes);
        self.got.extend_from_slice(&data[..amount]);
        Poll::Ready(Ok(amount))
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished = true;
        Poll::Ready(Ok(()))
    }

    fn poll_gone(&mut self, _: &mut Context<'_>) -> Poll<io::Error> {
        self.gone.map_or(Poll::Pending, |kind| Poll::Ready(kind.into()))
    }

    fn reset(&mut self) {
        self.reset = true;
    }
}

#[derive(Default)]
struct Counts {
    up: Cell<u64>,
    down: Cell<u64>,
}

impl Meter for Counts {
    fn client_to_server(&self, bytes: u64) {
        self.up.set(self.up.get() + bytes);
    }
    fn server_to_client(&self, bytes: u64) {
        self.down.set(self.down.get() + bytes);
    }
}

fn end(sends: &[&[u8]], ends: bool, takes: usize) -> Scripted {
    let sends = sends.iter().map(|data| Ok(data.to_vec())).collect();
    Scripted { sends, ends, takes, ..Scripted::default() }
}

#[tokio::test]
async fn every_byte_arrives_once_is_counted_once_and_ends_are_passed_on() {
    let mut client = end(&[b"hello ", b"world"], true, 3);
    let mut server = end(&[b"answer"], true, 1);
    let counts = Counts::default();
    both_ways(&mut client, &mut server, &counts).await.unwrap();
    assert_eq!((&*server.got, &*client.got), (&b"hello world"[..], &b"answer"[..]));
    assert_eq!((counts.up.get(), counts.down.get()), (11, 6));
    assert!(client.finished && server.finished);
    assert!(!client.reset && !server.reset);
}

#[tokio::test]
async fn what_takes_many_rounds_is_finished_all_the_same() {
    let data = vec![7; 10 * ROUNDS];
    let mut client = end(&[&data], true, 1);
    let mut server = end(&[], true, 1);
    both_ways(&mut client, &mut server, &Counts::default()).await.unwrap();
    assert_eq!(server.got.len(), data.len());
}

#[tokio::test]
async fn an_error_on_one_side_resets_both() {
    type Break = fn(&mut Scripted);
    let breaks: [(&str, Break); 3] = [
        ("reading", |end| end.sends.push_back(Err(io::ErrorKind::ConnectionReset.into()))),
        ("writing", |end| end.fails_writing = Some(io::ErrorKind::ConnectionReset)),
        ("silently", |end| end.gone = Some(io::ErrorKind::ConnectionReset)),
    ];
    for (how, broken) in breaks {
        for server_breaks in [true, false] {
            let (mut client, mut server) = (end(&[b"x"], false, 9), end(&[b"y"], false, 9));
            broken(if server_breaks { &mut server } else { &mut client });
            let error = both_ways(&mut client, &mut server, &Counts::default()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{how}");
            assert!(client.reset && server.reset, "{how}");
        }
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

#[tokio::test]
async fn no_buffer_is_held_while_a_socket_is_idle() {
    let (near, mut far) = pair().await;
    let mut end = Tcp::new(&near);
    far.write_all(b"hello").await.unwrap();
    let read = poll_fn(|cx| end.poll_data(cx).map(|data| data.map(<[u8]>::to_vec))).await;
    assert_eq!(read.unwrap(), b"hello");
    assert!(end.buffer.capacity() > 0);
    end.consume(5);
    let idle = poll_fn(|cx| Poll::Ready(end.poll_data(cx).is_pending())).await;
    assert!(idle);
    assert_eq!(end.buffer.capacity(), 0);
}

#[tokio::test]
async fn bytes_that_were_not_passed_on_yet_are_offered_again() {
    let (near, mut far) = pair().await;
    let mut end = Tcp::new(&near);
    far.write_all(b"hello").await.unwrap();
    far.shutdown().await.unwrap();
    poll_fn(|cx| end.poll_data(cx).map(|data| assert_eq!(data.unwrap(), b"hello"))).await;
    end.consume(2);
    poll_fn(|cx| end.poll_data(cx).map(|data| assert_eq!(data.unwrap(), b"llo"))).await;
    end.consume(3);
    poll_fn(|cx| end.poll_data(cx).map(|data| assert!(data.unwrap().is_empty(), "the end"))).await;
    poll_fn(|cx| end.poll_finish(cx)).await.unwrap();
    assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
}
