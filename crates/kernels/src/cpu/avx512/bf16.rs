//! AVX-512 BF16: products of pairs of `bf16` with sums in `f32`.
//!
//! The instructions take numbers below the normal ones (1e-38) for zeros.

use super::{axpy, load, panel_kernel};
use crate::{
    cpu::{
        Bf16, UnpackBf16,
        gemm::{DEPTH, LANES, Pair},
    },
    dtype::DType,
};
use half::bf16;
use std::arch::x86_64::*;

/// Puts the target features before each function.
macro_rules! avx512_bf16 {
    ($($function:item)*) => {
        $(
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
            $function
        )*
    };
}
pub(super) use avx512_bf16;

pub(super) const TABLE: Bf16 = Bf16 {
    unpack: {
        let mut unpack = axpy::UNPACK_BF16;
        unpack[DType::BF16 as usize] = copy as UnpackBf16;
        unpack
    },
    round,
    panel,
};

/// Weights that need no rounding.
fn copy(row: &[u8], out: &mut [bf16]) {
    for (out, w) in out.iter_mut().zip(row.as_chunks::<2>().0) {
        *out = bf16::from_le_bytes(*w);
    }
}

panel_kernel!(
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16",
    Pair,
    pairs,
    broadcast,
    _mm512_dpbf16_ps
);

avx512_bf16! {
    /// Stores pairs of vectors, rounded.
    #[inline]
    pub(super) fn put<const P: usize, const V: usize>(v: [__m512; V], y: &mut [bf16; P]) {
        const { assert!(P == 16 * V && P.is_multiple_of(32)) };
        for (v, y) in v.as_chunks::<2>().0.iter().zip(y.as_chunks_mut::<32>().0) {
            let both = _mm512_cvtne2ps_pbh(v[1], v[0]);
            // SAFETY: the array is 64 bytes; no alignment is needed.
            unsafe { y.as_mut_ptr().cast::<__m512bh>().write_unaligned(both) };
        }
    }

    fn round(x: &[f32], out: &mut [bf16]) {
        let (xs, x_rest) = x.as_chunks::<32>();
        let (outs, out_rest) = out.as_chunks_mut::<32>();
        let block = |x: &[f32; 32], out: &mut [bf16; 32]| put([load::f32x16(x, 0), load::f32x16(x, 16)], out);
        for (x, out) in xs.iter().zip(outs) {
            block(x, out);
        }
        if !x_rest.is_empty() {
            let (mut padded, mut all) = ([0.0; 32], [bf16::ZERO; 32]);
            padded[..x_rest.len()].copy_from_slice(x_rest);
            block(&padded, &mut all);
            out_rest.copy_from_slice(&all[..x_rest.len()]);
        }
    }

    /// `x[at..at + 16]`.
    #[inline]
    fn pairs(x: &[Pair], at: usize) -> __m512bh {
        let x = &x[at..at + 16];
        // SAFETY: the slice is 64 bytes; no alignment is needed.
        unsafe { x.as_ptr().cast::<__m512bh>().read_unaligned() }
    }

    #[inline]
    fn broadcast([a, b]: Pair) -> __m512bh {
        let pair = u32::from(a.to_bits()) | u32::from(b.to_bits()) << 16;
        // SAFETY: both are 512 bits of numbers.
        unsafe { std::mem::transmute(_mm512_set1_epi32(pair as i32)) }
    }
}
