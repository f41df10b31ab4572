//! Block formats: how weights lie in memory, and how to read and write them.
//!
//! One file a quantised format, each with a drawing of its block, little-endian; the layouts are those of GGUF but for
//! Q3_0, Q2_0, T2 and Q8_H, which are of this crate and for predictors. A row is a whole number of blocks one after the other. [`unpack_row`] is exact (every product is the one
//! `f32` operation the layout names); [`pack_row`] chooses scales, so it is a fit and never better than its format.

mod beside;
mod fit;
mod float;
mod k_scales;
mod parts;
mod q2_0;
mod q3_0;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod q8_h;
mod t2;
#[cfg(test)]
mod tests;
mod tiles;
mod transpose;

pub use beside::{Beside, RowForm, Rows, interleave};
pub(crate) use float::{Bf16, F16, F32};
pub(crate) use k_scales::scales_and_mins;
#[cfg(target_arch = "x86_64")]
pub(crate) use parts::{GROUP, Parts, groups};
pub use parts::{has_parts, parts_bytes};
pub(crate) use q2_0::{Q2_0, levels as two_bit_levels};
pub(crate) use q3_0::{Q3_0, third_bit};
pub(crate) use q4_0::Q4_0;
pub(crate) use q4_1::Q4_1;
pub(crate) use q4_k::Q4K;
pub(crate) use q5_0::{Q5_0, levels as five_bit_levels};
pub(crate) use q5_1::Q5_1;
pub(crate) use q5_k::Q5K;
pub(crate) use q6_k::Q6K;
pub(crate) use q8_0::Q8_0;
pub(crate) use q8_h::Q8H;
pub use q8_h::split_q8_0;
pub(crate) use t2::T2;
pub use tiles::{TILE, has_tiles, tile};
pub use transpose::transpose_pack;

use crate::{
    dtype::DType,
    matrix::{Layout, MatRef},
};
use half::f16;
use std::borrow::Cow;

/// A block format. `LEN` elements take `BYTES` bytes; the slices given are exactly that long.
pub(crate) trait Format {
    const DTYPE: DType;
    const LEN: usize = Self::DTYPE.block_len();
    const BYTES: usize = Self::DTYPE.block_bytes();

    /// Block bytes -> elements.
    fn unpack(block: &[u8], out: &mut [f32]);
    /// Elements -> block bytes, rounding to nearest.
    fn pack(x: &[f32], block: &mut [u8]);
}

/// Evaluates `$body` with `$F` standing for the format of `$dtype`.
macro_rules! with_format {
    ($dtype:expr, $F:ident => $body:expr) => {
        $crate::quant::with_format!(@ $dtype, $F, $body,
            F32 F32, F16 F16, BF16 Bf16, Q8_0 Q8_0, Q4_0 Q4_0, Q4_1 Q4_1,
            Q5_0 Q5_0, Q5_1 Q5_1, Q4_K Q4K, Q5_K Q5K, Q6_K Q6K,
            Q3_0 Q3_0, Q2_0 Q2_0, T2 T2, Q8_H Q8H)
    };
    (@ $dtype:expr, $F:ident, $body:expr, $($variant:ident $format:ident),*) => {
        match $dtype {
            $($crate::dtype::DType::$variant => { type $F = $crate::quant::$format; $body })*
        }
    };
}
pub(crate) use with_format;

/// Unpacks row `i` of a matrix, whatever its layout.
///
/// # Panics
/// If `i >= m.rows()` or `out.len() != m.cols()`.
pub fn unpack_row_of(m: MatRef, i: usize, out: &mut [f32]) {
    if let Layout::Rows { .. } = m.layout() {
        return unpack_row(m.dtype(), m.row(i), out);
    }
    let blocks = m.cols() / m.dtype().block_len();
    let mut row = vec![0; blocks * m.dtype().block_bytes()];
    row_blocks(m, i, 0, &mut row);
    unpack_row(m.dtype(), &row, out);
}

/// Blocks `first..` of row `i` of a matrix, whatever its layout, as many as `out` has room for.
pub(crate) fn row_blocks(m: MatRef, i: usize, first: usize, out: &mut [u8]) {
    match m.layout() {
        Layout::Rows { .. } => {
            let at = first * m.dtype().block_bytes();
            out.copy_from_slice(&m.row(i)[at..at + out.len()]);
        }
        Layout::Tiles => tiles::take_blocks(m, i, first, out),
        Layout::Parts { .. } => parts::take_blocks(m, i, first, out),
    }
}

