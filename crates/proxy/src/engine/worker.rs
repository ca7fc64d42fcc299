//! Worker threads, and how they are reached from elsewhere.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::core::Core;
use super::handles::Loop;
use super::tasks::{Bell, Tasks};

/// Events taken from the poller at once.
const EVENTS: usize = 256;
/// The name of the bell; no slot ever has it.
const BELL: u64 = u64::MAX;

type Order = Box<dyn FnOnce(&Loop) + Send>;

/// A worker thread, seen from elsewhere.
pub(crate) struct Worker {
    orders: Arc<Mutex<Vec<Order>>>,
    bell: Arc<Bell>,
    homes: AtomicUsize,
}

/// All workers.
pub(crate) struct Workers(Vec<Arc<Worker>>);

/// Their threads; dropped, they end, and whatever they still carry is cut. It must outlive no runtime and be dropped on
/// none of the threads.
pub(crate) struct Threads {
    workers: Arc<Workers>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

/// How workers behave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    /// How often tunnels are looked after.
    pub(crate) tick: Duration,
    /// How long a worker that has little to do looks for more before it sleeps; zero: not at all.
    pub(crate) spin: Duration,
}

impl Worker {
    /// Runs `order` on the worker's thread.
    pub(crate) fn tell(&self, order: impl FnOnce(&Loop) + Send + 'static) {
        self.orders.lock().push(Box::new(order));
        self.bell.ring();
    }

    /// One pod more, or less, is at home here.
    pub(crate) fn leave(&self) {
        self.homes.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts `count` workers beside the current runtime.
    pub(crate) fn start(count: usize, tuning: Tuning) -> io::Result<(Arc<Self>, Threads)> {
        let stop = Arc::new(AtomicBool::new(false));
        let runtime = Handle::current();
        let (mut workers, mut threads) = (Vec::new(), Vec::new());
        for number in 0..count.max(1) {
            let bell = Bell::new()?;
            let worker = Arc::new(Worker { orders: Arc::default(), bell, homes: AtomicUsize::new(0) });
            workers.push(worker.clone());
            let (runtime, stop) = (runtime.clone(), stop.clone());
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            // What belongs to a worker is made on its thread and never leaves it.
            let (made, told) = std::sync::mpsc::channel();
            threads.push(thread.spawn(move || {
                let _runtime = runtime.enter();
                match core(&worker.bell) {
                    Ok(core) => {
                        let _ = made.send(Ok(()));
                        run(core, &worker, &stop, tuning);
                    }
                    Err(error) => {
                        let _ = made.send(Err(error));
                    }
                }
            })?);
            told.recv().unwrap_or_else(|_| Err(io::Error::other("a worker did not start")))?;
        }
        let workers = Arc::new(Self(workers));
        Ok((workers.clone(), Threads { workers, threads, stop }))
    }

    /// The worker with the fewest pods, for one more.
    pub(crate) fn home(&self) -> Arc<Worker> {
        let least = self.0.iter().min_by_key(|worker| worker.homes.load(Ordering::Relaxed));
        let worker = least.unwrap_or(&self.0[0]).clone();
        worker.homes.fetch_add(1, Ordering::Relaxed);
        worker
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for worker in &self.workers.0 {
            worker.bell.ring();
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker has panicked");
            }
        }
    }
}

fn core(bell: &Bell) -> io::Result<Core> {
    let core = Core::new()?;
    core.poller().add(bell.event(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, BELL))?;
    Ok(core)
}

fn run(core: Core, worker: &Worker, stop: &AtomicBool, tuning: Tuning) {
    let it = Loop::new(core);
    let mut tasks = Tasks::new(&worker.bell);
    let mut events = vec![EpollEvent::empty(); EVENTS];
    let mut looked = Instant::now();
    let mut quiet_since: Option<Instant> = None;
    while !stop.load(Ordering::Relaxed) {
        if worker.bell.answered() {
            let orders = std::mem::take(&mut *worker.orders.lock());
            for order in orders {
                order(&it);
            }
            tasks.run();
        }
        // Tasks are spawned by events and by other tasks.
        while it.take_spawned(&mut tasks) {
            tasks.run();
        }
        it.core(Core::flush);
        // A flush may end tunnels, and wake whoever waits for them.
        let busy = it.core(|core| !core.ready.is_empty() || !core.dirty.is_empty()) || it.has_spawned();
        let timeout = match () {
            () if busy => EpollTimeout::ZERO,
            () if spinning(&mut quiet_since, tuning.spin) => {
                std::thread::yield_now();
                EpollTimeout::ZERO
            }
            () if !worker.bell.may_sleep() => EpollTimeout::ZERO,
            () => it.core(|core| timeout(core, tuning.tick)),
        };
        let count = it.core(|core| core.poller().wait(&mut events, timeout)).unwrap_or(0);
        worker.bell.awake();
        let now = Instant::now();
        if count > 0 {
            quiet_since = (count <= 1).then_some(now);
        }
        it.core(|core| {
            core.now = now;
            core.go_on();
            for event in &events[..count] {
                match event.data() {
                    BELL => worker.bell.drain(),
                    _ => core.event(event),
                }
            }
            if now.duration_since(looked) >= tuning.tick {
                looked = now;
                core.look_after();
            }
        });
    }
    // Tasks end before what they stand on.
    drop(tasks);
    drop(it);
}

/// Whether it is worth looking again at once: little came last, and that was a moment ago.
fn spinning(quiet_since: &mut Option<Instant>, spin: Duration) -> bool {
    if spin.is_zero() {
        return false;
    }
    let spinning = quiet_since.is_some_and(|since| since.elapsed() < spin);
    if !spinning {
        *quiet_since = None;
    }
    spinning
}

/// Nothing has to be looked after where there is no tunnel.
fn timeout(core: &Core, tick: Duration) -> EpollTimeout {
    if core.tunnels.is_empty() && core.opening.is_empty() {
        return EpollTimeout::NONE;
    }
    EpollTimeout::try_from(tick).unwrap_or(EpollTimeout::NONE)
}
