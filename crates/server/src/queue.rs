//! The line in front of the engine: first come, first served, and only so long.

use crate::{
    api::Request,
    engine_thread::Event,
    error::ApiError,
    metrics::{Load, Metrics, Outcome},
};
use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc;

/// A request and where its answer goes. The client has gone when the channel is closed.
pub(crate) struct Job {
    pub(crate) request: Request,
    /// Unbounded, so that no client can hold up the engine by not reading; an answer is no longer than the context.
    pub(crate) events: mpsc::UnboundedSender<Result<Event, ApiError>>,
}

/// Requests that wait for the engine.
pub(crate) struct Queue {
    line: Mutex<Line>,
    changed: Condvar,
    limit: usize,
}

struct Line {
    waiting: VecDeque<Job>,
    /// Whether the engine has one in hand.
    busy: bool,
    open: bool,
}

impl Queue {
    /// An open queue in which `limit` requests may wait while one is answered.
    pub(crate) fn new(limit: usize) -> Queue {
        Queue {
            line: Mutex::new(Line {
                waiting: VecDeque::new(),
                busy: false,
                open: true,
            }),
            changed: Condvar::new(),
            limit,
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // Every change is one call on the deque or one assignment: nothing can be found half done.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a job at the end.
    ///
    /// # Errors
    /// 503 where the queue is full or closed.
    pub(crate) fn push(&self, job: Job, metrics: &Metrics) -> Result<(), ApiError> {
        let mut line = self.line();
        if !line.open {
            return Err(ApiError::stopped());
        }
        // Who has gone waits no longer.
        let before = line.waiting.len();
        line.waiting.retain(|job| !job.events.is_closed());
        metrics.count(Outcome::Cancelled, before - line.waiting.len());
        if line.waiting.len() + usize::from(line.busy) > self.limit {
            metrics.count(Outcome::Rejected, 1);
            return Err(ApiError::queue_full());
        }
        line.waiting.push_back(job);
        self.changed.notify_one();
        Ok(())
    }

    /// Notes that the job in hand is done. Comes before its client is told, who may send the next one at once.
    pub(crate) fn done(&self) {
        self.line().busy = false;
    }

    /// Waits for the next job; `None` once the queue is closed.
    pub(crate) fn pop(&self) -> Option<Job> {
        let mut line = self.line();
        loop {
            if !line.open {
                return None;
            }
            if let Some(job) = line.waiting.pop_front() {
                line.busy = true;
                return Some(job);
            }
            line = self
                .changed
                .wait(line)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes no more jobs, and drops those that wait: their clients see their channels closed.
    pub(crate) fn close(&self) {
        let mut line = self.line();
        line.open = false;
        line.waiting.clear();
        self.changed.notify_one();
    }

    /// Whether jobs are taken.
    pub(crate) fn is_open(&self) -> bool {
        self.line().open
    }

    /// Jobs in hand and waiting.
    pub(crate) fn load(&self) -> Load {
        let line = self.line();
        let gone = line.waiting.iter().filter(|j| j.events.is_closed());
        Load {
            processing: usize::from(line.busy),
            queued: line.waiting.len() - gone.count(),
        }
    }
}
