//! Dot products. Quantised weights meet int8 activations: unsigned levels times signed levels, summed in 32 bits by
//! `vpdpbusd`, four products a lane; a lane never holds products of two blocks, so one multiplication a lane applies
//! both scales. What a format subtracts from its levels is subtracted in integers: the accumulator starts at minus
//! that, times the lane's sum of activations.
//!
//! Formats of 32 elements go four blocks at a time, lanes `[A A A A B B B B C C C C D D D D]`, which is how the nibbles
//! of four blocks lie when they are loaded side by side ([`Input::halves`] has the activations in that order).

use super::{
    super::{Input, Rows, drive},
    avx512, decode, load,
};
use crate::matrix::MatRef;
use std::arch::x86_64::*;

/// Rows at a time: activations are loaded once for them, and their sums do not wait for each other.
pub(super) const ROWS: usize = 4;

avx512! {
    pub(super) fn f32(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        drive::dot::<ROWS, 64, _, _>(
            m,
            rows,
            out,
            _mm512_setzero_ps(),
            |g| load::some_f32(&x.x()[16 * g..]),
            |w, x, acc| _mm512_fmadd_ps(_mm512_castsi512_ps(load::b64::<0, 64>(w)), *x, acc),
            |acc| _mm512_reduce_add_ps(acc),
        );
    }

    pub(super) fn f16(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        halves(m, rows, x, out, |w| _mm512_cvtph_ps(w));
    }

    pub(super) fn bf16(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        halves(m, rows, x, out, |w| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(w))));
    }

    pub(super) fn q8_0(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        /// Two blocks, `[A x 8, B x 8]`.
        struct X {
            levels: __m512i,
            start: __m512i,
            scale: __m512,
        }
        let pair = |x: &Input, b: usize, spread| {
            let levels = load::i8x64(x.levels(), 32 * b);
            let scales = _mm512_castps128_ps512(load::f32x4(x.scales(), b / 4 * 4));
            X { levels, start: start(levels, 128), scale: _mm512_permutexvar_ps(spread, scales) }
        };
        let first = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        let second = _mm512_add_epi32(first, _mm512_set1_epi32(2));
        // The scale of the first block is word 0 of a pair, that of the second is word 17.
        let words = _mm512_castsi256_si512(_mm256_setr_epi16(0, 0, 0, 0, 0, 0, 0, 0, 17, 17, 17, 17, 17, 17, 17, 17));
        let sign = _mm512_set1_epi8(-128);
        let add = |q: __m512i, d: __m512i, x: &X, acc| {
            // A signed level plus 128 is the level with its sign bit flipped.
            let s = _mm512_dpbusd_epi32(x.start, _mm512_xor_si512(q, sign), x.levels);
            let d = _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(words, d)));
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), _mm512_mul_ps(d, x.scale), acc)
        };
        drive::dot::<ROWS, 136, _, _>(
            m,
            rows,
            out,
            _mm512_setzero_ps(),
            |g| [pair(x, 4 * g, first), pair(x, 4 * g + 2, second)],
            |w, x, acc| {
                let q = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(load::b32::<2, 136>(w)), load::b32::<36, 136>(w));
                let acc = add(q, load::b64::<0, 136>(w), &x[0], acc);
                let q = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(load::b32::<70, 136>(w)), load::b32::<104, 136>(w));
                add(q, load::b64::<68, 136>(w), &x[1], acc)
            },
            |acc| _mm512_reduce_add_ps(acc),
        );
    }

    pub(super) fn q4_0(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        let words = _mm512_castsi256_si512(_mm256_setr_epi16(0, 0, 0, 0, 9, 9, 9, 9, 18, 18, 18, 18, 27, 27, 27, 27));
        drive::dot::<ROWS, 72, _, _>(
            m,
            rows,
            out,
            _mm512_setzero_ps(),
            |g| Halves::new(x, g, 8),
            |w, x, acc| {
                let q = nibbles::<2, 20, 38, 56, 72>(w);
                let d = _mm512_permutexvar_epi16(words, load::b64::<0, 72>(w));
                let d = _mm512_cvtph_ps(_mm512_castsi512_si256(d));
                _mm512_fmadd_ps(x.dot(q), _mm512_mul_ps(d, x.scale), acc)
            },
            |acc| _mm512_reduce_add_ps(acc),
        );
    }

    pub(super) fn q8_h(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        let words = _mm512_castsi256_si512(_mm256_setr_epi16(0, 0, 0, 0, 9, 9, 9, 9, 18, 18, 18, 18, 27, 27, 27, 27));
        drive::dot::<ROWS, 72, _, _>(
            m,
            rows,
            out,
            _mm512_setzero_ps(),
            |g| Halves::new(x, g, 120),
            |w, x, acc| {
                // Sixteen times a level is the level in the upper half of its byte.
                let v = sixteens::<2, 20, 38, 56, 72>(w);
                let high = _mm512_set1_epi8(-16);
                let q = [_mm512_and_si512(_mm512_slli_epi16::<4>(v), high), _mm512_and_si512(v, high)];
                let d = _mm512_permutexvar_epi16(words, load::b64::<0, 72>(w));
                let d = _mm512_cvtph_ps(_mm512_castsi512_si256(d));
                _mm512_fmadd_ps(x.dot(q), _mm512_mul_ps(d, x.scale), acc)
            },
            |acc| _mm512_reduce_add_ps(acc),
        );
    }

    pub(super) fn q4_1(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        // Four scales, four minima.
        let words = _mm512_castsi128_si512(_mm_setr_epi16(0, 10, 20, 30, 1, 11, 21, 31));
        drive::dot::<ROWS, 80, _, _>(
            m,
            rows,
            out,
            _mm512_setzero_ps(),
            |g| Halves::new(x, g, 0),
            |w, x, acc| {
                let q = nibbles::<4, 24, 44, 64, 80>(w);
                let dm = _mm512_permutexvar_epi16(words, load::b64::<0, 80>(w));
                x.add_affine(q, _mm512_castsi512_si128(dm), acc)
            },
            |acc| _mm512_reduce_add_ps(acc),
        );
    }

    pub(super) fn q5_0(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        // Four scales; the fifth bits of four first halves, of four second halves. Word 29 + i is word 33 + i of the group.
        let words = _mm512_castsi256_si512(_mm256_setr_epi16(0, 11, 22, 29, 0, 0, 0, 0, 1, 12, 23, 30, 2, 13, 24, 31));
        drive::dot::<ROWS, 88, _, _>(
            m,
            rows,
            out,
            _mm512_setzero_ps(),
            |g| Halves::new(x, g, 16),
            |w, x, acc| {
                let q = nibbles::<6, 28, 50, 72, 88>(w);
                let v = load::words_over::<8, 0xe000_0000, 88>(load::b64::<0, 88>(w), w);
                let v = _mm512_castsi512_si256(_mm512_permutexvar_epi16(words, v));
                let q = with_fifth_bits(q, _mm256_extracti128_si256::<1>(v));
                x.add(q, _mm256_castsi256_si128(v), acc)
            },
            |acc| _mm512_reduce_add_ps(acc),
        );
    }

    pub(super) fn q5_1(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        // Four scales, four minima; the fifth bits as in Q5_0. Word 28 + i is word 36 + i of the group.
        let words = _mm512_castsi256_si512(_mm256_setr_epi16(0, 12, 24, 28, 1, 13, 25, 29, 2, 14, 26, 30, 3, 15, 27, 31));
        drive::dot::<ROWS, 96, _, _>(
            m,
            rows,
            out,
            _mm512_setzero_ps(),
            |g| Halves::new(x, g, 0),
            |w, x, acc| {
                let q = nibbles::<8, 32, 56, 80, 96>(w);
                let v = load::words_over::<16, 0xf000_0000, 96>(load::b64::<0, 96>(w), w);
                let v = _mm512_castsi512_si256(_mm512_permutexvar_epi16(words, v));
                let q = with_fifth_bits(q, _mm256_extracti128_si256::<1>(v));
                x.add_affine(q, _mm256_castsi256_si128(v), acc)
            },
            |acc| _mm512_reduce_add_ps(acc),
        );
    }

    pub(super) fn q4_k(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        drive::dot::<ROWS, 144, _, _>(
            m,
            rows,
            out,
            _mm512_setzero_ps(),
            |g| Chunks::new(x, g),
            |w, x, acc| {
                let (factors, acc) = x.scales(load::b16::<0, 144>(w), acc);
                let low = _mm512_set1_epi8(15);
                let (a, b) = (load::b64::<16, 144>(w), load::b64::<80, 144>(w));
                let q = [
                    _mm512_and_si512(a, low),
                    _mm512_and_si512(_mm512_srli_epi16::<4>(a), low),
                    _mm512_and_si512(b, low),
                    _mm512_and_si512(_mm512_srli_epi16::<4>(b), low),
                ];
                x.add(q, factors, acc)
            },
            |acc| _mm512_reduce_add_ps(acc),
        );
    }

    pub(super) fn q5_k(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        // Bit j of a byte of qh belongs to sub-block j; vector i holds sub-blocks as in `Chunks`.
        let bits = SUB_BLOCKS.map(|(a, b)| {
            _mm512_inserti64x4::<1>(_mm512_set1_epi8(1i8.wrapping_shl(a)), _mm256_set1_epi8(1i8.wrapping_shl(b)))
        });
        drive::dot::<ROWS, 176, _, _>(
            m,
            rows,
            out,
            _mm512_setzero_ps(),
            |g| Chunks::new(x, g),
            |w, x, acc| {
                let (factors, acc) = x.scales(load::b16::<0, 176>(w), acc);
                let low = _mm512_set1_epi8(15);
                let fifth = _mm512_set1_epi8(16);
                let high = _mm512_broadcast_i64x4(load::b32::<16, 176>(w));
                let (a, b) = (load::b64::<48, 176>(w), load::b64::<112, 176>(w));
                let with = |q, bits| or_bytes(q, _mm512_test_epi8_mask(high, bits), fifth);
                let q = [
                    with(_mm512_and_si512(a, low), bits[0]),
                    with(_mm512_and_si512(_mm512_srli_epi16::<4>(a), low), bits[1]),
                    with(_mm512_and_si512(b, low), bits[2]),
                    with(_mm512_and_si512(_mm512_srli_epi16::<4>(b), low), bits[3]),
                ];
                x.add(q, factors, acc)
            },
            |acc| _mm512_reduce_add_ps(acc),
        );
    }

    pub(super) fn q6_k(m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        /// 256 elements in natural order, 16 to four lanes.
        struct X {
            levels: [__m512i; 4],
            start: [__m512i; 4],
            /// Scales, each twice: weights have a scale for each half of an activation block.
            scale: __m512,
        }
        let twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        let spread = [0, 4, 8, 12].map(|i| _mm512_add_epi32(by_fours(), _mm512_set1_epi32(i)));
        drive::dot::<ROWS, 210, _, _>(
            m,
            rows,
            out,
            _mm512_setzero_ps(),
            |g| {
                let levels = [0, 64, 128, 192].map(|i| load::i8x64(x.levels(), 256 * g + i));
                let scales = _mm512_castps256_ps512(load::f32x8(x.scales(), 8 * g));
                X { levels, start: levels.map(|q| start(q, 32)), scale: _mm512_permutexvar_ps(twice, scales) }
            },
            |w, x, acc| {
                let [q0, q1] = decode::six_bits(load::b64::<0, 210>(w), load::b32::<128, 210>(w));
                let [q2, q3] = decode::six_bits(load::b64::<64, 210>(w), load::b32::<160, 210>(w));
                let q = [q0, q1, q2, q3];
                let d = _mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes([w[208], w[209]])));
                let scales = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load::b16::<192, 210>(w)));
                let factors = _mm512_mul_ps(_mm512_mul_ps(scales, d), x.scale);
                let mut acc = acc;
                for i in 0..4 {
                    let s = _mm512_dpbusd_epi32(x.start[i], q[i], x.levels[i]);
                    acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), _mm512_permutexvar_ps(spread[i], factors), acc);
                }
                acc
            },
            |acc| _mm512_reduce_add_ps(acc),
        );
    }

    /// Minus `offset` times the sum of each lane's four levels: where an accumulator starts whose weights are levels
    /// plus `offset`.
    #[inline]
    fn start(levels: __m512i, offset: u8) -> __m512i {
        let zero = _mm512_setzero_si512();
        _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(zero, _mm512_set1_epi8(offset as i8), levels))
    }

    /// `[0, 0, 0, 0, 1, 1, 1, 1, ...]`.
    #[inline]
    pub(super) fn by_fours() -> __m512i {
        _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
    }

    /// The low nibbles and the high nibbles of `q`, with the fifth bits in `bits`: 64 for each.
    #[inline]
    fn with_fifth_bits(q: [__m512i; 2], bits: __m128i) -> [__m512i; 2] {
        let fifth = _mm512_set1_epi8(16);
        let low = _mm_cvtsi128_si64(bits) as u64;
        let high = _mm_extract_epi64::<1>(bits) as u64;
        [or_bytes(q[0], low, fifth), or_bytes(q[1], high, fifth)]
    }

    /// `q | bit` in the bytes of the mask, where `q` lacks `bit`.
    #[inline]
    pub(super) fn or_bytes(q: __m512i, mask: u64, bit: __m512i) -> __m512i {
        _mm512_mask_add_epi8(q, mask, q, bit)
    }
}

