//! Speed: dense and sparse runs of the same tokens, in turns, so that a noisy machine is noisy for all of them.

use crate::{
    backend::{Phase, cuda},
    error::{Error, Result},
    model::ReadDensely,
    profile::{Part, Profile},
    session::Session,
    sparsity::SparsityPlan,
};
use countdown_kernels::cuda::{Cuda, ReadProbe};
use serde::Serialize;
use std::{path::Path, sync::Arc, time::Instant};

/// One thing to time: a prompt, or steps after a prompt that is not timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Tokens computed together.
    Prompt(usize),
    /// Tokens computed one by one, after `depth` tokens of context, each up to what the next one would be drawn from: all logits in memory, or the largest
    /// that a device hands over.
    Steps {
        /// Steps timed.
        tokens: usize,
        /// Context before them.
        depth: usize,
    },
    /// The FFNs of all layers one after the other, and nothing else, each on what it sees of the token behind `depth` tokens of context.
    Ffns {
        /// How often.
        passes: usize,
        /// Context before the token.
        depth: usize,
    },
}

impl Load {
    /// Positions that it needs.
    pub fn positions(self) -> usize {
        match self {
            Load::Prompt(n) => n,
            Load::Steps { tokens, depth } => depth + tokens,
            Load::Ffns { depth, .. } => depth + 1,
        }
    }
}

/// One way to run the load. `session` picks one of the sessions given to [`bench()`].
#[derive(Clone, Debug)]
pub struct Variant {
    /// Index of the session.
    pub session: usize,
    /// The plan; `None` is dense.
    pub plan: Option<Arc<SparsityPlan>>,
}

/// Times of one variant.
#[derive(Clone, Debug, Serialize)]
pub struct BenchResult {
    /// Tokens a run, or passes through the FFNs.
    pub tokens: usize,
    /// Nanoseconds of each run, in order.
    pub samples_ns: Vec<u64>,
    /// Realised sparsity over all runs.
    pub realised: f64,
    /// Bytes that one step reads: weights at the realised sparsity, and the cache at the mean position; 0 for prompts.
    pub bytes_per_token: f64,
    /// What each part of a token took, on average over all runs.
    pub parts: Vec<PartOfToken>,
}

/// What one part of a forward pass takes for one token.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PartOfToken {
    /// Its name.
    pub part: &'static str,
    /// How often it runs: for the head once, for most others once or twice a layer. Of a prompt, a batch is one call.
    pub calls: f64,
    /// Microseconds.
    pub us: f64,
    /// Bytes that steps read, as in [`BenchResult::bytes_per_token`]; 0 for prompts, and for parts that read no more than activations.
    pub bytes: f64,
}

impl PartOfToken {
    /// Effective read rate in GB/s; `None` where next to nothing is read.
    pub fn bandwidth(&self) -> Option<f64> {
        (self.bytes > 0.0 && self.us > 0.0).then(|| self.bytes / self.us / 1e3)
    }
}

impl BenchResult {
    /// Tokens a second of each run.
    pub fn rates(&self) -> Vec<f64> {
        let rate = |ns: &u64| self.tokens as f64 * 1e9 / (*ns).max(1) as f64;
        self.samples_ns.iter().map(rate).collect()
    }

    /// Mean and sample standard deviation of the rates.
    pub fn mean_and_deviation(&self) -> (f64, f64) {
        let rates = self.rates();
        let n = rates.len() as f64;
        let mean = rates.iter().sum::<f64>() / n;
        let squares: f64 = rates.iter().map(|r| (r - mean).powi(2)).sum();
        (mean, (squares / (n - 1.0).max(1.0)).sqrt())
    }

    /// The median rate.
    pub fn median(&self) -> f64 {
        median(self.rates())
    }

    /// Effective read rate of steps in GB/s (10^9 bytes a second), by the median; `None` for prompts.
    pub fn bandwidth(&self) -> Option<f64> {
        (self.bytes_per_token > 0.0).then(|| self.median() * self.bytes_per_token / 1e9)
    }
}

/// The median; the mean of the two middle values of an even number.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Bytes of a card that are read, and at least as many: several times what caches hold.
const CARD_BYTES: usize = 1 << 30;
const LEAST_CARD_BYTES: usize = 256 << 20;

/// GB/s (10^9 bytes a second) that plain reading of a card's memory reaches; `None` where so little of it is free that the caches would be read.
/// Device code is kept in `kernel_cache`, if there is one.
///
/// # Errors
/// [`Error::Machine`], where there is no such card, or it cannot run kernels.
pub fn card_bandwidth(ordinal: usize, kernel_cache: Option<&Path>) -> Result<Option<f64>> {
    let measure = || {
        let cuda = Cuda::open(ordinal, kernel_cache)?;
        // Half of what is free: others may take some of it meanwhile.
        let bytes = CARD_BYTES.min(cuda.free_memory()? / 2);
        if bytes < LEAST_CARD_BYTES {
            return Ok(None);
        }
        let memory = cuda.zeros(bytes / 16 * 4)?;
        ReadProbe::new(&cuda, memory)?.gb_s(&cuda).map(Some)
    };
    measure().map_err(cuda::error)
}

