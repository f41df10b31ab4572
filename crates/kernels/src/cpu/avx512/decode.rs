//! Parts of K-quant blocks that dot products and sums decode alike.

use super::avx512;
use crate::cpu::avx2::decode::six_bit_fields;
pub(super) use crate::cpu::avx2::decode::{chunk, nibbles, six_bits as six_bits_by_32};
use std::arch::x86_64::*;

avx512! {
    /// From the first 16 bytes of a Q4_K or Q5_K block: its eight scales, then its eight minima.
    #[inline]
    pub(super) fn scales_and_minima(head: __m128i) -> __m512 {
        let scales = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(six_bit_fields(head)));
        let eights = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        let d = _mm512_permutexvar_ps(eights, _mm512_castps128_ps512(_mm_cvtph_ps(head)));
        _mm512_mul_ps(scales, d)
    }

    /// The 128 levels of half a Q6_K block, in order: `ql` has their low nibbles, `qh` their upper pairs of bits.
    #[inline]
    pub(super) fn six_bits(ql: __m512i, qh: __m256i) -> [__m512i; 2] {
        let qh = _mm512_broadcast_i64x4(qh);
        // Pairs go to bits 4 and 5 of their byte; what shifts in from the neighbour is masked out.
        let first = _mm512_sllv_epi64(qh, _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2));
        let second = _mm512_srlv_epi64(qh, _mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2));
        [six(first, ql), six(second, _mm512_srli_epi16::<4>(ql))]
    }

    /// Bits 4 and 5 of `upper`, bits 0 to 3 of `low`.
    #[inline]
    fn six(upper: __m512i, low: __m512i) -> __m512i {
        // 0xca: first ? second : third.
        let v = _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi8(0x30), upper, low);
        _mm512_and_si512(v, _mm512_set1_epi8(0x3f))
    }
}
