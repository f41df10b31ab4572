//! Products with rows in parts ([`RowForm::Parts`](crate::quant::RowForm)). A vector of levels is half of two of a group's
//! blocks A B C D, so that products of four vectors are added up in 16 bits, as far as these hold them, before any is
//! widened: what remains is one vector `[A A C C B B D D]` a group.

use super::{
    super::{
        Axpy, DTYPES, Dot, Input, Rows,
        parts::{self, Lot, Shape},
    },
    avx2, decode, dot, load, sums,
};
use crate::{dtype::DType, matrix::MatRef};
use std::arch::x86_64::*;

/// By `DType as usize`.
pub(super) const DOT: [Option<Dot>; DTYPES] = {
    let mut table: [Option<Dot>; DTYPES] = [None; DTYPES];
    table[DType::Q8_0 as usize] = Some(q8_0);
    table[DType::Q4_0 as usize] = Some(q4_0);
    table[DType::Q4_1 as usize] = Some(q4_1);
    table[DType::Q5_0 as usize] = Some(q5_0);
    table[DType::Q5_1 as usize] = Some(q5_1);
    table[DType::Q4_K as usize] = Some(q4_k);
    table[DType::Q5_K as usize] = Some(q5_k);
    table
};

/// By `DType as usize`.
pub(super) const AXPY: [Option<Axpy>; DTYPES] = {
    let mut table: [Option<Axpy>; DTYPES] = [None; DTYPES];
    table[DType::Q8_0 as usize] = Some(sums::q8_0);
    table
};

/// Rows at a time: activations are loaded once for them, and their sums do not wait for each other.
const ROWS: usize = 4;

