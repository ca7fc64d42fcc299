//! Asks the other end of a tunnel, now and then, whether it is alive.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

/// Sends PINGs and watches for their answers; resolves when an answer is overdue.
pub(crate) struct Keepalive {
    pings: PingPong,
    interval: Duration,
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
}

impl Keepalive {
    pub(crate) fn new(pings: PingPong, interval: Duration, timeout: Duration) -> Self {
        Self { pings, interval, timeout, timer: Box::pin(sleep(interval)), waiting: false }
    }

    /// Ready once the peer has left a PING unanswered for too long. Errors of the connection itself are for
    /// whoever drives the connection.
    pub(crate) fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.waiting
                && let Poll::Ready(Ok(_)) = self.pings.poll_pong(cx)
            {
                self.waiting = false;
                self.timer.as_mut().reset(Instant::now() + self.interval);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if self.waiting {
                return Poll::Ready(());
            }
            if self.pings.send_ping(Ping::opaque()).is_ok() {
                self.waiting = true;
            }
            let pause = if self.waiting { self.timeout } else { self.interval };
            self.timer.as_mut().reset(Instant::now() + pause);
        }
    }
}
