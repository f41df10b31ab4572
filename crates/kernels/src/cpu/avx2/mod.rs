//! AVX2 with FMA and F16C: 256-bit vectors.

mod axpy;
pub(super) mod decode;
mod dot;
pub(super) mod load;
mod parts;
mod predictor;
mod sums;
mod tiles;

use super::{
    Act, Input, Isa, Kernels, Score, elementwise,
    gemm::{DEPTH, LANES},
    generic,
};
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
        predictor::q3_0,
        predictor::q2_0,
        predictor::t2,
        dot::q8_h,
    ],
    tiles: tiles::TABLE,
    dot_parts: parts::DOT,
    axpy_parts: parts::AXPY,
    axpy: axpy::SUMS,
    unpack: axpy::UNPACK,
    panel,
    bf16: None,
    fill,
    act,
    glu,
    rms_norm,
    exp_below,
    soft_cap,
    log_sum_exp,
    kl_divergence,
    select_above,
};

elementwise!("avx2,fma,f16c");

avx2! {
    fn panel(w: &[[f32; DEPTH]], x: &[[f32; LANES]], acc: &mut [[f32; LANES]]) {
        let (w, w_rest) = w.as_chunks::<6>();
        let (most, rest) = acc.as_chunks_mut::<6>();
        for (w, acc) in w.iter().zip(most) {
            panel_rows::<6, 2>(w, x, acc);
        }
        // As many sums as registers hold, and no fewer than hide how long one takes.
        match w_rest.len() {
            0 => (),
            1 => panel_rest::<1, 4>(w_rest, x, rest),
            2 => panel_rest::<2, 4>(w_rest, x, rest),
            3 => panel_rest::<3, 4>(w_rest, x, rest),
            4 => panel_rest::<4, 2>(w_rest, x, rest),
            _ => panel_rest::<5, 2>(w_rest, x, rest),
        }
    }

    #[inline]
    fn panel_rest<const R: usize, const V: usize>(w: &[[f32; DEPTH]], x: &[[f32; LANES]], acc: &mut [[f32; LANES]]) {
        let (w, acc) = (w.first_chunk().expect("so many rows"), acc.first_chunk_mut().expect("a sum each"));
        panel_rows::<R, V>(w, x, acc);
    }

    /// `R` rows of a panel, `V` vectors of lanes at a time, with their sums in registers.
    fn panel_rows<const R: usize, const V: usize>(w: &[[f32; DEPTH]; R], x: &[[f32; LANES]], acc: &mut [[f32; LANES]; R]) {
        // Nothing in the loop can panic, or the sums would have to be in memory.
        let x = &x[..x.len().min(DEPTH)];
        for first in (0..LANES).step_by(8 * V) {
            let mut sums = [[_mm256_setzero_ps(); V]; R];
            for (k, x) in x.iter().enumerate() {
                // What there is less of stays in registers.
                if R < V {
                    let mut all = [_mm256_setzero_ps(); R];
                    for r in 0..R {
                        all[r] = _mm256_set1_ps(w[r][k]);
                    }
                    for i in 0..V {
                        let x = load::f32x8(x, first + 8 * i);
                        for (sums, w) in sums.iter_mut().zip(all) {
                            sums[i] = _mm256_fmadd_ps(w, x, sums[i]);
                        }
                    }
                } else {
                    let mut lanes = [_mm256_setzero_ps(); V];
                    for (i, lanes) in lanes.iter_mut().enumerate() {
                        *lanes = load::f32x8(x, first + 8 * i);
                    }
                    for r in 0..R {
                        let w = _mm256_set1_ps(w[r][k]);
                        for i in 0..V {
                            sums[r][i] = _mm256_fmadd_ps(w, lanes[i], sums[r][i]);
                        }
                    }
                }
            }
            for (acc, sums) in acc.iter_mut().zip(sums) {
                for (i, sum) in sums.into_iter().enumerate() {
                    let at = first + 8 * i;
                    let total = _mm256_add_ps(load::f32x8(acc, at), sum);
                    load::put_f32x8(acc, at, total);
                }
            }
        }
    }

    fn select_above(
        signal: &[f32],
        score: Score,
        tau: f32,
        base: u32,
        out: &mut [u32],
    ) -> usize {
        generic::select_above(signal, score, tau, base, out)
    }
}
