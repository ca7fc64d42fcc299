//! What memory was allocated by: an allocator that, once asked to, remembers the stack of about one allocation in every
//! half mebibyte, until it is freed.
//!
//! It is the system's allocator with one relaxed load in front of each call. While it remembers, an allocation costs a
//! subtraction in its thread and a release a look into a small table; only what is drawn takes the lock.

mod table;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};

pub(crate) use table::{Held, PERIOD};
use table::{MOST, Table};

/// The system's allocator, which can tell what holds memory. For `#[global_allocator]`.
pub struct Sampling;

/// Frames of a stack; what is further out is cut off.
const DEPTH: usize = 64;

static ACTIVE: AtomicBool = AtomicBool::new(false);
static TABLE: Mutex<Option<Table>> = Mutex::new(None);
/// How many remembered addresses fall on each place: what falls on none is not looked up. No place can overflow, since
/// fewer are remembered than it can count.
static PLACES: [AtomicU16; 1 << 14] = [const { AtomicU16::new(0) }; 1 << 14];
const _: () = assert!(MOST <= u16::MAX as usize);

thread_local! {
    // Without destructors: these are there as long as the thread allocates.
    static LEFT: Cell<i64> = const { Cell::new(PERIOD as i64) };
    static SEED: Cell<u64> = const { Cell::new(0) };
    /// What remembering itself allocates and frees is not remembered.
    static WITHIN: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: memory comes from the system's allocator and goes back to it, each with what the caller promised; the rest
// only looks at addresses.
unsafe impl GlobalAlloc for Sampling {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        let at = unsafe { System.alloc(layout) };
        if ACTIVE.load(Ordering::Relaxed) {
            taken(at as usize, layout.size());
        }
        at
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promised.
        let at = unsafe { System.alloc_zeroed(layout) };
        if ACTIVE.load(Ordering::Relaxed) {
            taken(at as usize, layout.size());
        }
        at
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // Before another thread can be given the same address.
        if ACTIVE.load(Ordering::Relaxed) {
            given_back(at as usize);
        }
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if ACTIVE.load(Ordering::Relaxed) {
            given_back(at as usize);
        }
        // SAFETY: as the caller promised.
        let at = unsafe { System.realloc(at, layout, size) };
        if ACTIVE.load(Ordering::Relaxed) {
            taken(at as usize, size);
        }
        at
    }
}

fn taken(at: usize, size: usize) {
    let left = LEFT.get().saturating_sub(size as i64);
    LEFT.set(left);
    if left < 0 && at != 0 {
        remember(at, size);
    }
}

#[cold]
#[inline(never)]
fn remember(at: usize, size: usize) {
    unseen(|| {
        LEFT.set(draw(at));
        let (mut stack, mut depth) = ([0; DEPTH], 0);
        let each = |frame: &backtrace::Frame| {
            stack[depth] = frame.ip() as usize;
            depth += usize::from(stack[depth] != 0);
            depth < DEPTH
        };
        // SAFETY: what is not synchronized is the naming of frames, which does not happen here.
        unsafe { backtrace::trace_unsynchronized(each) };
        let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = table.as_mut()
            && table.remember(at, size, &stack[..depth])
        {
            place(at).fetch_add(1, Ordering::Relaxed);
        }
    });
}

fn given_back(at: usize) {
    if place(at).load(Ordering::Relaxed) > 0 {
        forget(at);
    }
}

#[cold]
#[inline(never)]
fn forget(at: usize) {
    unseen(|| {
        let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        if table.as_mut().is_some_and(|table| table.forget(at)) {
            place(at).fetch_sub(1, Ordering::Relaxed);
        }
    });
}

/// Where an address falls. Allocations are aligned, so their last bits say nothing.
fn place(at: usize) -> &'static AtomicU16 {
    let mixed = (at as u64 >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    &PLACES[(mixed >> 50) as usize]
}

/// Until the next allocation that is remembered: on average [`PERIOD`], and without a rhythm that a program could share.
fn draw(at: usize) -> i64 {
    let mut seed = SEED.get();
    if seed == 0 {
        seed = at as u64 | 1;
    }
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    SEED.set(seed);
    let random = ((seed >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    (-random.ln() * PERIOD as f64) as i64
}

/// Does `work` without remembering what it allocates; nothing while that is going on already.
pub(crate) fn unseen<T>(work: impl FnOnce() -> T) -> Option<T> {
    if WITHIN.replace(true) {
        return None;
    }
    let done = work();
    WITHIN.set(false);
    Some(done)
}

/// Starts or ends remembering. False: this program's allocator is another one.
pub(crate) fn activate(active: bool) -> bool {
    unseen(|| {
        let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        if active && table.is_none() {
            *table = Some(Table::default());
        } else if !active {
            ACTIVE.store(false, Ordering::Relaxed);
            *table = None;
            for place in &PLACES {
                place.store(0, Ordering::Relaxed);
            }
        }
    });
    if !active {
        return true;
    }
    ACTIVE.store(true, Ordering::Relaxed);
    let before = LEFT.replace(i64::MAX);
    drop(std::hint::black_box(Box::new(0_u64)));
    let ours = LEFT.replace(before) < i64::MAX;
    if !ours {
        activate(false);
    }
    ours
}

/// Whether it remembers.
pub(crate) fn is_active() -> bool {
    ACTIVE.load(Ordering::Relaxed)
}

/// What is remembered, for each stack; none while it does not remember.
pub(crate) fn held() -> Option<Vec<Held>> {
    unseen(|| TABLE.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Table::held)).flatten()
}