avx2! {
    fn q8_0(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        let s = Shape::of(m);
        by_groups(m, rows, out, |g| Group::new(x, g, 0), |lot, r, g, x, acc| {
            x.add(signed_products(lot.get(r, 128 * g), x.levels), load::b8(lot.get(r, s.heads + 8 * g)), acc)
        });
    }

    fn q4_0(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        let s = Shape::of(m);
        by_groups(m, rows, out, |g| Group::new(x, g, 8), |lot, r, g, x, acc| {
            x.add(products(nibbles(lot, r, g), x.levels), load::b8(lot.get(r, s.heads + 8 * g)), acc)
        });
    }

    fn q5_0(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        let s = Shape::of(m);
        by_groups(m, rows, out, |g| Group::new(x, g, 16), |lot, r, g, x, acc| {
            x.add(products(five_bits(s, lot, r, g), x.levels), load::b8(lot.get(r, s.heads + 8 * g)), acc)
        });
    }

    fn q4_1(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        let s = Shape::of(m);
        by_groups(m, rows, out, |g| Affine::new(x, g), |lot, r, g, x, acc| {
            x.add(products(nibbles(lot, r, g), x.levels), load::b16::<0, 16>(lot.get(r, s.heads + 16 * g)), acc)
        });
    }

    fn q5_1(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        let s = Shape::of(m);
        by_groups(m, rows, out, |g| Affine::new(x, g), |lot, r, g, x, acc| {
            x.add(products(five_bits(s, lot, r, g), x.levels), load::b16::<0, 16>(lot.get(r, s.heads + 16 * g)), acc)
        });
    }

    fn q4_k(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        k_quant(m, rows, x, out, |_, lot, r, g| nibbles(lot, r, g));
    }

    fn q5_k(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        k_quant(m, rows, x, out, |s, lot, r, g| five_bits(s, lot, r, g));
    }

    /// One group a step.
    #[inline]
    fn by_groups<X>(
        m: MatRef,
        rows: Rows,
        out: &mut [f32],
        activations: impl Fn(usize) -> X,
        step: impl Fn(&Lot<ROWS>, usize, usize, &X, __m256) -> __m256,
    ) {
        let steps = Shape::of(m).groups;
        parts::dot(m, rows, out, steps, _mm256_setzero_ps(), activations, step, |acc| dot::sum(acc));
    }

    /// Two groups a step: a block of 256, whose eight scales and minima come together.
    #[inline]
    fn k_quant(
        m: MatRef,
        rows: Rows,
        x: &Input,
        out: &mut [f32],
        levels: impl Fn(Shape, &Lot<ROWS>, usize, usize) -> [__m256i; 4],
    ) {
        /// Two groups, their scales and scaled sums of levels.
        struct X<'a> {
            levels: [&'a [i8; 128]; 2],
            scales: __m256,
            sums: __m256,
        }
        let s = Shape::of(m);
        let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
        let block = |b: usize| X {
            levels: [halves(x, 2 * b), halves(x, 2 * b + 1)],
            scales: load::f32x8(x.scales(), 8 * b),
            sums: load::f32x8(x.sums(), 8 * b),
        };
        parts::dot(m, rows, out, s.groups / 2, _mm256_setzero_ps(), block, |lot, r, b, x, acc| {
            let [scales, minima] = decode::scales_and_minima(load::b16::<0, 16>(lot.get(r, s.heads + 16 * b)));
            let acc = _mm256_fnmadd_ps(minima, x.sums, acc);
            let of = |i: usize| products(levels(s, lot, r, 2 * b + i), x.levels[i]);
            // [A C E G B D F H], the blocks of both groups.
            let sums = _mm256_cvtepi32_ps(_mm256_hadd_epi32(of(0), of(1)));
            let factors = _mm256_permutevar8x32_ps(_mm256_mul_ps(scales, x.scales), order);
            _mm256_fmadd_ps(sums, factors, acc)
        }, |acc| dot::sum(acc));
    }

    /// The levels of group `g` of row `r`, ordered as [`Input::halves`].
    #[inline]
    fn nibbles(lot: &Lot<ROWS>, r: usize, g: usize) -> [__m256i; 4] {
        let w: &[u8; 64] = lot.get(r, 64 * g);
        let (ab, cd) = (load::b32::<0, 64>(w), load::b32::<32, 64>(w));
        let low = _mm256_set1_epi8(15);
        [
            _mm256_and_si256(ab, low),
            _mm256_and_si256(cd, low),
            _mm256_and_si256(_mm256_srli_epi16::<4>(ab), low),
            _mm256_and_si256(_mm256_srli_epi16::<4>(cd), low),
        ]
    }

    #[inline]
    fn five_bits(s: Shape, lot: &Lot<ROWS>, r: usize, g: usize) -> [__m256i; 4] {
        let [a, b, c, d] = nibbles(lot, r, g);
        let w: &[u8; 16] = lot.get(r, s.fifth + 16 * g);
        // Bits 0, 2, 4 and 6 are those of the four lower halves, and, moved down by one, of the upper ones.
        let bits = _mm256_broadcastsi128_si256(load::b16::<0, 16>(w));
        let bits = _mm256_srlv_epi64(bits, _mm256_setr_epi64x(0, 0, 1, 1));
        let with = |q, bits| _mm256_or_si256(q, _mm256_and_si256(bits, _mm256_set1_epi8(16)));
        [
            with(a, _mm256_slli_epi16::<4>(bits)),
            with(b, _mm256_slli_epi16::<2>(bits)),
            with(c, bits),
            with(d, _mm256_srli_epi16::<2>(bits)),
        ]
    }

    /// Activation levels of group `g`.
    #[inline]
    fn halves(x: &Input, g: usize) -> &[i8; 128] {
        &x.halves().as_chunks().0[g]
    }

    /// Products of levels of at most five bits, `[A A C C B B D D]`: eight add up in 16 bits, since 8 * 31 * 127 does not overflow.
    #[inline]
    fn products(q: [__m256i; 4], x: &[i8; 128]) -> __m256i {
        let ab = _mm256_add_epi16(pairs::<0>(q[0], x), pairs::<64>(q[2], x));
        let cd = _mm256_add_epi16(pairs::<32>(q[1], x), pairs::<96>(q[3], x));
        let [a, b] = folded(ab, cd);
        _mm256_madd_epi16(_mm256_add_epi16(a, b), _mm256_set1_epi16(1))
    }

    /// Products of unsigned levels with the activations from `AT` on, two a lane.
    #[inline]
    fn pairs<const AT: usize>(q: __m256i, x: &[i8; 128]) -> __m256i {
        _mm256_maddubs_epi16(q, load::i8x32(x, AT))
    }

    /// Products of signed levels, `[A A C C B B D D]`: a pair is all that 16 bits hold.
    #[inline]
    fn signed_products(w: &[u8; 128], x: &[i8; 128]) -> __m256i {
        let ab = _mm256_add_epi32(fours::<0>(w, x), fours::<64>(w, x));
        let cd = _mm256_add_epi32(fours::<32>(w, x), fours::<96>(w, x));
        let [a, b] = folded(ab, cd);
        _mm256_add_epi32(a, b)
    }

    /// Products of the signed levels from `AT` on, four a lane.
    #[inline]
    fn fours<const AT: usize>(w: &[u8; 128], x: &[i8; 128]) -> __m256i {
        // |w| (x sign w): the magnitude of -128 is 128 as an unsigned byte.
        let q = load::b32::<AT, 128>(w);
        let x = _mm256_sign_epi8(load::i8x32(x, AT), q);
        _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(q), x), _mm256_set1_epi16(1))
    }

    /// Two vectors whose sum has half of A and of C in its lower half, of B and of D in its upper one, from A, B and C, D in such halves.
    #[inline]
    fn folded(ab: __m256i, cd: __m256i) -> [__m256i; 2] {
        [_mm256_blend_epi32::<0b1100_1100>(ab, cd), _mm256_alignr_epi8::<8>(cd, ab)]
    }

    /// From four numbers A B C D: `[A A C C B B D D]`.
    #[inline]
    fn spread(v: __m128) -> __m256 {
        _mm256_permutevar8x32_ps(_mm256_castps128_ps256(v), _mm256_setr_epi32(0, 0, 2, 2, 1, 1, 3, 3))
    }
}

