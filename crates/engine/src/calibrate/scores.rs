//! What is counted of a text for all requests whose scores are the same: constants, then scores.

use super::{histogram::Histogram, request::Scoring};
use crate::{
    backend::{FfnTrace, cpu},
    error::Result,
    model::{Down, Model},
    session::Session,
    sparsity::{Cut, Estimator, NeuronWeights, Predictor, Score, Signal, ideal_drop},
};
use countdown_kernels::{
    cpu::{Act, Kernels, Team},
    quant,
};

/// What computes the signals of many tokens: threads and kernels like a session's.
pub(crate) struct Machine {
    pub(crate) team: Team,
    pub(crate) kernels: &'static Kernels,
    estimator: Estimator,
    /// Signals of the tokens at hand, `[tokens, inter]`.
    signals: Vec<f32>,
}

impl Machine {
    pub(crate) fn like(session: &Session) -> Result<Machine> {
        let threads = session.threads();
        let team = crate::session::team(threads)?;
        Ok(Machine {
            team,
            kernels: cpu::kernels()?,
            estimator: Estimator::default(),
            signals: Vec::new(),
        })
    }

    /// What a rule sees of a layer's tokens, `[tokens, inter]`: the signals themselves, or what a predictor makes of the input.
    pub(crate) fn signals(
        &mut self,
        (signal, predictor): (Signal, Option<&Predictor>),
        act: Act,
        t: &FfnTrace<'_>,
    ) -> &[f32] {
        let Machine {
            team,
            kernels,
            estimator,
            signals,
        } = self;
        signals.resize(t.gate.len(), 0.0);
        match (predictor, signal) {
            (Some(p), _) => estimator.signals(team, kernels, p, act, t.input, signals),
            (None, Signal::Gate) => signals.copy_from_slice(t.gate),
            (None, Signal::Up) => signals.copy_from_slice(t.up),
            (None, Signal::Product) => {
                let pairs = signals.iter_mut().zip(t.gate.iter().zip(t.up));
                pairs.for_each(|(s, (g, u))| *s = g * u);
            }
        }
        signals
    }
}

/// The counts of one scoring, layer by layer.
pub(super) struct Group {
    pub(super) scoring: Scoring,
    pub(super) layers: Vec<LayerStats>,
}

pub(super) struct LayerStats {
    /// Per neuron the number of tokens with a positive and a negative signal, and the squares of the factor that the signal
    /// leaves out, summed over them.
    positive: Vec<(f32, f32)>,
    negative: Vec<(f32, f32)>,
    /// How signals are scored, once the constants are known.
    pub(super) score: Score,
    pub(super) scores: Histogram,
    /// For each target of a mean threshold: the sum of the tokens' own k-th scores.
    means: Vec<(f64, f64)>,
    tokens: usize,
}

impl Group {
    /// `means` are the targets that mean thresholds are wanted for.
    pub(super) fn new(model: &Model, scoring: Scoring, means: &[f64]) -> Group {
        let by_value = scoring.by_value();
        let layer = |inter: usize| LayerStats {
            positive: vec![(0.0, 0.0); inter],
            negative: vec![(0.0, 0.0); inter],
            score: if by_value {
                Score::Value
            } else {
                Score::Magnitude
            },
            scores: Histogram::default(),
            means: means.iter().map(|&m| (m, 0.0)).collect(),
            tokens: 0,
        };
        Group {
            scoring,
            layers: model.config.layers.iter().map(|l| layer(l.inter)).collect(),
        }
    }

    /// Adds up the squares of what signals leave out. Signals that are estimates or leave nothing out have none.
    pub(super) fn add_moments(&mut self, t: &FfnTrace<'_>) {
        let gives_signal = match (self.scoring.cut, self.scoring.signal) {
            (Cut::Layer, _) | (_, Signal::Product) => return,
            (_, Signal::Gate) => (t.gate, t.up),
            (_, Signal::Up) => (t.up, t.gate),
        };
        let layer = &mut self.layers[t.layer];
        let rows = gives_signal.0.chunks_exact(t.inter);
        for (signals, partners) in rows.zip(gives_signal.1.chunks_exact(t.inter)) {
            let sides = layer.positive.iter_mut().zip(&mut layer.negative);
            for ((positive, negative), (s, partner)) in sides.zip(signals.iter().zip(partners)) {
                let (count, squares) = if *s > 0.0 { positive } else { negative };
                *count += 1.0;
                *squares += partner * partner;
            }
        }
    }

