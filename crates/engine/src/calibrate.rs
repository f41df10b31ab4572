//! Calibration: one pass over a text fits the constants and thresholds of any number of plans.
//!
//! The first half of the text's windows gives the neurons' constants, the second half the thresholds: a threshold is the
//! target quantile of the scores of all neurons and tokens of a layer, read off a histogram. So thresholds are fitted on
//! tokens that the constants were not, and memory is bounded by the model, not the text.

use crate::{
    backend::{FfnTrace, Phase},
    error::{Error, Result},
    model::{Down, Model},
    session::Session,
    sparsity::{
        CalibrationText, Constants, Cut, Form, Keep, Method, NeuronWeights, Provenance, Rule,
        Signal, SparsityPlan, check_sparsity, ideal_drop,
    },
};
use countdown_kernels::quant;
use std::sync::Arc;

/// Tokens a window; contexts of a few hundred tokens are where decoding happens.
const WINDOW: usize = 512;
/// Tokens at the start of a window that are not counted: the first ones draw activations that no decoded token has.
const WARM_UP: usize = 16;
/// Fewer tokens than this fit nothing worth using.
const LEAST_TOKENS: usize = 512;
/// Windows fed under each plan to learn what it realises.
const CHECKED_WINDOWS: usize = 4;

/// A plan to fit.
#[derive(Clone, Debug)]
pub struct PlanRequest {
    /// The method.
    pub method: &'static Method,
    /// What thresholds are compared with.
    pub cut: Cut,
    /// Fixed thresholds, or each token's own.
    pub form: Form,
    /// The share of neurons to skip, in [0, 1).
    pub sparsity: f64,
}

impl PlanRequest {
    fn signal(&self) -> Result<Signal> {
        self.method.signal.ok_or_else(|| Error::Input {
            cause: format!("method {} has no plan", self.method.name),
            remedy: "leave the plan and the sparsity out".into(),
        })
    }

    /// Checks the target, and that the method has this form.
    ///
    /// # Errors
    /// [`Error::Input`] saying what to ask for instead.
    pub fn check(&self) -> Result<()> {
        check_sparsity(self.sparsity)?;
        self.signal()?;
        match (self.form, self.method.practical) {
            (Form::Practical, Err(why)) => Err(Error::Input {
                cause: format!("method {} {why}", self.method.name),
                remedy: "add --ideal, or use another method".into(),
            }),
            _ => Ok(()),
        }
    }

    fn constants(&self) -> Constants {
        match self.cut {
            Cut::Layer => Constants::None,
            Cut::Neuron => self.method.constants,
        }
    }

    /// Whether the plan follows from the model's shape alone.
    pub fn needs_text(&self) -> bool {
        self.form == Form::Practical || self.constants() != Constants::None
    }
}

