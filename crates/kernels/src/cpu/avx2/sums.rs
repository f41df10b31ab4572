//! Sums of scaled rows of Q8_0 in parts ([`RowForm::Parts`](crate::quant::RowForm)), eight rows at a time in fixed point.
//!
//! Widened to floats one by one, levels take three instructions for eight of them. Here sixteen words, of a level each, are
//! multiplied by words of their block's scale times the row's coefficient (`vpmulhrsw`) and added up in words, and only the sums
//! of eight rows become floats. The words of a block are such that the sums cannot overflow: one unit of them is `S / TOP`, where
//! S is the sum of the eight magnitudes `|coefficient * scale|`.
//!
//! A row's coefficient is off by half a unit at most, which its level, at most 128, cannot make more than half of the product's last
//! place, and the product is rounded to that: sums of eight rows are off by at most eight units of `128 S / TOP`, 1 in 4,087 of
//! what they were if all levels were the largest. Rounding the coefficients to 8 bits in blocks, as products with whole matrices do,
//! may cost 1 in 254 where all eight are as large, and more where they differ.

use super::{
    super::{
        Rows,
        parts::{self, Lot, Shape},
    },
    avx2, load,
};
use crate::{matrix::MatRef, quant::GROUP};
use std::{arch::x86_64::*, ops::Range};

/// Rows whose sums are added up in words.
const ROWS: usize = 8;
/// Groups of columns at a time: what is known of them stays in the first cache.
const RUN: usize = 4;
/// What the words of a block's coefficients add up to: what a word holds, less more than sixteen roundings.
const TOP: f32 = 32_700.0;

/// What is known of the columns in hand.
struct Work {
    /// The coefficients of every row's four blocks, in both words of a number.
    words: [[[i32; 4]; ROWS]; RUN],
    /// What sums of a block's products must be multiplied with.
    units: [[f32; 4]; RUN],
    sums: [[i16; GROUP]; RUN],
}

avx2! {
    /// Whole rows, whatever the columns asked for: `y` is as long.
    pub(super) fn q8_0(m: MatRef, rows: Rows, coef: &[f32], _: Range<usize>, y: &mut [f32]) {
        let s = Shape::of(m);
        // One block's words in the lower half, the next one's in the upper. Hidden from the compiler, which would have two shuffles
        // in place of one.
        let spread = std::hint::black_box(_mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
        let mut work = Work {
            words: [[[0; 4]; ROWS]; RUN],
            units: [[0.0; 4]; RUN],
            sums: [[0; GROUP]; RUN],
        };
        parts::lots::<ROWS>(m, rows, coef, |lot, coef, coming| {
            for (run, y) in y.chunks_mut(RUN * GROUP).enumerate() {
                let first = run * RUN;
                let groups = y.len().div_ceil(GROUP);
                for g in 0..groups {
                    work.units[g] = put_words(&lot, s.heads + 8 * (first + g), coef, &mut work.words[g]);
                }
                for g in 0..groups {
                    coming.ask(first + g);
                    add_words(&lot, first + g, &work.words[g], spread, &mut work.sums[g]);
                }
                for ((y, sums), units) in y.chunks_mut(GROUP).zip(&work.sums).zip(&work.units) {
                    add(sums, units, y);
                }
            }
        });
    }

    /// The coefficients of four blocks of all rows, whose scales are at byte `at` of each; returns their units.
    #[inline]
    fn put_words(lot: &Lot<ROWS>, at: usize, coef: &[f32; ROWS], words: &mut [[i32; 4]; ROWS]) -> [f32; 4] {
        let mut factors = [_mm256_setzero_ps(); ROWS / 2];
        let mut total = _mm256_setzero_ps();
        for (i, f) in factors.iter_mut().enumerate() {
            // Two rows a vector.
            let [a, b] = [2 * i, 2 * i + 1].map(|r| load::b8(lot.get(r, at)));
            let c = _mm256_set_m128(_mm_set1_ps(coef[2 * i + 1]), _mm_set1_ps(coef[2 * i]));
            *f = _mm256_mul_ps(_mm256_cvtph_ps(_mm_unpacklo_epi64(a, b)), c);
            total = _mm256_add_ps(total, _mm256_andnot_ps(_mm256_set1_ps(-0.0), *f));
        }
        let total = _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps::<1>(total));
        // Where that is no number, nor are the units, and so not the sums; where it is zero, or next to, the words are.
        let inverse = _mm_div_ps(_mm_set1_ps(TOP), total);
        let inverse = _mm256_set_m128(inverse, inverse);
        for (f, words) in factors.into_iter().zip(words.as_chunks_mut::<2>().0) {
            let word = _mm256_cvtps_epi32(_mm256_mul_ps(f, inverse));
            let twice = _mm256_blend_epi16::<0b1010_1010>(word, _mm256_slli_epi32::<16>(word));
            load::put_i32x8(words.as_flattened_mut(), 0, twice);
        }
        let mut units = [0.0; 4];
        load::put_f32x4(&mut units, _mm_mul_ps(total, _mm_set1_ps(128.0 / TOP)));
        units
    }

    /// The sums of group `g` of all rows.
    #[inline]
    fn add_words(lot: &Lot<ROWS>, g: usize, words: &[[i32; 4]; ROWS], spread: __m256i, sums: &mut [i16; GROUP]) {
        for (two, sums) in sums.as_chunks_mut::<{ GROUP / 2 }>().0.iter_mut().enumerate() {
            // Of blocks A and B, elements 0 to 15: even ones, odd ones; elements 16 to 31.
            let mut acc = [[_mm256_setzero_si256(); 2]; 2];
            for (r, words) in words.iter().enumerate() {
                let c = _mm256_castsi256_ps(load::two_i32(words, 2 * two));
                let c = _mm256_castps_si256(_mm256_permutevar_ps(c, spread));
                let w: &[u8; GROUP] = lot.get(r, GROUP * g);
                for (half, [even, odd]) in acc.iter_mut().enumerate() {
                    let q = load::u8x32(w, 64 * half + 32 * two);
                    let [q, p] = [_mm256_slli_epi16::<8>(q), _mm256_and_si256(q, _mm256_set1_epi16(!0xff))];
                    *even = _mm256_add_epi16(*even, _mm256_mulhrs_epi16(q, c));
                    *odd = _mm256_add_epi16(*odd, _mm256_mulhrs_epi16(p, c));
                }
            }
            for (half, [even, odd]) in acc.into_iter().enumerate() {
                let (low, high) = (_mm256_unpacklo_epi16(even, odd), _mm256_unpackhi_epi16(even, odd));
                load::put_i16x16(sums, 16 * half, _mm256_permute2x128_si256::<0x20>(low, high));
                load::put_i16x16(sums, 32 + 16 * half, _mm256_permute2x128_si256::<0x31>(low, high));
            }
        }
    }

    /// Adds the sums of a group to as many columns as there are.
    #[inline]
    fn add(sums: &[i16; GROUP], units: &[f32; 4], y: &mut [f32]) {
        for ((y, sums), unit) in y.as_chunks_mut::<32>().0.iter_mut().zip(sums.as_chunks::<32>().0).zip(units) {
            let unit = _mm256_set1_ps(*unit);
            for at in [0, 8, 16, 24] {
                let sums = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(load::i16x8(sums, at)));
                let sums = _mm256_fmadd_ps(sums, unit, load::f32x8(y, at));
                load::put_f32x8(y, at, sums);
            }
        }
    }
}
