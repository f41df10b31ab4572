//! AVX-512 F, BW, VL, DQ and VNNI: 512-bit vectors, byte dot products with 32-bit sums; and BF16 where there is that, too.

mod axpy;
mod bf16;
mod decode;
mod dot;
mod load;
mod parts;
mod predictor;
mod tiles;

use super::{
    Act, Input, Isa, Kernels, Score, elementwise,
    gemm::{DEPTH, LANES},
    generic,
};
use std::arch::x86_64::*;

/// Puts the target features before each function.
macro_rules! avx512 {
    ($($function:item)*) => {
        $(
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            $function
        )*
    };
}
use avx512;

/// The kernel of a panel of units, from how sixteen are loaded, how one is broadcast, and how their products are added to sums.
macro_rules! panel_kernel {
    ($features:literal, $unit:ty, $load:path, $broadcast:path, $add:path) => {
        #[target_feature(enable = $features)]
        fn panel(w: &[[$unit; DEPTH]], x: &[[$unit; LANES]], acc: &mut [[f32; LANES]]) {
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
            // Sums of one row alone would wait for each other.
            let (w, w_rest) = w_rest.as_chunks::<3>();
            let (few, rest) = rest.as_chunks_mut::<3>();
            for (w, acc) in w.iter().zip(few) {
                panel_rows(w, x, acc);
            }
            for (w, acc) in w_rest.iter().zip(rest) {
                panel_rows(std::array::from_ref(w), x, std::array::from_mut(acc));
            }
        }

        /// `R` rows of a panel with their sums in registers.
        #[target_feature(enable = $features)]
        fn panel_rows<const R: usize>(
            w: &[[$unit; DEPTH]; R],
            x: &[[$unit; LANES]],
            acc: &mut [[f32; LANES]; R],
        ) {
            // Nothing in the loop can panic, or the sums would have to be in memory.
            let x = &x[..x.len().min(DEPTH)];
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            for (k, x) in x.iter().enumerate() {
                let x = [$load(x, 0), $load(x, 16)];
                for r in 0..R {
                    let w = $broadcast(w[r][k]);
                    for i in 0..2 {
                        sums[r][i] = $add(sums[r][i], w, x[i]);
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
    };
}
use panel_kernel;

const PLAIN: Kernels = Kernels {
    isa: Isa::Avx512,
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
    panel_in_halves: None,
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

pub(super) static KERNELS: Kernels = PLAIN;

/// For CPUs that have AVX-512 BF16, too.
pub(super) static WITH_BF16: Kernels = Kernels {
    bf16: Some(bf16::TABLE),
    ..PLAIN
};

elementwise!("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni");
panel_kernel!(
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
    f32,
    load::f32x16,
    _mm512_set1_ps,
    multiply_add
);

avx512! {
    fn select_above(
        signal: &[f32],
        score: Score,
        tau: f32,
        base: u32,
        out: &mut [u32],
    ) -> usize {
        let full = signal.len() / 16;
        let t = _mm512_set1_ps(tau);
        let steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let mut n = 0;
        for i in 0..full {
            let at = |x: &[f32]| load::f32x16(x, 16 * i);
            let s = at(signal);
            let kept = match score {
                Score::Magnitude => _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_abs_ps(s), t),
                Score::Value => _mm512_cmp_ps_mask::<_CMP_GT_OQ>(s, t),
                Score::Weighted { positive, negative } => {
                    let minus = _mm512_sub_ps(_mm512_set1_ps(-0.0), s);
                    _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_mul_ps(s, at(positive)), t)
                        | _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_mul_ps(minus, at(negative)), t)
                }
            };
            let index = _mm512_add_epi32(_mm512_set1_epi32((base + 16 * i as u32) as i32), steps);
            // A whole vector is stored, of which the first count_ones are wanted: there is room, since n <= 16 i.
            load::put_u32x16(&mut out[n..], _mm512_maskz_compress_epi32(kept, index));
            n += kept.count_ones() as usize;
        }
        let at = 16 * full;
        let score = score.range(at..signal.len());
        n + generic::select_above(&signal[at..], score, tau, base + at as u32, &mut out[n..])
    }
}

avx512! {
    #[inline]
    fn multiply_add(sum: __m512, w: __m512, x: __m512) -> __m512 {
        _mm512_fmadd_ps(w, x, sum)
    }
}
