//! Inner loops in plain Rust, over any format. Each instruction set compiles them under its own features, so that
//! the compiler vectorises them accordingly; `avx2` and `avx512` replace those that matter by hand-written ones.
//!
//! Nothing here fuses a multiplication with an addition: results are the same under every feature set.

use super::{
    Act, Score,
    gemm::{DEPTH, LANES},
    input::BLOCK,
    input::Input,
    row_of,
};
use crate::{matrix::MatRef, quant::Format, quant::unpack_blocks};
use std::ops::Range;

/// Elements unpacked at a time: a multiple of every block length.
const CHUNK: usize = 256;
/// Terms of a long sum added in single precision, before these sums are added in double.
const SUMMED: usize = 1024;

#[inline(always)]
pub(super) fn unpack<F: Format>(row: &[u8], out: &mut [f32]) {
    unpack_blocks::<F>(row, out);
}

/// Dot products of the rows listed (all rows for `None`), one per element of `out`.
#[inline(always)]
pub(super) fn dot<F: Format>(m: MatRef, rows: Option<&[u32]>, x: &Input, out: &mut [f32]) {
    let mut w = [0f32; CHUNK];
    let bytes = CHUNK / F::LEN * F::BYTES;
    for (j, out) in out.iter_mut().enumerate() {
        let mut acc = [0f32; 8];
        for (c, chunk) in m.row(row_of(rows, j)).chunks(bytes).enumerate() {
            let w = &mut w[..chunk.len() / F::BYTES * F::LEN];
            unpack_blocks::<F>(chunk, w);
            let at = c * CHUNK;
            if F::DTYPE.is_quantized() {
                let levels = &x.levels()[at..][..w.len()];
                for (b, (w, q)) in w
                    .chunks_exact(BLOCK)
                    .zip(levels.chunks_exact(BLOCK))
                    .enumerate()
                {
                    let mut part = [0f32; 8];
                    for (w, q) in w.chunks_exact(8).zip(q.chunks_exact(8)) {
                        for i in 0..8 {
                            part[i] += w[i] * f32::from(q[i]);
                        }
                    }
                    let scale = x.scales()[at / BLOCK + b];
                    for i in 0..8 {
                        acc[i] += scale * part[i];
                    }
                }
            } else {
                for (w, x) in w.chunks(8).zip(x.x()[at..].chunks(8)) {
                    for (i, (w, x)) in w.iter().zip(x).enumerate() {
                        acc[i] += w * x;
                    }
                }
            }
        }
        *out = sum8(acc);
    }
}

/// Adds `coef[j]` times the columns `cols` of each row listed (all rows for `None`) to `y`, row after row.
#[inline(always)]
pub(super) fn axpy<F: Format>(
    m: MatRef,
    rows: Option<&[u32]>,
    coef: &[f32],
    cols: Range<usize>,
    y: &mut [f32],
) {
    let mut w = [0f32; CHUNK];
    let bytes = CHUNK / F::LEN * F::BYTES;
    let part = cols.start / F::LEN * F::BYTES..cols.end / F::LEN * F::BYTES;
    for (j, &c) in coef.iter().enumerate() {
        let row = &m.row(row_of(rows, j))[part.clone()];
        for (chunk, y) in row.chunks(bytes).zip(y.chunks_mut(CHUNK)) {
            let w = &mut w[..y.len()];
            unpack_blocks::<F>(chunk, w);
            for (y, w) in y.iter_mut().zip(w) {
                *y += c * *w;
            }
        }
    }
}

/// `acc[r][t] += sum over k of w[r][k] * x[k][t]`.
#[inline(always)]
pub(super) fn panel(w: &[[f32; DEPTH]], x: &[[f32; LANES]], acc: &mut [[f32; LANES]]) {
    for (w, acc) in w.iter().zip(acc) {
        for (w, x) in w.iter().zip(x) {
            for (acc, x) in acc.iter_mut().zip(x) {
                *acc += w * x;
            }
        }
    }
}

/// e^x to about two units in the last place; 0 below -86.6, infinity above 88.72; NaN stays NaN.
///
/// x = n ln 2 + r with |r| <= ln(2) / 2; the polynomial is the Taylor series of e^r to r^7.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOW: f32 = -86.6;
    const HIGH: f32 = 88.722_83;
    // Adding 1.5 * 2^23 rounds to an integer, and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let c = x.clamp(LOW, HIGH);
    let t = c * std::f32::consts::LOG2_E + ROUND;
    let n = t - ROUND;
    // ln 2 in two parts, the first of few bits so that its product with n is exact.
    let r = c - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.0 / 5040.0;
    for a in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = p * r + a;
    }
    // 2^(n - 1) as bits, and the factor 2 apart, since n reaches 128.
    let half = f32::from_bits(t.to_bits().wrapping_add(126) << 23);
    let e = 2.0 * p * half;
    if x < LOW {
        0.0
    } else if x > HIGH {
        f32::INFINITY
    } else {
        e
    }
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// 0.5 x (1 + tanh u) = x / (1 + e^(-2u)).
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    let u = 0.797_884_6 * (x + 0.044_715 * x * x * x);
    x / (1.0 + exp(-2.0 * u))
}