/// The blocks of all rows, one row behind the other, whatever the layout of the matrix.
pub fn blocks_of(m: MatRef<'_>) -> Cow<'_, [u8]> {
    let row_bytes = m.cols() / m.dtype().block_len() * m.dtype().block_bytes();
    if let Layout::Rows { stride } = m.layout()
        && (stride == row_bytes || m.rows() < 2)
    {
        return Cow::Borrowed(m.data());
    }
    let mut out = vec![0; m.rows() * row_bytes];
    if row_bytes > 0 {
        for (i, row) in out.chunks_exact_mut(row_bytes).enumerate() {
            row_blocks(m, i, 0, row);
        }
    }
    Cow::Owned(out)
}

/// Unpacks whole blocks of `dtype` into `f32`.
///
/// # Panics
/// If `row` is not the bytes of `out.len()` elements of `dtype`.
pub fn unpack_row(dtype: DType, row: &[u8], out: &mut [f32]) {
    check("unpack_row", dtype, row.len(), out.len());
    with_format!(dtype, F => unpack_blocks::<F>(row, out));
}

/// Packs `f32` elements into whole blocks of `dtype`, each rounded to the nearest value its block can hold.
///
/// Values must be finite; scales beyond the range of `f16` saturate.
///
/// # Panics
/// If `out` is not as long as `row.len()` elements of `dtype`.
pub fn pack_row(dtype: DType, row: &[f32], out: &mut [u8]) {
    check("pack_row", dtype, out.len(), row.len());
    with_format!(dtype, F => pack_blocks::<F>(row, out));
}

fn check(what: &str, dtype: DType, bytes: usize, len: usize) {
    assert!(
        dtype.row_bytes(len) == Some(bytes),
        "{what}: {bytes} bytes are not {len} elements of {dtype}"
    );
}

#[inline(always)]
pub(crate) fn unpack_blocks<F: Format>(row: &[u8], out: &mut [f32]) {
    for (block, x) in row.chunks_exact(F::BYTES).zip(out.chunks_exact_mut(F::LEN)) {
        F::unpack(block, x);
    }
}

fn pack_blocks<F: Format>(row: &[f32], out: &mut [u8]) {
    for (x, block) in row.chunks_exact(F::LEN).zip(out.chunks_exact_mut(F::BYTES)) {
        F::pack(x, block);
    }
}

/// The `f16` at `block[at..at + 2]`.
#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Stores `x` as `f16` at `block[at..at + 2]`, saturating, and returns the value stored.
fn put_half(block: &mut [u8], at: usize, x: f32) -> f32 {
    let h = f16::from_f32(x.clamp(-65504.0, 65504.0));
    block[at..at + 2].copy_from_slice(&h.to_le_bytes());
    h.to_f32()
}

/// `1 / x`, or 0 where `x` is 0.
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// `x` rounded to the nearest of `0..=max`.
fn level(x: f32, max: u8) -> u8 {
    nearest(x, 0, i16::from(max)) as u8
}

/// `x` rounded to the nearest of `min..=max`, halves away from zero; 0, or what is nearest to that, for NaN.
///
/// As `f32::round`, which is a call for each element where the compiler may not take it that the CPU can do it.
#[inline(always)]
fn nearest(x: f32, min: i16, max: i16) -> i32 {
    /// A half would carry the largest number below a half to 1.
    const BELOW_HALF: f32 = 0.5f32.next_down();
    let x = if x.is_nan() { 0.0 } else { x };
    let x = (x + BELOW_HALF.copysign(x)).clamp(f32::from(min), f32::from(max));
    // SAFETY: a number, and its whole part is one of `i32`s by the clamp. A checked cast is one for each element.
    unsafe { x.to_int_unchecked() }
}

/// The largest magnitude of `x`, NaN aside; 0 of nothing. In lanes: a sequence of maxima waits for each.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    let (chunks, rest) = x.as_chunks::<8>();
    for chunk in chunks {
        for (m, v) in lanes.iter_mut().zip(chunk) {
            let v = v.abs();
            *m = if v > *m { v } else { *m };
        }
    }
    let all = lanes.into_iter().chain(rest.iter().map(|v| v.abs()));
    all.fold(0.0, f32::max)
}

/// The element of largest magnitude, with its sign (0 for an all-zero block).
fn extreme(x: &[f32]) -> f32 {
    x.iter()
        .fold(0.0, |m: f32, &v| if v.abs() > m.abs() { v } else { m })
}

/// Smallest and largest element.
fn min_max(x: &[f32]) -> (f32, f32) {
    x.iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &v| {
            (lo.min(v), hi.max(v))
        })
}
