//! Q5_1: 32 five-bit levels above a minimum; 6 bits a weight.
//!
//! ```text
//! byte  0      2      4      8                               24
//!       | d    | m    | qh   | qs[0] qs[1] ...       qs[15]  |      nibbles and fifth bits as in Q5_0
//!       | f16  | f16  | u32  | two nibbles a byte            |      w = d * q + m
//! ```

use super::{
    Format, half_at, inverse, level, min_max, put_half,
    q5_0::{levels, put_levels},
};
use crate::dtype::DType;

pub(crate) struct Q5_1;

impl Format for Q5_1 {
    const DTYPE: DType = DType::Q5_1;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let (d, m) = (half_at(block, 0), half_at(block, 2));
        let q = levels(&block[4..24]);
        for (w, q) in out.iter_mut().zip(q) {
            *w = d * f32::from(q) + m;
        }
    }

    fn pack(x: &[f32], block: &mut [u8]) {
        let (lo, hi) = min_max(x);
        let d = put_half(block, 0, (hi - lo) / 31.0);
        let m = put_half(block, 2, lo);
        let inv = inverse(d);
        put_levels(&mut block[4..24], |i| level((x[i] - m) * inv, 31));
    }
}