avx512! {
/// 64 bytes: 16 at each of four places in a group.
#[inline]
fn sixteens<const A: usize, const B: usize, const C: usize, const D: usize, const N: usize>(
    w: &[u8; N],
) -> __m512i {
    let v = _mm512_castsi128_si512(load::b16::<A, N>(w));
    let v = _mm512_inserti32x4::<1>(v, load::b16::<B, N>(w));
    let v = _mm512_inserti32x4::<2>(v, load::b16::<C, N>(w));
    _mm512_inserti32x4::<3>(v, load::b16::<D, N>(w))
}

/// The low and the high nibbles of 64 bytes: 16 at each of four places in a group.
#[inline]
fn nibbles<const A: usize, const B: usize, const C: usize, const D: usize, const N: usize>(
    w: &[u8; N],
) -> [__m512i; 2] {
    let v = sixteens::<A, B, C, D, N>(w);
    let low = _mm512_set1_epi8(15);
    [
        _mm512_and_si512(v, low),
        _mm512_and_si512(_mm512_srli_epi16::<4>(v), low),
    ]
}

/// 32 weights of two bytes a step: a cache line of each row.
#[inline]
fn halves(
    m: MatRef,
    rows: Rows,
    x: &Input,
    out: &mut [f32],
    weights: impl Fn(__m256i) -> __m512,
) {
    drive::dot::<ROWS, 64, _, _>(
        m,
        rows,
        out,
        _mm512_setzero_ps(),
        |g| {
            let x = &x.x()[32 * g..];
            [load::some_f32(x), load::some_f32(&x[x.len().min(16)..])]
        },
        |w, x, acc| {
            let acc = _mm512_fmadd_ps(weights(load::b32::<0, 64>(w)), x[0], acc);
            _mm512_fmadd_ps(weights(load::b32::<32, 64>(w)), x[1], acc)
        },
        |acc| _mm512_reduce_add_ps(acc),
    );
}

}