    /// constant = norm of the down row * root mean square of the partner, over all tokens or by sign. A mean over few
    /// tokens is drawn towards the layer's by one token's weight, so that a neuron never seen with a sign can still fire.
    pub(super) fn fix_weights(&mut self, layer: usize, norms: &[f32]) {
        if self.scoring.cut == Cut::Layer || self.scoring.by_value() {
            return;
        }
        let is_whole = self.scoring.signal == Signal::Product;
        let stats = &mut self.layers[layer];
        let both = || stats.positive.iter().zip(&stats.negative);
        let (count, squares) = both().fold((0.0f64, 0.0f64), |(n, q), (a, b)| {
            (n + f64::from(a.0 + b.0), q + f64::from(a.1 + b.1))
        });
        let mean = (squares / count.max(1.0)) as f32;
        let constant = |norm: &f32, (n, q): (f32, f32)| norm * ((q + mean) / (n + 1.0)).sqrt();
        let side = |side: &[(f32, f32)]| {
            let pairs = norms.iter().zip(side);
            pairs.map(|(n, m)| constant(n, *m)).collect()
        };
        let (positive, negative): (Vec<f32>, Vec<f32>) = match self.scoring.cut {
            _ if is_whole => (norms.to_vec(), norms.to_vec()),
            Cut::Signed => (side(&stats.positive), side(&stats.negative)),
            Cut::Neuron | Cut::Layer => {
                let merged: Vec<(f32, f32)> = both().map(|(a, b)| (a.0 + b.0, a.1 + b.1)).collect();
                (side(&merged), side(&merged))
            }
        };
        stats.score = Score::Weighted(NeuronWeights { positive, negative });
    }

    /// Counts the scores of a layer's tokens, each with the square of what its neuron adds to the output.
    pub(super) fn add_scores(
        &mut self,
        model: &Model,
        machine: &mut Machine,
        norms: &[f32],
        t: &FfnTrace<'_>,
    ) {
        let predictor = self.scoring.predictor.as_ref();
        let predictor = predictor.map(|set| &*set.layers[t.layer]);
        let signals = machine.signals((self.scoring.signal, predictor), model.config.act, t);
        let stats = &mut self.layers[t.layer];
        let rows = signals
            .chunks_exact(t.inter)
            .zip(t.gate.chunks_exact(t.inter).zip(t.up.chunks_exact(t.inter)));
        let mut of_token: Vec<f32> = Vec::new();
        for (signals, (gate, up)) in rows {
            of_token.clear();
            of_token.extend((0..t.inter).map(|i| stats.score.of(i, signals[i])));
            for (i, score) in of_token.iter().enumerate() {
                let adds = gate[i] * up[i] * norms[i];
                stats.scores.add(*score, adds * adds);
            }
            stats.tokens += 1;
            for (target, sum) in &mut stats.means {
                let nth = ideal_drop(t.inter, *target).min(t.inter) - 1;
                let (_, value, _) = of_token.select_nth_unstable_by(nth, f32::total_cmp);
                *sum += f64::from(*value);
            }
        }
    }
}

impl LayerStats {
    /// The mean over tokens of their own k-th score (the paper's rule).
    pub(super) fn mean_threshold(&self, target: f64) -> f32 {
        let sum = self.means.iter().find(|(t, _)| *t == target);
        sum.map_or(f32::NEG_INFINITY, |(_, sum)| {
            (sum / self.tokens.max(1) as f64) as f32
        })
    }
}

/// The norm of every neuron's down column, per layer: `[inter]`.
pub fn down_norms(model: &Model) -> Vec<Vec<f32>> {
    let layer_norms = |down: &Down| {
        let m = down.matrix().view();
        let mut row = vec![0.0; m.cols()];
        let mut squares = match down {
            Down::Stored(_) => vec![0.0f32; m.cols()],
            Down::Transposed(_) => vec![0.0f32; m.rows()],
        };
        for r in 0..m.rows() {
            quant::unpack_row_of(m, r, &mut row);
            match down {
                Down::Stored(_) => squares.iter_mut().zip(&row).for_each(|(s, w)| *s += w * w),
                Down::Transposed(_) => squares[r] = row.iter().map(|w| w * w).sum(),
            }
        }
        squares.iter_mut().for_each(|s| *s = s.sqrt());
        squares
    };
    model
        .layers
        .iter()
        .map(|l| layer_norms(&l.ffn.down))
        .collect()
}
