//! SPDY/3.1 frames, the few that Kubernetes uses: bytes in, frames out, and back. Pure.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Larger than any frame of kubectl or an API server (32 KiB of data).
const LARGEST: usize = 1 << 20;
const VERSION: u16 = 0x8003;
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// The peer does not keep to the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed SPDY: {0}")]
pub struct Malformed(pub &'static str);

/// What the peer sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A new stream; `fin`: the peer will send no data on it.
    Open {
        stream: u32,
        fin: bool,
        headers: Bytes,
    },
    /// Headers that say nothing new here but belong to the compression's state.
    Headers {
        stream: u32,
        fin: bool,
        headers: Bytes,
    },
    Data {
        stream: u32,
        fin: bool,
        data: Bytes,
    },
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// SETTINGS, WINDOW_UPDATE, and what later versions may add: Kubernetes does not use SPDY's flow control.
    Ignored,
}

/// Takes the next whole frame off the front of what was read.
pub fn next(read: &mut BytesMut) -> Result<Option<Frame>, Malformed> {
    let Some((head, _)) = read.split_first_chunk::<8>() else { return Ok(None) };
    let [a, b, c, d, flags, length @ ..] = *head;
    let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
    if length > LARGEST {
        return Err(Malformed("a frame is too large"));
    }
    if read.len() < 8 + length {
        return Ok(None);
    }
    let mut body = read.split_to(8 + length).freeze();
    body.advance(8);
    let fin = flags & FIN != 0;
    let first = u32::from_be_bytes([a, b, c, d]);
    if first & 0x8000_0000 == 0 {
        return Ok(Some(Frame::Data { stream: first, fin, data: body }));
    }
    if (first >> 16) as u16 != VERSION {
        return Err(Malformed("another version than SPDY/3"));
    }
    let mut number = || {
        let number = body.try_get_u32().map_err(|_| Malformed("a control frame is too short"))?;
        Ok(number & 0x7fff_ffff)
    };
    let frame = match (first & 0xffff) as u16 {
        SYN_STREAM => {
            let (stream, _associated) = (number()?, number()?);
            body.try_get_u16().map_err(|_| Malformed("a control frame is too short"))?; // priority and slot
            Frame::Open { stream, fin, headers: body }
        }
        SYN_REPLY | HEADERS => Frame::Headers { stream: number()?, fin, headers: body },
        RST_STREAM => Frame::Reset { stream: number()? },
        PING => {
            Frame::Ping { id: body.try_get_u32().map_err(|_| Malformed("a control frame is too short"))? }
        }
        GOAWAY => Frame::GoAway,
        _ => Frame::Ignored,
    };
    Ok(Some(frame))
}

/// Accepts a stream.
pub fn reply(stream: u32, headers: &[u8]) -> Bytes {
    control(SYN_REPLY, 0, |body| {
        body.put_u32(stream);
        body.put_slice(headers);
    })
}

/// Refuses or abandons a stream; `status` as in §2.6.3 of the draft, 3 being "refused".
pub fn reset(stream: u32, status: u32) -> Bytes {
    control(RST_STREAM, 0, |body| {
        body.put_u32(stream);
        body.put_u32(status);
    })
}

/// Answers a ping.
pub fn pong(id: u32) -> Bytes {
    control(PING, 0, |body| body.put_u32(id))
}

/// Data, and whether it is the last. At most 16 MiB less one byte.
pub fn data(stream: u32, fin: bool, data: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(8 + data.len());
    frame.put_u32(stream & 0x7fff_ffff);
    frame.put_u8(if fin { FIN } else { 0 });
    frame.put_uint(data.len() as u64, 3);
    frame.put_slice(data);
    frame.freeze()
}

fn control(kind: u16, flags: u8, write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut body = BytesMut::new();
    write(&mut body);
    let mut frame = BytesMut::with_capacity(8 + body.len());
    frame.put_u16(VERSION);
    frame.put_u16(kind);
    frame.put_u8(flags);
    frame.put_uint(body.len() as u64, 3);
    frame.put_slice(&body);
    frame.freeze()
}

/// Opens a stream, as clients do.
#[cfg(test)]
pub fn open(stream: u32, fin: bool, headers: &[u8]) -> Bytes {
    control(SYN_STREAM, if fin { FIN } else { 0 }, |body| {
        body.put_u32(stream);
        body.put_u32(0);
        body.put_u16(0);
        body.put_slice(headers);
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_are_read_however_they_arrive() {
        let sent = [open(1, false, b"h"), data(1, true, b"hello"), pong(7), reset(1, 3)].concat();
        let wanted = vec![
            Frame::Open { stream: 1, fin: false, headers: Bytes::from_static(b"h") },
            Frame::Data { stream: 1, fin: true, data: Bytes::from_static(b"hello") },
            Frame::Ping { id: 7 },
            Frame::Reset { stream: 1 },
        ];
        for chunk in [1, 5, 100] {
            let (mut read, mut frames) = (BytesMut::new(), Vec::new());
            for piece in sent.chunks(chunk) {
                read.extend_from_slice(piece);
                while let Some(frame) = next(&mut read).unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, wanted);
        }
    }

    #[test]
    fn frames_that_cannot_be_are_errors() {
        let read = |bytes: &[u8]| next(&mut BytesMut::from(bytes));
        assert!(read(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff]).is_err(), "too large");
        assert!(read(&[0x80, 2, 0, 1, 0, 0, 0, 0]).is_err(), "SPDY/2");
        assert!(read(&[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0]).is_err(), "too short");
        assert_eq!(read(&[0x80, 3, 0, 4, 0, 0, 0, 0]), Ok(Some(Frame::Ignored)), "settings");
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_peer_cause_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut read = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = next(&mut read) {}
        }
    }
}
