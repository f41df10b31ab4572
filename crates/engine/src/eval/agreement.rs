//! How the neurons that plans choose agree with the exact choice, layer by layer, on what the dense model sees.
//!
//! The exact choice is what D-CountDown would make if it knew the coefficients: of each token the neurons with the largest
//! |s|, as many as the target leaves.

use crate::{
    backend::FfnTrace,
    calibrate::{Machine, observe, windows},
    error::{Error, Result},
    model::Down,
    session::Session,
    sparsity::{Keep, Rule, Score, Selection, Signal, SparsityPlan, check_sparsity, ideal_drop},
};
use countdown_kernels::cpu::gemm::{GemmWork, matmul, matmul_transposed};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Fewer tokens than this say nothing.
const LEAST_TOKENS: usize = 64;

/// What [`agreement`] found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Tokens counted.
    pub tokens: usize,
    /// For each plan, its layers.
    pub plans: Vec<Vec<LayerAgreement>>,
    /// For each pair, over all layers.
    pub pairs: Vec<PairAgreement>,
}

/// The choices of one plan in one layer, over all tokens; shares of nothing are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerAgreement {
    /// The share of neurons skipped.
    pub sparsity: f64,
    /// Of the neurons kept, the share that the exact choice keeps.
    pub precision: f64,
    /// Of the neurons that the exact choice keeps, the share kept.
    pub recall: f64,
    /// The share of the sum of |s| that the neurons kept have.
    pub mass: f64,
    /// ||y - y_kept|| / ||y||, where y is the FFN's output.
    pub error: f64,
}

/// Two plans beside the exact choice.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairAgreement {
    /// The neurons that the exact choice keeps.
    pub kept: Side,
    /// The neurons that it drops.
    pub dropped: Side,
}

/// What two plans make of some neurons; the first plan's share comes first. Shares of nothing are 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// The share that a plan decides otherwise than the exact choice.
    pub wrong: [f64; 2],
    /// Of those, the share that the other plan decides as the exact choice does.
    pub other_right: [f64; 2],
}

/// Feeds `tokens` (a text without BOS) densely, in windows opened by `bos` if there is one, and compares what each plan would
/// keep in each layer with the exact choice at sparsity `target`: of every plan by itself, and of `pairs` of them given by index.
/// `progress(done, all)` counts tokens. The session is left empty and dense.
///
/// # Errors
/// [`Error::Input`] for a target outside [0, 1) or a text of less than 64 tokens, [`Error::Plan`] for plans that do not fit, and
/// whatever running the model gives.
///
/// # Panics
/// If a pair names a plan that is not there.
pub fn agreement(
    session: &mut Session,
    tokens: &[u32],
    bos: Option<u32>,
    target: f64,
    plans: &[Arc<SparsityPlan>],
    pairs: &[(usize, usize)],
    mut progress: impl FnMut(usize, usize),
) -> Result<Agreement> {
    check_sparsity(target)?;
    if tokens.len() < LEAST_TOKENS {
        return Err(Error::Input {
            cause: format!(
                "the text has {} tokens, at least {LEAST_TOKENS} are needed to compare choices",
                tokens.len()
            ),
            remedy: "give a longer text".into(),
        });
    }
    let model = session.shared_model();
    plans.iter().try_for_each(|p| p.check_fits(&model))?;
    session.set_plan(None)?;
    let windows = windows(session, tokens, bos);
    let all = windows.iter().map(Vec::len).sum();
    let mut work = Work {
        machine: Machine::like(session)?,
        gemm: GemmWork::new(),
        selection: Selection::default(),
    };
    let mut counts = vec![vec![Counts::default(); plans.len()]; model.layers.len()];
    let mut pair_counts = vec![PairCounts::default(); pairs.len()];
    let (mut done, mut counted) = (0, 0);
    let advance = &mut |tokens| {
        done += tokens;
        progress(done, all);
    };
    observe(session, &windows, advance, |t| {
        let down = &model.layers[t.layer].ffn.down;
        let n = t.gate.len() / t.inter;
        let exact = Rule {
            signal: Signal::Product,
            predictor: None,
            score: Score::Magnitude,
            keep: Keep::AllBut {
                drop: ideal_drop(t.inter, target),
            },
        };
        let exact = work.choice(&exact, &model, t);
        let coefficients: Vec<f32> = t.gate.iter().zip(t.up).map(|(g, u)| g * u).collect();
        let output = work.squared_output(down, &coefficients, n);
        let mut choices = Vec::with_capacity(plans.len());
        for (plan, counts) in plans.iter().zip(&mut counts[t.layer]) {
            let kept = work.choice(&plan.rules[t.layer], &model, t);
            let mut lost = coefficients.clone();
            let pairs = lost.iter_mut().zip(&kept);
            pairs.filter(|(_, k)| **k).for_each(|(s, _)| *s = 0.0);
            counts.add(&kept, &exact, &coefficients);
            counts.output += output;
            counts.output_lost += work.squared_output(down, &lost, n);
            choices.push(kept);
        }
        for (&(a, b), counts) in pairs.iter().zip(&mut pair_counts) {
            counts.add([&choices[a], &choices[b]], &exact);
        }
        if t.layer == 0 {
            counted += n;
        }
    })?;
    session.reset();
    let of_plan = |p: usize| counts.iter().map(|l| l[p].agreement()).collect();
    Ok(Agreement {
        tokens: counted,
        plans: (0..plans.len()).map(of_plan).collect(),
        pairs: pair_counts.iter().map(PairCounts::agreement).collect(),
    })
}

struct Work {
    machine: Machine,
    gemm: GemmWork,
    selection: Selection,
}

