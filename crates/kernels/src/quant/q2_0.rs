//! Q2_0: 32 two-bit levels, two on either side of zero, under one scale; 2.5 bits a weight. Not GGUF's type of that name.
//!
//! ```text
//! byte  0      2                          10
//!       | d    | qs[0] qs[1] ...   qs[7]  |      bits 2 p and 2 p + 1 of qs[i]: element i + 8 p
//!       | f16  | four levels a byte       |      w = d * (q - 1.5)
//! ```
//!
//! The same bits of the bytes of eight blocks, side by side in a vector, are 64 levels, and every four of its bytes are
//! of one block.

use super::{Format, fit, half_at, put_half};
use crate::dtype::DType;

pub(crate) struct Q2_0;

const LEVELS: fit::Levels = fit::Levels { max: 3, zero: 1.5 };

impl Format for Q2_0 {
    const DTYPE: DType = DType::Q2_0;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        for (w, q) in out.iter_mut().zip(levels(&block[2..10])) {
            *w = d * (f32::from(q) - 1.5);
        }
    }

    fn pack(x: &[f32], block: &mut [u8]) {
        let d = put_half(block, 0, LEVELS.scale(x));
        put_levels(&mut block[2..10], LEVELS.nearest(d, x));
    }
}

/// The 32 two-bit levels of `qs`, as Q2_0, Q3_0 and T2 store them.
#[inline(always)]
pub(crate) fn levels(qs: &[u8]) -> [u8; 32] {
    std::array::from_fn(|j| qs[j % 8] >> (j / 8 * 2) & 3)
}

/// Stores the two lowest bits of each level as `qs`.
pub(super) fn put_levels(qs: &mut [u8], q: [u8; 32]) {
    for (i, b) in qs.iter_mut().enumerate() {
        *b = (0..4).fold(0, |b, p| b | (q[i + 8 * p] & 3) << (2 * p));
    }
}
