//! The next token from logits: penalties, top-k, top-p, min-p, temperature, then the draw; llama.cpp's order and defaults.

use std::{
    cmp::Ordering,
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{Error, Result};
use countdown_kernels::shortlist::{Candidate, Shortlist};

/// How tokens are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits: below 1 sharper, above 1 flatter. 0 always takes the most likely token.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens stay; 0 keeps all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability stay; 1 keeps all.
    pub top_p: f32,
    /// Only tokens at least this likely, relative to the most likely one, stay; 0 keeps all.
    pub min_p: f32,
    /// Makes recent tokens less likely: positive logits are divided, negative ones multiplied by it. 1 does nothing.
    pub repeat_penalty: f32,
    /// How many of the last tokens are recent; 0 for none.
    pub repeat_last_n: usize,
    /// Same seed, same tokens. None takes one from the operating system.
    pub seed: Option<u64>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        SamplingOptions {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: None,
        }
    }
}

impl SamplingOptions {
    /// Always the most likely token.
    pub fn greedy() -> Self {
        SamplingOptions {
            temperature: 0.0,
            ..SamplingOptions::default()
        }
    }
}

/// Draws tokens. Allocates when it is made, not when it draws, but for a shortlist that is longer than any before.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplingOptions,
    seed: u64,
    random: ChaCha8Rng,
    /// The last `repeat_last_n` tokens, where a penalty asks for them.
    recent: VecDeque<u32>,
    /// Per token, the last draw in which it was penalised: a token that came twice is penalised once.
    penalised: Vec<u64>,
    draws: u64,
    vocab: usize,
    candidates: Vec<Candidate>,
}

/// Best first; of equals the lowest id first, so that every draw is reproducible. Both zeros are equal.
fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    let by_logit = (b.logit + 0.0).total_cmp(&(a.logit + 0.0));
    by_logit.then(a.id.cmp(&b.id))
}

impl Sampler {
    /// A sampler for `vocab` tokens; options out of range are an error.
    pub fn new(options: SamplingOptions, vocab: usize) -> Result<Self> {
        let check = |holds: bool, name: &str, value: f32, range: &str| {
            if holds {
                return Ok(());
            }
            Err(Error::Input {
                cause: format!("{name} is {value}"),
                remedy: format!("give {range}"),
            })
        };
        let SamplingOptions {
            temperature,
            top_k,
            top_p,
            min_p,
            repeat_penalty,
            repeat_last_n,
            seed,
        } = options;
        check(
            temperature >= 0.0 && temperature.is_finite(),
            "temperature",
            temperature,
            "0 (greedy) or a positive number",
        )?;
        check(
            (0.0..=1.0).contains(&top_p),
            "top-p",
            top_p,
            "a number from 0 to 1 (1 keeps all tokens)",
        )?;
        check(
            (0.0..=1.0).contains(&min_p),
            "min-p",
            min_p,
            "a number from 0 to 1 (0 keeps all tokens)",
        )?;
        let sound = repeat_penalty > 0.0 && repeat_penalty.is_finite();
        check(
            sound,
            "the repeat penalty",
            repeat_penalty,
            "a positive number (1 switches it off)",
        )?;
        if vocab == 0 || u32::try_from(vocab).is_err() {
            return Err(Error::Input {
                cause: format!("a vocabulary of {vocab} tokens"),
                remedy: "give a model with at least one token and fewer than 2^32".into(),
            });
        }
        let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        let window = if repeat_penalty == 1.0 {
            0
        } else {
            repeat_last_n
        };
        let buffer = match top_k {
            0 => vocab,
            k => vocab.min(k.saturating_mul(2)),
        };
        Ok(Sampler {
            seed,
            random: ChaCha8Rng::seed_from_u64(seed),
            recent: VecDeque::with_capacity(window),
            penalised: vec![0; if window == 0 { 0 } else { vocab }],
            draws: 0,
            vocab,
            candidates: Vec::with_capacity(buffer),
            options: SamplingOptions {
                repeat_last_n: window,
                ..options
            },
        })
    }

    /// The seed in use, also where none was given: with it the same draws can be had again.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Tells the penalties that `token` is now part of the text.
    pub fn accept(&mut self, token: u32) {
        let window = self.options.repeat_last_n;
        if window == 0 {
            return;
        }
        if self.recent.len() == window {
            self.recent.pop_front();
        }
        self.recent.push_back(token);
    }