/// tanh x to about three units in the last place; NaN stays NaN.
///
/// Near zero, where 1 - 2 / (e^2x + 1) would cancel, the Taylor series to x^11: the next term is below 1e-8 of tanh x.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    const NEAR: f32 = 0.25;
    let square = x * x;
    let mut p = -1382.0 / 155_925.0;
    for a in [62.0 / 2835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0, 1.0] {
        p = p * square + a;
    }
    let far = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    if x.abs() < NEAR {
        x * p
    } else {
        far.copysign(x)
    }
}

/// `x = cap * tanh(x / cap)`, elementwise, under the features that all CPUs have; [`Kernels::soft_cap`](super::Kernels::soft_cap) is the quick one.
#[inline(always)]
pub fn soft_cap(cap: f32, x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = cap * tanh(*x / cap));
}

#[inline(always)]
pub(super) fn act(act: Act, x: &mut [f32]) {
    match act {
        Act::Silu => x.iter_mut().for_each(|x| *x = silu(*x)),
        Act::GeluTanh => x.iter_mut().for_each(|x| *x = gelu_tanh(*x)),
    }
}

#[inline(always)]
pub(super) fn glu(act: Act, gate: &mut [f32], up: &[f32]) {
    let pairs = gate.iter_mut().zip(up);
    match act {
        Act::Silu => pairs.for_each(|(g, u)| *g = silu(*g) * u),
        Act::GeluTanh => pairs.for_each(|(g, u)| *g = gelu_tanh(*g) * u),
    }
}

#[inline(always)]
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let square = sum_by(x, |v| v * v);
    let inverse = 1.0 / (square / x.len() as f32 + eps).sqrt();
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * inverse * w;
    }
}

#[inline(always)]
pub(super) fn exp_below(x: &mut [f32], so_far: f32) -> (f32, f32) {
    let most = max(x).max(so_far);
    x.iter_mut().for_each(|x| *x = exp(*x - most));
    (most, sum_by(x, |v| v))
}

#[inline(always)]
pub(super) fn log_sum_exp(x: &[f32]) -> f64 {
    let most = max(x);
    let part = |x: &[f32]| f64::from(sum_by(x, |v| exp(v - most)));
    f64::from(most) + x.chunks(SUMMED).map(part).sum::<f64>().ln()
}

#[inline(always)]
pub(super) fn kl_divergence(p: &[f32], q: &[f32], log_sums: [f64; 2]) -> f64 {
    let (p_shift, shift) = (log_sums[0] as f32, (log_sums[1] - log_sums[0]) as f32);
    let part = |(p, q): (&[f32], &[f32])| {
        let mut acc = [0f32; 16];
        for (p, q) in p.chunks(16).zip(q.chunks(16)) {
            for (a, (p, q)) in acc.iter_mut().zip(p.iter().zip(q)) {
                *a += exp(p - p_shift) * (p - q + shift);
            }
        }
        f64::from(sum16(acc))
    };
    p.chunks(SUMMED).zip(q.chunks(SUMMED)).map(part).sum()
}

#[inline(always)]
fn max(x: &[f32]) -> f32 {
    let mut most = [f32::NEG_INFINITY; 16];
    let (whole, rest) = x.as_chunks::<16>();
    for x in whole {
        for (m, &x) in most.iter_mut().zip(x) {
            *m = if x > *m { x } else { *m };
        }
    }
    for (m, &x) in most.iter_mut().zip(rest) {
        *m = if x > *m { x } else { *m };
    }
    most.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// The sum of `f(x)` in sixteen partial sums.
#[inline(always)]
fn sum_by(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut acc = [0f32; 16];
    let (whole, rest) = x.as_chunks::<16>();
    for x in whole {
        for (a, &x) in acc.iter_mut().zip(x) {
            *a += f(x);
        }
    }
    for (a, &x) in acc.iter_mut().zip(rest) {
        *a += f(x);
    }
    sum16(acc)
}

#[inline(always)]
fn sum16(a: [f32; 16]) -> f32 {
    sum8(std::array::from_fn(|i| a[i] + a[i + 8]))
}

#[inline(always)]
fn sum8(a: [f32; 8]) -> f32 {
    let b: [f32; 4] = std::array::from_fn(|i| a[i] + a[i + 4]);
    (b[0] + b[2]) + (b[1] + b[3])
}

#[inline(always)]
pub(super) fn select_above(
    signal: &[f32],
    score: Score,
    tau: f32,
    base: u32,
    out: &mut [u32],
) -> usize {
    let mut n = 0;
    let mut keep = |i: usize, kept: bool| {
        // Written always and counted if kept, so that nothing branches on data; `n <= i` and `out` is as long as `signal`.
        out[n] = base + i as u32;
        n += usize::from(kept);
    };
    match score {
        Score::Magnitude => signal
            .iter()
            .enumerate()
            .for_each(|(i, s)| keep(i, s.abs() > tau)),
        Score::Value => signal
            .iter()
            .enumerate()
            .for_each(|(i, s)| keep(i, *s > tau)),
        Score::Weighted { positive, negative } => signal
            .iter()
            .zip(positive.iter().zip(negative))
            .enumerate()
            .for_each(|(i, (s, (p, n)))| keep(i, (s * p > tau) | (-s * n > tau))),
    }
    n
}
