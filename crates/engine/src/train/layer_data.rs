//! What one layer's FFN saw of a text, and which neurons it needed.

use super::{
    init::Standard,
    labels::Labels,
    samples::Samples,
    scorer::{BATCH, Scorer},
};
use crate::{
    backend::FfnTrace,
    calibrate::is_finite,
    error::{Error, Result},
};

/// Inputs and labels of one layer: tokens to train on, and tokens that are held out.
pub(crate) struct LayerData {
    layer: usize,
    /// Norms of the columns of down, `[inter]`.
    norms: Vec<f32>,
    pub(super) samples: Samples,
    pub(super) labels: Labels,
    /// Sums over training tokens of each input channel and of its square.
    sums: Vec<(f64, f64)>,
    pub(super) held: HeldOut,
}

/// Tokens that nothing is fitted on, with all that measuring takes.
pub(super) struct HeldOut {
    /// Inputs, `[tokens, hidden]`.
    pub(super) x: Vec<f32>,
    /// Exact coefficients, `[tokens, inter]`.
    pub(super) coefficients: Vec<f32>,
    pub(super) labels: Labels,
}

/// What tokens are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// To be trained on.
    Training,
    /// To be measured on.
    HeldOut,
}

impl LayerData {
    /// No tokens yet of the layer, whose down columns have these norms; inputs will be kept in `samples`.
    pub(crate) fn new(layer: usize, norms: Vec<f32>, hidden: usize, samples: Samples) -> LayerData {
        let inter = norms.len();
        LayerData {
            layer,
            norms,
            samples,
            labels: Labels::new(inter),
            sums: vec![(0.0, 0.0); hidden],
            held: HeldOut {
                x: Vec::new(),
                coefficients: Vec::new(),
                labels: Labels::new(inter),
            },
        }
    }

    /// Adds what the FFN saw of some tokens, and the neurons that `scorer` finds they need.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for inputs or coefficients that are no numbers; [`Error::Write`] where the disk is full;
    /// [`Error::Machine`] where a card fails.
    pub(crate) fn push(
        &mut self,
        part: Part,
        t: &FfnTrace<'_>,
        scorer: &mut Scorer<'_>,
    ) -> Result<()> {
        let hidden = self.sums.len();
        if !is_finite(t) {
            let place = format!("an activation of layer {}", self.layer);
            return Err(Error::NotFinite(place));
        }
        let batch = BATCH * t.inter;
        for (gate, up) in t.gate.chunks(batch).zip(t.up.chunks(batch)) {
            let labels = match part {
                Part::Training => &mut self.labels,
                Part::HeldOut => &mut self.held.labels,
            };
            scorer.label(gate, up, labels)?;
        }
        match part {
            Part::Training => {
                for x in t.input.chunks_exact(hidden) {
                    for ((s, q), x) in self.sums.iter_mut().zip(x) {
                        *s += f64::from(*x);
                        *q += f64::from(*x).powi(2);
                    }
                }
                self.samples.push(t.input)
            }
            Part::HeldOut => {
                self.held.x.extend_from_slice(t.input);
                let coefficients = t.gate.iter().zip(t.up).map(|(g, u)| g * u);
                self.held.coefficients.extend(coefficients);
                Ok(())
            }
        }
    }

    /// Inputs a token.
    pub(crate) fn hidden(&self) -> usize {
        self.sums.len()
    }
    /// Neurons.
    pub(crate) fn inter(&self) -> usize {
        self.norms.len()
    }
    /// Norms of the columns of down, `[inter]`.
    pub(crate) fn norms(&self) -> &[f32] {
        &self.norms
    }

    /// The change that gives every channel mean 0 and, if `spread` is [`Spread::Unit`], variance 1 over the training tokens.
    pub(crate) fn standard(&self, spread: Spread) -> Standard {
        let n = self.samples.tokens().max(1) as f64;
        let mean = |s: &(f64, f64)| s.0 / n;
        let deviation = |s: &(f64, f64)| (s.1 / n - mean(s).powi(2)).max(0.0).sqrt();
        let all = self.sums.iter().map(deviation).sum::<f64>() / self.sums.len() as f64;
        let factor = |s: &(f64, f64)| match (spread, deviation(s)) {
            // A channel that hardly varies would get weights beyond what F16 can hold, for noise.
            (_, d) if d < 1e-3 * all => 0.0,
            (Spread::Kept, _) => 1.0,
            (Spread::Unit, d) => (1.0 / d) as f32,
        };
        Standard {
            mean: self.sums.iter().map(|s| mean(s) as f32).collect(),
            factor: self.sums.iter().map(factor).collect(),
        }
    }

    /// The loss of one who knows how often each neuron is needed, and nothing else: mean over held-out tokens and neurons.
    pub(crate) fn chance(&self) -> f64 {
        let p = self.labels.frequencies();
        let tokens = self.held.labels.tokens();
        let held = self.held.labels.counts();
        let sum: f64 = p
            .iter()
            .zip(held)
            .map(|(p, n)| {
                let p = f64::from(*p).clamp(1e-6, 1.0 - 1e-6);
                let n = f64::from(*n);
                -(n * p.ln() + (tokens as f64 - n) * (1.0 - p).ln())
            })
            .sum();
        sum / (tokens * p.len()) as f64
    }
}

/// What becomes of the spread of inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spread {
    /// Every channel's variance becomes 1.
    Unit,
    /// Every channel keeps its own: for weights that cannot take a factor in.
    Kept,
}
