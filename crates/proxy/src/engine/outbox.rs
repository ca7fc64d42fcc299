//! What a tunnel is about to send: records, sealed and being filled, in one piece of memory.
//!
//! Frames of many streams are put into one record until it is full or the turn ends. An application's bytes are read
//! straight into their place in a record; a long read fills several records at once. Memory is borrowed from the
//! worker only while there is something to send.

use std::io::{self, IoSliceMut, Read, Write};

use hbone::secured::{Content, MAX_PAYLOAD, RecordError, Sealer};

/// Before the payload of a frame (RFC 9113 §4.1).
const FRAME_HEADER: usize = 9;
/// Records that one read fills, at most.
pub(super) const BURST: usize = 16;
/// Head, payload and tail of the longest record of any suite.
const RECORD: usize = 13 + MAX_PAYLOAD + 17;
/// Room for two bursts.
pub(super) const SIZE: usize = 2 * BURST * RECORD;
/// A frame is not begun in less room than this.
const LEAST: usize = 256;
/// With more than this unsent nothing more is taken in.
const BACKLOG: usize = 256 << 10;

/// Memory that is lent to whoever sends.
#[derive(Default)]
pub(super) struct Stock {
    spare: Vec<Box<[u8]>>,
}

/// Pieces of memory that are kept for the next turn.
const KEPT: usize = 4;

impl Stock {
    fn take(&mut self) -> Box<[u8]> {
        self.spare.pop().unwrap_or_else(|| vec![0; SIZE].into_boxed_slice())
    }

    fn give(&mut self, memory: Box<[u8]>) {
        if self.spare.len() < KEPT {
            self.spare.push(memory);
        }
    }
}

/// Records on their way out of one tunnel.
pub(super) struct Outbox {
    memory: Option<Box<[u8]>>,
    /// Sent up to here.
    start: usize,
    /// Filled up to here; behind it there is nothing.
    end: usize,
    /// Where the record that is being filled starts.
    open: Option<usize>,
    head: usize,
    tail: usize,
}

/// What became of a read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pulled {
    /// So many bytes; fewer than there was room for.
    Some(usize),
    /// As many as there was room for.
    Full(usize),
    /// The application will send no more.
    End,
}

impl Outbox {
    pub(super) fn new(sealer: &Sealer) -> Self {
        Self { memory: None, start: 0, end: 0, open: None, head: sealer.head(), tail: sealer.tail() }
    }

    /// Bytes that have not been sent.
    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Room for frames, at least; records that are already full are out of the way.
    pub(super) fn room(&self) -> usize {
        SIZE.saturating_sub(self.end + RECORD)
    }

