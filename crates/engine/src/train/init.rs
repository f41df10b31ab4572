//! Where training starts: the best predictor that least squares gives, in the metric of the inputs that the layer sees.
//!
//! Inputs are standardised channel by channel (a finished predictor takes that back into its factors), so that one learning
//! rate suits all weights. Of their covariance C = L L^T the factor L turns "closest on the inputs seen" into "closest" for
//! matrices: a truncation of M L is the best of its rank, and L's inverse brings it back.

use super::{
    host::transpose,
    linalg::{cholesky, invert_lower, leading_space},
    machine::Products,
    students::{LowRank, Product, Student, Ternary},
};
use crate::error::{Error, Result};

/// Added to the covariance of standardised inputs, so that channels that hardly vary do not decide.
const RIDGE: f32 = 1e-3;
/// The floor of a product's squared score, by the squared score at the cut.
const FLOOR: f32 = 0.05;

/// A change of inputs: `(x - mean) * factor`, channel by channel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Standard {
    /// `[hidden]`.
    pub mean: Vec<f32>,
    /// `[hidden]`; 0 for channels that never vary.
    pub factor: Vec<f32>,
}

impl Standard {
    /// Changes inputs `[tokens, hidden]` in place.
    pub(crate) fn apply(&self, x: &mut [f32]) {
        standardise(x, &self.mean, &self.factor);
    }

    /// Makes `a` `[rank, hidden]` take inputs that were not changed; returns the constant that it lacks then, `[rank]`.
    pub(crate) fn fold(&self, a: &mut [f32]) -> Vec<f32> {
        a.chunks_exact_mut(self.mean.len())
            .map(|row| {
                row.iter_mut().zip(&self.factor).for_each(|(a, f)| *a *= f);
                let products = row.iter().zip(&self.mean).map(|(a, m)| f64::from(a * m));
                -products.sum::<f64>() as f32
            })
            .collect()
    }
}

/// `x = (x - mean) * factor`, row by row.
pub(super) fn standardise(x: &mut [f32], mean: &[f32], factor: &[f32]) {
    for row in x.chunks_exact_mut(mean.len()) {
        let change = mean.iter().zip(factor);
        row.iter_mut()
            .zip(change)
            .for_each(|(x, (m, f))| *x = (*x - m) * f);
    }
}

/// Tokens of a layer to initialise from.
pub(super) struct Sample<'a> {
    /// Standardised inputs, `[tokens, hidden]`.
    pub x: &'a [f32],
    /// Whether each token needs each neuron, 1 or 0: `[tokens, inter]`.
    pub needs: &'a [f32],
    /// How often each neuron is needed, in (0, 1): `[inter]`.
    pub frequencies: &'a [f32],
}

/// The covariance of inputs, factored.
struct Metric {
    hidden: usize,
    factor: Vec<f32>,
    inverse: Vec<f32>,
}

impl Metric {
    fn of(x: &[f32], hidden: usize, products: &mut Products) -> Result<Metric> {
        let tokens = x.len() / hidden;
        let mut transposed = Vec::new();
        transpose(x, hidden, &mut transposed);
        let mut c = vec![0.0; hidden * hidden];
        products.times(&transposed, x, tokens, &mut c)?;
        c.iter_mut().for_each(|v| *v /= tokens as f32);
        let mean = c.iter().step_by(hidden + 1).sum::<f32>() / hidden as f32;
        // Relative to the channel, and to all: inputs need not be of one scale.
        for v in c.iter_mut().step_by(hidden + 1) {
            *v += RIDGE * (*v + 0.01 * mean) + f32::MIN_POSITIVE;
        }
        let l = cholesky(&c, hidden, products.team())
            .ok_or_else(|| Error::NotFinite("the covariance of a layer's inputs".into()))?;
        let narrow = |v: &[f64]| v.iter().map(|x| *x as f32).collect();
        Ok(Metric {
            hidden,
            inverse: narrow(&invert_lower(&l, hidden, products.team())),
            factor: narrow(&l),
        })
    }

    /// The regression of labels on inputs, whitened: `L^-1 X^T Y / tokens`, `[hidden, inter]`, where Y are labels less their
    /// frequency, over the spread that such labels have. That is a step of logistic regression from logits that only know
    /// the frequencies.
    fn regression(&self, sample: &Sample<'_>, products: &mut Products) -> Result<Vec<f32>> {
        let inter = sample.frequencies.len();
        let tokens = sample.x.len() / self.hidden;
        let scale: Vec<f32> = spreads(sample.frequencies)
            .iter()
            .map(|s| 1.0 / s)
            .collect();
        let mut moments = vec![0.0; self.hidden * inter];
        let mut part = moments.clone();
        let (mut y, mut transposed) = (Vec::new(), Vec::new());
        let x = sample.x.chunks(REGRESSED * self.hidden);
        for (x, needs) in x.zip(sample.needs.chunks(REGRESSED * inter)) {
            y.clear();
            for row in needs.chunks_exact(inter) {
                let known = sample.frequencies.iter().zip(&scale);
                y.extend(row.iter().zip(known).map(|(y, (p, s))| (y - p) * s));
            }
            transpose(x, self.hidden, &mut transposed);
            products.times(&transposed, &y, x.len() / self.hidden, &mut part)?;
            moments.iter_mut().zip(&part).for_each(|(m, p)| *m += p);
        }
        moments.iter_mut().for_each(|m| *m /= tokens as f32);
        products.times(&self.inverse, &moments, self.hidden, &mut part)?;
        Ok(part)
    }
}

