//! Perplexity as llama.cpp's tool computes it, under dense arithmetic and under plans, and how far the two are apart.
//!
//! The text is cut into chunks of `ctx` tokens. The first half of a chunk is a prompt, computed densely; the second half is
//! scored: the logits at position j give the probability of token j + 1, for ctx/2 <= j < ctx - 1. Under a plan the second
//! half is decoded, the first half being the same dense prompt.

use super::divergence::{argmax, kl, log_softmax};
use crate::{
    backend::Phase,
    error::{Error, Result},
    session::Session,
    sparsity::{Cut, Form, SparsityPlan},
};
use serde::Serialize;
use std::sync::Arc;

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
}

/// One line of results.
#[derive(Clone, Debug, Serialize)]
pub struct PerplexityRow {
    /// Always "perplexity".
    pub task: &'static str,
    /// The method's name.
    pub method: String,
    /// What predicts the signal; `None` where it is computed.
    pub predictor: Option<String>,
    /// How neurons are compared; `None` for dense.
    pub cut: Option<Cut>,
    /// Practical or ideal; `None` for dense.
    pub form: Option<Form>,
    /// The sparsity asked for; 0 for dense.
    pub target: f64,
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

impl PerplexityRow {
    /// The method and its predictor, for tables.
    pub fn label(&self) -> String {
        match &self.predictor {
            Some(predictor) => format!("{} by {predictor}", self.method),
            None => self.method.clone(),
        }
    }
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
    fn add(&mut self, logp: f32) {
        let nll = -f64::from(logp);
        self.nll += nll;
        self.squares += nll * nll;
        self.count += 1;
    }

    fn row(&self, plan: Option<&SparsityPlan>) -> PerplexityRow {
        let n = self.count as f64;
        let mean = self.nll / n;
        let perplexity = mean.exp();
        let variance = (self.squares / n - mean * mean).max(0.0);
        let from = plan.map(|p| &p.provenance);
        PerplexityRow {
            task: "perplexity",
            method: from.map_or("dense".into(), |p| p.method.clone()),
            predictor: from.and_then(|p| p.predictor.clone()),
            cut: from.map(|p| p.cut),
            form: from.map(|p| p.form),
            target: from.map_or(0.0, |p| p.target),
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
    let first = ctx / 2;
    let scored = ctx - 1 - first;
    let mut reference = vec![0.0f32; scored * vocab];
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
        let dense = &mut sums[0];
        session.score(fed, Phase::Prompt, |j, logits| {
            let row = &mut reference[j * vocab..(j + 1) * vocab];
            row.copy_from_slice(logits);
            log_softmax(row);
            dense.add(row[targets[j] as usize]);
            dense.same += 1;
        })?;
        done += 1;
        progress(done, all);
        for (plan, sums) in plans.iter().zip(&mut sums[1..]) {
            session.set_plan(Some(plan.clone()))?;
            session.truncate(first);
            let before = session.stats();
            let mut row = vec![0.0f32; vocab];
            let mut compare = |j: usize, logits: &[f32]| {
                row.copy_from_slice(logits);
                log_softmax(&mut row);
                let dense = &reference[j * vocab..(j + 1) * vocab];
                sums.add(row[targets[j] as usize]);
                sums.kl += kl(dense, &row);
                sums.same += usize::from(argmax(dense) == argmax(&row));
            };
            match options.stepping {
                Stepping::Batched => session.score(fed, Phase::Decode, compare)?,
                Stepping::OneByOne => {
                    for (j, token) in fed.iter().enumerate() {
                        compare(j, session.feed(&[*token], Phase::Decode)?);
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