    /// Whether nothing more is taken in for now: so much is unsent, or what was sent in part has left no room behind it.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= BACKLOG || self.room() == 0
    }

    fn begin(&mut self, stock: &mut Stock) -> usize {
        if self.memory.is_none() {
            self.memory = Some(stock.take());
        }
        *self.open.get_or_insert_with(|| {
            let start = self.end;
            self.end += self.head;
            start
        })
    }

    /// Seals the record that is being filled.
    pub(super) fn close(&mut self, sealer: &mut Sealer) -> Result<(), RecordError> {
        self.close_as(sealer, Content::Data)
    }

    fn close_as(&mut self, sealer: &mut Sealer, content: Content) -> Result<(), RecordError> {
        let (Some(start), Some(memory)) = (self.open.take(), &mut self.memory) else { return Ok(()) };
        if self.end == start + self.head && content == Content::Data {
            // Nothing came of it.
            self.end = start;
            return Ok(());
        }
        self.end += self.tail;
        sealer.seal(&mut memory[start..self.end], content)
    }

    /// Appends bytes that are frames already.
    pub(super) fn put(
        &mut self,
        mut bytes: &[u8],
        sealer: &mut Sealer,
        stock: &mut Stock,
    ) -> Result<(), RecordError> {
        while !bytes.is_empty() {
            let start = self.begin(stock);
            let room = start + self.head + MAX_PAYLOAD - self.end;
            if room == 0 {
                self.close(sealer)?;
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(room));
            let Some(memory) = &mut self.memory else { return Ok(()) };
            // Control frames are bounded by the codec; what a peer provokes beyond that ends the tunnel.
            fill(memory, &mut self.end, now, self.tail)?;
            bytes = later;
        }
        Ok(())
    }

    /// A record of its own that carries no frames.
    pub(super) fn put_apart(
        &mut self,
        content: Content,
        message: &[u8],
        sealer: &mut Sealer,
        stock: &mut Stock,
    ) -> Result<(), RecordError> {
        self.close(sealer)?;
        self.begin(stock);
        let Some(memory) = &mut self.memory else { return Ok(()) };
        fill(memory, &mut self.end, message, self.tail)?;
        self.close_as(sealer, content)
    }

    /// Reads up to `most` bytes of an application into frames; `header` makes the header of a frame of so many bytes.
    pub(super) fn pull(
        &mut self,
        mut from: impl Read,
        most: usize,
        sealer: &mut Sealer,
        stock: &mut Stock,
        mut header: impl FnMut(usize) -> [u8; 9],
    ) -> io::Result<Result<Pulled, RecordError>> {
        if let Some(start) = self.open
            && start + self.head + MAX_PAYLOAD < self.end + LEAST
            && let Err(error) = self.close(sealer)
        {
            return Ok(Err(error));
        }
        let first = self.begin(stock);
        let Some(memory) = &mut self.memory else { return Ok(Ok(Pulled::Some(0))) };
        let record = self.head + MAX_PAYLOAD + self.tail;
        let mut slices: [IoSliceMut<'_>; BURST] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let (mut used, mut room) = (0, 0);
        let mut rest = &mut memory[self.end..];
        let mut left_in_record = first + self.head + MAX_PAYLOAD - self.end;
        while used < BURST && room < most && rest.len() >= left_in_record + self.tail {
            let take = (left_in_record - FRAME_HEADER).min(most - room);
            let (_, after) = rest.split_at_mut(FRAME_HEADER);
            let (place, after) = after.split_at_mut(take);
            slices[used] = IoSliceMut::new(place);
            used += 1;
            room += take;
            // On to the payload of the next record.
            let skip = left_in_record - FRAME_HEADER - take + self.tail + self.head;
            rest = match after.get_mut(skip..) {
                Some(rest) => rest,
                None => break,
            };
            left_in_record = MAX_PAYLOAD;
        }
        let read = match used {
            0 => return Ok(Ok(Pulled::Some(0))),
            1 => from.read(&mut slices[0])?,
            _ => from.read_vectored(&mut slices[..used])?,
        };
        if read == 0 {
            return Ok(Ok(Pulled::End));
        }
        let mut left = read;
        let mut at = first;
        while left > 0 {
            let payload = (at + self.head + MAX_PAYLOAD - self.end - FRAME_HEADER).min(left);
            memory[self.end..self.end + FRAME_HEADER].copy_from_slice(&header(payload));
            self.end += FRAME_HEADER + payload;
            left -= payload;
            if left > 0 {
                let sealed = sealer.seal(&mut memory[at..self.end + self.tail], Content::Data);
                if let Err(error) = sealed {
                    return Ok(Err(error));
                }
                at += record;
                self.end = at + self.head;
                self.open = Some(at);
            }
        }
        Ok(Ok(if read == room { Pulled::Full(read) } else { Pulled::Some(read) }))
    }

    /// Writes what is sealed; true: everything is gone.
    pub(super) fn send(&mut self, mut to: impl Write, stock: &mut Stock) -> io::Result<bool> {
        let sealed = self.open.unwrap_or(self.end);
        while let Some(memory) = &self.memory
            && self.start < sealed
        {
            match to.write(&memory[self.start..sealed]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.start += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.compact();
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.open.is_none() {
            (self.start, self.end) = (0, 0);
            if let Some(memory) = self.memory.take() {
                stock.give(memory);
            }
        }
        Ok(true)
    }

    /// Makes room behind what could not be sent.
    fn compact(&mut self) {
        if self.start < SIZE / 2 {
            return;
        }
        if let Some(memory) = &mut self.memory {
            memory.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.open = self.open.map(|open| open - self.start);
            self.start = 0;
        }
    }
}

/// Copies `bytes` to `end`, if there is room for them and the record's tail.
fn fill(memory: &mut [u8], end: &mut usize, bytes: &[u8], tail: usize) -> Result<(), RecordError> {
    let full = RecordError::Length(*end);
    let place = memory.get_mut(*end..*end + bytes.len() + tail).ok_or(full)?;
    place[..bytes.len()].copy_from_slice(bytes);
    *end += bytes.len();
    Ok(())
}

#[cfg(test)]
mod tests;