impl Work {
    /// Which neurons a rule keeps, `[tokens, inter]`.
    fn choice(&mut self, rule: &Rule, model: &crate::Model, t: &FfnTrace<'_>) -> Vec<bool> {
        let by = (rule.signal, rule.predictor.as_deref());
        let signals = self.machine.signals(by, model.config.act, t);
        let mut kept = vec![false; signals.len()];
        let rows = signals.chunks_exact(t.inter);
        for (signals, kept) in rows.zip(kept.chunks_exact_mut(t.inter)) {
            rule.select(signals.iter().copied(), &mut self.selection);
            for &i in self.selection.kept() {
                kept[i as usize] = true;
            }
        }
        kept
    }

    /// The squared norm of what the down projection makes of coefficients `[tokens, inter]`, over all tokens.
    fn squared_output(&mut self, down: &Down, coefficients: &[f32], tokens: usize) -> f64 {
        let (team, kernels) = (&mut self.machine.team, self.machine.kernels);
        let m = down.matrix().view();
        let mut y = match down {
            Down::Stored(_) => vec![0.0f32; tokens * m.rows()],
            Down::Transposed(_) => vec![0.0f32; tokens * m.cols()],
        };
        let project = match down {
            Down::Stored(_) => matmul,
            Down::Transposed(_) => matmul_transposed,
        };
        project(
            team,
            kernels,
            m,
            coefficients,
            tokens,
            &mut y,
            &mut self.gemm,
        );
        y.iter().map(|v| f64::from(*v).powi(2)).sum()
    }
}

#[derive(Clone, Default)]
struct Counts {
    neurons: u64,
    kept: u64,
    exact: u64,
    both: u64,
    mass: f64,
    mass_kept: f64,
    output: f64,
    output_lost: f64,
}

impl Counts {
    fn add(&mut self, kept: &[bool], exact: &[bool], coefficients: &[f32]) {
        for ((&kept, &exact), s) in kept.iter().zip(exact).zip(coefficients) {
            let s = f64::from(s.abs());
            self.neurons += 1;
            self.kept += u64::from(kept);
            self.exact += u64::from(exact);
            self.both += u64::from(kept && exact);
            self.mass += s;
            if kept {
                self.mass_kept += s;
            }
        }
    }

    fn agreement(&self) -> LayerAgreement {
        let share = |a: u64, b: u64| ratio(a as f64, b as f64);
        LayerAgreement {
            sparsity: 1.0 - share(self.kept, self.neurons),
            precision: share(self.both, self.kept),
            recall: share(self.both, self.exact),
            mass: ratio(self.mass_kept, self.mass),
            error: ratio(self.output_lost, self.output).sqrt(),
        }
    }
}

/// Of the neurons that the exact choice keeps, and of those that it drops.
#[derive(Clone, Default)]
struct PairCounts {
    kept: SideCounts,
    dropped: SideCounts,
}

#[derive(Clone, Default)]
struct SideCounts {
    all: u64,
    /// Wrong by each plan.
    wrong: [u64; 2],
    /// Wrong by both.
    both: u64,
}

impl PairCounts {
    fn add(&mut self, [a, b]: [&[bool]; 2], exact: &[bool]) {
        for ((a, b), &exact) in a.iter().zip(b).zip(exact) {
            let side = if exact {
                &mut self.kept
            } else {
                &mut self.dropped
            };
            let wrong = [*a != exact, *b != exact];
            side.all += 1;
            side.wrong[0] += u64::from(wrong[0]);
            side.wrong[1] += u64::from(wrong[1]);
            side.both += u64::from(wrong == [true; 2]);
        }
    }

    fn agreement(&self) -> PairAgreement {
        let side = |s: &SideCounts| {
            let [a, b] = s.wrong.map(|w| w as f64);
            let (all, both) = (s.all as f64, s.both as f64);
            Side {
                wrong: [ratio(a, all), ratio(b, all)],
                other_right: [ratio(a - both, a), ratio(b - both, b)],
            }
        };
        PairAgreement {
            kept: side(&self.kept),
            dropped: side(&self.dropped),
        }
    }
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(text: &str) -> Vec<bool> {
        text.bytes().map(|b| b == b'1').collect()
    }

    #[test]
    fn counts_come_to_what_a_hand_counts() {
        // Two tokens of four neurons.
        let s = [3.0, -4.0, 0.0, 1.0, 0.0, 0.5, 1.0, -2.0];
        let mut counts = Counts {
            output: 32.0,
            output_lost: 8.0,
            ..Counts::default()
        };
        counts.add(&bits("10100011"), &bits("11000011"), &s);
        let got = counts.agreement();
        assert_eq!((got.sparsity, got.precision, got.recall), (0.5, 0.75, 0.75));
        assert!((got.mass - 6.0 / 11.5).abs() < 1e-12);
        assert_eq!(got.error, 0.5);
        assert_eq!(Counts::default().agreement().precision, 0.0);
    }

    #[test]
    fn pairs_come_to_what_a_hand_counts() {
        let mut counts = PairCounts::default();
        // Of four neurons kept the first plan drops two, the second one, which the first drops, too; of the four dropped the
        // first keeps one, which the second drops, and the second none.
        counts.add([&bits("00111000"), &bits("01110000")], &bits("11110000"));
        let got = counts.agreement();
        assert_eq!(got.kept.wrong, [0.5, 0.25]);
        assert_eq!(got.kept.other_right, [0.5, 0.0]);
        assert_eq!(got.dropped.wrong, [0.25, 0.0]);
        assert_eq!(got.dropped.other_right, [1.0, 0.0]);
    }
}
