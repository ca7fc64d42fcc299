//! The set-up work of a worker: small tasks on its own thread, polled between two turns of the loop.
//!
//! A task may wait for anything: for the loop itself, for timers and sockets of the runtime beside it. Waking one from
//! the worker's own thread costs no system call.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::stream::{FuturesUnordered, Stream};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// A task's work.
pub(super) type Work = Pin<Box<dyn Future<Output = ()>>>;

/// Rings when a worker has something to do.
#[derive(Debug)]
pub(super) struct Bell {
    pending: AtomicBool,
    asleep: AtomicBool,
    event: EventFd,
}

impl Bell {
    pub(super) fn new() -> nix::Result<Arc<Self>> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Arc::new(Self { pending: AtomicBool::new(true), asleep: AtomicBool::new(false), event }))
    }

    /// What becomes readable when a sleeping worker is rung for.
    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    /// There is something to do.
    pub(super) fn ring(&self) {
        self.pending.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            // Fails only when the counter is full, and then the worker is awake.
            let _ = self.event.write(1);
        }
    }

    /// Whether somebody has rung since this was asked last.
    pub(super) fn answered(&self) -> bool {
        self.pending.swap(false, Ordering::SeqCst)
    }

    /// The worker is about to sleep. False: it must not, there is something to do.
    pub(super) fn may_sleep(&self) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        if self.pending.load(Ordering::SeqCst) {
            self.asleep.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// The worker is awake.
    pub(super) fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// The event has been seen.
    pub(super) fn drain(&self) {
        let _ = self.event.read();
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

/// The tasks of one worker.
pub(super) struct Tasks {
    running: FuturesUnordered<Work>,
    waker: Waker,
}

impl Tasks {
    pub(super) fn new(bell: &Arc<Bell>) -> Self {
        Self { running: FuturesUnordered::new(), waker: Waker::from(bell.clone()) }
    }

    pub(super) fn add(&mut self, work: Work) {
        self.running.push(work);
    }

    /// Polls what can go on.
    pub(super) fn run(&mut self) {
        let mut context = Context::from_waker(&self.waker);
        while let Poll::Ready(Some(())) = Pin::new(&mut self.running).poll_next(&mut context) {}
    }
}
