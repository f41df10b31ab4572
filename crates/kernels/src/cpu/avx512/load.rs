//! Loads and stores whose bounds are checked, of 512 bits; shorter ones are those of AVX2.

use super::avx512;
pub(super) use crate::cpu::avx2::load::{
    b8, b16, b32, bytes, f32x4, f32x8, i8x16, i8x32, put_f32x4, u8x16,
};
use std::arch::x86_64::*;

avx512! {
    /// Bytes `AT..AT + 64` of a group of weights.
    #[inline]
    pub(super) fn b64<const AT: usize, const N: usize>(w: &[u8; N]) -> __m512i {
        const { assert!(AT + 64 <= N) };
        // SAFETY: in bounds by the assertion; no alignment is needed.
        unsafe { _mm512_loadu_si512(w.as_ptr().add(AT).cast()) }
    }

    /// `v` with word `i` replaced by that at byte `AT + 2 i` of the group, for each bit `i` of `MASK`.
    #[inline]
    pub(super) fn words_over<const AT: usize, const MASK: u32, const N: usize>(v: __m512i, w: &[u8; N]) -> __m512i {
        const { assert!(AT + 64 <= N) };
        // SAFETY: in bounds by the assertion; no alignment is needed.
        unsafe { _mm512_mask_loadu_epi16(v, MASK, w.as_ptr().add(AT).cast()) }
    }

    /// All of `x`.
    #[inline]
    pub(super) fn i16x32(x: &[i16; 32]) -> __m512i {
        // SAFETY: the array is 64 bytes; no alignment is needed.
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }

    /// Words `at..at + 32` of `w`, zeros for those it does not have.
    #[inline]
    pub(super) fn some_words(w: &[u8], at: usize) -> __m512i {
        let (words, _) = w.as_chunks::<2>();
        let words = words.get(at..).unwrap_or_default();
        if words.is_empty() {
            // A load that reads nothing from an address that is none takes the CPU hundreds of cycles to forgive.
            return _mm512_setzero_si512();
        }
        let mask = ((1u64 << words.len().min(32)) - 1) as u32;
        // SAFETY: only the words the mask names are read, and they are in the slice.
        unsafe { _mm512_maskz_loadu_epi16(mask, words.as_ptr().cast()) }
    }

    /// `x[at..at + 16]`.
    #[inline]
    pub(super) fn f32x16(x: &[f32], at: usize) -> __m512 {
        let x = &x[at..at + 16];
        // SAFETY: the slice is 16 floats; no alignment is needed.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    /// The first up to 16 elements of `x`, then zeros.
    #[inline]
    pub(super) fn some_f32(x: &[f32]) -> __m512 {
        let mask = ((1u32 << x.len().min(16)) - 1) as u16;
        // SAFETY: only the elements the mask names are read, and they are in the slice.
        unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr()) }
    }

    /// `x[at..at + 16] = v`.
    #[inline]
    pub(super) fn put_f32x16(x: &mut [f32], at: usize, v: __m512) {
        let x = &mut x[at..at + 16];
        // SAFETY: the slice is 16 floats; no alignment is needed.
        unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) }
    }

    /// `x[..16] = v`.
    #[inline]
    pub(super) fn put_u32x16(x: &mut [u32], v: __m512i) {
        let x = &mut x[..16];
        // SAFETY: the slice is 16 integers; no alignment is needed.
        unsafe { _mm512_storeu_si512(x.as_mut_ptr().cast(), v) }
    }

    /// `w[at..at + 64]`.
    #[inline]
    pub(super) fn u8x64(w: &[u8], at: usize) -> __m512i {
        let w = &w[at..at + 64];
        // SAFETY: the slice is 64 bytes; no alignment is needed.
        unsafe { _mm512_loadu_si512(w.as_ptr().cast()) }
    }

    /// `x[at..at + 64]`.
    #[inline]
    pub(super) fn i8x64(x: &[i8], at: usize) -> __m512i {
        let x = &x[at..at + 64];
        // SAFETY: the slice is 64 bytes; no alignment is needed.
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }
}
