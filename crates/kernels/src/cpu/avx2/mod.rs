//! AVX2 with FMA and F16C: 256-bit vectors.

mod axpy;
pub(super) mod decode;
mod dot;
pub(super) mod load;

use super::{Act, Input, Isa, Kernels, elementwise, gemm::LANES, generic};
use std::arch::x86_64::*;

/// Puts the target features before each function.
macro_rules! avx2 {
    ($($function:item)*) => {
        $(
            #[target_feature(enable = "avx2,fma,f16c")]
            $function
        )*
    };
}
use avx2;

pub(super) static KERNELS: Kernels = Kernels {
    isa: Isa::Avx2,
    dot: [
        dot::f32,
        dot::f16,
        dot::bf16,
        dot::q8_0,
        dot::q4_0,
        dot::q4_1,
        dot::q5_0,
        dot::q5_1,
        dot::q4_k,
        dot::q5_k,
        dot::q6_k,
    ],
    axpy: axpy::SUMS,
    unpack: axpy::UNPACK,
    panel,
    fill,
    act,
    glu,
    rms_norm,
    softmax,
    select_above,
};

elementwise!("avx2,fma,f16c");

avx2! {
    fn panel(w: &[f32], stride: usize, x: &[f32], acc: &mut [[f32; LANES]]) {
        let (most, rest) = acc.as_chunks_mut::<6>();
        for (i, acc) in most.iter_mut().enumerate() {
            panel_rows(&w[6 * i * stride..], stride, x, acc);
        }
        let at = 6 * most.len();
        for (i, acc) in rest.iter_mut().enumerate() {
            panel_rows(&w[(at + i) * stride..], stride, x, std::array::from_mut(acc));
        }
    }

    /// `R` rows of a panel, half the lanes at a time, with their sums in registers.
    fn panel_rows<const R: usize>(w: &[f32], stride: usize, x: &[f32], acc: &mut [[f32; LANES]; R]) {
        let x = x.as_chunks::<LANES>().0;
        let rows: [&[f32]; R] = std::array::from_fn(|r| &w[r * stride..][..x.len()]);
        for half in [0, LANES / 2] {
            let pair = |x: &[f32; LANES]| [load::f32x8(x, half), load::f32x8(x, half + 8)];
            let mut sums: [[__m256; 2]; R] = std::array::from_fn(|r| pair(&acc[r]));
            for (k, x) in x.iter().enumerate() {
                let x = pair(x);
                for r in 0..R {
                    let w = _mm256_set1_ps(rows[r][k]);
                    sums[r] = [
                        _mm256_fmadd_ps(w, x[0], sums[r][0]),
                        _mm256_fmadd_ps(w, x[1], sums[r][1]),
                    ];
                }
            }
            for (acc, sums) in acc.iter_mut().zip(sums) {
                load::put_f32x8(acc, half, sums[0]);
                load::put_f32x8(acc, half + 8, sums[1]);
            }
        }
    }

    fn select_above(
        signal: &[f32],
        weights: Option<(&[f32], &[f32])>,
        tau: f32,
        base: u32,
        out: &mut [u32],
    ) -> usize {
        generic::select_above(signal, weights, tau, base, out)
    }
}
