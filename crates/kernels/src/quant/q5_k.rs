//! Q5_K: 256 five-bit levels in eight sub-blocks of 32, each with a six-bit scale and minimum; 5.5 bits a weight.
//!
//! ```text
//! byte  0      2      4             16             48                              176
//!       | d    | dmin | scales[12]  | qh[32]       | qs[0] ...            qs[127]  |
//!       | f16  | f16  | as in Q4_K  | fifth bits   | nibbles as in Q4_K            |
//!
//! bit j of qh[l]: fifth bit of element l of sub-block j
//! w = (d * scale[j]) * q - dmin * min[j]
//! ```

use super::{Format, half_at, k_scales};
use crate::dtype::DType;

pub(crate) struct Q5K;

impl Format for Q5K {
    const DTYPE: DType = DType::Q5_K;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let (d, dmin) = (half_at(block, 0), half_at(block, 2));
        let (scales, mins) = k_scales::scales_and_mins(&block[4..16]);
        let qh = &block[16..48];
        for (c, (qs, out)) in block[48..176]
            .chunks_exact(32)
            .zip(out.chunks_exact_mut(64))
            .enumerate()
        {
            let affine = |j: usize| (d * f32::from(scales[j]), dmin * f32::from(mins[j]));
            let ((a0, b0), (a1, b1)) = (affine(2 * c), affine(2 * c + 1));
            let (low, high) = out.split_at_mut(32);
            for (((lo, hi), &q), &h) in low.iter_mut().zip(high).zip(qs).zip(qh) {
                let h = h >> (2 * c);
                *lo = a0 * f32::from(q & 15 | (h & 1) << 4) - b0;
                *hi = a1 * f32::from(q >> 4 | (h & 2) << 3) - b1;
            }
        }
    }

    fn pack(x: &[f32], block: &mut [u8]) {
        let (head, rest) = block.split_at_mut(16);
        let (qh, qs) = rest.split_at_mut(32);
        let q = k_scales::fit(x, 31, head);
        for (l, h) in qh.iter_mut().enumerate() {
            *h = (0..8).fold(0, |h, j| h | q[32 * j + l] >> 4 << j);
        }
        for (i, b) in qs.iter_mut().enumerate() {
            let at = i / 32 * 64 + i % 32;
            *b = q[at] & 15 | q[at + 32] << 4;
        }
    }
}
