//! The streams of a connection: found by the peer's number, or by a name of our own.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Names a stream; of use only to the connection that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    index: u32,
    pub(super) id: u32,
}

/// What is known of a stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    /// Whatever the caller knows it by.
    pub(super) user: u64,
    /// Bytes that we may send; negative after the peer has taken some back (RFC 9113 §6.9.2).
    pub(super) send_window: i64,
    /// Bytes that the peer may send.
    pub(super) recv_window: i64,
    /// Bytes that were passed on and not given back to the peer yet.
    pub(super) owed: u32,
    /// Bytes that the caller has been told of and has not passed on yet.
    pub(super) held: u32,
    /// We have sent END_STREAM.
    pub(super) local_ended: bool,
    /// The peer has.
    pub(super) remote_ended: bool,
    /// It was reset, by whomever.
    pub(super) reset: bool,
    /// The first HEADERS of the peer have arrived (client), or of us have been sent (server).
    pub(super) answered: bool,
}

impl Stream {
    /// Nothing more is sent or received on it.
    pub(super) fn is_closed(&self) -> bool {
        self.reset || (self.local_ended && self.remote_ended)
    }
}

/// Numbers of streams are spread well enough by a multiplication.
#[derive(Default)]
pub(super) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte) ^ self.0 as u32);
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(20);
    }
}

#[derive(Debug, Default)]
pub(super) struct Streams {
    places: Vec<Option<Stream>>,
    free: Vec<u32>,
    by_id: HashMap<u32, u32, BuildHasherDefault<Spread>>,
    /// Streams that are not closed.
    pub(super) open: usize,
}

impl Streams {
    pub(super) fn insert(&mut self, stream: Stream) -> Key {
        let id = stream.id;
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            (self.places.len() - 1) as u32
        });
        self.open += usize::from(!stream.is_closed());
        self.places[index as usize] = Some(stream);
        self.by_id.insert(id, index);
        Key { index, id }
    }

    pub(super) fn get(&self, key: Key) -> Option<&Stream> {
        self.places.get(key.index as usize)?.as_ref().filter(|stream| stream.id == key.id)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Stream> {
        self.places.get_mut(key.index as usize)?.as_mut().filter(|stream| stream.id == key.id)
    }

    pub(super) fn find(&self, id: u32) -> Option<Key> {
        self.by_id.get(&id).map(|index| Key { index: *index, id })
    }

    /// Changes a stream, and keeps count of those that are open.
    pub(super) fn change<T>(&mut self, key: Key, change: impl FnOnce(&mut Stream) -> T) -> Option<T> {
        let stream = self.get_mut(key)?;
        let before = stream.is_closed();
        let done = change(stream);
        let after = stream.is_closed();
        self.open = self.open + usize::from(before) - usize::from(after);
        Some(done)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Stream> {
        self.get(key)?;
        let stream = self.places.get_mut(key.index as usize)?.take()?;
        self.open -= usize::from(!stream.is_closed());
        self.by_id.remove(&key.id);
        self.free.push(key.index);
        if self.by_id.is_empty() && self.places.len() > 256 {
            // After a burst the memory goes back.
            let Self { places, free, by_id, .. } = self;
            (*places, *free, *by_id) = Default::default();
        }
        Some(stream)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.places.iter().flatten()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.places.iter_mut().flatten()
    }

    /// Streams that are known, closed ones included.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }
}
