//! AVX-512 BF16: products of pairs of `bf16` with sums in `f32`.
//!
//! The instructions take numbers below the normal ones (1e-38) for zeros.

use super::{axpy, load};
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

    fn panel(w: &[[Pair; DEPTH]], x: &[[Pair; LANES]], acc: &mut [[f32; LANES]]) {
        let (w, w_rest) = w.as_chunks::<12>();
        let (most, rest) = acc.as_chunks_mut::<12>();
        for (w, acc) in w.iter().zip(most) {
            panel_rows(w, x, acc);
        }
        let (w, w_rest) = w_rest.as_chunks::<4>();
        let (some, rest) = rest.as_chunks_mut::<4>();
        for (w, acc) in w.iter().zip(some) {
            panel_rows(w, x, acc);
        }
        for (w, acc) in w_rest.iter().zip(rest) {
            panel_rows(std::array::from_ref(w), x, std::array::from_mut(acc));
        }
    }

    /// `R` rows of a panel with their sums in registers.
    fn panel_rows<const R: usize>(w: &[[Pair; DEPTH]; R], x: &[[Pair; LANES]], acc: &mut [[f32; LANES]; R]) {
        // Nothing in the loop can panic, or the sums would have to be in memory.
        let x = &x[..x.len().min(DEPTH)];
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        for (k, x) in x.iter().enumerate() {
            let (x, _) = x.as_chunks::<16>();
            let x = [vector(&x[0]), vector(&x[1])];
            for r in 0..R {
                let w = broadcast(w[r][k]);
                for i in 0..2 {
                    sums[r][i] = _mm512_dpbf16_ps(sums[r][i], w, x[i]);
                }
            }
        }
        for (acc, sums) in acc.iter_mut().zip(sums) {
            for (i, sum) in sums.into_iter().enumerate() {
                let at = 16 * i;
                let total = _mm512_add_ps(load::f32x16(acc, at), sum);
                load::put_f32x16(acc, at, total);
            }
        }
    }

    #[inline]
    fn vector(x: &[Pair; 16]) -> __m512bh {
        // SAFETY: the array is 64 bytes; no alignment is needed.
        unsafe { x.as_ptr().cast::<__m512bh>().read_unaligned() }
    }

    #[inline]
    fn broadcast([a, b]: Pair) -> __m512bh {
        let pair = u32::from(a.to_bits()) | u32::from(b.to_bits()) << 16;
        // SAFETY: both are 512 bits of numbers.
        unsafe { std::mem::transmute(_mm512_set1_epi32(pair as i32)) }
    }
}
