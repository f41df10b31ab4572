//! Dot products of the formats whose bytes hold four two-bit levels. Four blocks go at once: their 32 such bytes, side by
//! side in a vector, are 32 levels for each of the four pairs of bits, and [`Input::quarters`] has the activations in that
//! order. Whatever the pair of bits, 32-bit lanes are `[A A B B C C D D]`, so that all four products add up in one vector:
//! in 16 bits even, which 4 * 2 * 7 * 127 does not overflow.

use super::{
    super::{Input, Rows, drive},
    avx2, dot, load,
};
use crate::matrix::MatRef;
use std::arch::x86_64::*;

/// Rows at a time: activations are loaded once for them, and their sums do not wait for each other.
const ROWS: usize = 4;

avx2! {
    pub(super) fn t2(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        drive::dot::<ROWS, 32, _, _>(
            m,
            rows,
            out,
            _mm256_setzero_ps(),
            |g| Quarters::new(x, g, 2),
            |w, x, acc| _mm256_fmadd_ps(x.dot(pairs(load::b32::<0, 32>(w))), x.scale, acc),
            |acc| dot::sum(acc),
        );
    }

    pub(super) fn q2_0(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        drive::dot::<ROWS, 40, _, _>(
            m,
            rows,
            out,
            _mm256_setzero_ps(),
            |g| Quarters::new(x, g, 3),
            |w, x, acc| {
                let q = _mm256_set_epi64x(word64(w, 32), word64(w, 22), word64(w, 12), word64(w, 2));
                x.add(x.dot(pairs(q)), scales::<10, 40>(w), acc)
            },
            |acc| dot::sum(acc),
        );
    }

    pub(super) fn q3_0(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        let both = |a, b| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
        // The low bits of a block, then its third bits twice.
        let parts = _mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 10, 11, 12, 13);
        let (first, second) = (both(parts, parts), both(parts, _mm_add_epi8(parts, _mm_set1_epi8(2))));
        let by = _mm256_set1_epi64x(2 << 32);
        drive::dot::<ROWS, 56, _, _>(
            m,
            rows,
            out,
            _mm256_setzero_ps(),
            |g| Quarters::new(x, g, 8),
            |w, x, acc| {
                // Blocks 0 and 2; blocks 1 and 3, of which the latter is read from two bytes before it.
                let a = _mm256_shuffle_epi8(both(load::b16::<0, 56>(w), load::b16::<28, 56>(w)), first);
                let b = _mm256_shuffle_epi8(both(load::b16::<14, 56>(w), load::b16::<40, 56>(w)), second);
                let low = _mm256_unpacklo_epi64(a, b);
                // The second time shifted, as the format's drawing says.
                let high = _mm256_sllv_epi32(_mm256_unpackhi_epi64(a, b), by);
                let (pair, third) = (_mm256_set1_epi8(0x33), _mm256_set1_epi8(0x44));
                let with = |low, high| _mm256_or_si256(_mm256_and_si256(low, pair), _mm256_and_si256(high, third));
                let v = [
                    with(low, high),
                    with(_mm256_srli_epi16::<2>(low), _mm256_srli_epi16::<1>(high)),
                ];
                let nibble = |v| _mm256_and_si256(v, _mm256_set1_epi8(15));
                let q = [
                    nibble(v[0]),
                    nibble(v[1]),
                    nibble(_mm256_srli_epi16::<4>(v[0])),
                    nibble(_mm256_srli_epi16::<4>(v[1])),
                ];
                x.add(x.dot(q), scales::<14, 56>(w), acc)
            },
            |acc| dot::sum(acc),
        );
    }

    /// The four pairs of bits of each byte.
    #[inline]
    fn pairs(w: __m256i) -> [__m256i; 4] {
        // What shifts in from the neighbour is masked out.
        [w, _mm256_srli_epi16::<2>(w), _mm256_srli_epi16::<4>(w), _mm256_srli_epi16::<6>(w)]
            .map(|w| _mm256_and_si256(w, _mm256_set1_epi8(3)))
    }

    /// The scales of four blocks of `BLOCK` bytes, which begin with them.
    #[inline]
    fn scales<const BLOCK: usize, const N: usize>(w: &[u8; N]) -> __m128 {
        let d = |b: usize| u64::from(u16::from_le_bytes([w[BLOCK * b], w[BLOCK * b + 1]])) << (16 * b);
        _mm_cvtph_ps(_mm_cvtsi64_si128((d(0) | d(1) | d(2) | d(3)) as i64))
    }
}

#[inline(always)]
fn word64<const N: usize>(w: &[u8; N], at: usize) -> i64 {
    i64::from_le_bytes(std::array::from_fn(|i| w[at + i]))
}

/// Activations of four blocks, ordered as the levels of weights are.
struct Quarters {
    levels: [__m256i; 4],
    /// Minus twice the weights' offset times the sum of each lane's levels.
    start: __m256i,
    /// Half the four scales, two lanes each.
    scale: __m256,
}

impl Quarters {
    avx2! {
        /// For weights of which half of `twice` is taken off their levels.
        #[inline]
        fn new(x: &Input, group: usize, twice: i8) -> Quarters {
            let at = group / 2 * 256 + group % 2 * 32;
            let levels = [0, 64, 128, 192].map(|i| load::i8x32(x.quarters(), at + i));
            let offset = _mm256_set1_epi8(twice);
            let total = products([offset; 4], &levels, 1);
            let scale = spread(load::f32x4(x.scales(), 4 * group));
            Quarters {
                levels,
                start: _mm256_sub_epi32(_mm256_setzero_si256(), total),
                scale: _mm256_mul_ps(scale, _mm256_set1_ps(0.5)),
            }
        }

        /// Twice the sums of levels, less the offset, times activation levels.
        #[inline]
        fn dot(&self, q: [__m256i; 4]) -> __m256 {
            _mm256_cvtepi32_ps(_mm256_add_epi32(self.start, products(q, &self.levels, 2)))
        }

        /// Adds the sums, scaled; `d` is the four scales of the weights.
        #[inline]
        fn add(&self, sums: __m256, d: __m128, acc: __m256) -> __m256 {
            _mm256_fmadd_ps(sums, _mm256_mul_ps(spread(d), self.scale), acc)
        }
    }
}

avx2! {
    /// `times` the products of unsigned and signed levels, sixteen a lane.
    #[inline]
    fn products(q: [__m256i; 4], x: &[__m256i; 4], times: i16) -> __m256i {
        let [a, b, c, d] = std::array::from_fn(|p| _mm256_maddubs_epi16(q[p], x[p]));
        let s = _mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_add_epi16(c, d));
        _mm256_madd_epi16(s, _mm256_set1_epi16(times))
    }

    /// Each of four numbers twice.
    #[inline]
    fn spread(v: __m128) -> __m256 {
        _mm256_permutevar8x32_ps(_mm256_castps128_ps256(v), _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3))
    }
}