    /// Draws a token from `logits`, `[vocab]`; penalties change them in place. Logits of minus infinity are never drawn.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<u32> {
        if logits.len() != self.vocab {
            return Err(Error::Input {
                cause: format!("{} logits for a vocabulary of {}", logits.len(), self.vocab),
                remedy: "make the sampler for the model's vocabulary".into(),
            });
        }
        self.penalise(logits);
        let best = greedy(logits)?;
        if self.options.temperature == 0.0 {
            return Ok(best.id);
        }
        let SamplingOptions { top_k, top_p, .. } = self.options;
        let candidates = &mut self.candidates;
        match top_k {
            0 => {
                let possible = (0u32..)
                    .zip(&*logits)
                    .filter(|(_, logit)| **logit > f32::NEG_INFINITY);
                candidates.clear();
                candidates.extend(possible.map(|(id, &logit)| Candidate { logit, id }));
            }
            k => keep_top_k(logits, k.min(logits.len()), candidates),
        }
        if top_p < 1.0 {
            let wanted = f64::from(top_p) * mass(best.logit, candidates);
            keep_top_p(best.logit, [wanted; 2], candidates);
        }
        if let Some(floor) = self.floor(best) {
            self.candidates.retain(|c| c.logit >= floor);
        }
        Ok(self.draw(best))
    }

    /// Draws the token that [`Sampler::sample`] would draw from all logits, which are finite, by the largest of them alone. Where these do not say which that is,
    /// the answer is `None`, and nothing is drawn: where more than are listed stay in play (top-k is larger than the list, or 0, and neither top-p nor min-p ends
    /// within it); where top-p ends so near the border between two tokens that rounding decides, or by a sum that penalties have changed; and with a penalty below 1,
    /// which may raise a logit that is not listed.
    pub fn sample_largest(&mut self, list: &Shortlist) -> Option<u32> {
        let SamplingOptions {
            temperature,
            top_k,
            top_p,
            repeat_penalty,
            ..
        } = self.options;
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend_from_slice(list.candidates());
        let is_whole = candidates.len() == self.vocab;
        if !self.recent.is_empty() {
            if repeat_penalty < 1.0 && !is_whole {
                return None;
            }
            // Lowered below all that were listed, a logit may be less than one that is missing.
            let least = if is_whole {
                f32::MIN
            } else {
                let logits = candidates.iter().map(|c| c.logit);
                logits.fold(f32::INFINITY, f32::min)
            };
            self.draws += 1;
            for &token in &self.recent {
                if let Some(last) = self.penalised.get_mut(token as usize) {
                    *last = self.draws;
                }
            }
            for c in &mut *candidates {
                if self.penalised.get(c.id as usize) == Some(&self.draws) {
                    c.logit = penalised(c.logit, repeat_penalty);
                }
            }
            candidates.retain(|c| c.logit >= least);
        }
        let best = *candidates.iter().min_by(|a, b| best_first(a, b))?;
        if temperature == 0.0 {
            return Some(best.id);
        }
        // Whether all that stay in play are among the candidates.
        let mut is_enough = is_whole || (top_k > 0 && top_k <= candidates.len());
        if top_k > 0 {
            if top_k < candidates.len() {
                candidates.select_nth_unstable_by(top_k - 1, best_first);
                candidates.truncate(top_k);
            }
            candidates.sort_unstable_by(best_first);
        } else {
            // In the order of all logits, which draws depend on, as long as top-p does not make another.
            candidates.sort_unstable_by_key(|c| c.id);
        }
        if top_p < 1.0 {
            let of = |mass: f64| f64::from(top_p) * mass;
            let wanted = if is_enough {
                [of(mass(best.logit, candidates)); 2]
            } else if top_k == 0 && self.recent.is_empty() {
                let mass = of(list.mass());
                [-1.0, 1.0].map(|sign| mass * (1.0 + sign * Shortlist::MASS_ERROR))
            } else {
                return None;
            };
            match keep_top_p(best.logit, wanted, candidates) {
                Reached::Yes => is_enough = true,
                Reached::No => {}
                Reached::Perhaps => return None,
            }
        }
        if let Some(floor) = self.floor(best) {
            // What is not listed is less than all that is.
            is_enough |= self.candidates.iter().any(|c| c.logit < floor);
            self.candidates.retain(|c| c.logit >= floor);
        }
        is_enough.then(|| self.draw(best))
    }

    /// The least logit that min-p leaves: p >= min_p * p_best, in logits.
    fn floor(&self, best: Candidate) -> Option<f32> {
        let min_p = self.options.min_p;
        (min_p > 0.0).then(|| best.logit + min_p.ln())
    }

    /// Draws one of the candidates.
    fn draw(&mut self, best: Candidate) -> u32 {
        let temperature = self.options.temperature;
        let candidates = &self.candidates;
        let weight =
            |candidate: &Candidate| f64::from((candidate.logit - best.logit) / temperature).exp();
        let total: f64 = candidates.iter().map(weight).sum();
        // 53 random bits: uniform in [0, 1).
        let mut point = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * total;
        for candidate in candidates {
            point -= weight(candidate);
            if point < 0.0 {
                return candidate.id;
            }
        }
        // Rounding left a little of `point` over: it belongs to the last one with any weight, and the best always has some.
        candidates
            .iter()
            .rfind(|candidate| weight(candidate) > 0.0)
            .map_or(best.id, |candidate| candidate.id)
    }

    fn penalise(&mut self, logits: &mut [f32]) {
        self.draws += 1;
        for &token in &self.recent {
            let (Some(logit), Some(last)) = (
                logits.get_mut(token as usize),
                self.penalised.get_mut(token as usize),
            ) else {
                continue;
            };
            if std::mem::replace(last, self.draws) != self.draws {
                *logit = penalised(*logit, self.options.repeat_penalty);
            }
        }
    }
}

