//! What a tunnel is about to send, with sockets that take as much as a test says.

use std::io;
use std::net::SocketAddr;

use hbone::Settings;
use hbone::secured::{self, Opener, Sealer};

use super::*;
use crate::testing::{credential, identity};

/// Gives bytes without end.
struct Plenty;

impl Read for Plenty {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        buffer.fill(7);
        Ok(buffer.len())
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        buffers.iter_mut().map(|buffer| self.read(buffer)).sum()
    }
}

/// Takes so many bytes, and then no more.
struct Takes<'a> {
    left: usize,
    taken: &'a mut Vec<u8>,
}

impl Write for Takes<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let now = bytes.len().min(self.left);
        if now == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.left -= now;
        self.taken.extend_from_slice(&bytes[..now]);
        Ok(now)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn keys() -> (Sealer, Opener) {
    let credential = credential();
    let peer: SocketAddr = "10.0.0.1:15008".parse().unwrap();
    let (mut a, mut b) = tokio::io::duplex(64 << 10);
    let (settings, expected) = (Settings::default(), [identity()]);
    let (near, far) = tokio::join!(
        secured::client(&mut a, peer, &credential, &expected, &settings),
        secured::server(&mut b, peer, &credential, &settings),
    );
    (near.unwrap().sealer, far.unwrap().opener)
}

/// A header that is as long as that of a frame.
fn header(length: usize) -> [u8; 9] {
    let [.., a, b, c] = length.to_be_bytes();
    [a, b, c, 0, 0, 0, 0, 0, 1]
}

#[tokio::test]
async fn an_outbox_that_is_not_full_always_has_room_for_what_it_is_asked_to_take() {
    let (mut sealer, mut opener) = keys().await;
    let (mut outbox, mut stock, mut sent) = (Outbox::new(&sealer), Stock::default(), Vec::new());
    let mut pulled = 0;
    // Both go on in small steps of every size, so that what is unsent comes to lie everywhere.
    for takes in (1..20_000).step_by(1_277).cycle().take(600) {
        while !outbox.is_full() {
            let most = takes;
            match outbox.pull(Plenty, most, &mut sealer, &mut stock, header).unwrap().unwrap() {
                Pulled::Some(bytes) | Pulled::Full(bytes) => {
                    assert!(bytes > 0, "nothing is taken although it is not full");
                    pulled += bytes;
                }
                Pulled::End => unreachable!("there is plenty"),
            }
            outbox.put(&[9; 9], &mut sealer, &mut stock).unwrap();
        }
        outbox.close(&mut sealer).unwrap();
        outbox.send(Takes { left: takes, taken: &mut sent }, &mut stock).unwrap();
    }
    outbox.send(Takes { left: usize::MAX, taken: &mut sent }, &mut stock).unwrap();
    let mut rest = &mut sent[..];
    let mut sevens = 0;
    while let Some(length) = opener.length(rest).unwrap() {
        let (record, after) = std::mem::take(&mut rest).split_at_mut(length);
        let (content, range) = opener.open(record).unwrap();
        assert_eq!(content, Content::Data);
        sevens += record[range].iter().filter(|byte| **byte == 7).count();
        rest = after;
    }
    assert!(rest.is_empty() && sevens >= pulled, "every byte is sealed in order: {sevens} of {pulled}");
}
