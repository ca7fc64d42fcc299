//! Ticks for a poller: a timerfd(2), since the poller's own timeout knows milliseconds only.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};
use std::time::Duration;

/// Readable at each tick.
pub struct Ticks(File);

impl Ticks {
    pub fn every(pause: Duration) -> io::Result<Self> {
        // SAFETY: the call takes no pointers; a descriptor that it gives is ours alone.
        let fd =
            unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open, and nobody else has it.
        let file = unsafe { File::from_raw_fd(fd) };
        let pause = libc::timespec {
            tv_sec: pause.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(pause.subsec_nanos() as i32),
        };
        let times = libc::itimerspec { it_interval: pause, it_value: pause };
        // SAFETY: `times` outlives the call, and no old value is asked for.
        if unsafe { libc::timerfd_settime(fd, 0, &raw const times, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(file))
    }

    /// Forgets the ticks that have been.
    pub fn take(&mut self) {
        let _ = self.0.read(&mut [0; 8]);
    }
}

impl AsFd for Ticks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