/// Activations of four blocks.
struct Group<'a> {
    levels: &'a [i8; 128],
    /// Minus the offset of the weights' levels times the blocks' sums of levels, `[A 0 C 0 B 0 D 0]`.
    start: __m256i,
    /// The four scales, `[A A C C B B D D]`.
    scale: __m256,
}

impl Group<'_> {
    avx2! {
        #[inline]
        fn new(x: &Input, g: usize, offset: i32) -> Group<'_> {
            let totals = _mm256_castps_si256(spread(_mm_castsi128_ps(load::i32x4(x.totals(), 4 * g))));
            let once = _mm256_mullo_epi32(totals, _mm256_set1_epi64x(i64::from(offset)));
            Group {
                levels: halves(x, g),
                start: _mm256_sub_epi32(_mm256_setzero_si256(), once),
                scale: spread(load::f32x4(x.scales(), 4 * g)),
            }
        }

        /// Adds the products of weights `d q`; `d` is four halves.
        #[inline]
        fn add(&self, sums: __m256i, d: __m128i, acc: __m256) -> __m256 {
            let order = _mm_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 2, 3, 2, 3, 6, 7, 6, 7);
            let d = _mm256_cvtph_ps(_mm_shuffle_epi8(d, order));
            let sums = _mm256_cvtepi32_ps(_mm256_add_epi32(self.start, sums));
            _mm256_fmadd_ps(sums, _mm256_mul_ps(d, self.scale), acc)
        }
    }
}

/// Activations of four blocks, for weights that have minima.
struct Affine<'a> {
    levels: &'a [i8; 128],
    /// The four scales, `[A A C C B B D D]`.
    scale: __m256,
    /// Zeros, and the four scaled sums of levels, `[0 A 0 C 0 B 0 D]`.
    sums: __m256,
}

impl Affine<'_> {
    avx2! {
        #[inline]
        fn new(x: &Input, g: usize) -> Affine<'_> {
            let sums = spread(load::f32x4(x.sums(), 4 * g));
            Affine {
                levels: halves(x, g),
                scale: spread(load::f32x4(x.scales(), 4 * g)),
                sums: _mm256_blend_ps::<0b1010_1010>(_mm256_setzero_ps(), sums),
            }
        }

        /// Adds the products of weights `d q + m`; `dm` is `d` and `m` of each block.
        #[inline]
        fn add(&self, sums: __m256i, dm: __m128i, acc: __m256) -> __m256 {
            let order = _mm_setr_epi8(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15);
            let dm = _mm256_cvtph_ps(_mm_shuffle_epi8(dm, order));
            let acc = _mm256_fmadd_ps(dm, self.sums, acc);
            let d = _mm256_moveldup_ps(dm);
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_mul_ps(d, self.scale), acc)
        }
    }
}
