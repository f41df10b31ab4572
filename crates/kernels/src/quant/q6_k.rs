//! Q6_K: 256 six-bit levels around 32 in sixteen sub-blocks of 16, each with a signed eight-bit scale; 6.5625 bits a weight.
//!
//! ```text
//! byte  0            128           192            208    210
//!       | ql[128]    | qh[64]      | scale[16]    | d    |
//!       | low nibble | upper pairs | i8           | f16  |
//!
//! half h (128 elements) uses ql[64h..] and qh[32h..]; for l in 0..32 its element
//!   l:      low nibble  of ql[l]      with bits 0-1 of qh[l]
//!   l + 32: low nibble  of ql[l + 32] with bits 2-3 of qh[l]
//!   l + 64: high nibble of ql[l]      with bits 4-5 of qh[l]
//!   l + 96: high nibble of ql[l + 32] with bits 6-7 of qh[l]
//! w[i] = (d * scale[i / 16]) * (q - 32)
//! ```

use super::{Format, extreme, half_at, inverse, nearest, put_half};
use crate::dtype::DType;

pub(crate) struct Q6K;

const SUB: usize = 16;

impl Format for Q6K {
    const DTYPE: DType = DType::Q6_K;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 208);
        for (h, out) in out.chunks_exact_mut(128).enumerate() {
            let ql = &block[64 * h..][..64];
            let qh = &block[128 + 32 * h..][..32];
            let scales = &block[192 + 8 * h..][..8];
            let (first, second) = ql.split_at(32);
            // Shifts are constants, so that vectors can do them.
            let levels: [[u8; 32]; 4] = [
                std::array::from_fn(|l| first[l] & 15 | (qh[l] & 3) << 4),
                std::array::from_fn(|l| second[l] & 15 | (qh[l] >> 2 & 3) << 4),
                std::array::from_fn(|l| first[l] >> 4 | (qh[l] >> 4 & 3) << 4),
                std::array::from_fn(|l| second[l] >> 4 | qh[l] >> 6 << 4),
            ];
            let parts = levels.as_flattened().chunks_exact(SUB);
            for ((out, q), &scale) in out.chunks_exact_mut(SUB).zip(parts).zip(scales) {
                let a = d * f32::from(scale as i8);
                for (w, &q) in out.iter_mut().zip(q) {
                    *w = a * f32::from(q as i8 - 32);
                }
            }
        }
    }

    fn pack(x: &[f32], block: &mut [u8]) {
        let fits: [f32; 16] = std::array::from_fn(|j| fit_scale(&x[j * SUB..][..SUB]));
        let d = put_half(block, 208, extreme(&fits) / -128.0);
        let scales = fits.map(|a| nearest(a * inverse(d), -128, 127) as f32);
        for (b, s) in block[192..208].iter_mut().zip(scales) {
            *b = s as i8 as u8;
        }
        let q = |i: usize| {
            let a = d * scales[i / SUB];
            (nearest(x[i] * inverse(a), -32, 31) + 32) as u8
        };
        for h in 0..2 {
            for l in 0..32 {
                let q: [u8; 4] = std::array::from_fn(|part| q(128 * h + 32 * part + l));
                block[64 * h + l] = q[0] & 15 | q[2] << 4;
                block[64 * h + 32 + l] = q[1] & 15 | q[3] << 4;
                block[128 + 32 * h + l] =
                    q[0] >> 4 | q[1] >> 4 << 2 | q[2] >> 4 << 4 | q[3] >> 4 << 6;
            }
        }
    }
}

/// The scale `a` for which `a * q`, `q` in `-32..=31`, comes nearest to `x` in least squares.
fn fit_scale(x: &[f32]) -> f32 {
    let most = extreme(x);
    if most == 0.0 {
        return 0.0;
    }
    let q = |inv: f32, v: f32| nearest(v * inv, -32, 31) as f32;
    let error = |a: f32| -> f32 {
        let inv = inverse(a);
        x.iter().map(|&v| (a * q(inv, v) - v).powi(2)).sum()
    };
    let mut best = most / -32.0;
    let mut least = error(best);
    for step in -9..=9 {
        let inv = (-32.0 + 0.1 * step as f32) / most;
        let (mut qq, mut qx) = (0.0, 0.0);
        for &v in x {
            let q = q(inv, v);
            qq += q * q;
            qx += q * v;
        }
        let a = qx * inverse(qq);
        let e = error(a);
        if a != 0.0 && e < least {
            (best, least) = (a, e);
        }
    }
    best
}
