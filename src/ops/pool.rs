//! Threads that stand ready between the parallel regions of a step.
//!
//! A step of a small model has hundreds of regions of 20 µs to 2 ms with short serial parts between them. A general pool
//! puts its threads to sleep there and pays a wake-up (20 to 50 µs) for each region; these threads watch one word for
//! [`SPIN`] first. Tasks are handed out one by one, so a thread that the machine takes away delays nobody by more than the
//! task it holds, and one that comes too late is not waited for.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, TryLockError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long an idle thread watches for the next region before it sleeps.
const SPIN: Duration = Duration::from_micros(200);

/// Runs `f(0), …, f(tasks - 1)`, each once, on this thread and the standing ones; as many in all as rayon's pool has here.
/// Called from within a task, or while another thread's region runs, it runs all of them on this thread.
///
/// # Panics
/// When a task does, after all threads have left the region.
pub fn for_each(tasks: usize, f: impl Fn(usize) + Sync) {
    let width = rayon::current_num_threads().min(tasks);
    let owner = if width > 1 { POOL.owner.try_lock() } else { Err(TryLockError::WouldBlock) };
    match owner {
        Ok(mut workers) => POOL.run(&mut workers, width, tasks, &f),
        // A task panicked once; the list is whole.
        Err(TryLockError::Poisoned(workers)) => POOL.run(&mut workers.into_inner(), width, tasks, &f),
        Err(TryLockError::WouldBlock) => (0..tasks).for_each(f),
    }
}

/// The one region that is open, as all threads see it.
struct Pool {
    /// [`Gate`]s of successive regions.
    gate: AtomicU64,
    /// Next task to hand out.
    next: AtomicUsize,
    job: UnsafeCell<Job>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Held by the thread whose region runs; the standing threads in the order of their numbers.
    owner: Mutex<Vec<&'static Worker>>,
}

// SAFETY: `job` is written by the holder of `owner` while the gate is closed and nobody inside, and read only by threads
// that entered by the gate.
unsafe impl Sync for Pool {}

struct Job {
    tasks: usize,
    run: *const (dyn Fn(usize) + Sync),
}

struct Worker {
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
}

/// A region's number, how many threads it wants, whether one may still enter, and how many standing threads are inside, in
/// one word, so that entering and closing exclude each other.
#[derive(Clone, Copy)]
struct Gate(u64);

impl Gate {
    const OPEN: u64 = 1 << 16;

    fn open(region: u32, width: usize) -> Self {
        Self(u64::from(region) << 32 | (width.min(0x7fff) as u64) << 17 | Self::OPEN)
    }

