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

/// The region in progress in one word, so that joining and closing it are single steps: its number, whether it is
/// closed, and how many workers have joined.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Gate(usize);

impl Gate {
    const CLOSED: usize = 1 << 15;
    const REGION: usize = 1 << 16;

    fn region(self) -> usize {
        self.0 / Self::REGION
    }
    fn is_closed(self) -> bool {
        self.0 & Self::CLOSED != 0
    }
    fn joined(self) -> usize {
        self.0 % Self::CLOSED
    }
    /// The next region, open, with no one in it.
    fn next(self) -> Gate {
        Gate((self.region().wrapping_add(1)).wrapping_mul(Self::REGION))
    }
}

struct Shared {
    /// What the region does. Written by the leader while the gate is closed and all who joined have left; read by workers
    /// that joined.
    job: UnsafeCell<Option<Job>>,
    gate: AtomicUsize,
    /// Workers that joined the region and are done.
    left: AtomicUsize,
    sleepers: AtomicUsize,
    panicked: AtomicBool,
    quit: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Shared {
    fn gate(&self) -> Gate {
        Gate(self.gate.load(SeqCst))
    }

    /// Opens the next region and wakes who sleeps.
    fn open(&self) {
        self.gate.store(self.gate().next().0, SeqCst);
        if self.sleepers.load(SeqCst) > 0 {
            let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.wake.notify_all();
        }
    }
}

// SAFETY: `job` is the only field that is not `Sync` and `Send` by itself. The leader writes it only while no worker can
// be in a region: the gate is closed, so none joins, and all who had joined have left. A worker reads it only between
// joining, which succeeds on an open gate alone, and leaving.
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
        if threads > Gate::CLOSED {
            return Err(io::Error::other(format!("{threads} threads are too many")));
        }
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(None),
            gate: AtomicUsize::new(Gate::CLOSED),
            left: AtomicUsize::new(0),
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
        self.region(f, self.workers.len());
    }

    /// Runs `f(thread)` on the caller and on the workers that come before the caller is done, at least `quorum` of them.
    fn region(&mut self, f: &(dyn Fn(usize) + Sync), quorum: usize) {
        if self.workers.is_empty() {
            return f(0);
        }
        let s = &*self.shared;
        // SAFETY: only the lifetime is erased. Workers use the reference between joining and leaving, and this function
        // does not return (or unwind) before the gate is closed and all who joined have left.
        let job: Job = unsafe { std::mem::transmute(std::ptr::from_ref(f)) };
        // SAFETY: no worker reads `job` now: the gate is closed between regions and all have left; `&mut self` excludes
        // other leaders.
        unsafe { *s.job.get() = Some(job) };
        s.left.store(0, Relaxed);
        s.open();
        let own = catch_unwind(AssertUnwindSafe(|| f(0)));
        let mut rounds = 0;
        while s.gate().joined() < quorum {
            pause(&mut rounds);
        }
        let joined = Gate(s.gate.fetch_or(Gate::CLOSED, SeqCst)).joined();
        rounds = 0;
        while s.left.load(Acquire) < joined {
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
    ///
    /// # Panics
    /// If `f` panics for any piece.
    pub fn for_each(&mut self, pieces: usize, f: impl Fn(usize) + Sync) {
        self.for_each_on(pieces, |_, piece| f(piece));
    }

    /// Runs `f(thread, piece)` once for every `piece` in `0..pieces`, each on whichever thread is free. No two calls with
    /// the same `thread` overlap.
    ///
    /// A thread that the system does not run meanwhile is not waited for, unless it has begun a piece: on a busy machine that
    /// could take longer than all the work.
    pub(crate) fn for_each_on(&mut self, pieces: usize, f: impl Fn(usize, usize) + Sync) {
        let next = AtomicUsize::new(0);
        let work = |thread| {
            loop {
                let piece = next.fetch_add(1, Relaxed);
                if piece >= pieces {
                    return;
                }
                f(thread, piece);
            }
        };
        self.region(&work, 0);
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
        self.shared.open();
        for worker in self.workers.drain(..) {
            // A worker catches its panics, so joining cannot fail; and a destructor has no one to tell.
            let _ = worker.join();
        }
    }
}

fn work(s: &Shared, id: usize) {
    // The last region this worker was in, or missed.
    let mut last = 0;
    let mut rounds = 0;
    loop {
        let gate = s.gate();
        if gate.region() == last {
            if rounds < SPINS + YIELDS {
                pause(&mut rounds);
                continue;
            }
            let mut guard = s.lock.lock().unwrap_or_else(PoisonError::into_inner);
            s.sleepers.fetch_add(1, SeqCst);
            while s.gate().region() == last {
                guard = s.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            s.sleepers.fetch_sub(1, SeqCst);
            continue;
        }
        if s.quit.load(SeqCst) {
            return;
        }
        if gate.is_closed() {
            last = gate.region();
            continue;
        }
        // Fails if another joined first, or if the leader closed the gate.
        if s.gate
            .compare_exchange(gate.0, gate.0 + 1, SeqCst, Relaxed)
            .is_err()
        {
            continue;
        }
        (last, rounds) = (gate.region(), 0);
        // SAFETY: the leader wrote `job` before it opened the gate, and does not touch it before this worker left.
        let job = unsafe { (*s.job.get()).expect("a region was announced") };
        // SAFETY: the closure lives in the frame of `Team::region`, which waits for this worker to leave.
        if catch_unwind(AssertUnwindSafe(|| unsafe { (*job)(id) })).is_err() {
            s.panicked.store(true, Relaxed);
        }
        s.left.fetch_add(1, Release);
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
    fn pieces_run_once_though_workers_may_come_late_and_no_two_share_a_thread() {
        let mut team = Team::new(4).unwrap();
        let mut busy: [AtomicBool; 4] = Default::default();
        let mut done = [const { AtomicUsize::new(0) }; 3];
        for round in 0..5000 {
            team.for_each_on(3, |thread, piece| {
                assert!(!busy[thread].swap(true, SeqCst));
                done[piece].fetch_add(1, Relaxed);
                busy[thread].store(false, SeqCst);
            });
            assert!(done.iter_mut().all(|d| *d.get_mut() == round + 1));
            if round % 1000 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        }
        assert!(busy.iter_mut().all(|b| !*b.get_mut()));
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
