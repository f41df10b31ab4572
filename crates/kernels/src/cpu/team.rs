//! A team of threads that stays awake through a decode step.
//!
//! A step is some hundred short parallel regions of a few microseconds to a millisecond. Waking a parked
//! thread costs as much as a region, so workers spin between regions, but only briefly: on a shared
//! machine a spinning thread takes the core from the one it waits for, so after [`SPINS`] rounds they yield,
//! and after [`YIELDS`] more they sleep until the next region begins.

use std::{
    cell::UnsafeCell,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::*},
    },
    thread::JoinHandle,
};

/// Rounds of busy waiting before a waiting thread begins to yield (some tens of microseconds).
const SPINS: usize = 4_000;
/// Yields before a waiting worker goes to sleep (about a millisecond on an idle machine).
const YIELDS: usize = 1_000;
/// Pieces handed out per thread and region, so that a thread that lost its core holds up a fraction of the work.
const PIECES: usize = 4;

type Job = *const (dyn Fn(usize) + Sync + 'static);

struct Shared {
    /// The region in progress. Written by the leader while no worker runs, read by workers after `epoch` moved.
    job: UnsafeCell<Option<Job>>,
    epoch: AtomicUsize,
    running: AtomicUsize,
    sleepers: AtomicUsize,
    panicked: AtomicBool,
    quit: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is the only field that is not `Sync` and `Send` by itself. It is written by the leader only while
// `running` is zero and read by workers only between the release store of `epoch` and their decrement of `running`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is not dereferenced outside a region, whose closure outlives it.
unsafe impl Send for Shared {}

/// Threads that run parallel regions together with the calling thread.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Team {
    /// A team of `threads` in all, the caller included (at least one).
    ///
    /// # Errors
    /// The operating system's, if a thread cannot be started.
    pub fn new(threads: usize) -> io::Result<Team> {
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(None),
            epoch: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            quit: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut team = Team {
            shared,
            workers: Vec::new(),
        };
        for id in 1..threads {
            let shared = team.shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("countdown-{id}"))
                .spawn(move || work(&shared, id))?;
            team.workers.push(worker);
        }
        Ok(team)
    }

    /// Threads in the team, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f(thread)` once on every thread, `thread` in `0..threads`, and returns when all are done.
    ///
    /// # Panics
    /// If `f` panics on any thread.
    pub fn run(&mut self, f: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return f(0);
        }
        let s = &*self.shared;
        // SAFETY: only the lifetime is erased. The workers drop the reference before they count `running` down,
        // and this function does not return (or unwind) before `running` is zero.
        let job: Job = unsafe { std::mem::transmute(std::ptr::from_ref(f)) };
        // SAFETY: no worker reads `job` now: `running` is zero between regions, and `&mut self` excludes others.
        unsafe { *s.job.get() = Some(job) };
        s.running.store(self.workers.len(), Relaxed);
        s.epoch.fetch_add(1, SeqCst);
        if s.sleepers.load(SeqCst) > 0 {
            let _guard = s.lock.lock().unwrap_or_else(PoisonError::into_inner);
            s.wake.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| f(0)));
        let mut rounds = 0;
        while s.running.load(Acquire) > 0 {
            pause(&mut rounds);
        }
        if let Err(panic) = own {
            std::panic::resume_unwind(panic);
        }
        assert!(
            !s.panicked.swap(false, Relaxed),
            "a thread of the team panicked; its message is above"
        );
    }

    /// Runs `f(piece)` once for every `piece` in `0..pieces`, each on whichever thread is free.
    pub fn for_each(&mut self, pieces: usize, f: impl Fn(usize) + Sync) {
        let next = AtomicUsize::new(0);
        self.run(&|_| {
            loop {
                let piece = next.fetch_add(1, Relaxed);
                if piece >= pieces {
                    return;
                }
                f(piece);
            }
        });
    }

    /// Cuts `out` into pieces whose lengths are multiples of `grain` (but for the last) and runs
    /// `f(offset, piece)` for each, in parallel.
    pub fn split<T: Send>(
        &mut self,
        out: &mut [T],
        grain: usize,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let len = out.len();
        let piece = self.piece_len(len, grain);
        let out = Disjoint::new(out);
        self.for_each(len.div_ceil(piece), |i| {
            let range = i * piece..((i + 1) * piece).min(len);
            let start = range.start;
            // SAFETY: the ranges of different pieces do not overlap, and each piece runs once.
            f(start, unsafe { out.slice(range) });
        });
    }

    /// The length of a piece when `len` elements are cut in multiples of `grain`.
    pub(crate) fn piece_len(&self, len: usize, grain: usize) -> usize {
        let grain = grain.max(1);
        let pieces = if self.workers.is_empty() {
            1
        } else {
            self.threads() * PIECES
        };
        len.div_ceil(pieces).max(1).next_multiple_of(grain)
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.quit.store(true, SeqCst);
        self.shared.epoch.fetch_add(1, SeqCst);
        {
            let _guard = self
                .shared
                .lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches its panics, so joining cannot fail; and a destructor has no one to tell.
            let _ = worker.join();
        }
    }
}

