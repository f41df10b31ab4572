//! Sums of scaled rows, and unpacking, which is the sum of one row scaled by 1 (on zeros).
//!
//! Four-bit levels are not computed with but looked up: a block's sixteen scaled values fill one register, and a
//! permutation by the levels yields sixteen weights. Wider levels are widened, converted and multiplied.

use super::{
    super::{DTYPES, Rows, UnpackBf16, drive, generic},
    avx512, bf16,
    bf16::avx512_bf16,
    decode, load,
};
use crate::{
    matrix::MatRef,
    quant::{Format, Q2_0, Q3_0, Q8H, T2},
};
use std::{arch::x86_64::*, ops::Range};

type Sum = unsafe fn(MatRef, Rows, &[f32], Range<usize>, &mut [f32]);
type Unpack = unsafe fn(&[u8], &mut [f32]);

/// One function that sums and two that unpack, all from the steps of a block.
macro_rules! steps {
    ($($name:ident: $n:literal bytes, $e:literal elements, $p:literal a piece, $blank:expr, $prepare:expr, $add:expr;)*) => {
        pub(super) const SUMS: [Sum; DTYPES] =
            [$(sum::$name,)* generic_sum::<Q3_0>, generic_sum::<Q2_0>, generic_sum::<T2>, generic_sum::<Q8H>];
        pub(super) const UNPACK: [Unpack; DTYPES] =
            [$(unpack::$name,)* generic_unpack::<Q3_0>, generic_unpack::<Q2_0>, generic_unpack::<T2>, generic_unpack::<Q8H>];

        mod sum {
            use super::*;
            avx512! {$(
                pub(super) fn $name(m: MatRef, rows: Rows, coef: &[f32], cols: Range<usize>, y: &mut [f32]) {
                    drive::axpy::<$n, $e, $p, _, [__m512; $p / 16]>(
                        m, rows, coef, cols, y, $blank, |w, c, s| $prepare(w, c, s), |y| get(y), |w, s, p, y| $add(w, s, p, y), |v, y| put(v, y),
                    );
                }
            )*}
        }

        pub(super) const UNPACK_BF16: [UnpackBf16; DTYPES] =
            [$(unpack_bf16::$name,)* generic_bf16::<Q3_0>, generic_bf16::<Q2_0>, generic_bf16::<T2>, generic_bf16::<Q8H>];

        mod unpack {
            use super::*;
            avx512! {$(
                pub(super) fn $name(row: &[u8], out: &mut [f32]) {
                    drive::unpack::<$n, $e, $p, _, [__m512; $p / 16], _>(
                        row, out, $blank, |w, c, s| $prepare(w, c, s), [_mm512_setzero_ps(); $p / 16], |w, s, p, y| $add(w, s, p, y), |v, y| put(v, y),
                    );
                }
            )*}
        }

        mod unpack_bf16 {
            use super::*;
            avx512_bf16! {$(
                pub(super) fn $name(row: &[u8], out: &mut [half::bf16]) {
                    drive::unpack::<$n, $e, $p, _, [__m512; $p / 16], _>(
                        row, out, $blank, |w, c, s| $prepare(w, c, s), [_mm512_setzero_ps(); $p / 16], |w, s, p, y| $add(w, s, p, y), |v, y| bf16::put(v, y),
                    );
                }
            )*}
        }
    };
}

steps! {
    f32: 128 bytes, 32 elements, 32 a piece, zero(), broadcast, add_f32;
    f16: 64 bytes, 32 elements, 32 a piece, zero(), broadcast, add_f16;
    bf16: 64 bytes, 32 elements, 32 a piece, zero(), broadcast, add_bf16;
    q8_0: 34 bytes, 32 elements, 32 a piece, zero(), scale_q8_0, add_q8_0;
    q4_0: 18 bytes, 32 elements, 32 a piece, zero(), table_q4_0, add_q4_0;
    q4_1: 20 bytes, 32 elements, 32 a piece, zero(), table_q4_1, add_q4_1;
    q5_0: 22 bytes, 32 elements, 32 a piece, scaled(), levels_q5_0, add_scaled;
    q5_1: 24 bytes, 32 elements, 32 a piece, affine(), levels_q5_1, add_affine;
    q4_k: 144 bytes, 256 elements, 64 a piece, factors(), scales_k, add_q4_k;
    q5_k: 176 bytes, 256 elements, 32 a piece, super_block(), levels_q5_k, add_k;
    q6_k: 210 bytes, 256 elements, 32 a piece, super_block(), levels_q6_k, add_q6_k;
}

