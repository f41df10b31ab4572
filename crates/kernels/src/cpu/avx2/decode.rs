//! Parts of blocks that dot products and sums decode alike.

use super::{avx2, load};
use std::arch::x86_64::*;

avx2! {
    /// The 32 nibbles of 16 bytes: low ones, then high ones.
    #[inline]
    pub(in crate::cpu) fn nibbles(q: __m128i) -> __m256i {
        let q = _mm256_srlv_epi64(_mm256_broadcastsi128_si256(q), _mm256_setr_epi64x(0, 0, 4, 4));
        _mm256_and_si256(q, _mm256_set1_epi8(15))
    }

    /// From the first 16 bytes of a Q4_K or Q5_K block: its eight scales, then its eight minima, six bits each.
    #[inline]
    pub(in crate::cpu) fn six_bit_fields(head: __m128i) -> __m128i {
        // Scales 0-3, scales 4-7, minima 0-3, minima 4-7: six bits, or four here and two there.
        let low = _mm_shuffle_epi8(head, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
        let low = _mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4));
        let low = _mm_and_si128(low, _mm_setr_epi32(0x3f3f_3f3f, 0x0f0f_0f0f, 0x3f3f_3f3f, 0x0f0f_0f0f));
        let high = _mm_shuffle_epi8(head, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
        let high = _mm_and_si128(_mm_srli_epi32::<2>(high), _mm_set1_epi8(0x30));
        _mm_or_si128(low, high)
    }

    /// The scales and the minima of a Q4_K or Q5_K block, from its first 16 bytes.
    #[inline]
    pub(super) fn scales_and_minima(head: __m128i) -> [__m256; 2] {
        let fields = six_bit_fields(head);
        let d = _mm_cvtph_ps(head);
        let float = |q| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(q));
        [
            _mm256_mul_ps(float(fields), _mm256_broadcastss_ps(d)),
            _mm256_mul_ps(float(_mm_unpackhi_epi64(fields, fields)), _mm256_broadcastss_ps(_mm_movehdup_ps(d))),
        ]
    }

    /// 32 `f16` elements.
    #[inline]
    pub(super) fn f16(w: &[u8; 64]) -> [__m256; 4] {
        [load::b16::<0, 64>(w), load::b16::<16, 64>(w), load::b16::<32, 64>(w), load::b16::<48, 64>(w)]
            .map(|w| _mm256_cvtph_ps(w))
    }

    /// 32 `bf16` elements: the upper halves of `f32`.
    #[inline]
    pub(super) fn bf16(w: &[u8; 64]) -> [__m256; 4] {
        [load::b16::<0, 64>(w), load::b16::<16, 64>(w), load::b16::<32, 64>(w), load::b16::<48, 64>(w)]
            .map(|w| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(w))))
    }

    /// The `f16` at byte `AT`, in every lane.
    #[inline]
    pub(super) fn half<const AT: usize, const N: usize>(w: &[u8; N]) -> __m256 {
        _mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes([w[AT], w[AT + 1]])))
    }

    /// The two `f16` at the beginning of a block: each in lane 0 of its vector.
    #[inline]
    pub(super) fn two_halves<const N: usize>(w: &[u8; N]) -> [__m128; 2] {
        let dm = _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from_le_bytes([w[0], w[1], w[2], w[3]])));
        [dm, _mm_movehdup_ps(dm)]
    }

    /// All bits of byte `i` where bit `i` of the four bytes at `AT` is set.
    #[inline]
    pub(super) fn spread_bits<const AT: usize, const N: usize>(w: &[u8; N]) -> __m256i {
        let bits = _mm256_set1_epi32(i32::from_le_bytes([w[AT], w[AT + 1], w[AT + 2], w[AT + 3]]));
        let bytes = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let one = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
        _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(bits, bytes), one), one)
    }

    /// The levels of a Q5_0 block, 0 to 31.
    #[inline]
    pub(super) fn five_bits<const HIGH: usize, const LOW: usize, const N: usize>(w: &[u8; N]) -> __m256i {
        let fifth = _mm256_and_si256(spread_bits::<HIGH, N>(w), _mm256_set1_epi8(16));
        _mm256_or_si256(nibbles(load::b16::<LOW, N>(w)), fifth)
    }

    /// The levels of sub-blocks `2 c` and `2 c + 1` of a Q4_K or Q5_K block, from its nibbles; `c` in `0..4`.
    #[inline]
    pub(in crate::cpu) fn chunk(qs: &[u8], c: usize) -> [__m256i; 2] {
        let q = load::u8x32(qs, 32 * c);
        let low = _mm256_set1_epi8(15);
        [_mm256_and_si256(q, low), _mm256_and_si256(_mm256_srli_epi16::<4>(q), low)]
    }

    /// `q` with its fifth bit set where bit `j` of `high` is.
    #[inline]
    pub(super) fn with_fifth_bit(q: __m256i, high: __m256i, j: usize) -> __m256i {
        let bit = _mm256_set1_epi8((1u8 << j) as i8);
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(high, bit), bit);
        _mm256_or_si256(q, _mm256_and_si256(set, _mm256_set1_epi8(16)))
    }

    /// The levels of a Q6_K block, 0 to 63: vector `i` holds elements `32 i..32 i + 32`.
    #[inline]
    pub(in crate::cpu) fn six_bits(w: &[u8; 210]) -> [__m256i; 8] {
        let half = |low: [__m256i; 2], high: __m256i| {
            let [a, b] = low;
            // What shifts in from the neighbour is masked out.
            [
                six(_mm256_slli_epi16::<4>(high), a),
                six(_mm256_slli_epi16::<2>(high), b),
                six(high, _mm256_srli_epi16::<4>(a)),
                six(_mm256_srli_epi16::<2>(high), _mm256_srli_epi16::<4>(b)),
            ]
        };
        let [a, b, c, d] = half([load::b32::<0, 210>(w), load::b32::<32, 210>(w)], load::b32::<128, 210>(w));
        let [e, f, g, h] = half([load::b32::<64, 210>(w), load::b32::<96, 210>(w)], load::b32::<160, 210>(w));
        [a, b, c, d, e, f, g, h]
    }

    /// Bits 4 and 5 of `upper`, bits 0 to 3 of `low`.
    #[inline]
    fn six(upper: __m256i, low: __m256i) -> __m256i {
        let upper = _mm256_and_si256(upper, _mm256_set1_epi8(0x30));
        _mm256_or_si256(upper, _mm256_and_si256(low, _mm256_set1_epi8(15)))
    }
}
