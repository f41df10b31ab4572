//! Perplexity as llama.cpp's tool computes it, under dense arithmetic and under plans, and how far the two are apart.
//!
//! The text is cut into chunks of `ctx` tokens. The first half of a chunk is a prompt, computed densely; the second half is
//! scored: the logits at position j give the probability of token j + 1, for ctx/2 <= j < ctx - 1. Under a plan the second
//! half is decoded, the first half being the same dense prompt.

use super::{
    Subject,
    divergence::{Compared, Reference},
};
use crate::{
    backend::{Phase, cpu::kernels},
    error::{Error, Result},
    session::Session,
    sparsity::SparsityPlan,
};
use serde::Serialize;
use std::sync::Arc;

/// Rows of logits that are gathered before they are compared, several threads at a time.
const GATHERED: usize = 32;

/// How the scored tokens are fed under a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Stepping {
    /// One by one, through the kernels that generation uses.
    #[default]
    OneByOne,
    /// Many together with the skipped neurons zeroed: the same computation but for rounding, several times quicker.
    Batched,
}

/// What to score.
#[derive(Clone, Debug)]
pub struct PerplexityOptions {
    /// Tokens a chunk, at least 4.
    pub ctx: usize,
    /// Chunks at most; the whole text if `None`.
    pub chunks: Option<usize>,
    /// See [`Stepping`].
    pub stepping: Stepping,
    /// Threads that compare distributions; results do not depend on it.
    pub threads: usize,
}

/// One line of results.
#[derive(Clone, Debug, Serialize)]
pub struct PerplexityRow {
    /// Always "perplexity".
    pub task: &'static str,
    /// Dense, or the plan.
    #[serde(flatten)]
    pub subject: Subject,
    /// The sparsity there was in the scored half.
    pub realised: f64,
    /// Tokens scored.
    pub tokens: usize,
    /// exp(mean negative log-likelihood).
    pub perplexity: f64,
    /// Standard error of the perplexity.
    pub stderr: f64,
    /// Mean KL divergence of the plan's distribution from the dense one, in nats; 0 for dense.
    pub kl: f64,
    /// Share of positions where plan and dense have the same most likely token; 1 for dense.
    pub top1: f64,
}

#[derive(Default)]
struct Sums {
    nll: f64,
    squares: f64,
    kl: f64,
    same: usize,
    count: usize,
    kept: u64,
    neurons: u64,
}

impl Sums {
    fn add(&mut self, row: &Compared) {
        self.nll -= row.log_p;
        self.squares += row.log_p * row.log_p;
        self.kl += row.kl;
        self.same += usize::from(row.same);
        self.count += 1;
    }

    fn row(&self, plan: Option<&SparsityPlan>) -> PerplexityRow {
        let n = self.count as f64;
        let mean = self.nll / n;
        let perplexity = mean.exp();
        let variance = (self.squares / n - mean * mean).max(0.0);
        PerplexityRow {
            task: "perplexity",
            subject: Subject::of(plan),
            realised: match self.neurons {
                0 => 0.0,
                all => 1.0 - self.kept as f64 / all as f64,
            },
            tokens: self.count,
            perplexity,
            stderr: perplexity * (variance / (n - 1.0).max(1.0)).sqrt(),
            kl: self.kl / n,
            top1: self.same as f64 / n,
        }
    }
}

/// Scores `tokens` (a whole text, without BOS) densely and under every plan; dense is the first row. Chunks are opened by
/// `bos` in place of their first token, if there is one. `progress(done, all)` counts chunks times rows. The session is
/// left empty and dense.
///
/// # Errors
/// [`Error::Input`] for a text shorter than one chunk or a chunk that does not fit the session, plans that do not fit, and
/// whatever running the model gives.
pub fn perplexity(
    session: &mut Session,
    tokens: &[u32],
    bos: Option<u32>,
    plans: &[Arc<SparsityPlan>],
    options: &PerplexityOptions,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<PerplexityRow>> {
    let ctx = options.ctx;
    if ctx < 4 || ctx > session.context() {
        return Err(Error::Input {
            cause: format!("chunks of {ctx} tokens do not fit"),
            remedy: format!("use --ctx between 4 and {}", session.context()),
        });
    }
    // The BOS stands in front of the text and takes the place of each later chunk's first token, as in llama.cpp.
    let text: Vec<u32> = bos.into_iter().chain(tokens.iter().copied()).collect();
    let chunks = (text.len() / ctx).min(options.chunks.unwrap_or(usize::MAX));
    if chunks == 0 {
        return Err(Error::Input {
            cause: format!(
                "the text has {} tokens, less than one chunk of {ctx}",
                text.len()
            ),
            remedy: "give a longer text, or a smaller --ctx".into(),
        });
    }
    for plan in plans {
        session.set_plan(Some(plan.clone()))?;
    }
    session.set_plan(None)?;
    let vocab = session.model().config.vocab;
    let (kernels, threads) = (kernels()?, options.threads);
    let first = ctx / 2;
    let scored = ctx - 1 - first;
    let mut dense = vec![0.0f32; scored * vocab];
    let mut rows = vec![0.0f32; GATHERED.min(scored) * vocab];
    let mut sums: Vec<Sums> = (0..=plans.len()).map(|_| Sums::default()).collect();
    let all = chunks * (plans.len() + 1);
    let mut done = 0;
    for chunk in text.chunks_exact(ctx).take(chunks) {
        let mut chunk = chunk.to_vec();
        if let Some(bos) = bos {
            chunk[0] = bos;
        }
        let (prompt, rest) = chunk.split_at(first);
        let (fed, targets) = (&rest[..scored], &rest[1..]);
        session.reset();
        session.trace(prompt, Phase::Prompt, &mut |_| ())?;
        session.score(fed, Phase::Prompt, |j, logits| {
            dense[j * vocab..(j + 1) * vocab].copy_from_slice(logits);
        })?;
        let reference = Reference::new(kernels, threads, &dense, vocab);
        for (j, &target) in targets.iter().enumerate() {
            sums[0].add(&Compared {
                log_p: reference.log_p(j, target),
                kl: 0.0,
                same: true,
            });
        }
        done += 1;
        progress(done, all);
        for (plan, sums) in plans.iter().zip(&mut sums[1..]) {
            session.set_plan(Some(plan.clone()))?;
            session.truncate(first);
            let before = session.stats();
            let mut gather = |j: usize, logits: &[f32]| {
                let at = j % GATHERED;
                rows[at * vocab..(at + 1) * vocab].copy_from_slice(logits);
                if at + 1 == GATHERED || j + 1 == scored {
                    let targets = &targets[j - at..=j];
                    let compared = reference.compare(kernels, threads, j - at, &rows, targets);
                    compared.iter().for_each(|row| sums.add(row));
                }
            };
            match options.stepping {
                Stepping::Batched => session.score(fed, Phase::Decode, gather)?,
                Stepping::OneByOne => {
                    for (j, token) in fed.iter().enumerate() {
                        gather(j, session.feed(&[*token], Phase::Decode)?.all()?);
                    }
                }
            }
            sums.kept += session.stats().kept - before.kept;
            sums.neurons += session.stats().neurons - before.neurons;
            done += 1;
            progress(done, all);
        }
        session.set_plan(None)?;
    }
    session.reset();
    let plans = std::iter::once(None).chain(plans.iter().map(|p| Some(&**p)));
    Ok(sums.iter().zip(plans).map(|(s, p)| s.row(p)).collect())
}
