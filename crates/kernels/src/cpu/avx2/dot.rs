//! Dot products. Quantised weights meet int8 activations: `vpmaddubsw` multiplies unsigned levels with signed ones and
//! adds pairs in 16 bits, which 2 * 128 * 127 does not overflow; `vpmaddwd` adds pairs of those in 32 bits. A block of
//! 32 is one vector. What a format subtracts from its levels is subtracted in integers, as the sum of activations.

use super::{
    super::{Input, Rows, drive},
    avx2, decode, load,
};
use crate::matrix::MatRef;
use std::arch::x86_64::*;

/// Rows at a time: activations are loaded once for them, and their sums do not wait for each other.
const ROWS: usize = 2;

avx2! {
    pub(super) fn f32(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        floats::<128>(m, rows, x, out, |w| {
            [load::b32::<0, 128>(w), load::b32::<32, 128>(w), load::b32::<64, 128>(w), load::b32::<96, 128>(w)]
                .map(|w| _mm256_castsi256_ps(w))
        });
    }

    pub(super) fn f16(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        floats::<64>(m, rows, x, out, |w| decode::f16(w));
    }

    /// 16 weights a step: those at even places, then those at odd ones, are the upper halves of words as they lie.
    pub(super) fn bf16(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        let upper = _mm256_set1_epi32(!0xffff);
        drive::dot::<4, 32, _, _>(
            m,
            rows,
            out,
            [_mm256_setzero_ps(); 2],
            |g| {
                let four = |i: usize| load::f32x4(x.padded(), 16 * g + 4 * i);
                let [a, b] = [0, 1].map(|i| _mm256_set_m128(four(i + 2), four(i)));
                [_mm256_shuffle_ps::<0b10_00_10_00>(a, b), _mm256_shuffle_ps::<0b11_01_11_01>(a, b)]
            },
            |w, x, acc| {
                let w = load::b32::<0, 32>(w);
                let even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w));
                let odd = _mm256_castsi256_ps(_mm256_and_si256(w, upper));
                [_mm256_fmadd_ps(even, x[0], acc[0]), _mm256_fmadd_ps(odd, x[1], acc[1])]
            },
            |[a, b]| sum(_mm256_add_ps(a, b)),
        );
    }

    /// 32 float weights a step, in four sums a row.
    #[inline]
    fn floats<const N: usize>(
        m: MatRef,
        rows: Rows,
        x: &Input,
        out: &mut [f32],
        weights: impl Fn(&[u8; N]) -> [__m256; 4],
    ) {
        drive::dot::<ROWS, N, _, _>(
            m,
            rows,
            out,
            [_mm256_setzero_ps(); 4],
            |g| [0, 8, 16, 24].map(|i| load::f32x8(x.padded(), 32 * g + i)),
            |w, x, acc| {
                let w = weights(w);
                std::array::from_fn(|i| _mm256_fmadd_ps(w[i], x[i], acc[i]))
            },
            |[a, b, c, d]| sum(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d))),
        );
    }

    pub(super) fn q8_0(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        drive::dot::<ROWS, 34, _, _>(
            m,
            rows,
            out,
            _mm256_setzero_ps(),
            |b| Block::new(x, b, 0),
            |w, x, acc| {
                // |w| (x sign w): the magnitude of -128 is 128 as an unsigned byte.
                let q = load::b32::<2, 34>(w);
                let s = products(_mm256_abs_epi8(q), _mm256_sign_epi8(x.levels, q));
                x.add(s, decode::half::<0, 34>(w), acc)
            },
            |acc| sum(acc),
        );
    }

    pub(super) fn q4_0(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        drive::dot::<ROWS, 18, _, _>(
            m,
            rows,
            out,
            _mm256_setzero_ps(),
            |b| Block::new(x, b, 8),
            |w, x, acc| {
                let s = x.dot(decode::nibbles(load::b16::<2, 18>(w)));
                x.add(s, decode::half::<0, 18>(w), acc)
            },
            |acc| sum(acc),
        );
    }

    pub(super) fn q8_h(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        drive::dot::<ROWS, 18, _, _>(
            m,
            rows,
            out,
            _mm256_setzero_ps(),
            |b| Block::new(x, b, 120),
            |w, x, acc| {
                let q = _mm256_maddubs_epi16(decode::nibbles(load::b16::<2, 18>(w)), x.levels);
                // Pairs are added up sixteen times, since levels are sixteen apart.
                let s = _mm256_add_epi32(x.start, _mm256_madd_epi16(q, _mm256_set1_epi16(16)));
                x.add(s, decode::half::<0, 18>(w), acc)
            },
            |acc| sum(acc),
        );
    }

    pub(super) fn q4_1(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        drive::dot::<ROWS, 20, _, _>(
            m,
            rows,
            out,
            _mm256_setzero_ps(),
            |b| Block::new(x, b, 0),
            |w, x, acc| x.add_affine(decode::nibbles(load::b16::<4, 20>(w)), decode::two_halves(w), acc),
            |acc| sum(acc),
        );
    }

    pub(super) fn q5_0(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        drive::dot::<ROWS, 22, _, _>(
            m,
            rows,
            out,
            _mm256_setzero_ps(),
            |b| Block::new(x, b, 16),
            |w, x, acc| {
                let s = x.dot(decode::five_bits::<2, 6, 22>(w));
                x.add(s, decode::half::<0, 22>(w), acc)
            },
            |acc| sum(acc),
        );
    }

    pub(super) fn q5_1(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        drive::dot::<ROWS, 24, _, _>(
            m,
            rows,
            out,
            _mm256_setzero_ps(),
            |b| Block::new(x, b, 0),
            |w, x, acc| x.add_affine(decode::five_bits::<4, 8, 24>(w), decode::two_halves(w), acc),
            |acc| sum(acc),
        );
    }

    pub(super) fn q4_k(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        drive::dot::<ROWS, 144, _, _>(
            m,
            rows,
            out,
            _mm256_setzero_ps(),
            |g| Super::new(x, g),
            |w, x, acc| {
                let (factors, mut acc) = x.scales(load::b16::<0, 144>(w), acc);
                for c in 0..4 {
                    for (half, q) in decode::chunk(&w[16..], c).into_iter().enumerate() {
                        acc = x.add(2 * c + half, q, factors, acc);
                    }
                }
                acc
            },
            |acc| sum(acc),
        );
    }

    pub(super) fn q5_k(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        drive::dot::<ROWS, 176, _, _>(
            m,
            rows,
            out,
            _mm256_setzero_ps(),
            |g| Super::new(x, g),
            |w, x, acc| {
                let (factors, mut acc) = x.scales(load::b16::<0, 176>(w), acc);
                let high = load::b32::<16, 176>(w);
                for c in 0..4 {
                    for (half, q) in decode::chunk(&w[48..], c).into_iter().enumerate() {
                        let j = 2 * c + half;
                        acc = x.add(j, decode::with_fifth_bit(q, high, j), factors, acc);
                    }
                }
                acc
            },
            |acc| sum(acc),
        );
    }

    pub(super) fn q6_k(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        drive::dot::<ROWS, 210, _, _>(
            m,
            rows,
            out,
            _mm256_setzero_ps(),
            |g| std::array::from_fn::<_, 8, _>(|i| Block::new(x, 8 * g + i, 32)),
            |w, x, acc| {
                let d = decode::half::<208, 210>(w);
                let scales = load::b16::<192, 210>(w);
                let float = |q| _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)), d);
                let scales = [float(scales), float(_mm_unpackhi_epi64(scales, scales))];
                let q = decode::six_bits(w);
                let mut acc = acc;
                for i in 0..8 {
                    // The scales of the block's halves, four lanes each.
                    let two = _mm256_add_epi32(_mm256_set1_epi32(i as i32 % 4 * 2), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
                    acc = x[i].add(x[i].dot(q[i]), _mm256_permutevar8x32_ps(scales[i / 4], two), acc);
                }
                acc
            },
            |acc| sum(acc),
        );
    }

    /// Products of unsigned and signed levels, four a lane.
    #[inline]
    fn products(unsigned: __m256i, signed: __m256i) -> __m256i {
        _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned, signed), _mm256_set1_epi16(1))
    }

    /// The sum of all lanes.
    #[inline]
    pub(super) fn sum(v: __m256) -> f32 {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
    }
}