/// Makes `prompt` all that a session has seen.
fn refill(session: &mut Session, prompt: &[u32]) -> Result<()> {
    session.reset();
    if !prompt.is_empty() {
        session.prompt(prompt, |_, _| ())?;
    }
    Ok(())
}

/// Runs every variant `repetitions` times, in turns, after one run of each that does not count. `text` supplies real
/// tokens, since sparsity depends on them; it is repeated where it is too short.
///
/// # Errors
/// [`Error::Input`] for an empty text or no repetitions, and whatever running the model gives.
pub fn bench(
    sessions: &mut [Session],
    variants: &[Variant],
    load: Load,
    text: &[u32],
    repetitions: usize,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<BenchResult>> {
    if text.is_empty() || repetitions == 0 {
        return Err(Error::Input {
            cause: "a benchmark needs a text and at least one repetition".into(),
            remedy: "give -r 1 or more".into(),
        });
    }
    let (depth, timed_tokens) = match load {
        Load::Prompt(n) => (0, n),
        Load::Steps { tokens, depth } => (depth, tokens),
        Load::Ffns { passes, depth } => (depth, passes),
    };
    let endless = text.iter().copied().cycle();
    let tokens: Vec<u32> = endless.take(load.positions()).collect();
    let (prompt, timed) = tokens.split_at(depth);
    let mut results: Vec<BenchResult> = Vec::new();
    for v in variants {
        let session = &mut sessions[v.session];
        session.reset();
        results.push(BenchResult {
            tokens: timed_tokens,
            samples_ns: Vec::with_capacity(repetitions),
            realised: 0.0,
            bytes_per_token: 0.0,
            parts: Vec::new(),
        });
    }
    // What the timed part is run behind: what FFNs see is kept beforehand.
    let mut context = prompt;
    if let Load::Ffns { .. } = load {
        context = &[];
        for session in &mut *sessions {
            session.set_plan(None)?;
            refill(session, prompt)?;
            session.keep_ffn_inputs(timed[0])?;
        }
    }
    let mut totals = vec![(0u64, 0u64, Profile::default()); variants.len()];
    let all = (repetitions + 1) * variants.len();
    for round in 0..=repetitions {
        for (i, v) in variants.iter().enumerate() {
            let session = &mut sessions[v.session];
            session.set_plan(v.plan.clone())?;
            refill(session, context)?;
            session.take_profile();
            let started = Instant::now();
            match load {
                Load::Prompt(_) => {
                    session.feed(timed, Phase::Prompt)?;
                }
                Load::Steps { .. } => {
                    for token in timed {
                        session.feed(&[*token], Phase::Decode)?;
                    }
                }
                Load::Ffns { passes, .. } => session.run_ffns(passes)?,
            }
            let elapsed = started.elapsed();
            if round > 0 {
                results[i].samples_ns.push(elapsed.as_nanos() as u64);
                totals[i].0 += session.stats().kept;
                totals[i].1 += session.stats().neurons;
                totals[i].2 += session.take_profile();
            }
            progress(round * variants.len() + i + 1, all);
        }
    }
    for ((result, (kept, neurons, profile)), v) in results.iter_mut().zip(totals).zip(variants) {
        let kept = if neurons == 0 {
            1.0
        } else {
            kept as f64 / neurons as f64
        };
        let session = &sessions[v.session];
        let mut bytes = [0.0; Part::ALL.len()];
        let weights = session.model().bytes_per_token();
        if let Load::Steps { tokens, depth } = load {
            bytes[Part::Projections as usize] = weights.attention as f64;
            bytes[Part::Attention as usize] = session.cache_bytes(depth + tokens / 2) as f64;
            bytes[Part::Head as usize] = weights.head as f64;
        }
        if !matches!(load, Load::Prompt(_)) {
            let reads = v.plan.as_ref().map_or(ReadDensely::All, |p| p.reads());
            result.realised = 1.0 - kept;
            bytes[Part::Ffn as usize] =
                weights.at(reads, kept) - (weights.attention + weights.head) as f64;
            result.bytes_per_token = bytes.iter().sum();
        }
        let fed = (repetitions * result.tokens) as f64;
        let part = |part: Part| PartOfToken {
            part: part.name(),
            calls: profile.calls(part) as f64 / fed,
            us: profile.time(part).as_secs_f64() * 1e6 / fed,
            bytes: bytes[part as usize],
        };
        result.parts = Part::ALL.map(part).to_vec();
        debug_assert!(result.realised >= 0.0);
    }
    for s in sessions {
        s.reset();
        s.set_plan(None)?;
    }
    Ok(results)
}
