//! Q4_K: 256 four-bit levels in eight sub-blocks of 32, each with a six-bit scale and minimum; 4.5 bits a weight.
//!
//! ```text
//! byte  0      2      4             16                              144
//!       | d    | dmin | scales[12]  | qs[0] ...            qs[127]  |
//!       | f16  | f16  | see below   | two nibbles a byte            |
//!
//! chunk c of 32 bytes of qs: low nibbles are sub-block 2c, high nibbles sub-block 2c + 1
//! w = (d * scale[j]) * q - dmin * min[j]          scale and min of sub-block j: k_scales.rs
//! ```

use super::{Format, half_at, k_scales};
use crate::dtype::DType;

pub(crate) struct Q4K;

impl Format for Q4K {
    const DTYPE: DType = DType::Q4_K;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let (d, dmin) = (half_at(block, 0), half_at(block, 2));
        let (scales, mins) = k_scales::scales_and_mins(&block[4..16]);
        for (c, (qs, out)) in block[16..144]
            .chunks_exact(32)
            .zip(out.chunks_exact_mut(64))
            .enumerate()
        {
            let affine = |j: usize| (d * f32::from(scales[j]), dmin * f32::from(mins[j]));
            let ((a0, b0), (a1, b1)) = (affine(2 * c), affine(2 * c + 1));
            let (low, high) = out.split_at_mut(32);
            for ((lo, hi), &q) in low.iter_mut().zip(high).zip(qs) {
                *lo = a0 * f32::from(q & 15) - b0;
                *hi = a1 * f32::from(q >> 4) - b1;
            }
        }
    }

    fn pack(x: &[f32], block: &mut [u8]) {
        let (head, qs) = block.split_at_mut(16);
        let q = k_scales::fit(x, 15, head);
        for (i, b) in qs.iter_mut().enumerate() {
            let at = i / 32 * 64 + i % 32;
            *b = q[at] | q[at + 32] << 4;
        }
    }
}