fn work(s: &Shared, id: usize) {
    let mut seen = 0;
    loop {
        let mut rounds = 0;
        while s.epoch.load(Acquire) == seen {
            if rounds < SPINS + YIELDS {
                pause(&mut rounds);
                continue;
            }
            let mut guard = s.lock.lock().unwrap_or_else(PoisonError::into_inner);
            s.sleepers.fetch_add(1, SeqCst);
            while s.epoch.load(SeqCst) == seen {
                guard = s.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            s.sleepers.fetch_sub(1, SeqCst);
        }
        seen += 1;
        if s.quit.load(SeqCst) {
            return;
        }
        // SAFETY: the leader wrote `job` before it moved `epoch`, and does not touch it before `running` is zero.
        let job = unsafe { (*s.job.get()).expect("a region was announced") };
        // SAFETY: the closure lives in the frame of `Team::run`, which waits for this worker.
        if catch_unwind(AssertUnwindSafe(|| unsafe { (*job)(id) })).is_err() {
            s.panicked.store(true, Relaxed);
        }
        s.running.fetch_sub(1, Release);
    }
}

/// One round of waiting: busy at first, then giving the core away.
fn pause(rounds: &mut usize) {
    if *rounds < SPINS {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
    *rounds += 1;
}

/// A mutable slice that several threads write, each its own part.
pub(crate) struct Disjoint<T> {
    ptr: *mut T,
    len: usize,
}

// SAFETY: access goes through `slice`, whose caller promises that ranges in use at a time do not overlap.
unsafe impl<T: Send> Sync for Disjoint<T> {}

impl<T> Disjoint<T> {
    pub(crate) fn new(s: &mut [T]) -> Self {
        Disjoint {
            ptr: s.as_mut_ptr(),
            len: s.len(),
        }
    }

    /// # Safety
    /// No two ranges in use at the same time may overlap, and the slice given to `new` must be alive and
    /// untouched otherwise.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, range: std::ops::Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_visited_once_whatever_the_team() {
        for threads in [1, 2, 5] {
            let mut team = Team::new(threads).unwrap();
            for len in [0, 1, 31, 32, 1000] {
                let mut v = vec![0usize; len];
                team.split(&mut v, 32, |at, part| {
                    assert!(at.is_multiple_of(32));
                    for (i, x) in part.iter_mut().enumerate() {
                        *x += at + i + 1;
                    }
                });
                assert!(v.iter().enumerate().all(|(i, &x)| x == i + 1));
            }
        }
    }

    #[test]
    fn many_regions_in_a_row_and_after_a_pause() {
        let mut team = Team::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        for round in 0..2000 {
            team.run(&|id| {
                sum.fetch_add(id + 1, Relaxed);
            });
            if round % 1000 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        assert_eq!(sum.load(Relaxed), 2000 * 6);
    }

    #[test]
    fn a_panic_in_a_region_reaches_the_caller_and_the_team_lives_on() {
        let mut team = Team::new(2).unwrap();
        for bad in 0..2 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                team.run(&|id| assert!(id != bad, "on purpose"));
            }));
            assert!(caught.is_err());
        }
        team.run(&|_| ());
    }
}
