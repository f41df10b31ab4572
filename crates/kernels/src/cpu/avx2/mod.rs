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
    gemm::{DEPTH, HALF, LANES},
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
    quick_rows: tiles::QUICK_ROWS,
    dot_parts: parts::DOT,
    axpy_parts: parts::AXPY,
    axpy: axpy::SUMS,
    unpack: axpy::UNPACK,
    panel,
    panel_in_halves: Some(panel_in_halves),
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
        all_rows(w, [x, x], [0, HALF], acc);
    }

    fn panel_in_halves(w: &[[f32; DEPTH]], x: &[[f32; LANES]], acc: &mut [[f32; LANES]]) {
        let (left, right) = x.as_flattened().split_at(x.len() * HALF);
        all_rows(w, [left.as_chunks::<HALF>().0, right.as_chunks().0], [0; 2], acc);
    }

    /// The rows of a panel; both halves of its lanes are in `x`, each at its place `at` of a unit.
    #[inline]
    fn all_rows<const S: usize>(w: &[[f32; DEPTH]], x: [&[[f32; S]]; 2], at: [usize; 2], acc: &mut [[f32; LANES]]) {
        let (w, w_rest) = w.as_chunks::<6>();
        let (most, rest) = acc.as_chunks_mut::<6>();
        // One half after the other, two vectors, which six rows are multiplied with at once: it stays in the first cache for all rows.
        for h in 0..2 {
            for (w, acc) in w.iter().zip(&mut *most) {
                some_rows(w, [x[h]], [at[h]], HALF * h, acc);
            }
        }
        // As many sums as registers hold, and no fewer than hide how long one takes.
        match w_rest.len() {
            0 => (),
            1 => rest_rows::<1, 2, S>(w_rest, x, at, 0, rest),
            2 => rest_rows::<2, 2, S>(w_rest, x, at, 0, rest),
            3 => rest_rows::<3, 2, S>(w_rest, x, at, 0, rest),
            n => for h in 0..2 {
                match n {
                    4 => rest_rows::<4, 1, S>(w_rest, [x[h]], [at[h]], HALF * h, rest),
                    _ => rest_rows::<5, 1, S>(w_rest, [x[h]], [at[h]], HALF * h, rest),
                }
            }
        }
    }

    #[inline]
    fn rest_rows<const R: usize, const H: usize, const S: usize>(
        w: &[[f32; DEPTH]],
        x: [&[[f32; S]]; H],
        at: [usize; H],
        first: usize,
        acc: &mut [[f32; LANES]],
    ) {
        let (w, acc) = (w.first_chunk().expect("so many rows"), acc.first_chunk_mut().expect("a sum each"));
        some_rows::<R, H, S>(w, x, at, first, acc);
    }

    /// `R` rows and `H` halves of the lanes, those from `first` on, with their sums in registers.
    #[inline]
    fn some_rows<const R: usize, const H: usize, const S: usize>(
        w: &[[f32; DEPTH]; R],
        x: [&[[f32; S]]; H],
        at: [usize; H],
        first: usize,
        acc: &mut [[f32; LANES]; R],
    ) {
        // Nothing in the loop can panic, or the sums would have to be in memory.
        let mut count = DEPTH;
        for x in x {
            count = count.min(x.len());
        }
        let mut sums = [[[_mm256_setzero_ps(); 2]; H]; R];
        for k in 0..count {
            // What there is less of stays in registers.
            if R < 2 * H {
                let mut all = [_mm256_setzero_ps(); R];
                for (all, w) in all.iter_mut().zip(w) {
                    *all = _mm256_set1_ps(w[k]);
                }
                for (h, (x, at)) in x.iter().zip(at).enumerate() {
                    let x = [load::f32x8(&x[k], at), load::f32x8(&x[k], at + 8)];
                    for (sums, w) in sums.iter_mut().zip(all) {
                        for (sum, x) in sums[h].iter_mut().zip(x) {
                            *sum = _mm256_fmadd_ps(w, x, *sum);
                        }
                    }
                }
            } else {
                let mut lanes = [[_mm256_setzero_ps(); 2]; H];
                for ((lanes, x), at) in lanes.iter_mut().zip(x).zip(at) {
                    *lanes = [load::f32x8(&x[k], at), load::f32x8(&x[k], at + 8)];
                }
                for (sums, w) in sums.iter_mut().zip(w) {
                    let w = _mm256_set1_ps(w[k]);
                    for (sum, x) in sums.as_flattened_mut().iter_mut().zip(lanes.as_flattened()) {
                        *sum = _mm256_fmadd_ps(w, *x, *sum);
                    }
                }
            }
        }
        for (acc, sums) in acc.iter_mut().zip(sums) {
            for (i, sum) in sums.into_iter().flatten().enumerate() {
                let lane = first + 8 * i;
                let total = _mm256_add_ps(load::f32x8(acc, lane), sum);
                load::put_f32x8(acc, lane, total);
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
