//! What is remembered of allocations: for each stack what it took, and what of that has not been given back.

use std::collections::HashMap;
use std::sync::Arc;

/// Bytes for each allocation that is remembered, on average.
pub(crate) const PERIOD: usize = 512 << 10;
/// Allocations that are remembered at once; with these 32 GiB are in use.
pub(super) const MOST: usize = 65_000;
/// Stacks that are told apart; others count as one without frames.
const STACKS: usize = 16_384;

/// How much: what a drawn allocation stands for, not only itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
}

/// What one stack took.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// Return addresses, the innermost first.
    pub(crate) stack: Arc<[usize]>,
    /// All that was taken since remembering began.
    pub(crate) taken: Amount,
    /// What has not been given back.
    pub(crate) held: Amount,
}

#[derive(Default)]
pub(super) struct Table {
    stacks: Vec<Held>,
    by_stack: HashMap<Arc<[usize]>, usize>,
    live: HashMap<usize, (usize, Amount)>,
}

impl Table {
    /// Remembers an allocation. True: it is to be forgotten when it is given back.
    pub(super) fn remember(&mut self, at: usize, size: usize, stack: &[usize]) -> bool {
        let of = self.number(stack);
        let amount = stands_for(size);
        add(&mut self.stacks[of].taken, amount);
        if self.live.len() >= MOST {
            return false;
        }
        add(&mut self.stacks[of].held, amount);
        match self.live.insert(at, (of, amount)) {
            // Its release was not seen.
            Some((of, amount)) => {
                subtract(&mut self.stacks[of].held, amount);
                false
            }
            None => true,
        }
    }

    /// Takes note of a release. True: it was remembered.
    pub(super) fn forget(&mut self, at: usize) -> bool {
        let Some((of, amount)) = self.live.remove(&at) else { return false };
        subtract(&mut self.stacks[of].held, amount);
        true
    }

    pub(super) fn held(&self) -> Vec<Held> {
        self.stacks.clone()
    }

    fn number(&mut self, stack: &[usize]) -> usize {
        if let Some(number) = self.by_stack.get(stack) {
            return *number;
        }
        if self.stacks.len() >= STACKS && !stack.is_empty() {
            return self.number(&[]);
        }
        let stack: Arc<[usize]> = stack.into();
        let number = self.stacks.len();
        self.stacks.push(Held { stack: stack.clone(), taken: Amount::default(), held: Amount::default() });
        self.by_stack.insert(stack, number);
        number
    }
}

/// An allocation of `size` is drawn with the probability 1 - e^(-size/PERIOD), and stands for as many as that takes.
fn stands_for(size: usize) -> Amount {
    let drawn = -(-(size as f64) / PERIOD as f64).exp_m1();
    // Nothing is drawn for nothing.
    let objects = if drawn > 0.0 { 1.0 / drawn } else { 1.0 };
    Amount { objects: objects.round() as u64, bytes: (objects * size as f64).round() as u64 }
}

fn add(to: &mut Amount, amount: Amount) {
    to.objects = to.objects.saturating_add(amount.objects);
    to.bytes = to.bytes.saturating_add(amount.bytes);
}

fn subtract(from: &mut Amount, amount: Amount) {
    from.objects = from.objects.saturating_sub(amount.objects);
    from.bytes = from.bytes.saturating_sub(amount.bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_allocation_stands_for_all_that_were_not_drawn() {
        let small = stands_for(64);
        assert!(small.bytes.abs_diff(PERIOD as u64) < 100, "{small:?}");
        assert_eq!(small.objects, small.bytes.div_ceil(64));
        let large = 64 << 20;
        assert_eq!(stands_for(large), Amount { objects: 1, bytes: large as u64 }, "it is always drawn");
        assert_eq!(stands_for(0).bytes, 0);
    }

    #[test]
    fn what_is_given_back_is_no_longer_held_and_stays_counted_as_taken() {
        let mut table = Table::default();
        let size = 64 << 20;
        assert!(
            table.remember(1, size, &[7, 8])
                && table.remember(2, size, &[7, 8])
                && table.remember(3, size, &[9])
        );
        assert!(table.forget(2) && !table.forget(2) && !table.forget(4));
        let held = table.held();
        let bytes = |of: usize| (held[of].taken.bytes >> 20, held[of].held.bytes >> 20);
        assert_eq!((bytes(0), bytes(1)), ((128, 64), (64, 64)));
        // A release that was missed shows when the address comes again.
        assert!(!table.remember(1, size, &[9]));
        let held = table.held();
        assert_eq!((held[0].held.objects, held[1].held.objects), (0, 2));
    }

    #[test]
    fn however_much_there_is_only_so_much_is_remembered() {
        let mut table = Table::default();
        for number in 0..MOST + 10 {
            assert_eq!(table.remember(number, 64, &[number]), number < MOST);
        }
        assert!(table.stacks.len() <= STACKS + 1 && table.live.len() == MOST);
        let all: u64 = table.held().iter().map(|held| held.taken.objects).sum();
        assert_eq!(all, (MOST as u64 + 10) * stands_for(64).objects);
    }
}
