//! Q4_1: 32 four-bit levels above a minimum; 5 bits a weight.
//!
//! ```text
//! byte  0      2      4                               20
//!       | d    | m    | qs[0] qs[1] ...       qs[15]  |      low nibble of qs[i]:  element i
//!       | f16  | f16  | two nibbles a byte            |      high nibble of qs[i]: element i + 16
//!                                                            w = d * q + m
//! ```

use super::{Format, half_at, inverse, level, min_max, put_half};
use crate::dtype::DType;

pub(crate) struct Q4_1;

impl Format for Q4_1 {
    const DTYPE: DType = DType::Q4_1;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let (d, m) = (half_at(block, 0), half_at(block, 2));
        let (low, high) = out.split_at_mut(16);
        for ((lo, hi), &q) in low.iter_mut().zip(high).zip(&block[4..20]) {
            *lo = d * f32::from(q & 15) + m;
            *hi = d * f32::from(q >> 4) + m;
        }
    }

    fn pack(x: &[f32], block: &mut [u8]) {
        let (lo, hi) = min_max(x);
        let d = put_half(block, 0, (hi - lo) / 15.0);
        let m = put_half(block, 2, lo);
        let inv = inverse(d);
        let q = |v: f32| level((v - m) * inv, 15);
        for (i, b) in block[4..20].iter_mut().enumerate() {
            *b = q(x[i]) | q(x[i + 16]) << 4;
        }
    }
}