/// Tokens regressed at a time.
const REGRESSED: usize = 1024;

/// The standard deviation of labels of these frequencies, bounded below so that rare neurons do not decide alone.
fn spreads(frequencies: &[f32]) -> Vec<f32> {
    let spread = |&p: &f32| (p * (1.0 - p)).max(1e-4).sqrt();
    frequencies.iter().map(spread).collect()
}

fn log_odds(frequencies: &[f32]) -> Vec<f32> {
    let odds = |p: &f32| p.clamp(1e-5, 1.0 - 1e-5);
    frequencies
        .iter()
        .map(|p| (odds(p) / (1.0 - odds(p))).ln())
        .collect()
}

/// Reduced-rank regression of the labels on the inputs; the bias says how often a neuron is needed.
///
/// # Errors
/// [`Error::NotFinite`] for inputs that are not numbers (so below).
pub(super) fn low_rank(
    student: &LowRank,
    sample: &Sample<'_>,
    seed: u64,
    products: &mut Products,
) -> Result<Vec<f32>> {
    let (hidden, inter, rank) = (student.hidden, student.inter, student.rank);
    let metric = Metric::of(sample.x, hidden, products)?;
    let m = metric.regression(sample, products)?;
    let mut gram = vec![0.0; hidden * hidden];
    products.times_transposed(&m, &m, inter, &mut gram)?;
    let space = leading_space(&gram, hidden, rank, seed, products)?;
    let mut parameters = vec![0.0; student.parameters()];
    let (a, rest) = parameters.split_at_mut(rank * hidden);
    let (b, bias) = rest.split_at_mut(rank * inter);
    products.times(&space, &metric.inverse, hidden, a)?;
    products.times(&space, &m, hidden, b)?;
    let spreads = spreads(sample.frequencies);
    for row in b.chunks_exact_mut(inter) {
        row.iter_mut().zip(&spreads).for_each(|(b, s)| *b /= s);
    }
    bias.copy_from_slice(&log_odds(sample.frequencies));
    Ok(parameters)
}

/// Ridge regression of the labels, every neuron's weights brought to the same mean size so that the one scale of all rounds
/// none of them away.
///
/// # Errors
/// As [`low_rank`].
pub(super) fn ternary(
    student: &Ternary,
    sample: &Sample<'_>,
    products: &mut Products,
) -> Result<Vec<f32>> {
    let (hidden, inter) = (student.hidden, student.inter);
    let metric = Metric::of(sample.x, hidden, products)?;
    let m = metric.regression(sample, products)?;
    let mut back = Vec::new();
    transpose(&metric.inverse, hidden, &mut back);
    let mut parameters = vec![0.0; student.parameters()];
    let (w, bias) = parameters.split_at_mut(hidden * inter);
    products.times(&back, &m, hidden, w)?;
    let mut sizes = vec![0f32; inter];
    for row in w.chunks_exact(inter) {
        sizes.iter_mut().zip(row).for_each(|(s, w)| *s += w.abs());
    }
    // Inputs vary by `power` in all: this makes logits of unit size, whatever the model's.
    let power: f32 = sample.x.iter().map(|x| x * x).sum::<f32>() / (sample.x.len() / hidden) as f32;
    let size = 1.0 / power.max(f32::MIN_POSITIVE).sqrt();
    for row in w.chunks_exact_mut(inter) {
        for (w, s) in row.iter_mut().zip(&sizes) {
            *w *= size * hidden as f32 / s.max(f32::MIN_POSITIVE);
        }
    }
    bias.copy_from_slice(&log_odds(sample.frequencies));
    Ok(parameters)
}

/// The FFN's own matrices, of which a product is a cheaper copy.
pub(super) struct GateAndUp<'a> {
    /// `[inter, hidden]`.
    pub gate: &'a [f32],
    /// `[inter, hidden]`.
    pub up: &'a [f32],
}