/// Activations of four blocks, ordered as [`nibbles`] orders weights.
pub(super) struct Halves {
    levels: [__m512i; 2],
    start: __m512i,
    /// The four scales, four lanes each.
    scale: __m512,
    /// Zeros, but the four scaled sums of levels in lanes 4 to 7.
    sums: __m512,
}

impl Halves {
    avx512! {
        #[inline]
        pub(super) fn new(x: &Input, group: usize, offset: u8) -> Halves {
            let levels = [0, 64].map(|i| load::i8x64(x.halves(), 128 * group + i));
            let four = |x: &[f32]| _mm512_castps128_ps512(load::f32x4(x, 4 * group));
            Halves {
                levels,
                start: _mm512_add_epi32(start(levels[0], offset), start(levels[1], offset)),
                scale: _mm512_permutexvar_ps(by_fours(), four(x.scales())),
                sums: _mm512_maskz_expand_ps(0xf0, four(x.sums())),
            }
        }

        /// Sums of levels times activation levels.
        #[inline]
        pub(super) fn dot(&self, q: [__m512i; 2]) -> __m512 {
            let s = _mm512_dpbusd_epi32(self.start, q[0], self.levels[0]);
            _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(s, q[1], self.levels[1]))
        }

        /// Adds the products of weights `d q`; `d` is four halves, then anything.
        #[inline]
        pub(super) fn add(&self, q: [__m512i; 2], d: __m128i, acc: __m512) -> __m512 {
            let d = _mm512_permutexvar_ps(by_fours(), _mm512_castps128_ps512(_mm_cvtph_ps(d)));
            _mm512_fmadd_ps(self.dot(q), _mm512_mul_ps(d, self.scale), acc)
        }