/// 32 activations.
struct Block {
    levels: __m256i,
    /// Minus the offset of the weights' levels times the sum of each lane's four levels.
    start: __m256i,
    scale: __m256,
    /// The scaled sum of levels in lane 0.
    sum: __m256,
}

impl Block {
    avx2! {
        #[inline]
        fn new(x: &Input, b: usize, offset: i8) -> Block {
            let levels = load::i8x32(x.levels(), 32 * b);
            Block {
                levels,
                start: _mm256_sub_epi32(_mm256_setzero_si256(), products(_mm256_set1_epi8(offset), levels)),
                scale: _mm256_set1_ps(x.scales()[b]),
                sum: _mm256_zextps128_ps256(_mm_set_ss(x.sums()[b])),
            }
        }

        /// Sums of the unsigned levels `q`, less the offset, times activation levels.
        #[inline]
        fn dot(&self, q: __m256i) -> __m256i {
            _mm256_add_epi32(self.start, products(q, self.levels))
        }

        #[inline]
        fn add(&self, sums: __m256i, d: __m256, acc: __m256) -> __m256 {
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_mul_ps(d, self.scale), acc)
        }

        /// Adds the products of weights `d q + m`.
        #[inline]
        fn add_affine(&self, q: __m256i, [d, m]: [__m128; 2], acc: __m256) -> __m256 {
            let acc = self.add(products(q, self.levels), _mm256_broadcastss_ps(d), acc);
            _mm256_fmadd_ps(_mm256_zextps128_ps256(m), self.sum, acc)
        }
    }
}

/// 256 activations against a Q4_K or Q5_K block.
struct Super {
    levels: [__m256i; 8],
    scales: __m256,
    sums: __m256,
}

impl Super {
    avx2! {
        #[inline]
        fn new(x: &Input, g: usize) -> Super {
            Super {
                levels: std::array::from_fn(|j| load::i8x32(x.levels(), 256 * g + 32 * j)),
                scales: load::f32x8(x.scales(), 8 * g),
                sums: load::f32x8(x.sums(), 8 * g),
            }
        }

        /// From the first 16 bytes of a block: the products of its scales and the activations', and the accumulator
        /// less the minima's share.
        #[inline]
        fn scales(&self, head: __m128i, acc: __m256) -> (__m256, __m256) {
            let [scales, minima] = decode::scales_and_minima(head);
            (_mm256_mul_ps(scales, self.scales), _mm256_fnmadd_ps(minima, self.sums, acc))
        }

        /// Adds the scaled products of sub-block `j`.
        #[inline]
        fn add(&self, j: usize, q: __m256i, factors: __m256, acc: __m256) -> __m256 {
            let factor = _mm256_permutevar8x32_ps(factors, _mm256_set1_epi32(j as i32));
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(products(q, self.levels[j])), factor, acc)
        }
    }
}
