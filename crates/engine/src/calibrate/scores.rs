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

/// Neurons that a thread takes at a time, at least.
const NEURONS: usize = 256;
/// Histograms that tokens are cut among, however many threads there are.
const PIECES: usize = 16;

/// What computes the signals of many tokens and counts them: threads and kernels like a session's.
pub(crate) struct Machine {
    pub(crate) team: Team,
    pub(crate) kernels: &'static Kernels,
    estimator: Estimator,
    /// Signals of the tokens at hand, `[tokens, inter]`.
    signals: Vec<f32>,
    pieces: Vec<Piece>,
}

/// What is counted of some of the tokens at hand.
#[derive(Default)]
struct Piece {
    scores: Histogram,
    /// For each target of a mean threshold: the sum of the tokens' own k-th scores.
    means: Vec<f64>,
    of_token: Vec<f32>,
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
            pieces: Vec::new(),
        })
    }

    /// What a rule sees of a layer's tokens, `[tokens, inter]`: the signals themselves, or what a predictor makes of the input.
    pub(crate) fn signals<'a>(
        &'a mut self,
        by: (Signal, Option<&Predictor>),
        act: Act,
        t: &FfnTrace<'a>,
    ) -> &'a [f32] {
        self.signals_and_pieces(by, act, t).0
    }

    fn signals_and_pieces<'a>(
        &'a mut self,
        (signal, predictor): (Signal, Option<&Predictor>),
        act: Act,
        t: &FfnTrace<'a>,
    ) -> (&'a [f32], &'a mut Team, &'a mut Vec<Piece>) {
        let Machine {
            team,
            kernels,
            estimator,
            signals,
            pieces,
        } = self;
        signals.resize(t.gate.len(), 0.0);
        let signals = match (predictor, signal) {
            (Some(p), _) => {
                estimator.signals(team, kernels, p, act, t.input, signals);
                signals
            }
            (None, Signal::Gate) => t.gate,
            (None, Signal::Up) => t.up,
            (None, Signal::Product) => {
                team.split(signals, 1024, |at, signals| {
                    let factors = t.gate[at..].iter().zip(&t.up[at..]);
                    let pairs = signals.iter_mut().zip(factors);
                    pairs.for_each(|(s, (g, u))| *s = g * u);
                });
                signals
            }
        };
        (signals, team, pieces)
    }
}

/// The counts of one scoring, layer by layer.
pub(super) struct Group {
    pub(super) scoring: Scoring,
    pub(super) layers: Vec<LayerStats>,
}

/// A number of tokens, and squares summed over them.
type Moments = (f32, f32);

pub(super) struct LayerStats {
    /// Per neuron the number of tokens with a positive and with a negative signal, and the squares of the factor that the signal
    /// leaves out, summed over them.
    sides: Vec<[Moments; 2]>,
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
            sides: vec![[(0.0, 0.0); 2]; inter],
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
    pub(super) fn add_moments(&mut self, machine: &mut Machine, t: &FfnTrace<'_>) {
        let (signals, partners) = match (self.scoring.cut, self.scoring.signal) {
            (Cut::Layer, _) | (_, Signal::Product) => return,
            (_, Signal::Gate) => (t.gate, t.up),
            (_, Signal::Up) => (t.up, t.gate),
        };
        let sides = &mut self.layers[t.layer].sides;
        machine.team.split(sides, NEURONS, |at, sides| {
            let rows = signals.chunks_exact(t.inter);
            for (signals, partners) in rows.zip(partners.chunks_exact(t.inter)) {
                let factors = signals[at..].iter().zip(&partners[at..]);
                for ([positive, negative], (s, partner)) in sides.iter_mut().zip(factors) {
                    let (count, squares) = if *s > 0.0 { positive } else { negative };
                    *count += 1.0;
                    *squares += partner * partner;
                }
            }
        });
    }

    /// constant = norm of the down row * root mean square of the partner, over all tokens or by sign. A mean over few
    /// tokens is drawn towards the layer's by one token's weight, so that a neuron never seen with a sign can still fire.
    pub(super) fn fix_weights(&mut self, layer: usize, norms: &[f32]) {
        if self.scoring.cut == Cut::Layer || self.scoring.by_value() {
            return;
        }
        let is_whole = self.scoring.signal == Signal::Product;
        let stats = &mut self.layers[layer];
        let both = || stats.sides.iter().map(|[a, b]| (a, b));
        let (count, squares) = both().fold((0.0f64, 0.0f64), |(n, q), (a, b)| {
            (n + f64::from(a.0 + b.0), q + f64::from(a.1 + b.1))
        });
        let mean = (squares / count.max(1.0)) as f32;
        let constant = |norm: &f32, (n, q): Moments| norm * ((q + mean) / (n + 1.0)).sqrt();
        let side = |of: fn(&[Moments; 2]) -> Moments| -> Vec<f32> {
            let pairs = norms.iter().zip(&stats.sides);
            pairs.map(|(n, sides)| constant(n, of(sides))).collect()
        };
        let (positive, negative): (Vec<f32>, Vec<f32>) = match self.scoring.cut {
            _ if is_whole => (norms.to_vec(), norms.to_vec()),
            Cut::Signed => (side(|[a, _]| *a), side(|[_, b]| *b)),
            Cut::Neuron | Cut::Layer => {
                let merged = side(|[a, b]| (a.0 + b.0, a.1 + b.1));
                (merged.clone(), merged)
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
        let by = (self.scoring.signal, predictor);
        let (signals, team, pieces) = machine.signals_and_pieces(by, model.config.act, t);
        let stats = &mut self.layers[t.layer];
        let (inter, tokens) = (t.inter, t.gate.len() / t.inter);
        let of_piece = tokens.div_ceil(PIECES).max(1);
        let count = tokens.div_ceil(of_piece);
        pieces.resize_with(pieces.len().max(count), Piece::default);
        let pieces = &mut pieces[..count];
        let (score, means) = (&stats.score, &stats.means);
        team.split(pieces, 1, |at, pieces| {
            for (i, piece) in pieces.iter_mut().enumerate() {
                piece.means.clear();
                piece.means.resize(means.len(), 0.0);
                let first = (at + i) * of_piece;
                for token in first..(first + of_piece).min(tokens) {
                    let row = token * inter..(token + 1) * inter;
                    let signals = signals[row.clone()].iter().enumerate();
                    piece.of_token.clear();
                    piece.of_token.extend(signals.map(|(i, s)| score.of(i, *s)));
                    let factors = t.gate[row.clone()].iter().zip(&t.up[row]);
                    for (score, ((g, u), norm)) in piece.of_token.iter().zip(factors.zip(norms)) {
                        let adds = g * u * norm;
                        piece.scores.add(*score, adds * adds);
                    }
                    for ((target, _), sum) in means.iter().zip(&mut piece.means) {
                        let nth = ideal_drop(inter, *target).min(inter) - 1;
                        let (_, value, _) =
                            piece.of_token.select_nth_unstable_by(nth, f32::total_cmp);
                        *sum += f64::from(*value);
                    }
                }
            }
        });
        stats.tokens += tokens;
        for piece in pieces {
            let sums = stats.means.iter_mut().zip(&piece.means);
            sums.for_each(|((_, sum), part)| *sum += part);
            stats.scores.take(&mut piece.scores);
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
