//! Q4_0: 32 four-bit levels around 8 under one scale; 4.5 bits a weight.
//!
//! ```text
//! byte  0      2                               18
//!       | d    | qs[0] qs[1] ...       qs[15]  |      low nibble of qs[i]:  element i
//!       | f16  | two nibbles a byte            |      high nibble of qs[i]: element i + 16
//!                                                     w = d * (q - 8)
//! ```

use super::{Format, extreme, half_at, inverse, level, put_half};
use crate::dtype::DType;

pub(crate) struct Q4_0;

impl Format for Q4_0 {
    const DTYPE: DType = DType::Q4_0;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        let (low, high) = out.split_at_mut(16);
        for ((lo, hi), &q) in low.iter_mut().zip(high).zip(&block[2..18]) {
            *lo = d * f32::from((q & 15) as i8 - 8);
            *hi = d * f32::from((q >> 4) as i8 - 8);
        }
    }

    fn pack(x: &[f32], block: &mut [u8]) {
        // Levels reach from -8 to 7, so the element of largest magnitude, whatever its sign, gets -8.
        let d = put_half(block, 0, extreme(x) / -8.0);
        let inv = inverse(d);
        put_levels(&mut block[2..18], |i| level(x[i] * inv + 8.0, 15));
    }
}

/// Stores level `q(i)` of every element `i` as `qs`, as Q4_0 and Q8_H do.
pub(super) fn put_levels(qs: &mut [u8], q: impl Fn(usize) -> u8) {
    for (i, b) in qs.iter_mut().enumerate() {
        *b = q(i) | q(i + 16) << 4;
    }
}
