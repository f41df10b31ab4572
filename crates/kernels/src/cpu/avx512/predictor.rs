//! Dot products of the formats whose bytes hold four two-bit levels. Eight blocks go at once: their 64 such bytes, side by
//! side in a vector, are 64 levels for each of the four pairs of bits, and [`Input::quarters`] has the activations in that
//! order. Whatever the pair of bits, lanes are `[A A B B C C D D E E F F G G H H]`, so that all four products add up in
//! one vector, with one conversion and one multiplication by scales.
//!
//! Levels are multiplied where they lie in their bytes, not shifted down first: those of the upper nibbles count sixteen
//! times too much, and their sum is divided by sixteen, which is exact, before those of the lower nibbles are added.

use super::{
    super::{Input, Rows, drive},
    avx512, load,
};
use crate::matrix::MatRef;
use std::arch::x86_64::*;

/// Rows at a time: activations are loaded once for them, and their sums do not wait for each other.
const ROWS: usize = 4;

avx512! {
    pub(super) fn t2(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        let step = |w, x: &Quarters, acc| _mm512_fmadd_ps(x.dot_pairs(w), x.scale, acc);
        drive::dot_with_rest::<ROWS, 64, _, _>(
            m,
            rows,
            out,
            _mm512_setzero_ps(),
            |g| Quarters::new(x, g, 4, 4),
            |w, x, acc| step(load::b64::<0, 64>(w), x, acc),
            |w, x, acc| step(load::some_words(w, 0), x, acc),
            |acc| _mm512_reduce_add_ps(acc),
        );
    }

    pub(super) fn q2_0(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        const LEVELS: [i16; 32] = words(5, 8, [1, 2, 3, 4]);
        const SCALES: [i16; 32] = words(5, 8, [0, 0]);
        let (levels, scales) = (load::i16x32(&LEVELS), load::i16x32(&SCALES));
        let step = |[a, b]: [__m512i; 2], x: &Quarters, acc| {
            let s = x.dot_pairs(_mm512_permutex2var_epi16(a, levels, b));
            x.add(s, _mm512_permutex2var_epi16(a, scales, b), acc)
        };
        drive::dot_with_rest::<ROWS, 80, _, _>(
            m,
            rows,
            out,
            _mm512_setzero_ps(),
            |g| Quarters::new(x, g, 6, 4),
            |w, x, acc| step([load::b64::<0, 80>(w), load::b64::<16, 80>(w)], x, acc),
            |w, x, acc| step([load::some_words(w, 0), load::some_words(w, 8)], x, acc),
            |acc| _mm512_reduce_add_ps(acc),
        );
    }

    pub(super) fn q3_0(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        const LOW: [i16; 32] = words(7, 24, [1, 2, 3, 4]);
        const HIGH: [i16; 32] = words(7, 24, [5, 6, 5, 6]);
        const SCALES: [i16; 32] = words(7, 24, [0, 0]);
        let (low, high, scales) = (load::i16x32(&LOW), load::i16x32(&HIGH), load::i16x32(&SCALES));
        let second = _mm512_set1_epi64(2 << 32);
        let step = |[a, b]: [__m512i; 2], x: &Quarters, acc| {
            let low = _mm512_permutex2var_epi16(a, low, b);
            // The second time shifted, as the format's drawing says.
            let high = _mm512_sllv_epi32(_mm512_permutex2var_epi16(a, high, b), second);
            let third = _mm512_set1_epi8(0x44);
            // 0xca: first ? second : third. What lies beside the three bits is masked out later.
            let with = |low, high| _mm512_ternarylogic_epi32::<0xca>(third, high, low);
            let v = [
                with(low, high),
                with(_mm512_srli_epi16::<2>(low), _mm512_srli_epi16::<1>(high)),
            ];
            x.add(x.dot(v, 0x07), _mm512_permutex2var_epi16(a, scales, b), acc)
        };
        drive::dot_with_rest::<ROWS, 112, _, _>(
            m,
            rows,
            out,
            _mm512_setzero_ps(),
            |g| Quarters::new(x, g, 4, 1),
            |w, x, acc| step([load::b64::<0, 112>(w), load::b64::<48, 112>(w)], x, acc),
            |w, x, acc| step([load::some_words(w, 0), load::some_words(w, 24)], x, acc),
            |acc| _mm512_reduce_add_ps(acc),
        );
    }
}

/// Which words of a group of eight blocks, of `block` words each, to take: of each block the same `N`. Words 0 to 31 are
/// those of a first vector; words 32 to 63 those of a second one, which begins at word `second` of the group.
const fn words<const N: usize>(block: i16, second: i16, of: [i16; N]) -> [i16; 32] {
    let mut all = [0; 32];
    let mut i = 0;
    while i < 8 * N {
        let word = (i / N) as i16 * block + of[i % N];
        all[i] = if word < 32 { word } else { word - second + 32 };
        i += 1;
    }
    all
}

/// Activations of eight blocks, ordered as the levels of weights are.
struct Quarters {
    levels: [__m512i; 4],
    /// Sixteen times minus the weights' offset times the sum of each lane's levels.
    start: __m512i,
    /// The eight scales, two lanes each, divided by the unit of the weights' levels.
    scale: __m512,
}

impl Quarters {
    avx512! {
        /// For weights whose levels, and the `offset` that is taken off them, are in units of `1 / unit`.
        #[inline]
        fn new(x: &Input, group: usize, offset: i8, unit: u8) -> Quarters {
            let levels = [0, 64, 128, 192].map(|i| load::i8x64(x.quarters(), 256 * group + i));
            let zero = _mm512_setzero_si512();
            let offset = _mm512_set1_epi8(16 * offset);
            let total = levels.iter().fold(zero, |s, &q| _mm512_dpbusd_epi32(s, offset, q));
            let twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
            let scales = _mm512_castps256_ps512(load::f32x8(x.scales(), 8 * group));
            let scales = _mm512_permutexvar_ps(twice, scales);
            Quarters {
                levels,
                start: _mm512_sub_epi32(zero, total),
                scale: _mm512_mul_ps(scales, _mm512_set1_ps(1.0 / f32::from(unit))),
            }
        }

        /// Sums of levels, in units of a quarter, times activation levels.
        #[inline]
        fn dot_pairs(&self, w: __m512i) -> __m512 {
            self.dot([_mm512_slli_epi16::<2>(w), w], 0x0c)
        }

        /// Sums of levels times activation levels. The levels of the first two quarters are the bits `low` of the bytes of
        /// `v[0]` and `v[1]`; those of the last two are the same bits of the upper nibbles.
        #[inline]
        fn dot(&self, v: [__m512i; 2], low: i8) -> __m512 {
            let (low, high) = (_mm512_set1_epi8(low), _mm512_set1_epi8(low << 4));
            let s = _mm512_dpbusd_epi32(self.start, _mm512_and_si512(v[0], high), self.levels[2]);
            let s = _mm512_dpbusd_epi32(s, _mm512_and_si512(v[1], high), self.levels[3]);
            let s = _mm512_srai_epi32::<4>(s);
            let s = _mm512_dpbusd_epi32(s, _mm512_and_si512(v[0], low), self.levels[0]);
            _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(s, _mm512_and_si512(v[1], low), self.levels[1]))
        }

        /// Adds the sums, scaled; `d` is the eight scales of the weights, two words each.
        #[inline]
        fn add(&self, sums: __m512, d: __m512i, acc: __m512) -> __m512 {
            let d = _mm512_cvtph_ps(_mm512_castsi512_si256(d));
            _mm512_fmadd_ps(sums, _mm512_mul_ps(d, self.scale), acc)
        }
    }
}