/// Fits all requested plans on `tokens`, which are cut into windows, each opened by `bos` if there is one; then feeds some
/// of the windows under each practical plan to learn what it realises. `progress(done, all)` counts tokens. The session
/// is left empty and dense.
///
/// # Errors
/// [`Error::Input`] for a request that cannot be or a text that is too short, and whatever running the model gives.
pub fn calibrate(
    session: &mut Session,
    tokens: &[u32],
    bos: Option<u32>,
    requests: &[PlanRequest],
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<SparsityPlan>> {
    requests.iter().try_for_each(PlanRequest::check)?;
    session.set_plan(None)?;
    let mut groups: Vec<Group> = Vec::new();
    for r in requests.iter().filter(|r| r.needs_text()) {
        let key = (r.signal()?, r.constants());
        if !groups.iter().any(|g| (g.signal, g.constants) == key) {
            groups.push(Group::new(session.model(), key.0, key.1));
        }
    }
    if !groups.is_empty() && tokens.len() < LEAST_TOKENS {
        return Err(Error::Input {
            cause: format!(
                "the calibration text has {} tokens, at least {LEAST_TOKENS} are needed",
                tokens.len()
            ),
            remedy: "give a longer text; some ten thousand tokens are plenty".into(),
        });
    }
    let windows = windows(session, tokens, bos);
    let (first, second) = windows.split_at(windows.len() / 2);
    let practical = requests
        .iter()
        .filter(|r| r.form == Form::Practical)
        .count();
    let checked = &first[..first.len().min(CHECKED_WINDOWS)];
    let mut work = Progress {
        done: 0,
        all: count(&windows) + practical * count(checked),
        report: &mut progress,
    };
    if !groups.is_empty() {
        observe(session, first, &mut work, |t| {
            groups.iter_mut().for_each(|g| g.add_moments(t));
        })?;
        let norms = down_norms(session.model());
        groups.iter_mut().for_each(|g| g.fix_weights(&norms));
        observe(session, second, &mut work, |t| {
            groups.iter_mut().for_each(|g| g.add_scores(t));
        })?;
    }
    let text = CalibrationText {
        hash: blake3::hash(bytemuck::cast_slice(tokens))
            .to_hex()
            .to_string(),
        tokens: tokens.len(),
    };
    let mut plans = Vec::with_capacity(requests.len());
    for r in requests {
        let group = groups
            .iter()
            .find(|g| r.signal().is_ok_and(|s| s == g.signal) && g.constants == r.constants());
        let mut plan = SparsityPlan {
            rules: rules(session.model(), r, group)?,
            provenance: Provenance::new(session.model(), r.method, r.cut, r.form, r.sparsity),
        };
        if r.needs_text() {
            plan.provenance.calibration = Some(text.clone());
        }
        if r.form == Form::Practical {
            let plan_in_force = Arc::new(plan.clone());
            session.set_plan(Some(plan_in_force))?;
            let realised = realise(session, checked, &mut work);
            session.set_plan(None)?;
            plan.provenance.realised = Some(realised?);
        }
        plans.push(plan);
    }
    session.reset();
    Ok(plans)
}

/// Cuts a text into windows that fit the session, each opened by `bos`.
fn windows(session: &Session, tokens: &[u32], bos: Option<u32>) -> Vec<Vec<u32>> {
    let room = WINDOW.min(session.context()) - usize::from(bos.is_some());
    // Two windows at least: one for constants, one for thresholds.
    let window = room.min(tokens.len().div_ceil(2)).max(1);
    tokens
        .chunks(window)
        .map(|part| bos.into_iter().chain(part.iter().copied()).collect())
        .collect()
}

fn count(windows: &[Vec<u32>]) -> usize {
    windows.iter().map(Vec::len).sum()
}

struct Progress<'a> {
    done: usize,
    all: usize,
    report: &'a mut dyn FnMut(usize, usize),
}

impl Progress<'_> {
    fn advance(&mut self, tokens: usize) {
        self.done += tokens;
        (self.report)(self.done, self.all);
    }
}

/// What one layer saw for one token: act(W_gate x) and W_up x.
struct Seen<'a> {
    layer: usize,
    gate: &'a [f32],
    up: &'a [f32],
}

impl Seen<'_> {
    /// The signal of neuron `i`, and the factor that the signal leaves out.
    fn signal_and_partner(&self, signal: Signal, i: usize) -> (f32, f32) {
        let (g, u) = (self.gate[i], self.up[i]);
        match signal {
            Signal::Gate => (g, u),
            Signal::Up => (u, g),
            Signal::Product => (g * u, 1.0),
        }
    }
}

