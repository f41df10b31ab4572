//! Q8_H: the upper four bits of the 32 levels of a Q8_0 block, with that block's scale; 4.5 bits a weight.
//!
//! ```text
//! byte  0      2                               18
//!       | d    | qs[0] qs[1] ...       qs[15]  |      low nibble of qs[i]:  element i
//!       | f16  | two nibbles a byte            |      high nibble of qs[i]: element i + 16
//!                                                     w = 16 d * (q - 7.5)
//! ```
//!
//! The lower four bits are a Q4_0 block, `w = d * (l - 8)`. A Q8_0 level is `16 (q - 8) + l`, so the two weights add up to
//! the Q8_0 weight.

use super::{Format, extreme, half_at, inverse, level, put_half, q4_0::put_levels};
use crate::{dtype::DType, matrix::MatRef};

pub(crate) struct Q8H;

impl Format for Q8H {
    const DTYPE: DType = DType::Q8_H;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let d = 16.0 * half_at(block, 0);
        let (low, high) = out.split_at_mut(16);
        for ((lo, hi), &q) in low.iter_mut().zip(high).zip(&block[2..18]) {
            *lo = d * (f32::from(q & 15) - 7.5);
            *hi = d * (f32::from(q >> 4) - 7.5);
        }
    }

    fn pack(x: &[f32], block: &mut [u8]) {
        let d = 16.0 * put_half(block, 0, extreme(x).abs() / 120.0);
        let inv = inverse(d);
        put_levels(&mut block[2..18], |i| level(x[i] * inv + 7.5, 15));
    }
}

/// Splits a Q8_0 matrix `[rows, cols]` into planes of the same shape: the bytes of a Q8_H matrix and of a Q4_0 matrix,
/// whose weights add up to those of `m`.
///
/// Exactly: a scale has 11 significant bits and a level at most eight, so that a weight of any of the three is an `f32`,
/// and so is the sum.
///
/// # Panics
/// If `m` is not Q8_0.
pub fn split_q8_0(m: MatRef) -> (Vec<u8>, Vec<u8>) {
    assert_eq!(m.dtype(), DType::Q8_0, "split_q8_0: type");
    let bytes = DType::Q8_0.block_bytes();
    let blocks = m.rows() * m.row_bytes() / bytes;
    let plane = || Vec::with_capacity(blocks * DType::Q8_H.block_bytes());
    let (mut high, mut low) = (plane(), plane());
    for block in (0..m.rows()).flat_map(|i| m.row(i).chunks_exact(bytes)) {
        let (d, q) = block.split_at(2);
        let (first, second) = q.split_at(16);
        high.extend_from_slice(d);
        low.extend_from_slice(d);
        for (&a, &b) in first.iter().zip(second) {
            // A signed level plus 128 is the level with its sign bit flipped.
            let (a, b) = (a ^ 0x80, b ^ 0x80);
            high.push(a >> 4 | b & 0xf0);
            low.push(a & 15 | b << 4);
        }
    }
    (high, low)
}