        /// Adds the products of weights `d q + m`; `dm` is four `d`, four `m`.
        #[inline]
        pub(super) fn add_affine(&self, q: [__m512i; 2], dm: __m128i, acc: __m512) -> __m512 {
            let dm = _mm512_zextps256_ps512(_mm256_cvtph_ps(dm));
            let d = _mm512_permutexvar_ps(by_fours(), dm);
            let acc = _mm512_fmadd_ps(self.dot(q), _mm512_mul_ps(d, self.scale), acc);
            _mm512_fmadd_ps(dm, self.sums, acc)
        }
    }
}

/// The sub-blocks of Q4_K and Q5_K whose levels are in the low, then the high nibbles of the first 64 bytes, and of the second.
const SUB_BLOCKS: [(u32, u32); 4] = [(0, 2), (1, 3), (4, 6), (5, 7)];

/// Activations of 256 elements, two blocks a vector as in [`SUB_BLOCKS`].
struct Chunks {
    levels: [__m512i; 4],
    /// Eight scales, then eight negative scaled sums.
    factors: __m512,
}

impl Chunks {
    avx512! {
        #[inline]
        fn new(x: &Input, group: usize) -> Chunks {
            let block = |b: u32| load::i8x32(x.levels(), 256 * group + 32 * b as usize);
            let minus = _mm256_xor_ps(load::f32x8(x.sums(), 8 * group), _mm256_set1_ps(-0.0));
            let scales = _mm512_castps256_ps512(load::f32x8(x.scales(), 8 * group));
            Chunks {
                levels: SUB_BLOCKS.map(|(a, b)| _mm512_inserti64x4::<1>(_mm512_castsi256_si512(block(a)), block(b))),
                factors: _mm512_insertf32x8::<1>(scales, minus),
            }
        }

        /// From the first 16 bytes of a block: the products of its eight scales and the activations', and the
        /// accumulator with the minima's share added.
        #[inline]
        fn scales(&self, head: __m128i, acc: __m512) -> (__m512, __m512) {
            let products = _mm512_mul_ps(decode::scales_and_minima(head), self.factors);
            (products, _mm512_mask_add_ps(acc, 0xff00, acc, products))
        }

        /// Adds the scaled products of the levels `q`, ordered as [`SUB_BLOCKS`].
        #[inline]
        fn add(&self, q: [__m512i; 4], factors: __m512, mut acc: __m512) -> __m512 {
            for i in 0..4 {
                let (a, b) = (SUB_BLOCKS[i].0 as i32, SUB_BLOCKS[i].1 as i32);
                let spread = _mm512_inserti64x4::<1>(_mm512_set1_epi32(a), _mm256_set1_epi32(b));
                let s = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q[i], self.levels[i]);
                acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s), _mm512_permutexvar_ps(spread, factors), acc);
            }
            acc
        }
    }
}