/// Runs windows densely and shows `each` what counts.
fn observe(
    session: &mut Session,
    windows: &[Vec<u32>],
    progress: &mut Progress<'_>,
    mut each: impl FnMut(&Seen<'_>),
) -> Result<()> {
    for window in windows {
        let mut bad = None;
        session.reset();
        session.trace(window, Phase::Prompt, &mut |t: FfnTrace<'_>| {
            let tokens = t.gate.chunks_exact(t.inter).zip(t.up.chunks_exact(t.inter));
            for (_, (gate, up)) in (t.start..).zip(tokens).filter(|(p, _)| *p >= WARM_UP) {
                let sum: f32 = gate.iter().zip(up).map(|(g, u)| g * u).sum();
                if !sum.is_finite() {
                    bad = bad.or(Some(t.layer));
                }
                each(&Seen {
                    layer: t.layer,
                    gate,
                    up,
                });
            }
        })?;
        if let Some(layer) = bad {
            return Err(Error::NotFinite(format!("an activation of layer {layer}")));
        }
        progress.advance(window.len());
    }
    Ok(())
}

/// The share of neurons that the plan in force skips in these windows, whose first tokens are a prompt.
fn realise(
    session: &mut Session,
    windows: &[Vec<u32>],
    progress: &mut Progress<'_>,
) -> Result<f64> {
    session.reset();
    for window in windows {
        session.truncate(0);
        let (prompt, rest) = window.split_at(WARM_UP.min(window.len() / 2));
        session.trace(prompt, Phase::Prompt, &mut |_| ())?;
        session.trace(rest, Phase::Decode, &mut |_| ())?;
        progress.advance(window.len());
    }
    Ok(session.stats().realised_sparsity())
}

/// The rules of a request, from what its group saw (`None` where the request needs no text).
fn rules(model: &Model, request: &PlanRequest, group: Option<&Group>) -> Result<Vec<Rule>> {
    let signal = request.signal()?;
    Ok((0..model.config.layers.len())
        .map(|i| {
            let seen = group.map(|g| &g.layers[i]);
            let keep = match (request.form, seen) {
                (Form::Practical, Some(seen)) => {
                    Keep::Above(seen.scores.quantile(request.sparsity))
                }
                (Form::Practical, None) => {
                    unreachable!("practical plans need a text, so their scores were counted")
                }
                (Form::Ideal, _) => Keep::AllBut {
                    drop: ideal_drop(model.config.layers[i].inter, request.sparsity),
                },
            };
            Rule {
                signal,
                weights: seen.and_then(|s| s.scale.weights.clone()),
                keep,
            }
        })
        .collect())
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
            quant::unpack_row(m.dtype(), m.row(r), &mut row);
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

/// What is counted for all requests with the same scores.
struct Group {
    signal: Signal,
    constants: Constants,
    layers: Vec<LayerStats>,
}

struct LayerStats {
    /// Per neuron the number of tokens with a positive and a negative signal, and the partner's squares summed over them.
    positive: Vec<(f32, f32)>,
    negative: Vec<(f32, f32)>,
    /// A rule that holds the constants once they are known, and scores by them.
    scale: Rule,
    scores: Histogram,
}

impl Group {
    fn new(model: &Model, signal: Signal, constants: Constants) -> Group {
        let layer = |inter: usize| LayerStats {
            positive: vec![(0.0, 0.0); inter],
            negative: vec![(0.0, 0.0); inter],
            scale: Rule {
                signal,
                weights: None,
                keep: Keep::Above(0.0),
            },
            scores: Histogram::default(),
        };
        Group {
            signal,
            constants,
            layers: model.config.layers.iter().map(|l| layer(l.inter)).collect(),
        }
    }

    fn add_moments(&mut self, seen: &Seen<'_>) {
        if self.constants == Constants::None {
            return;
        }
        let layer = &mut self.layers[seen.layer];
        let sides = layer.positive.iter_mut().zip(&mut layer.negative);
        for (i, (positive, negative)) in sides.enumerate() {
            let (s, partner) = seen.signal_and_partner(self.signal, i);
            let (count, squares) = if s > 0.0 { positive } else { negative };
            *count += 1.0;
            *squares += partner * partner;
        }
    }

    /// constant = norm of the down row * root mean square of the partner, over all tokens or by sign. A mean over few
    /// tokens is drawn towards the layer's by one token's weight, so that a neuron never seen with a sign can still fire.
    fn fix_weights(&mut self, norms: &[Vec<f32>]) {
        for (layer, norms) in self.layers.iter_mut().zip(norms) {
            let both = || layer.positive.iter().zip(&layer.negative);
            let (count, squares) = both().fold((0.0f64, 0.0f64), |(n, q), (a, b)| {
                (n + f64::from(a.0 + b.0), q + f64::from(a.1 + b.1))
            });
            let mean = (squares / count.max(1.0)) as f32;
            let constant = |norm: &f32, (n, q): (f32, f32)| norm * ((q + mean) / (n + 1.0)).sqrt();
            layer.scale.weights = match self.constants {
                Constants::None => None,
                Constants::OneForBothSigns => {
                    let merged: Vec<f32> = both()
                        .zip(norms)
                        .map(|((a, b), norm)| constant(norm, (a.0 + b.0, a.1 + b.1)))
                        .collect();
                    Some(NeuronWeights {
                        negative: merged.clone(),
                        positive: merged,
                    })
                }
                Constants::OneForEachSign => {
                    let side = |side: &[(f32, f32)]| {
                        norms
                            .iter()
                            .zip(side)
                            .map(|(n, m)| constant(n, *m))
                            .collect()
                    };
                    Some(NeuronWeights {
                        positive: side(&layer.positive),
                        negative: side(&layer.negative),
                    })
                }
            };
        }
    }

    fn add_scores(&mut self, seen: &Seen<'_>) {
        let layer = &mut self.layers[seen.layer];
        for i in 0..seen.gate.len() {
            let (s, _) = seen.signal_and_partner(self.signal, i);
            layer.scores.add(layer.scale.score(i, s));
        }
    }
}

/// Counts of scores in bins of equal ratio: the upper half of a float's bits, so 128 bins to a factor of two.
struct Histogram {
    bins: Vec<u32>,
    total: u64,
}

/// Bits of a float that a bin leaves out.
const BIN_SHIFT: u32 = 16;

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            // The sign bit of a score is never set.
            bins: vec![0; 1 << (31 - BIN_SHIFT)],
            total: 0,
        }
    }
}

