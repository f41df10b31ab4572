//! Sums of scaled rows, and unpacking, which is the sum of one row scaled by 1 (on zeros). Levels of fewer than eight
//! bits are unpacked to bytes once a block; bytes are widened, converted and multiplied.

use super::{
    super::{DTYPES, Rows, drive, generic},
    avx2, decode, load,
};
use crate::{
    matrix::MatRef,
    quant::{Format, Q2_0, Q3_0, Q8H, T2},
};
use std::{arch::x86_64::*, ops::Range};

type Sum = unsafe fn(MatRef, Rows, &[f32], Range<usize>, &mut [f32]);
type Unpack = unsafe fn(&[u8], &mut [f32]);

/// One function that sums and one that unpacks, both from the steps of a block, 32 elements at a time.
macro_rules! steps {
    ($($name:ident: $n:literal bytes, $e:literal elements, $blank:expr, $prepare:expr, $add:expr;)*) => {
        pub(super) const SUMS: [Sum; DTYPES] =
            [$(sum::$name,)* generic_sum::<Q3_0>, generic_sum::<Q2_0>, generic_sum::<T2>, generic_sum::<Q8H>];
        pub(super) const UNPACK: [Unpack; DTYPES] =
            [$(unpack::$name,)* generic_unpack::<Q3_0>, generic_unpack::<Q2_0>, generic_unpack::<T2>, generic_unpack::<Q8H>];

        mod sum {
            use super::*;
            avx2! {$(
                pub(super) fn $name(m: MatRef, rows: Rows, coef: &[f32], cols: Range<usize>, y: &mut [f32]) {
                    drive::axpy::<$n, $e, 32, _, _>(
                        m, rows, coef, cols, y, $blank, |w, c, s| $prepare(w, c, s), |y| get(y), |w, s, p, y| $add(w, s, p, y), |v, y| put(v, y),
                    );
                }
            )*}
        }

        mod unpack {
            use super::*;
            avx2! {$(
                pub(super) fn $name(row: &[u8], out: &mut [f32]) {
                    drive::unpack::<$n, $e, 32, _, _, _>(
                        row, out, $blank, |w, c, s| $prepare(w, c, s), [_mm256_setzero_ps(); 4], |w, s, p, y| $add(w, s, p, y), |v, y| put(v, y),
                    );
                }
            )*}
        }
    };
}

steps! {
    f32: 128 bytes, 32 elements, zero(), broadcast, add_f32;
    f16: 64 bytes, 32 elements, zero(), broadcast, add_f16;
    bf16: 64 bytes, 32 elements, zero(), broadcast, add_bf16;
    q8_0: 34 bytes, 32 elements, scaled(), levels_q8_0, add_scaled;
    q4_0: 18 bytes, 32 elements, scaled(), levels_q4_0, add_scaled;
    q4_1: 20 bytes, 32 elements, affine(), levels_q4_1, add_affine;
    q5_0: 22 bytes, 32 elements, scaled(), levels_q5_0, add_scaled;
    q5_1: 24 bytes, 32 elements, affine(), levels_q5_1, add_affine;
    q4_k: 144 bytes, 256 elements, super_block(), levels_q4_k, add_k;
    q5_k: 176 bytes, 256 elements, super_block(), levels_q5_k, add_k;
    q6_k: 210 bytes, 256 elements, super_block(), levels_q6_k, add_q6_k;
}

avx2! {
    /// The formats of predictors are hardly ever summed or unpacked: the compiler's vectors do for them.
    fn generic_sum<F: Format>(m: MatRef, rows: Rows, coef: &[f32], cols: Range<usize>, y: &mut [f32]) {
        generic::axpy::<F>(m, rows, coef, cols, y);
    }

    fn generic_unpack<F: Format>(row: &[u8], out: &mut [f32]) {
        generic::unpack::<F>(row, out);
    }
}

/// Unpacked levels of a block, 32 a vector, and what they are multiplied with.
#[derive(Clone, Copy)]
struct Levels<const V: usize, F> {
    q: [__m256i; V],
    factors: F,
}