/// Truncation of gate and up stacked, each row weighted by what its error does to the score. The cut is put where the share
/// `sparsity` of the sample's scores lies below. Sets the student's floor.
///
/// # Errors
/// As [`low_rank`].
pub(super) fn product(
    student: &mut Product,
    weights: &GateAndUp<'_>,
    standard: &Standard,
    sample: &Sample<'_>,
    sparsity: f64,
    seed: u64,
    products: &mut Products,
) -> Result<Vec<f32>> {
    let (hidden, inter, rank) = (student.hidden, student.inter, student.rank);
    let metric = Metric::of(sample.x, hidden, products)?;
    let gate = Projection::new(weights.gate, standard, &metric, products)?;
    let up = Projection::new(weights.up, standard, &metric, products)?;

    let few = &sample.x[..sample.x.len().min(REGRESSED * hidden)];
    let (gate_sizes, up_sizes) = sensitivities(student, &gate, &up, few, products)?;
    let mut gram = vec![0.0; hidden * hidden];
    let mut part = gram.clone();
    for (projection, sizes) in [(&gate, gate_sizes), (&up, up_sizes)] {
        let mut scaled = projection.whitened.clone();
        for (row, s) in scaled.chunks_exact_mut(hidden).zip(sizes) {
            row.iter_mut().for_each(|w| *w *= s);
        }
        let mut transposed = Vec::new();
        transpose(&scaled, hidden, &mut transposed);
        products.times(&transposed, &scaled, inter, &mut part)?;
        gram.iter_mut().zip(&part).for_each(|(g, p)| *g += p);
    }
    let space = leading_space(&gram, hidden, rank, seed, products)?;

    let mut parameters = vec![0.0; student.parameters()];
    let (a, rest) = parameters.split_at_mut(rank * hidden);
    let (b_gate, rest) = rest.split_at_mut(rank * inter);
    let (b_up, rest) = rest.split_at_mut(rank * inter);
    let (gate_bias, rest) = rest.split_at_mut(inter);
    let (up_bias, squash) = rest.split_at_mut(inter);
    products.times(&space, &metric.inverse, hidden, a)?;
    products.times_transposed(&space, &gate.whitened, hidden, b_gate)?;
    products.times_transposed(&space, &up.whitened, hidden, b_up)?;
    gate_bias.copy_from_slice(&gate.bias);
    up_bias.copy_from_slice(&up.bias);
    squash.fill(0.0);

    let mut scores = vec![0.0; few.len() / hidden * inter];
    student.scores(&parameters, few, products.host(), &mut scores);
    let cut = super::metrics::quantile(&mut scores, sparsity).max(f32::MIN_POSITIVE.sqrt());
    student.floor = FLOOR * cut * cut;
    let last = parameters.len() - 1;
    parameters[last] = (cut * cut + student.floor).ln();
    Ok(parameters)
}

/// Gate or up as a function of standardised inputs.
struct Projection {
    /// Times standardised inputs, `[inter, hidden]`.
    weights: Vec<f32>,
    /// The same times the metric's factor.
    whitened: Vec<f32>,
    /// At the mean input, `[inter]`.
    bias: Vec<f32>,
}

impl Projection {
    fn new(
        w: &[f32],
        standard: &Standard,
        metric: &Metric,
        products: &mut Products,
    ) -> Result<Self> {
        let hidden = metric.hidden;
        let spread: Vec<f32> = standard
            .factor
            .iter()
            .map(|f| if *f == 0.0 { 0.0 } else { 1.0 / f })
            .collect();
        let mut weights = w.to_vec();
        let bias = w
            .chunks_exact(hidden)
            .map(|row| row.iter().zip(&standard.mean).map(|(w, m)| w * m).sum())
            .collect();
        for row in weights.chunks_exact_mut(hidden) {
            row.iter_mut().zip(&spread).for_each(|(w, s)| *w *= s);
        }
        let mut whitened = vec![0.0; w.len()];
        products.times(&weights, &metric.factor, hidden, &mut whitened)?;
        Ok(Projection {
            weights,
            whitened,
            bias,
        })
    }

    /// Its values on inputs, `[tokens, inter]`.
    fn values(&self, x: &[f32], hidden: usize, products: &mut Products) -> Result<Vec<f32>> {
        let mut out = vec![0.0; x.len() / hidden * self.bias.len()];
        products.times_transposed(x, &self.weights, hidden, &mut out)?;
        for row in out.chunks_exact_mut(self.bias.len()) {
            row.iter_mut().zip(&self.bias).for_each(|(v, b)| *v += b);
        }
        Ok(out)
    }
}

/// How much an error of each neuron's gate, and of its up, moves its score: root mean squares of the derivatives.
fn sensitivities(
    student: &Product,
    gate: &Projection,
    up: &Projection,
    x: &[f32],
    products: &mut Products,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let (hidden, inter) = (student.hidden, student.inter);
    let mut gates = gate.values(x, hidden, products)?;
    let ups = up.values(x, hidden, products)?;
    let mut slopes = vec![0.0; gates.len()];
    super::elementwise::activate(student.act, &mut gates, &mut slopes);
    let (mut by_gate, mut by_up) = (vec![0f32; inter], vec![0f32; inter]);
    let rows = gates.chunks_exact(inter).zip(ups.chunks_exact(inter));
    for ((a, u), d) in rows.zip(slopes.chunks_exact(inter)) {
        for i in 0..inter {
            by_gate[i] += (u[i] * d[i]).powi(2);
            by_up[i] += a[i] * a[i];
        }
    }
    let tokens = (x.len() / hidden) as f32;
    for sums in [&mut by_gate, &mut by_up] {
        for (s, w) in sums.iter_mut().zip(&student.weight) {
            *s = (*s / tokens).sqrt() * w;
        }
    }
    Ok((by_gate, by_up))
}

#[cfg(test)]
mod tests;
