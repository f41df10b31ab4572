//! What the server did, in Prometheus' text format.

use crate::engine_thread::Summary;
use std::{
    fmt::Write,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// How a request for an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With an answer.
    Completed,
    /// Its client went away.
    Cancelled,
    /// It was the client's fault.
    Invalid,
    /// The queue was full.
    Rejected,
    /// It was the server's fault.
    Failed,
}

impl Outcome {
    const ALL: [(Outcome, &str); 5] = [
        (Outcome::Completed, "completed"),
        (Outcome::Cancelled, "cancelled"),
        (Outcome::Invalid, "invalid"),
        (Outcome::Rejected, "rejected"),
        (Outcome::Failed, "failed"),
    ];
}

/// Sums since the start.
#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<Sums>);

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    /// By [`Outcome`].
    requests: [u64; Outcome::ALL.len()],
    prompt_tokens: u64,
    prompt_computed: u64,
    prompt_seconds: f64,
    tokens: u64,
    seconds: f64,
    neurons: u64,
    kept: u64,
    drawn_from_all: u64,
}

/// How many requests there are at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) processing: usize,
    pub(crate) queued: usize,
}

impl Metrics {
    fn sums(&self) -> MutexGuard<'_, Sums> {
        // Sums are whole at any time: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts `times` requests that ended so.
    pub(crate) fn count(&self, outcome: Outcome, times: usize) {
        self.sums().requests[outcome as usize] += times as u64;
    }

    /// Adds the work for an answer, finished or not.
    pub(crate) fn add(&self, work: &Summary) {
        let mut sums = self.sums();
        sums.prompt_tokens += work.timings.prompt_tokens as u64;
        sums.prompt_computed += work.timings.prompt_computed as u64;
        sums.prompt_seconds += work.timings.prompt_time.as_secs_f64();
        sums.tokens += work.timings.tokens as u64;
        sums.seconds += work.timings.step_time.as_secs_f64();
        sums.neurons += work.stats.neurons;
        sums.kept += work.stats.kept;
        sums.drawn_from_all += work.stats.drawn_from_all;
    }

    /// The text that Prometheus reads.
    pub(crate) fn render(&self, load: Load) -> String {
        let sums = *self.sums();
        let mut text = String::new();
        family(
            &mut text,
            "requests_total",
            "counter",
            "Requests for an answer, by how they ended.",
        );
        for (outcome, label) in Outcome::ALL {
            let n = sums.requests[outcome as usize];
            line(
                &mut text,
                &format!("requests_total{{outcome=\"{label}\"}}"),
                n,
            );
        }
        let mut single = |name: &str, kind: &str, help: &str, value: f64| {
            family(&mut text, name, kind, help);
            line(&mut text, name, value);
        };
        let skipped = match sums.neurons {
            0 => 0.0,
            all => 1.0 - sums.kept as f64 / all as f64,
        };
        single(
            "prompt_tokens_total",
            "counter",
            "Tokens of prompts, those found in the cache included.",
            sums.prompt_tokens as f64,
        );
        single(
            "prompt_computed_tokens_total",
            "counter",
            "Tokens of prompts that had to be computed.",
            sums.prompt_computed as f64,
        );
        single(
            "prompt_seconds_total",
            "counter",
            "Seconds spent on prompts.",
            sums.prompt_seconds,
        );
        single(
            "predicted_tokens_total",
            "counter",
            "Tokens of answers.",
            sums.tokens as f64,
        );
        single(
            "predicted_seconds_total",
            "counter",
            "Seconds spent on the tokens of answers.",
            sums.seconds,
        );
        single(
            "neurons_total",
            "counter",
            "Feed-forward neurons of all one-token steps.",
            sums.neurons as f64,
        );
        single(
            "neurons_computed_total",
            "counter",
            "Those of them that were computed.",
            sums.kept as f64,
        );
        single(
            "realised_sparsity",
            "gauge",
            "The share of neurons skipped, over all steps.",
            skipped,
        );
        single(
            "drawn_from_all_logits_total",
            "counter",
            "Tokens for which a device had to copy all logits, since the largest did not decide.",
            sums.drawn_from_all as f64,
        );
        single(
            "requests_processing",
            "gauge",
            "Requests being answered now.",
            load.processing as f64,
        );
        single(
            "requests_queued",
            "gauge",
            "Requests waiting now.",
            load.queued as f64,
        );
        text
    }
}

fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "# HELP countdown_{name} {help}\n# TYPE countdown_{name} {kind}\n"
    );
}

fn line(text: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(text, "countdown_{name} {value}");
}