/// A scale and a minimum, in every lane.
#[derive(Clone, Copy)]
struct Affine {
    d: __m256,
    m: __m256,
}

type Four = [__m256; 4];

avx2! {
    #[inline]
    fn get(y: &[f32; 32]) -> Four {
        std::array::from_fn(|i| load::f32x8(y, 8 * i))
    }

    #[inline]
    fn put(v: Four, y: &mut [f32; 32]) {
        for (i, v) in v.into_iter().enumerate() {
            load::put_f32x8(y, 8 * i, v);
        }
    }

    #[inline]
    fn zero() -> __m256 {
        _mm256_setzero_ps()
    }

    #[inline]
    fn scaled() -> Levels<1, __m256> {
        Levels { q: [_mm256_setzero_si256()], factors: zero() }
    }

    #[inline]
    fn affine() -> Levels<1, Affine> {
        Levels { q: [_mm256_setzero_si256()], factors: Affine { d: zero(), m: zero() } }
    }

    #[inline]
    fn super_block() -> Levels<8, [f32; 16]> {
        Levels { q: [_mm256_setzero_si256(); 8], factors: [0.0; 16] }
    }

    #[inline]
    fn broadcast<const N: usize>(_: &[u8; N], c: f32, s: &mut __m256) {
        *s = _mm256_set1_ps(c);
    }

    #[inline]
    fn add_f32(w: &[u8; 128], c: &__m256, _: usize, y: Four) -> Four {
        let w = [load::b32::<0, 128>(w), load::b32::<32, 128>(w), load::b32::<64, 128>(w), load::b32::<96, 128>(w)];
        std::array::from_fn(|i| _mm256_fmadd_ps(*c, _mm256_castsi256_ps(w[i]), y[i]))
    }

    #[inline]
    fn add_f16(w: &[u8; 64], c: &__m256, _: usize, y: Four) -> Four {
        let w = decode::f16(w);
        std::array::from_fn(|i| _mm256_fmadd_ps(*c, w[i], y[i]))
    }

    #[inline]
    fn add_bf16(w: &[u8; 64], c: &__m256, _: usize, y: Four) -> Four {
        let w = decode::bf16(w);
        std::array::from_fn(|i| _mm256_fmadd_ps(*c, w[i], y[i]))
    }

    /// The `f16` at byte `AT` times `c`, in every lane.
    #[inline]
    fn scale<const AT: usize, const N: usize>(w: &[u8; N], c: f32) -> __m256 {
        _mm256_mul_ps(decode::half::<AT, N>(w), _mm256_set1_ps(c))
    }

    #[inline]
    fn scale_and_minimum<const N: usize>(w: &[u8; N], c: f32) -> Affine {
        let c = _mm256_set1_ps(c);
        let [d, m] = decode::two_halves(w).map(|v| _mm256_mul_ps(_mm256_broadcastss_ps(v), c));
        Affine { d, m }
    }

    #[inline]
    fn levels_q8_0(w: &[u8; 34], c: f32, s: &mut Levels<1, __m256>) {
        *s = Levels { q: [load::b32::<2, 34>(w)], factors: scale::<0, 34>(w, c) };
    }

    #[inline]
    fn levels_q4_0(w: &[u8; 18], c: f32, s: &mut Levels<1, __m256>) {
        let q = decode::nibbles(load::b16::<2, 18>(w));
        *s = Levels { q: [_mm256_sub_epi8(q, _mm256_set1_epi8(8))], factors: scale::<0, 18>(w, c) };
    }

    #[inline]
    fn levels_q4_1(w: &[u8; 20], c: f32, s: &mut Levels<1, Affine>) {
        *s = Levels { q: [decode::nibbles(load::b16::<4, 20>(w))], factors: scale_and_minimum(w, c) };
    }

    #[inline]
    fn levels_q5_0(w: &[u8; 22], c: f32, s: &mut Levels<1, __m256>) {
        let q = decode::five_bits::<2, 6, 22>(w);
        *s = Levels { q: [_mm256_sub_epi8(q, _mm256_set1_epi8(16))], factors: scale::<0, 22>(w, c) };
    }

    #[inline]
    fn levels_q5_1(w: &[u8; 24], c: f32, s: &mut Levels<1, Affine>) {
        *s = Levels { q: [decode::five_bits::<4, 8, 24>(w)], factors: scale_and_minimum(w, c) };
    }

    /// Levels `32 p..32 p + 32` as floats.
    #[inline]
    fn widened(q: &[__m256i], p: usize) -> Four {
        let q = load::bytes(q);
        std::array::from_fn(|i| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load::i8x8(q, 32 * p + 8 * i))))
    }

    #[inline]
    fn add_scaled<const N: usize>(_: &[u8; N], s: &Levels<1, __m256>, p: usize, y: Four) -> Four {
        let q = widened(&s.q, p);
        std::array::from_fn(|i| _mm256_fmadd_ps(s.factors, q[i], y[i]))
    }

    #[inline]
    fn add_affine<const N: usize>(_: &[u8; N], s: &Levels<1, Affine>, p: usize, y: Four) -> Four {
        let q = widened(&s.q, p);
        std::array::from_fn(|i| _mm256_add_ps(y[i], _mm256_fmadd_ps(s.factors.d, q[i], s.factors.m)))
    }

    /// A K block's eight scales times `c`, then its eight negative minima times `c`.
    #[inline]
    fn put_factors<const N: usize>(w: &[u8; N], c: f32, factors: &mut [f32; 16]) {
        let [scales, minima] = decode::scales_and_minima(load::b16::<0, N>(w));
        load::put_f32x8(factors, 0, _mm256_mul_ps(scales, _mm256_set1_ps(c)));
        load::put_f32x8(factors, 8, _mm256_mul_ps(minima, _mm256_set1_ps(-c)));
    }

    #[inline]
    fn levels_q4_k(w: &[u8; 144], c: f32, s: &mut Levels<8, [f32; 16]>) {
        put_factors(w, c, &mut s.factors);
        for (c, q) in s.q.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *q = decode::chunk(&w[16..], c);
        }
    }

    #[inline]
    fn levels_q5_k(w: &[u8; 176], c: f32, s: &mut Levels<8, [f32; 16]>) {
        put_factors(w, c, &mut s.factors);
        let high = load::b32::<16, 176>(w);
        for (c, q) in s.q.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let [a, b] = decode::chunk(&w[48..], c);
            *q = [decode::with_fifth_bit(a, high, 2 * c), decode::with_fifth_bit(b, high, 2 * c + 1)];
        }
    }

    #[inline]
    fn add_k<const N: usize>(_: &[u8; N], s: &Levels<8, [f32; 16]>, p: usize, y: Four) -> Four {
        let q = widened(&s.q, p);
        let (d, m) = (_mm256_set1_ps(s.factors[p]), _mm256_set1_ps(s.factors[8 + p]));
        std::array::from_fn(|i| _mm256_add_ps(y[i], _mm256_fmadd_ps(d, q[i], m)))
    }

    #[inline]
    fn levels_q6_k(w: &[u8; 210], c: f32, s: &mut Levels<8, [f32; 16]>) {
        let d = scale::<208, 210>(w, c);
        let scales = load::b16::<192, 210>(w);
        for (i, scales) in [scales, _mm_unpackhi_epi64(scales, scales)].into_iter().enumerate() {
            let scales = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(scales));
            load::put_f32x8(&mut s.factors, 8 * i, _mm256_mul_ps(scales, d));
        }
        for (s, q) in s.q.iter_mut().zip(decode::six_bits(w)) {
            *s = _mm256_sub_epi8(q, _mm256_set1_epi8(32));
        }
    }

    #[inline]
    fn add_q6_k(_: &[u8; 210], s: &Levels<8, [f32; 16]>, p: usize, y: Four) -> Four {
        let q = widened(&s.q, p);
        std::array::from_fn(|i| _mm256_fmadd_ps(_mm256_set1_ps(s.factors[2 * p + i / 2]), q[i], y[i]))
    }
}
