//! Drawing the next token from logits.

use crate::error::{Error, Result};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// How tokens are drawn. Filters apply in the order penalty, top-k, top-p, min-p, temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Divides logits; 0 always takes the most likely token.
    pub temperature: f32,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most likely tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this share as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Makes tokens seen lately less likely: positive logits are divided by it, negative ones multiplied; 1 for none.
    pub repeat_penalty: f32,
    /// How many tokens back the penalty looks.
    pub repeat_last_n: usize,
    /// Seed of the generator; drawn from the clock if `None`.
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

/// A sampler with its random numbers and its memory of recent tokens.
pub struct Sampler {
    options: SamplingOptions,
    random: ChaCha8Rng,
    /// The last tokens, a ring.
    recent: Vec<u32>,
    oldest: usize,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler for vocabularies of up to `vocab` tokens.
    ///
    /// # Errors
    /// [`Error::Input`] naming the option that is out of range.
    pub fn new(options: SamplingOptions, vocab: usize) -> Result<Sampler> {
        let o = &options;
        let checks = [
            ("--temp", o.temperature, o.temperature >= 0.0, "0 or more"),
            (
                "--top-p",
                o.top_p,
                (0.0..=1.0).contains(&o.top_p),
                "between 0 and 1",
            ),
            (
                "--min-p",
                o.min_p,
                (0.0..=1.0).contains(&o.min_p),
                "between 0 and 1",
            ),
            (
                "--repeat-penalty",
                o.repeat_penalty,
                o.repeat_penalty > 0.0,
                "above 0 (1 for none)",
            ),
        ];
        for (name, value, fits, range) in checks {
            if !(fits && value.is_finite()) {
                return Err(Error::Input {
                    cause: format!("{name} {value} is out of range"),
                    remedy: format!("use a value {range}"),
                });
            }
        }
        let seed = options.seed.unwrap_or_else(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |d| d.as_nanos() as u64)
        });
        Ok(Sampler {
            random: ChaCha8Rng::seed_from_u64(seed),
            recent: Vec::with_capacity(options.repeat_last_n),
            oldest: 0,
            candidates: Vec::with_capacity(vocab),
            options,
        })
    }

    /// Remembers a token for the penalty.
    pub fn accept(&mut self, token: u32) {
        if self.recent.len() < self.options.repeat_last_n {
            self.recent.push(token);
        } else if let Some(slot) = self.recent.get_mut(self.oldest) {
            *slot = token;
            self.oldest = (self.oldest + 1) % self.recent.len();
        }
    }

    /// Draws a token. Applies the penalty to `logits` in place.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a logit is not a number.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<u32> {
        self.penalise(logits);
        let o = &self.options;
        let c = &mut self.candidates;
        c.clear();
        c.extend(logits.iter().copied().zip(0u32..));
        if c.is_empty() || c.iter().any(|(l, _)| l.is_nan()) {
            return Err(Error::NotFinite("a logit".into()));
        }
        // Most likely first; the lower number first among equals.
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if o.temperature == 0.0 {
            let best = c.iter().copied().min_by(|a, b| order(a, b));
            return Ok(best.map_or(0, |(_, token)| token));
        }
        if o.top_k > 0 && o.top_k < c.len() {
            c.select_nth_unstable_by(o.top_k - 1, order);
            c.truncate(o.top_k);
        }
        c.sort_unstable_by(order);
        let best = c[0].0;
        if o.top_p < 1.0 {
            let total: f32 = c.iter().map(|(l, _)| (l - best).exp()).sum();
            let mut sum = 0.0;
            let enough = c.iter().position(|(l, _)| {
                sum += (l - best).exp();
                sum >= o.top_p * total
            });
            c.truncate(enough.map_or(c.len(), |i| i + 1));
        }
        if o.min_p > 0.0 {
            let stay = c.partition_point(|(l, _)| (l - best).exp() >= o.min_p);
            c.truncate(stay.max(1));
        }
        let weight = |l: f32| f64::from((l - best) / o.temperature).exp();
        let total: f64 = c.iter().map(|(l, _)| weight(*l)).sum();
        // 53 random bits: uniform in [0, 1).
        let uniform = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = uniform * total;
        for &(l, token) in &*c {
            left -= weight(l);
            if left < 0.0 {
                return Ok(token);
            }
        }
        // Rounding may leave a crumb after the last candidate.
        Ok(c[c.len() - 1].1)
    }

    fn penalise(&self, logits: &mut [f32]) {
        let penalty = self.options.repeat_penalty;
        if penalty == 1.0 {
            return;
        }
        for (i, &token) in self.recent.iter().enumerate() {
            // Once for each token, however often it was seen.
            if self.recent[..i].contains(&token) {
                continue;
            }
            if let Some(l) = logits.get_mut(token as usize) {
                *l = if *l > 0.0 { *l / penalty } else { *l * penalty };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(temperature: f32) -> SamplingOptions {
        SamplingOptions {
            temperature,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: Some(7),
            ..SamplingOptions::default()
        }
    }

    fn counts(options: SamplingOptions, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut s = Sampler::new(options, logits.len()).unwrap();
        let mut n = vec![0; logits.len()];
        for _ in 0..draws {
            n[s.sample(&mut logits.to_vec()).unwrap() as usize] += 1;
        }
        n
    }

    #[test]
    fn greedy_takes_the_largest_and_the_first_of_equals() {
        assert_eq!(counts(plain(0.0), &[1.0, 3.0, 3.0], 5), [0, 5, 0]);
    }

    #[test]
    fn frequencies_follow_the_tempered_softmax() {
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        for t in [0.5f32, 1.0, 2.0] {
            let n = counts(plain(t), &logits, 40_000);
            let weights = logits.map(|l| f64::from(l / t).exp());
            let total: f64 = weights.iter().sum();
            let chi2: f64 = n
                .iter()
                .zip(weights)
                .map(|(n, w)| {
                    let expected = 40_000.0 * w / total;
                    (*n as f64 - expected).powi(2) / expected
                })
                .sum();
            // 3 degrees of freedom; 16.3 has a probability of 0.001.
            assert!(chi2 < 16.3, "{t}: {chi2}");
        }
    }

    #[test]
    fn filters_leave_what_they_say() {
        let logits = [0.0f32, 3.0, 2.0, 1.0, -4.0];
        let only = |o: SamplingOptions| -> Vec<usize> {
            let n = counts(o, &logits, 4000);
            (0..5).filter(|i| n[*i] > 0).collect()
        };
        assert_eq!(
            only(SamplingOptions {
                top_k: 2,
                ..plain(3.0)
            }),
            [1, 2]
        );
        // Shares at temperature 1 are 0.64, 0.24, 0.09, 0.03.
        assert_eq!(
            only(SamplingOptions {
                top_p: 0.7,
                ..plain(3.0)
            }),
            [1, 2]
        );
        assert_eq!(
            only(SamplingOptions {
                min_p: 0.1,
                ..plain(3.0)
            }),
            [1, 2, 3]
        );
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let draw = |seed| {
            let o = SamplingOptions {
                seed: Some(seed),
                ..plain(1.0)
            };
            let mut s = Sampler::new(o, 50).unwrap();
            (0..40)
                .map(|_| s.sample(&mut [0.0; 50]).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn the_penalty_counts_recent_tokens_once_and_forgets_old_ones() {
        let o = SamplingOptions {
            repeat_penalty: 2.0,
            repeat_last_n: 2,
            ..plain(0.0)
        };
        let mut s = Sampler::new(o, 3).unwrap();
        let logits = [4.0, 3.0, -1.0];
        s.accept(0);
        s.accept(0);
        let mut l = logits;
        assert_eq!(s.sample(&mut l).unwrap(), 1);
        assert_eq!(l[0], 2.0);
        s.accept(2);
        s.accept(2);
        let mut l = logits;
        assert_eq!(s.sample(&mut l).unwrap(), 0);
        assert_eq!(l[2], -2.0);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for bad in [
            SamplingOptions {
                temperature: -1.0,
                ..plain(1.0)
            },
            SamplingOptions {
                temperature: f32::NAN,
                ..plain(1.0)
            },
            SamplingOptions {
                top_p: 1.5,
                ..plain(1.0)
            },
            SamplingOptions {
                min_p: -0.1,
                ..plain(1.0)
            },
            SamplingOptions {
                repeat_penalty: 0.0,
                ..plain(1.0)
            },
        ] {
            assert!(matches!(Sampler::new(bad, 4), Err(Error::Input { .. })));
        }
        let mut s = Sampler::new(plain(1.0), 2).unwrap();
        assert!(matches!(
            s.sample(&mut [0.0, f32::NAN]),
            Err(Error::NotFinite(_))
        ));
    }
}
