//! Products with and sums of rows in parts ([`RowForm::Parts`](crate::quant::RowForm)): vectors of levels as they lie, the scales of
//! four blocks at a time.

use super::{
    super::{
        Axpy, DTYPES, Dot, Rows,
        drive::Coming,
        parts::{self, Lot, Shape},
    },
    avx512, decode,
    dot::{Halves, ROWS, by_fours, or_bytes},
    load,
};
use crate::{cpu::Input, matrix::MatRef, quant::GROUP};
use std::{arch::x86_64::*, ops::Range};

/// By `DType as usize`.
pub(super) const DOT: [Option<Dot>; DTYPES] = [
    None,
    None,
    None,
    Some(q8_0),
    Some(q4_0),
    Some(q4_1),
    Some(q5_0),
    Some(q5_1),
    Some(q4_k),
    Some(q5_k),
    None,
    None,
    None,
    None,
    None,
];

/// By `DType as usize`.
pub(super) const AXPY: [Option<Axpy>; DTYPES] = {
    let mut table: [Option<Axpy>; DTYPES] = [None; DTYPES];
    table[crate::dtype::DType::Q8_0 as usize] = Some(sum_q8_0);
    table
};

avx512! {
    fn q8_0(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        let s = Shape::of(m);
        let sign = _mm512_set1_epi8(-128);
        dot(m, rows, out, |g| Halves::new(x, g, 128), |lot, r, g, x, acc| {
            // A signed level plus 128 is the level with its sign bit flipped.
            let w: &[u8; 128] = lot.get(r, 128 * g);
            let q = [load::b64::<0, 128>(w), load::b64::<64, 128>(w)].map(|q| _mm512_xor_si512(q, sign));
            x.add(q, load::b8(lot.get(r, s.heads + 8 * g)), acc)
        });
    }

    fn q4_0(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        let s = Shape::of(m);
        dot(m, rows, out, |g| Halves::new(x, g, 8), |lot, r, g, x, acc| {
            x.add(nibbles(lot, r, g), load::b8(lot.get(r, s.heads + 8 * g)), acc)
        });
    }

    fn q5_0(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        let s = Shape::of(m);
        dot(m, rows, out, |g| Halves::new(x, g, 16), |lot, r, g, x, acc| {
            x.add(five_bits(s, lot, r, g), load::b8(lot.get(r, s.heads + 8 * g)), acc)
        });
    }

    fn q4_1(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        let s = Shape::of(m);
        dot(m, rows, out, |g| Halves::new(x, g, 0), |lot, r, g, x, acc| {
            x.add_affine(nibbles(lot, r, g), scales_then_minima(s, lot, r, g), acc)
        });
    }

    fn q5_1(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        let s = Shape::of(m);
        dot(m, rows, out, |g| Halves::new(x, g, 0), |lot, r, g, x, acc| {
            x.add_affine(five_bits(s, lot, r, g), scales_then_minima(s, lot, r, g), acc)
        });
    }

    fn q4_k(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        k_quant(m, rows, x, out, |_, lot, r, g| nibbles(lot, r, g));
    }

    fn q5_k(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        k_quant(m, rows, x, out, |s, lot, r, g| five_bits(s, lot, r, g));
    }

    /// Two groups a step: a block of 256, whose eight scales and minima come together.
    #[inline]
    fn k_quant(
        m: MatRef,
        rows: Rows,
        x: &Input,
        out: &mut [f32],
        levels: impl Fn(Shape, &Lot<ROWS>, usize, usize) -> [__m512i; 2],
    ) {
        /// Two groups, and eight scales, then eight negative scaled sums of levels.
        struct X {
            groups: [Halves; 2],
            factors: __m512,
        }
        let s = Shape::of(m);
        let fours = [by_fours(), _mm512_add_epi32(by_fours(), _mm512_set1_epi32(4))];
        let block = |b: usize| {
            let minus = _mm256_xor_ps(load::f32x8(x.sums(), 8 * b), _mm256_set1_ps(-0.0));
            let scales = _mm512_castps256_ps512(load::f32x8(x.scales(), 8 * b));
            X {
                groups: [Halves::new(x, 2 * b, 0), Halves::new(x, 2 * b + 1, 0)],
                factors: _mm512_insertf32x8::<1>(scales, minus),
            }
        };
        steps(m, rows, out, s.groups / 2, block, |lot, r, b, x, acc| {
            let head = load::b16::<0, 16>(lot.get(r, s.heads + 16 * b));
            let factors = _mm512_mul_ps(decode::scales_and_minima(head), x.factors);
            // The minima's share is in the upper eight.
            let mut acc = _mm512_mask_add_ps(acc, 0xff00, acc, factors);
            for (i, (group, four)) in x.groups.iter().zip(fours).enumerate() {
                let sums = group.dot(levels(s, lot, r, 2 * b + i));
                acc = _mm512_fmadd_ps(sums, _mm512_permutexvar_ps(four, factors), acc);
            }
            acc
        });
    }

    /// One group a step.
    #[inline]
    fn dot<X>(
        m: MatRef,
        rows: Rows,
        out: &mut [f32],
        activations: impl Fn(usize) -> X,
        step: impl Fn(&Lot<ROWS>, usize, usize, &X, __m512) -> __m512,
    ) {
        steps(m, rows, out, Shape::of(m).groups, activations, step);
    }

    /// So many steps a row.
    #[inline]
    fn steps<X>(
        m: MatRef,
        rows: Rows,
        out: &mut [f32],
        steps: usize,
        activations: impl Fn(usize) -> X,
        step: impl Fn(&Lot<ROWS>, usize, usize, &X, __m512) -> __m512,
    ) {
        parts::dot(m, rows, out, steps, _mm512_setzero_ps(), activations, step, |acc| _mm512_reduce_add_ps(acc));
    }

    /// The levels of group `g` of row `r`, ordered as [`Input::halves`].
    #[inline]
    fn nibbles(lot: &Lot<ROWS>, r: usize, g: usize) -> [__m512i; 2] {
        let v = load::b64::<0, 64>(lot.get(r, 64 * g));
        let low = _mm512_set1_epi8(15);
        [_mm512_and_si512(v, low), _mm512_and_si512(_mm512_srli_epi16::<4>(v), low)]
    }

    #[inline]
    fn five_bits(s: Shape, lot: &Lot<ROWS>, r: usize, g: usize) -> [__m512i; 2] {
        let [low, high] = nibbles(lot, r, g);
        let bits = _mm512_broadcast_i32x4(load::b16::<0, 16>(lot.get(r, s.fifth + 16 * g)));
        // Each quarter of a vector has a bit of its own.
        let of = |first: u32| {
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| (0x0101_0101_u32 << (first + i)) as i32);
            _mm512_test_epi8_mask(bits, _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d))
        };
        let bit = _mm512_set1_epi8(16);
        [or_bytes(low, of(0), bit), or_bytes(high, of(4), bit)]
    }

    /// Four scales, then four minima, from the heads of group `g` of row `r`.
    #[inline]
    fn scales_then_minima(s: Shape, lot: &Lot<ROWS>, r: usize, g: usize) -> __m128i {
        let order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
        _mm_shuffle_epi8(load::b16::<0, 16>(lot.get(r, s.heads + 16 * g)), order)
    }

    /// Whole rows, whatever the columns asked for: `y` is as long.
    fn sum_q8_0(m: MatRef, rows: Rows, coef: &[f32], _: Range<usize>, y: &mut [f32]) {
        let s = Shape::of(m);
        parts::axpy::<ROWS>(
            m,
            rows,
            coef,
            y,
            |lot, c, coming, y| add_rows(s, lot, c, coming, y),
            |lot, c, coming, y| add_rows(s, lot, c, coming, y),
        );
    }

    /// Adds some rows of Q8_0, scaled.
    #[inline]
    fn add_rows<const R: usize>(s: Shape, lot: Lot<R>, coef: &[f32; R], coming: Coming<R>, y: &mut [f32]) {
        for (g, y) in y.chunks_mut(GROUP).enumerate() {
            coming.ask(g);
            let mut factors = [[0.0; 4]; R];
            for (r, (factors, c)) in factors.iter_mut().zip(coef).enumerate() {
                let d = _mm_cvtph_ps(load::b8(lot.get(r, s.heads + 8 * g)));
                load::put_f32x4(factors, _mm_mul_ps(d, _mm_set1_ps(*c)));
            }
            for (b, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                for half in 0..2 {
                    let mut sum = load::f32x16(y, 16 * half);
                    for (r, factors) in factors.iter().enumerate() {
                        let q = load::b16::<0, 16>(lot.get(r, GROUP * g + 64 * half + 16 * b));
                        let q = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q));
                        sum = _mm512_fmadd_ps(q, _mm512_set1_ps(factors[b & 3]), sum);
                    }
                    load::put_f32x16(y, 16 * half, sum);
                }
            }
        }
    }
}
