//! What Q4_K and Q5_K share: eight six-bit scales and eight six-bit minima in twelve bytes, and how to choose them.
//!
//! ```text
//! byte j     (j < 4):  bits 0-5 scale j        bits 6-7 high bits of scale j + 4
//! byte j + 4 (j < 4):  bits 0-5 min j          bits 6-7 high bits of min j + 4
//! byte j + 8 (j < 4):  bits 0-3 scale j + 4    bits 4-7 min j + 4 (their low four bits)
//! ```
//!
//! An element of sub-block `j` is `(d * scale[j]) * q - dmin * min[j]`.

use super::{inverse, level, min_max, put_half};

/// Elements that share a scale and a minimum.
const SUB: usize = 32;

/// The eight scales and eight minima in `bytes[..12]`.
#[inline(always)]
pub(crate) fn scales_and_mins(bytes: &[u8]) -> ([u8; 8], [u8; 8]) {
    let b: [u8; 12] = std::array::from_fn(|i| bytes[i]);
    let scale = |j: usize| {
        if j < 4 {
            b[j] & 63
        } else {
            b[j + 4] & 15 | b[j - 4] >> 6 << 4
        }
    };
    let min = |j: usize| {
        if j < 4 {
            b[j + 4] & 63
        } else {
            b[j + 4] >> 4 | b[j] >> 6 << 4
        }
    };
    (std::array::from_fn(scale), std::array::from_fn(min))
}

fn put_scales_and_mins(bytes: &mut [u8], scales: [u8; 8], mins: [u8; 8]) {
    for j in 0..4 {
        bytes[j] = scales[j] | scales[j + 4] >> 4 << 6;
        bytes[j + 4] = mins[j] | mins[j + 4] >> 4 << 6;
        bytes[j + 8] = scales[j + 4] & 15 | mins[j + 4] << 4;
    }
}

/// Chooses scales and minima for the 256 elements `x` in levels `0..=max`, writes `d`, `dmin` and the twelve
/// bytes to `head[..16]`, and returns the levels.
pub(super) fn fit(x: &[f32], max: u8, head: &mut [u8]) -> [u8; 256] {
    let fits: [(f32, f32); 8] = std::array::from_fn(|j| fit_affine(&x[j * SUB..][..SUB], max));
    let largest = |f: fn(&(f32, f32)) -> f32| fits.iter().map(f).fold(0.0, f32::max);
    let d = put_half(head, 0, largest(|f| f.0) / 63.0);
    let dmin = put_half(head, 2, largest(|f| f.1) / 63.0);
    let scales = fits.map(|f| level(f.0 * inverse(d), 63));
    let mins = fits.map(|f| level(f.1 * inverse(dmin), 63));
    put_scales_and_mins(&mut head[4..16], scales, mins);
    std::array::from_fn(|i| {
        let (scale, min) = (
            d * f32::from(scales[i / SUB]),
            dmin * f32::from(mins[i / SUB]),
        );
        level((x[i] + min) * inverse(scale), max)
    })
}

/// The scale `a >= 0` and minimum `b >= 0` for which `a * q - b`, `q` in `0..=max`, comes nearest to `x` in least squares.
///
/// Tries ranges somewhat narrower and wider than that of `x`; for each, the levels it gives have one best line
/// through them. A minimum above zero cannot be stored, so the range always includes zero.
fn fit_affine(x: &[f32], max: u8) -> (f32, f32) {
    let (lo, hi) = min_max(x);
    let (lo, hi) = (lo.min(0.0), hi.max(0.0));
    if lo == hi {
        return (0.0, 0.0);
    }
    let error = |a: f32, b: f32| -> f32 {
        let inv = inverse(a);
        x.iter()
            .map(|&v| (a * f32::from(level((v + b) * inv, max)) - b - v).powi(2))
            .sum()
    };
    let mut best = ((hi - lo) / f32::from(max), -lo);
    let mut least = error(best.0, best.1);
    for step in -8..=8 {
        let inv = (f32::from(max) + 0.1 * step as f32) / (hi - lo);
        let Some((a, b)) = line(x, x.iter().map(|&v| f32::from(level((v - lo) * inv, max)))) else {
            continue;
        };
        let e = error(a, b);
        if e < least {
            (best, least) = ((a, b), e);
        }
    }
    best
}

/// Least squares `x = a q - b` with `b >= 0`; `None` where the levels are all alike or `a` would not be positive.
fn line(x: &[f32], q: impl Iterator<Item = f32>) -> Option<(f32, f32)> {
    let (mut sq, mut sqq, mut sx, mut sqx) = (0.0, 0.0, 0.0, 0.0);
    for (&v, q) in x.iter().zip(q) {
        sq += q;
        sqq += q * q;
        sx += v;
        sqx += q * v;
    }
    let n = x.len() as f32;
    let det = n * sqq - sq * sq;
    if det <= 0.0 {
        return None;
    }
    let mut a = (n * sqx - sq * sx) / det;
    let mut b = (sq * sqx - sqq * sx) / det;
    if b < 0.0 {
        (a, b) = (sqx / sqq, 0.0);
    }
    (a > 0.0).then_some((a, b))
}