impl Histogram {
    #[inline]
    fn add(&mut self, score: f32) {
        self.bins[(score.abs().to_bits() >> BIN_SHIFT) as usize] += 1;
        self.total += 1;
    }

    /// The value that a share `q` of all scores does not exceed, linear within a bin; below every score for q = 0.
    fn quantile(&self, q: f64) -> f32 {
        let wanted = q * self.total as f64;
        if wanted <= 0.0 {
            return -1.0;
        }
        let mut below = 0.0;
        for (bin, &n) in (0u32..).zip(&self.bins) {
            let n = f64::from(n);
            if below + n >= wanted {
                let edge = |bin: u32| f64::from(f32::from_bits(bin << BIN_SHIFT));
                let (low, high) = (edge(bin), edge(bin + 1));
                return (low + (high - low) * (wanted - below) / n) as f32;
            }
            below += n;
        }
        f32::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_within_a_bin_of_the_exact_one() {
        let mut h = Histogram::default();
        let values: Vec<f32> = (1..=10_000).map(|i| (i as f32).powi(3) * 1e-9).collect();
        values.iter().for_each(|&v| h.add(v));
        for q in [0.1, 0.5, 0.7, 0.9, 0.999] {
            let exact = values[(q * 10_000.0) as usize - 1];
            let got = h.quantile(q);
            assert!((got / exact - 1.0).abs() < 0.01, "{q}: {got} for {exact}");
            let dropped = values.iter().filter(|v| **v <= got).count();
            assert!((dropped as f64 / 10_000.0 - q).abs() < 0.002);
        }
    }

    #[test]
    fn a_target_of_zero_keeps_scores_of_zero() {
        let mut h = Histogram::default();
        (0..10).for_each(|_| h.add(0.0));
        assert!(h.quantile(0.0) < 0.0);
        assert!(h.quantile(0.5) >= 0.0);
    }
}