    fn region(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn width(self) -> usize {
        (self.0 >> 17 & 0x7fff) as usize
    }

    fn is_open(self) -> bool {
        self.0 & Self::OPEN != 0
    }

    fn inside(self) -> u64 {
        self.0 & 0xffff
    }
}

static POOL: Pool = Pool {
    gate: AtomicU64::new(0),
    next: AtomicUsize::new(0),
    job: UnsafeCell::new(Job { tasks: 0, run: &(nothing as fn(usize)) }),
    panic: Mutex::new(None),
    owner: Mutex::new(Vec::new()),
};

fn nothing(_: usize) {}

impl Pool {
    /// The caller holds `owner`, whose content is `workers`.
    fn run<'f>(
        &'static self,
        workers: &mut Vec<&'static Worker>,
        width: usize,
        tasks: usize,
        f: &'f (dyn Fn(usize) + Sync + 'f),
    ) {
        while workers.len() + 1 < width {
            match self.start(workers.len()) {
                Some(worker) => workers.push(worker),
                // No more threads to be had; those that there are do all the work.
                None => break,
            }
        }
        let gate = Gate(self.gate.load(Ordering::Relaxed));
        // SAFETY: the last region is closed and empty (see its end below). No thread uses the reference after this call,
        // which waits for all of them, so its lifetime may be hidden.
        unsafe {
            *self.job.get() = Job {
                tasks,
                run: std::mem::transmute::<*const (dyn Fn(usize) + Sync + 'f), *const (dyn Fn(usize) + Sync)>(f),
            };
        }
        self.next.store(0, Ordering::Relaxed);
        self.gate.store(Gate::open(gate.region().wrapping_add(1), width).0, Ordering::SeqCst);
        for worker in workers.iter().take(width - 1) {
            if worker.asleep.load(Ordering::SeqCst) && worker.asleep.swap(false, Ordering::SeqCst) {
                worker.thread.get().inspect(|t| t.unpark());
            }
        }
        self.work(tasks, f);
        self.gate.fetch_and(!Gate::OPEN, Ordering::SeqCst);
        let mut spins = 0u32;
        while Gate(self.gate.load(Ordering::Acquire)).inside() > 0 {
            wait_a_little(&mut spins);
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Does tasks until none is left.
    fn work(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        let all = || {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    return;
                }
                f(task);
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(all)) {
            self.next.store(tasks, Ordering::Relaxed);
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }

    fn start(&'static self, number: usize) -> Option<&'static Worker> {
        let worker: &'static Worker =
            Box::leak(Box::new(Worker { thread: OnceLock::new(), asleep: AtomicBool::new(false) }));
        let handle =
            thread::Builder::new().name(format!("ops-{number}")).spawn(move || self.stand(worker, number)).ok()?;
        // `stand` does not sleep before this is set.
        let _ = worker.thread.set(handle.thread().clone());
        Some(worker)
    }

    /// A standing thread's life.
    fn stand(&self, worker: &Worker, number: usize) {
        let mut last = 0;
        loop {
            let gate = self.watch(worker, last);
            last = gate.region();
            if number + 1 < gate.width() && self.enter(gate.region()) {
                // SAFETY: inside, so the job and the closure behind it stay until this thread leaves.
                let (tasks, f) = unsafe { ((*self.job.get()).tasks, &*(*self.job.get()).run) };
                self.work(tasks, f);
                self.gate.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// The gate of a region after `last`, which may be closed already.
    fn watch(&self, worker: &Worker, last: u32) -> Gate {
        let look = || Some(Gate(self.gate.load(Ordering::SeqCst))).filter(|g| g.region() != last);
        let since = Instant::now();
        loop {
            for _ in 0..32 {
                if let Some(gate) = look() {
                    return gate;
                }
                std::hint::spin_loop();
            }
            if since.elapsed() > SPIN && worker.thread.get().is_some() {
                worker.asleep.store(true, Ordering::SeqCst);
                while look().is_none() {
                    thread::park();
                    // Woken without a reason: sleep again.
                    if look().is_none() {
                        worker.asleep.store(true, Ordering::SeqCst);
                    }
                }
                worker.asleep.store(false, Ordering::SeqCst);
            }
        }
    }

    /// Whether the region is still open; then this thread is inside.
    fn enter(&self, region: u32) -> bool {
        let add = |g: u64| (Gate(g).region() == region && Gate(g).is_open()).then_some(g + 1);
        self.gate.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).is_ok()
    }
}

/// Watches closely at first; then lets others run, as the awaited thread may need this core.
fn wait_a_little(spins: &mut u32) {
    *spins += 1;
    if *spins < 2000 { std::hint::spin_loop() } else { thread::yield_now() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(threads: usize, f: impl FnOnce() + Send) {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f);
    }

    /// How often each task ran.
    fn counts(tasks: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        for_each(tasks, |i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_task_runs_once_whoever_else_is_at_work() {
        thread::scope(|scope| {
            for threads in [1, 2, 3, 5] {
                scope.spawn(move || {
                    within(threads, || {
                        for round in 0..2000 {
                            let tasks = round % 7;
                            assert_eq!(counts(tasks), vec![1; tasks]);
                        }
                    });
                });
            }
        });
    }

    #[test]
    fn threads_that_fell_asleep_come_back() {
        within(2, || {
            for _ in 0..5 {
                thread::sleep(4 * SPIN);
                assert_eq!(counts(100), vec![1; 100]);
            }
        });
    }

    #[test]
    fn a_region_inside_a_task_runs_there() {
        within(3, || for_each(4, |_| assert_eq!(counts(5), vec![1; 5])));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_next_region_works() {
        within(2, || {
            let region = || for_each(50, |i| assert!(i != 17, "task {i}"));
            let panic = catch_unwind(region).expect_err("one task panics");
            assert!(panic.downcast_ref::<String>().is_some_and(|m| m.contains("task 17")));
            assert_eq!(counts(9), vec![1; 9]);
        });
    }
}
