//! Rules: which vector decides, how it is known and scored, what is kept.

use super::Predictor;
use countdown_kernels::cpu;
use std::sync::Arc;

/// The vector that decides about the neurons of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// act(W_gate x).
    Gate,
    /// W_up x.
    Up,
    /// act(W_gate x) * (W_up x): the coefficients themselves. Known exactly it needs both products, so it saves rows of down only.
    Product,
}

/// Constants that make the signals of different neurons comparable: one for positive signals, one for negative.
#[derive(Clone, Debug, PartialEq)]
pub struct NeuronWeights {
    /// Factor where the signal is positive; `[inter]`, not negative.
    pub positive: Vec<f32>,
    /// Factor on the absolute value where the signal is negative; `[inter]`, not negative.
    pub negative: Vec<f32>,
}

/// How a neuron's signal is scored.
#[derive(Clone, Debug, PartialEq)]
pub enum Score {
    /// By its absolute value.
    Magnitude,
    /// By its value: logits of a predictor.
    Value,
    /// By its absolute value times the neuron's constant for its sign.
    Weighted(NeuronWeights),
}

/// Which scores are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// Scores above a threshold: practical, since each neuron is decided by itself.
    Above(f32),
    /// Scores above the token's own `drop`-th smallest score: ideal, since all scores must be known.
    AllBut {
        /// From 1 to inter.
        drop: usize,
    },
}

/// The rule of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// What decides.
    pub signal: Signal,
    /// What estimates the signal; `None` computes it.
    pub predictor: Option<Arc<Predictor>>,
    /// How signals are compared.
    pub score: Score,
    /// What is kept.
    pub keep: Keep,
}

impl Score {
    /// The score of neuron `i` whose signal is `s`.
    #[inline]
    pub fn of(&self, i: usize, s: f32) -> f32 {
        match self {
            Score::Magnitude => s.abs(),
            Score::Value => s,
            Score::Weighted(w) => (s * w.positive[i]).max(-s * w.negative[i]),
        }
    }

    /// The neurons' constants, if there are any.
    pub fn weights(&self) -> Option<&NeuronWeights> {
        match self {
            Score::Weighted(w) => Some(w),
            Score::Magnitude | Score::Value => None,
        }
    }

    /// As kernels take it.
    pub(crate) fn view(&self) -> cpu::Score<'_> {
        match self {
            Score::Magnitude => cpu::Score::Magnitude,
            Score::Value => cpu::Score::Value,
            Score::Weighted(w) => cpu::Score::Weighted {
                positive: &w.positive,
                negative: &w.negative,
            },
        }
    }
}

impl Rule {
    /// Selects the neurons that stay, by the signals of one token (one a neuron).
    /// A signal that is not a number is never kept.
    pub fn select(&self, signals: impl Iterator<Item = f32>, into: &mut Selection) {
        let Selection {
            scores,
            order,
            kept,
        } = into;
        scores.clear();
        scores.extend(signals.enumerate().map(|(i, s)| self.score.of(i, s)));
        let above = match self.keep {
            Keep::Above(tau) => tau,
            Keep::AllBut { drop } => {
                order.clone_from(scores);
                let nth = drop.clamp(1, order.len()) - 1;
                *order.select_nth_unstable_by(nth, f32::total_cmp).1
            }
        };
        kept.clear();
        kept.extend(
            (0u32..)
                .zip(&*scores)
                .filter(|(_, s)| **s > above)
                .map(|(i, _)| i),
        );
    }
}

/// The neurons selected for a token, with the memory to select them without allocating.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    scores: Vec<f32>,
    order: Vec<f32>,
    kept: Vec<u32>,
}

impl Selection {
    /// Room for layers of up to `inter` neurons.
    pub fn with_capacity(inter: usize) -> Selection {
        Selection {
            scores: Vec::with_capacity(inter),
            order: Vec::with_capacity(inter),
            kept: Vec::with_capacity(inter),
        }
    }

    /// The neurons kept, ascending.
    pub fn kept(&self) -> &[u32] {
        &self.kept
    }
}

/// How many neurons of `inter` an ideal rule drops at a target: max(1, floor(inter * sparsity)).
pub fn ideal_drop(inter: usize, sparsity: f64) -> usize {
    ((inter as f64 * sparsity) as usize).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(rule: &Rule, signals: &[f32]) -> Vec<u32> {
        let mut selection = Selection::default();
        rule.select(signals.iter().copied(), &mut selection);
        selection.kept().to_vec()
    }

    #[test]
    fn ideal_keeps_what_is_strictly_above_the_kth_smallest() {
        let mut rule = Rule {
            signal: Signal::Up,
            predictor: None,
            score: Score::Magnitude,
            keep: Keep::AllBut { drop: 2 },
        };
        let signals = [0.5, -3.0, 0.1, 2.0, -0.2];
        assert_eq!(kept(&rule, &signals), [0, 1, 3]);
        // Equal scores at the cut are all dropped.
        assert_eq!(kept(&rule, &[1.0, -1.0, 1.0, 2.0]), [3]);
        rule.keep = Keep::AllBut { drop: 5 };
        assert!(kept(&rule, &signals).is_empty());
    }

    #[test]
    fn weights_scale_each_sign_by_its_own_constant() {
        let rule = Rule {
            signal: Signal::Up,
            predictor: None,
            score: Score::Weighted(NeuronWeights {
                positive: vec![1.0, 0.0, 2.0],
                negative: vec![0.0, 5.0, 1.0],
            }),
            keep: Keep::Above(0.9),
        };
        assert_eq!(kept(&rule, &[1.0, 1.0, 0.4]), [0]);
        assert_eq!(kept(&rule, &[-1.0, -1.0, -1.0]), [1, 2]);
    }

    #[test]
    fn logits_are_compared_by_value() {
        let rule = Rule {
            signal: Signal::Product,
            predictor: None,
            score: Score::Value,
            keep: Keep::AllBut { drop: 2 },
        };
        assert_eq!(kept(&rule, &[-9.0, 1.0, -0.5, -3.0]), [1, 2]);
    }

    #[test]
    fn nothing_that_is_not_a_number_is_kept() {
        for keep in [Keep::Above(0.1), Keep::AllBut { drop: 1 }] {
            let rule = Rule {
                signal: Signal::Gate,
                predictor: None,
                score: Score::Magnitude,
                keep,
            };
            assert!(!kept(&rule, &[f32::NAN, 1.0, 2.0]).contains(&0));
        }
    }

    #[test]
    fn the_number_dropped_is_the_floor_but_never_none() {
        assert_eq!(ideal_drop(4864, 0.7), 3404);
        assert_eq!(ideal_drop(10, 0.0), 1);
    }
}
