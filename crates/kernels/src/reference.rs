//! Every operation as plain loops in `f64`: the oracle that all instruction sets and devices are tested against.
//!
//! Products come with their magnitude, the sum of absolute terms, because the rounding error of any order of
//! summation is bounded by a small multiple of `f32::EPSILON` times that (Higham, *Accuracy and Stability of
//! Numerical Algorithms*, section 4.2). Nothing here is fast.

use crate::{
    cpu::{Act, Score},
    dtype::DType,
    matrix::MatRef,
    quant::{pack_row, unpack_row},
    shortlist::{Candidate, Shortlist},
};

/// A sum of products and the sum of their absolute values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// The sum.
    pub value: f64,
    /// The sum of absolute terms.
    pub magnitude: f64,
}

impl Sum {
    /// This sum and `a * b`.
    pub fn add(self, a: f64, b: f64) -> Sum {
        Sum {
            value: self.value + a * b,
            magnitude: self.magnitude + (a * b).abs(),
        }
    }
}

/// Row `i` of `m` in `f32`.
///
/// # Panics
/// If `i >= m.rows()`.
pub fn row(m: MatRef, i: usize) -> Vec<f32> {
    let mut out = vec![0.0; m.cols()];
    unpack_row(m.dtype(), m.row(i), &mut out);
    out
}

/// The elements `x` as `dtype` stores them, as bytes.
///
/// # Panics
/// If `x` is no whole number of blocks.
pub fn packed(dtype: DType, x: &[f32]) -> Vec<u8> {
    let bytes = x.len() / dtype.block_len() * dtype.block_bytes();
    let mut out = vec![0; bytes];
    pack_row(dtype, x, &mut out);
    out
}

/// Activations as int8 blocks of 32: levels, and one scale a block, `max|x| / 127`.
///
/// A level is `x * (127 / max|x|)` rounded to nearest, ties to even. A block that holds a NaN has the scale NaN,
/// and levels 0 where the quotient is no number; a block below 1e-30 has all levels 0.
pub fn quantize(x: &[f32]) -> (Vec<i8>, Vec<f32>) {
    let mut levels = Vec::with_capacity(x.len());
    let mut scales = Vec::with_capacity(x.len() / 32);
    for block in x.chunks(32) {
        let largest = block.iter().fold(0f32, |m, v| {
            if v.is_nan() || m.is_nan() {
                f32::NAN
            } else {
                m.max(v.abs())
            }
        });
        let inverse = if largest > 1e-30 {
            127.0 / largest
        } else {
            0.0
        };
        scales.push(largest / 127.0);
        levels.extend(block.iter().map(|v| (v * inverse).round_ties_even() as i8));
    }
    (levels, scales)
}

/// The activations that a product with weights of `dtype` sees: `x` itself for float weights, the values of its
/// int8 blocks for quantised ones.
pub fn activations(x: &[f32], dtype: DType) -> Vec<f64> {
    if !dtype.is_quantized() {
        return x.iter().map(|&v| f64::from(v)).collect();
    }
    let (levels, scales) = quantize(x);
    levels
        .iter()
        .enumerate()
        .map(|(i, &q)| f64::from(scales[i / 32]) * f64::from(q))
        .collect()
}

/// `m x`, one sum a row, with the activations as given.
pub fn dot_rows(m: MatRef, x: &[f64]) -> Vec<Sum> {
    (0..m.rows())
        .map(|i| {
            row(m, i)
                .iter()
                .zip(x)
                .fold(Sum::default(), |s, (&w, &x)| s.add(f64::from(w), x))
        })
        .collect()
}

/// `y[c] = sum over j of coef[j] * m[rows[j]][c]`, one sum a column.
pub fn axpy_rows(m: MatRef, rows: &[u32], coef: &[f32]) -> Vec<Sum> {
    let mut y = vec![Sum::default(); m.cols()];
    for (&i, &c) in rows.iter().zip(coef) {
        for (y, w) in y.iter_mut().zip(row(m, i as usize)) {
            *y = y.add(f64::from(c), f64::from(w));
        }
    }
    y
}