avx512! {
    /// The formats of predictors are hardly ever summed or unpacked: the compiler's vectors do for them.
    fn generic_sum<F: Format>(m: MatRef, rows: Rows, coef: &[f32], cols: Range<usize>, y: &mut [f32]) {
        generic::axpy::<F>(m, rows, coef, cols, y);
    }

    fn generic_unpack<F: Format>(row: &[u8], out: &mut [f32]) {
        generic::unpack::<F>(row, out);
    }
}

avx512_bf16! {
    fn generic_bf16<F: Format>(row: &[u8], out: &mut [half::bf16]) {
        let mut block = [0.0; 32];
        for (w, out) in row.chunks_exact(F::BYTES).zip(out.as_chunks_mut::<32>().0) {
            F::unpack(w, &mut block);
            bf16::put(get::<32, 2>(&block), out);
        }
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
    d: __m512,
    m: __m512,
}

avx512! {
    #[inline]
    fn get<const P: usize, const V: usize>(y: &[f32; P]) -> [__m512; V] {
        std::array::from_fn(|i| load::f32x16(y, 16 * i))
    }

    #[inline]
    fn put<const P: usize, const V: usize>(v: [__m512; V], y: &mut [f32; P]) {
        for (i, v) in v.into_iter().enumerate() {
            load::put_f32x16(y, 16 * i, v);
        }
    }

    #[inline]
    fn zero() -> __m512 {
        _mm512_setzero_ps()
    }

    #[inline]
    fn factors() -> Factors {
        Factors([0.0; 16])
    }

    #[inline]
    fn scaled() -> Levels<1, __m512> {
        Levels { q: [_mm256_setzero_si256()], factors: zero() }
    }

    #[inline]
    fn affine() -> Levels<1, Affine> {
        Levels { q: [_mm256_setzero_si256()], factors: Affine { d: zero(), m: zero() } }
    }

    #[inline]
    fn super_block() -> Levels<8, Factors> {
        Levels { q: [_mm256_setzero_si256(); 8], factors: factors() }
    }

    #[inline]
    fn broadcast<const N: usize>(_: &[u8; N], c: f32, s: &mut __m512) {
        *s = _mm512_set1_ps(c);
    }

    #[inline]
    fn add_f32(w: &[u8; 128], c: &__m512, _: usize, y: [__m512; 2]) -> [__m512; 2] {
        let w = [load::b64::<0, 128>(w), load::b64::<64, 128>(w)].map(|w| _mm512_castsi512_ps(w));
        std::array::from_fn(|i| _mm512_fmadd_ps(*c, w[i], y[i]))
    }

    #[inline]
    fn add_f16(w: &[u8; 64], c: &__m512, _: usize, y: [__m512; 2]) -> [__m512; 2] {
        let w = [load::b32::<0, 64>(w), load::b32::<32, 64>(w)].map(|w| _mm512_cvtph_ps(w));
        std::array::from_fn(|i| _mm512_fmadd_ps(*c, w[i], y[i]))
    }

    #[inline]
    fn add_bf16(w: &[u8; 64], c: &__m512, _: usize, y: [__m512; 2]) -> [__m512; 2] {
        let w = [load::b32::<0, 64>(w), load::b32::<32, 64>(w)]
            .map(|w| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(w))));
        std::array::from_fn(|i| _mm512_fmadd_ps(*c, w[i], y[i]))
    }

    /// The `f16` at byte `AT` times `c`, in every lane.
    #[inline]
    fn half_scale<const AT: usize, const N: usize>(w: &[u8; N], c: f32) -> __m512 {
        let d = _mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes([w[AT], w[AT + 1]])));
        _mm512_mul_ps(d, _mm512_set1_ps(c))
    }

    /// The scale and the minimum at the beginning of a block, times `c`.
    #[inline]
    fn half_affine<const N: usize>(w: &[u8; N], c: f32) -> Affine {
        let dm = _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from_le_bytes([w[0], w[1], w[2], w[3]])));
        let dm = _mm_mul_ps(dm, _mm_set1_ps(c));
        Affine { d: _mm512_broadcastss_ps(dm), m: _mm512_broadcastss_ps(_mm_movehdup_ps(dm)) }
    }

    #[inline]
    fn scale_q8_0(w: &[u8; 34], c: f32, s: &mut __m512) {
        *s = half_scale::<0, 34>(w, c);
    }

    #[inline]
    fn add_q8_0(w: &[u8; 34], d: &__m512, _: usize, y: [__m512; 2]) -> [__m512; 2] {
        let q = [load::b16::<2, 34>(w), load::b16::<18, 34>(w)];
        std::array::from_fn(|i| _mm512_fmadd_ps(*d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q[i])), y[i]))
    }

    /// `0.0, 1.0, ... 15.0`.
    #[inline]
    fn iota() -> __m512 {
        _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.)
    }

    #[inline]
    fn table_q4_0(w: &[u8; 18], c: f32, s: &mut __m512) {
        *s = _mm512_mul_ps(half_scale::<0, 18>(w, c), _mm512_sub_ps(iota(), _mm512_set1_ps(8.0)));
    }

    #[inline]
    fn table_q4_1(w: &[u8; 20], c: f32, s: &mut __m512) {
        let a = half_affine(w, c);
        *s = _mm512_fmadd_ps(a.d, iota(), a.m);
    }

    #[inline]
    fn add_q4_0(w: &[u8; 18], table: &__m512, _: usize, y: [__m512; 2]) -> [__m512; 2] {
        look_up(load::b16::<2, 18>(w), [*table; 2], y)
    }

    #[inline]
    fn add_q4_1(w: &[u8; 20], table: &__m512, _: usize, y: [__m512; 2]) -> [__m512; 2] {
        look_up(load::b16::<4, 20>(w), [*table; 2], y)
    }

    /// Adds the entries that the low nibbles name in the first table and the high nibbles in the second.
    #[inline]
    fn look_up(q: __m128i, table: [__m512; 2], y: [__m512; 2]) -> [__m512; 2] {
        // A permutation heeds the four lowest bits of an index.
        let q = _mm512_cvtepu8_epi32(q);
        [
            _mm512_add_ps(y[0], _mm512_permutexvar_ps(q, table[0])),
            _mm512_add_ps(y[1], _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(q), table[1])),
        ]
    }

    #[inline]
    fn levels_q5_0(w: &[u8; 22], c: f32, s: &mut Levels<1, __m512>) {
        // A level less 16 is its nibble where the fifth bit is set, and its nibble with all upper bits set where it is not.
        let q = decode::nibbles(load::b16::<6, 22>(w));
        let below = !u32::from_le_bytes([w[2], w[3], w[4], w[5]]);
        let q = _mm256_mask_add_epi8(q, below, q, _mm256_set1_epi8(-16));
        *s = Levels { q: [q], factors: half_scale::<0, 22>(w, c) };
    }

    #[inline]
    fn levels_q5_1(w: &[u8; 24], c: f32, s: &mut Levels<1, Affine>) {
        let q = decode::nibbles(load::b16::<8, 24>(w));
        let fifth = u32::from_le_bytes([w[4], w[5], w[6], w[7]]);
        let q = _mm256_mask_add_epi8(q, fifth, q, _mm256_set1_epi8(16));
        *s = Levels { q: [q], factors: half_affine(w, c) };
    }

    /// 32 levels as floats.
    #[inline]
    fn widened(q: &[__m256i], p: usize) -> [__m512; 2] {
        let q = load::bytes(q);
        [0, 16].map(|i| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load::i8x16(q, 32 * p + i))))
    }

    #[inline]
    fn add_scaled(_: &[u8; 22], s: &Levels<1, __m512>, p: usize, y: [__m512; 2]) -> [__m512; 2] {
        let q = widened(&s.q, p);
        std::array::from_fn(|i| _mm512_fmadd_ps(s.factors, q[i], y[i]))
    }

    #[inline]
    fn add_affine(_: &[u8; 24], s: &Levels<1, Affine>, p: usize, y: [__m512; 2]) -> [__m512; 2] {
        let q = widened(&s.q, p);
        std::array::from_fn(|i| _mm512_add_ps(y[i], _mm512_fmadd_ps(s.factors.d, q[i], s.factors.m)))
    }

    /// From the head of a Q4_K or Q5_K block: eight scales times `c`, then eight negative minima times `c`.
    #[inline]
    fn scales_k<const N: usize>(w: &[u8; N], c: f32, s: &mut Factors) {
        let head = load::b16::<0, N>(w);
        let minus = _mm512_mask_sub_ps(_mm512_set1_ps(c), 0xff00, _mm512_setzero_ps(), _mm512_set1_ps(c));
        load::put_f32x16(&mut s.0, 0, _mm512_mul_ps(decode::scales_and_minima(head), minus));
    }

    #[inline]
    fn add_q4_k(w: &[u8; 144], s: &Factors, p: usize, y: [__m512; 4]) -> [__m512; 4] {
        let table = |j: usize| _mm512_fmadd_ps(_mm512_set1_ps(s.0[j]), iota(), _mm512_set1_ps(s.0[8 + j]));
        let tables = [table(2 * p), table(2 * p + 1)];
        let qs = &w[16 + 32 * p..][..32];
        let [a, c] = look_up(load::u8x16(qs, 0), tables, [y[0], y[2]]);
        let [b, d] = look_up(load::u8x16(qs, 16), tables, [y[1], y[3]]);
        [a, b, c, d]
    }

    #[inline]
    fn levels_q5_k(w: &[u8; 176], c: f32, s: &mut Levels<8, Factors>) {
        scales_k(w, c, &mut s.factors);
        let high = load::b32::<16, 176>(w);
        let with_fifth = |q, j: usize| {
            let set = _mm256_test_epi8_mask(high, _mm256_set1_epi8((1u8 << j) as i8));
            _mm256_mask_add_epi8(q, set, q, _mm256_set1_epi8(16))
        };
        for (c, q) in s.q.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let [a, b] = decode::chunk(&w[48..], c);
            *q = [with_fifth(a, 2 * c), with_fifth(b, 2 * c + 1)];
        }
    }

    #[inline]
    fn add_k(_: &[u8; 176], s: &Levels<8, Factors>, p: usize, y: [__m512; 2]) -> [__m512; 2] {
        let q = widened(&s.q, p);
        let (d, m) = (_mm512_set1_ps(s.factors.0[p]), _mm512_set1_ps(s.factors.0[8 + p]));
        std::array::from_fn(|i| _mm512_add_ps(y[i], _mm512_fmadd_ps(d, q[i], m)))
    }

    #[inline]
    fn levels_q6_k(w: &[u8; 210], c: f32, s: &mut Levels<8, Factors>) {
        let scales = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load::b16::<192, 210>(w)));
        load::put_f32x16(&mut s.factors.0, 0, _mm512_mul_ps(scales, half_scale::<208, 210>(w, c)));
        for (s, q) in s.q.iter_mut().zip(decode::six_bits_by_32(w)) {
            *s = _mm256_sub_epi8(q, _mm256_set1_epi8(32));
        }
    }

    #[inline]
    fn add_q6_k(_: &[u8; 210], s: &Levels<8, Factors>, p: usize, y: [__m512; 2]) -> [__m512; 2] {
        let q = widened(&s.q, p);
        std::array::from_fn(|i| _mm512_fmadd_ps(_mm512_set1_ps(s.factors.0[2 * p + i]), q[i], y[i]))
    }
}

/// Sixteen factors of a block's parts, to be broadcast from memory.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Factors([f32; 16]);