/// The logit of a recent token.
fn penalised(logit: f32, penalty: f32) -> f32 {
    if logit > 0.0 {
        logit / penalty
    } else {
        logit * penalty
    }
}

/// The highest logit, the lowest id among equals; not-a-number, plus infinity, and nothing but minus infinity are errors.
fn greedy(logits: &[f32]) -> Result<Candidate> {
    let mut best = Candidate {
        logit: f32::NEG_INFINITY,
        id: 0,
    };
    let mut broken = false;
    for (id, &logit) in (0u32..).zip(logits) {
        broken |= logit.is_nan();
        if logit > best.logit {
            best = Candidate { logit, id };
        }
    }
    if broken {
        let id = logits
            .iter()
            .position(|logit| logit.is_nan())
            .unwrap_or_default();
        return Err(Error::NotFinite(format!("the logit of token {id}")));
    }
    if best.logit.is_infinite() {
        let what = if best.logit > 0.0 {
            format!("the logit of token {}", best.id)
        } else {
            "every logit".into()
        };
        return Err(Error::NotFinite(what));
    }
    Ok(best)
}

/// Fills `kept` with the `k` best candidates (at most one a logit), best first. One pass: what cannot be among them is skipped, and `kept` is cut
/// back to `k` whenever it has twice as many.
fn keep_top_k(logits: &[f32], k: usize, kept: &mut Vec<Candidate>) {
    kept.clear();
    let mut floor = f32::NEG_INFINITY;
    for (id, &logit) in (0u32..).zip(logits) {
        // Equals of the k-th best come later in order of ids, so they rank behind it.
        if logit > floor {
            kept.push(Candidate { logit, id });
            if kept.len() == 2 * k {
                kept.select_nth_unstable_by(k - 1, best_first);
                kept.truncate(k);
                floor = kept[k - 1].logit;
            }
        }
    }
    kept.sort_unstable_by(best_first);
    kept.truncate(k);
}

/// The sum of the candidates' probabilities, relative to that of the best token.
fn mass(best: f32, candidates: &[Candidate]) -> f64 {
    let weight = |candidate: &Candidate| f64::from(candidate.logit - best).exp();
    candidates.iter().map(weight).sum()
}

/// Whether a mass that is known to lie between two bounds was reached.
enum Reached {
    No,
    Yes,
    /// Whether it is the last candidate that reaches it, or a later one would, is not known.
    Perhaps,
}

/// Keeps the best candidates up to the one with which their mass reaches what is wanted, best first. Sorts only as many as it takes.
fn keep_top_p(best: f32, [low, high]: [f64; 2], candidates: &mut Vec<Candidate>) -> Reached {
    const FIRST: usize = 256;
    let weight = |candidate: &Candidate| f64::from(candidate.logit - best).exp();
    let mut sorted = 0;
    let mut reached = 0.0;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let next = rest.len().min(FIRST.max(3 * sorted));
        if next < rest.len() {
            rest.select_nth_unstable_by(next - 1, best_first);
        }
        rest[..next].sort_unstable_by(best_first);
        for (i, candidate) in rest[..next].iter().enumerate() {
            reached += weight(candidate);
            if reached >= low {
                candidates.truncate(sorted + i + 1);
                return if reached >= high {
                    Reached::Yes
                } else {
                    Reached::Perhaps
                };
            }
        }
        sorted += next;
    }
    Reached::No
}

#[cfg(test)]
mod tests;