/// The activation function.
pub fn act(act: Act, x: f64) -> f64 {
    match act {
        Act::Silu => x / (1.0 + (-x).exp()),
        // 0.5 (1 + tanh u) = 1 / (1 + e^-2u), which does not cancel where u is far below zero.
        Act::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x / (1.0 + (-2.0 * u).exp())
        }
    }
}

/// `act(gate) * up`, elementwise.
pub fn glu(f: Act, gate: &[f32], up: &[f32]) -> Vec<f64> {
    gate.iter()
        .zip(up)
        .map(|(&g, &u)| act(f, f64::from(g)) * f64::from(u))
        .collect()
}

/// `x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich, 2019).
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
    let square: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
    let inverse = 1.0 / (square / x.len() as f64 + f64::from(eps)).sqrt();
    x.iter()
        .zip(weight)
        .map(|(&v, &w)| f64::from(v) * inverse * f64::from(w))
        .collect()
}

/// `exp(x - max x)`, scaled to the sum 1.
pub fn softmax(x: &[f32]) -> Vec<f64> {
    let most = x
        .iter()
        .fold(f64::NEG_INFINITY, |m, &v| m.max(f64::from(v)));
    let e: Vec<f64> = x.iter().map(|&v| (f64::from(v) - most).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|v| v / sum).collect()
}

/// `cap * tanh(x / cap)`, elementwise.
pub fn soft_cap(cap: f32, x: &[f32]) -> Vec<f64> {
    let cap = f64::from(cap);
    x.iter()
        .map(|&x| cap * (f64::from(x) / cap).tanh())
        .collect()
}

/// `log(sum of exp(x))`.
pub fn log_sum_exp(x: &[f32]) -> f64 {
    let most = x
        .iter()
        .fold(f64::NEG_INFINITY, |m, &v| m.max(f64::from(v)));
    let sum: f64 = x.iter().map(|&v| (f64::from(v) - most).exp()).sum();
    most + sum.ln()
}

/// The `n` largest logits, fewer where those that follow are as large as the last of them. Of both zeros neither is larger.
pub fn shortlist(logits: &[f32], n: usize) -> Shortlist {
    let mut all: Vec<Candidate> = (0..)
        .zip(logits)
        .map(|(id, &logit)| Candidate { logit, id })
        .collect();
    all.sort_by(|a, b| (b.logit + 0.0).total_cmp(&(a.logit + 0.0)));
    let floor = all.get(n).map_or(f32::NEG_INFINITY, |c| c.logit);
    let largest = all.first().map_or(f32::NEG_INFINITY, |c| c.logit);
    all.retain(|c| c.logit > floor);
    let exp = |&l: &f32| {
        if l.is_finite() {
            (f64::from(l) - f64::from(largest)).exp()
        } else {
            f64::NAN
        }
    };
    Shortlist {
        candidates: all,
        sums: vec![(largest, logits.iter().map(exp).sum::<f64>() as f32)],
    }
}

/// The Kullback-Leibler divergence of softmax(q) from softmax(p), in nats.
pub fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    let shift = log_sum_exp(q) - log_sum_exp(p);
    let terms = softmax(p).into_iter().zip(p.iter().zip(q));
    terms
        .map(|(w, (&p, &q))| w * (f64::from(p) - f64::from(q) + shift))
        .sum()
}

/// Indices whose score exceeds `tau`. What is not a number exceeds nothing.
pub fn select_above(signal: &[f32], score: Score, tau: f32) -> Vec<u32> {
    (0..signal.len())
        .filter(|&i| match score {
            Score::Magnitude => signal[i].abs() > tau,
            Score::Value => signal[i] > tau,
            Score::Weighted { positive, negative } => {
                signal[i] * positive[i] > tau || -signal[i] * negative[i] > tau
            }
        })
        .map(|i| i as u32)
        .collect()
}
