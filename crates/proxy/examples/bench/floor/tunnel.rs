//! One encrypted connection to a destination: frames gather in records, records in one buffer, flushed once a turn.

use std::collections::HashMap;
use std::io::{self, IoSliceMut, Read, Write};
use std::net::IpAddr;

use aws_lc_rs::aead::Aad;
use socket2::Socket;

use super::{BURST, Cipher, DATA, FRAME, HEAD, RECORD, SLOT, TAG};

/// So much may wait for the peer before the applications have to wait.
pub const BACKLOG: usize = 256 << 10;

pub struct Tunnel {
    pub socket: Socket,
    pub seal: Cipher,
    pub open: Cipher,
    /// Sealed from `start`, open record from `record`, filled to `end`.
    pub out: Vec<u8>,
    pub start: usize,
    pub record: Option<usize>,
    pub end: usize,
    pub carry: Vec<u8>,
    pub writable: bool,
    pub dirty: bool,
    pub streams: HashMap<u32, u64>,
    pub next: u32,
    pub blocked: Vec<u64>,
    pub peer: IpAddr,
    pub place: usize,
}
/// It is to be flushed at the end of this turn.
pub fn mark(dirty: &mut Vec<u64>, tunnel: &mut Tunnel, token: u64) {
    if !tunnel.dirty {
        tunnel.dirty = true;
        dirty.push(token);
    }
}
impl Tunnel {
    pub fn new(socket: Socket, caller: bool, peer: IpAddr, place: usize) -> anyhow::Result<Self> {
        let (up, down) = (Cipher::new(1)?, Cipher::new(2)?);
        let (seal, open) = if caller { (up, down) } else { (down, up) };
        Ok(Self {
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
        })
    }

    /// Bytes that wait for the peer.
    pub fn waiting(&self) -> usize {
        self.end - self.start
    }

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

    pub fn frame(&mut self, stream: u32, kind: u8, payload: &[u8]) {
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
    pub fn pull(&mut self, from: &Socket, stream: u32, most: usize) -> io::Result<(usize, usize)> {
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

    pub fn send(&mut self) {
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
