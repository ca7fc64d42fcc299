//! One lane's past: counts in buckets of ten seconds for an hour, in a few bytes each.
//!
//! A bucket in which nothing happened costs nothing. A scrape's bucket costs some seven bytes: how many buckets since
//! the last one, which counts are not zero, and those counts, all as variable-length numbers. Buckets are kept in
//! chunks of ten minutes, so that what is too old goes as a whole and sums over long windows skip the decoding.

use std::collections::VecDeque;

use crate::flow::{Counts, Millis};

/// Length of a bucket.
pub const BUCKET: Millis = 10_000;
/// Buckets of a chunk.
const CHUNK: u32 = 60;
/// How many buckets back a query may look: an hour.
pub const DEPTH: u32 = 360;

/// The bucket in which a moment lies.
pub fn bucket(at: Millis) -> u32 {
    u32::try_from(at / BUCKET).unwrap_or(u32::MAX)
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct History {
    sealed: VecDeque<Chunk>,
    writing: Chunk,
    current: Counts,
    current_bucket: u32,
}

#[derive(Clone, Debug, Default)]
struct Chunk {
    /// First and last bucket with something in it.
    first: u32,
    last: u32,
    total: Counts,
    data: Vec<u8>,
}

impl History {
    /// Counts something at a bucket. What comes late is counted in the newest bucket there is: nothing is lost, and
    /// what was written stays as it is.
    pub fn add(&mut self, bucket: u32, counts: &Counts) {
        if counts.is_zero() {
            return;
        }
        if bucket > self.current_bucket {
            self.flush();
            self.current_bucket = bucket;
        }
        self.current.add(counts);
    }

    fn flush(&mut self) {
        if self.current.is_zero() {
            return;
        }
        let (bucket, counts) = (self.current_bucket, std::mem::take(&mut self.current));
        if !self.writing.data.is_empty() && self.writing.first / CHUNK != bucket / CHUNK {
            let mut full = std::mem::take(&mut self.writing);
            full.data.shrink_to_fit();
            self.sealed.push_back(full);
        }
        self.writing.push(bucket, &counts);
        while self.sealed.front().is_some_and(|chunk| chunk.last + DEPTH < bucket) {
            self.sealed.pop_front();
        }
    }

    /// What was counted in the buckets `from..=to`.
    pub fn sum(&self, from: u32, to: u32) -> Counts {
        let mut sum = Counts::default();
        for chunk in self.sealed.iter().chain([&self.writing]) {
            if chunk.data.is_empty() || chunk.last < from || chunk.first > to {
                continue;
            }
            if from <= chunk.first && chunk.last <= to {
                sum.add(&chunk.total);
            } else {
                chunk.each(|bucket, counts| {
                    if (from..=to).contains(&bucket) {
                        sum.add(counts);
                    }
                });
            }
        }
        if (from..=to).contains(&self.current_bucket) {
            sum.add(&self.current);
        }
        sum
    }

    /// Calls `visit` with every bucket in `from..=to` in which something was counted, oldest first.
    pub fn each(&self, from: u32, to: u32, mut visit: impl FnMut(u32, &Counts)) {
        for chunk in self.sealed.iter().chain([&self.writing]) {
            if !chunk.data.is_empty() && chunk.last >= from && chunk.first <= to {
                chunk.each(|bucket, counts| {
                    if (from..=to).contains(&bucket) {
                        visit(bucket, counts);
                    }
                });
            }
        }
        if (from..=to).contains(&self.current_bucket) && !self.current.is_zero() {
            visit(self.current_bucket, &self.current);
        }
    }

    /// Memory on the heap.
    pub fn heap_bytes(&self) -> usize {
        let sealed: usize = self.sealed.iter().map(|chunk| chunk.data.capacity()).sum();
        sealed + self.writing.data.capacity() + self.sealed.capacity() * size_of::<Chunk>()
    }
}

impl Chunk {
    fn push(&mut self, bucket: u32, counts: &Counts) {
        if self.data.is_empty() {
            self.first = bucket;
            self.last = bucket;
        }
        put(&mut self.data, u64::from(bucket - self.last));
        self.last = bucket;
        let values = [counts.sent, counts.received, counts.opened, counts.closed, counts.failed];
        let present =
            values.iter().enumerate().fold(0u8, |mask, (i, value)| mask | (u8::from(*value > 0) << i));
        self.data.push(present);
        for value in values.into_iter().filter(|value| *value > 0) {
            put(&mut self.data, value);
        }
        self.total.add(counts);
    }

    fn each(&self, mut visit: impl FnMut(u32, &Counts)) {
        let mut rest = &self.data[..];
        let mut bucket = self.first;
        while let Some(gap) = take(&mut rest) {
            bucket = bucket.saturating_add(u32::try_from(gap).unwrap_or(u32::MAX));
            let Some((present, after)) = rest.split_first() else { return };
            rest = after;
            let mut values = [0u64; 5];
            for (i, value) in values.iter_mut().enumerate() {
                if present & (1 << i) != 0 {
                    *value = take(&mut rest).unwrap_or_default();
                }
            }
            let [sent, received, opened, closed, failed] = values;
            visit(bucket, &Counts { sent, received, opened, closed, failed });
        }
    }
}

fn put(data: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        data.push((value as u8) | 0x80);
        value >>= 7;
    }
    data.push(value as u8);
}

fn take(data: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = data.split_first()?;
        *data = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sums_are_those_of_a_plain_list(
            steps in prop::collection::vec((0u32..40, 0u64..1 << 40, 0u64..300, 0u64..3), 1..300),
            from in 0u32..400, span in 0u32..400,
        ) {
            let mut history = History::default();
            let mut plain: Vec<(u32, Counts)> = Vec::new();
            let mut at = 17_000_000;
            for (gap, sent, received, opened) in steps {
                at += gap;
                let counts = Counts { sent, received, opened, closed: 0, failed: received % 2 };
                history.add(at, &counts);
                plain.push((at, counts));
            }
            // Only what is younger than the depth is promised.
            let newest = at;
            let from = newest.saturating_sub(from.min(DEPTH - 1));
            let to = from + span;
            let mut expected = Counts::default();
            plain.iter().filter(|(at, _)| (from..=to).contains(at)).for_each(|(_, counts)| expected.add(counts));
            prop_assert_eq!(history.sum(from, to), expected);
            let mut visited = Counts::default();
            history.each(from, to, |_, counts| visited.add(counts));
            prop_assert_eq!(visited, expected);
        }
    }

    #[test]
    fn an_hour_of_scrapes_costs_some_three_thousand_bytes() {
        let mut history = History::default();
        for at in 0..10_000 {
            history.add(1_000 + at, &Counts { sent: 18_000, received: 340, ..Counts::default() });
        }
        assert!(history.heap_bytes() < 4_500, "{}", history.heap_bytes());
    }
}
