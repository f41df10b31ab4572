//! Loads and stores whose bounds are checked: at compile time for groups of weights, whose length is a type.

use super::avx2;
use std::arch::x86_64::*;

avx2! {
    /// Bytes `AT..AT + 16` of a group of weights.
    #[inline]
    pub(in crate::cpu) fn b16<const AT: usize, const N: usize>(w: &[u8; N]) -> __m128i {
        const { assert!(AT + 16 <= N) };
        // SAFETY: in bounds by the assertion; no alignment is needed.
        unsafe { _mm_loadu_si128(w.as_ptr().add(AT).cast()) }
    }

    /// Bytes `AT..AT + 32` of a group of weights.
    #[inline]
    pub(in crate::cpu) fn b32<const AT: usize, const N: usize>(w: &[u8; N]) -> __m256i {
        const { assert!(AT + 32 <= N) };
        // SAFETY: in bounds by the assertion; no alignment is needed.
        unsafe { _mm256_loadu_si256(w.as_ptr().add(AT).cast()) }
    }

    /// `x[at..at + 8]`, in the lower half.
    #[inline]
    pub(in crate::cpu) fn i8x8(x: &[i8], at: usize) -> __m128i {
        let x = &x[at..at + 8];
        // SAFETY: the slice is 8 bytes; no alignment is needed.
        unsafe { _mm_loadl_epi64(x.as_ptr().cast()) }
    }

    /// `x[at..at + 16]`.
    #[inline]
    pub(in crate::cpu) fn i8x16(x: &[i8], at: usize) -> __m128i {
        let x = &x[at..at + 16];
        // SAFETY: the slice is 16 bytes; no alignment is needed.
        unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
    }

    /// `x[at..at + 32]`.
    #[inline]
    pub(in crate::cpu) fn i8x32(x: &[i8], at: usize) -> __m256i {
        let x = &x[at..at + 32];
        // SAFETY: the slice is 32 bytes; no alignment is needed.
        unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
    }

    /// Eight bytes, in the lower half.
    #[inline]
    pub(in crate::cpu) fn b8(w: &[u8; 8]) -> __m128i {
        // SAFETY: the array is 8 bytes; no alignment is needed.
        unsafe { _mm_loadl_epi64(w.as_ptr().cast()) }
    }

    /// `x = v`.
    #[inline]
    pub(in crate::cpu) fn put_f32x4(x: &mut [f32; 4], v: __m128) {
        // SAFETY: the array is 4 floats; no alignment is needed.
        unsafe { _mm_storeu_ps(x.as_mut_ptr(), v) }
    }

    /// `x[at..at + 16]`.
    #[inline]
    pub(in crate::cpu) fn u8x16(x: &[u8], at: usize) -> __m128i {
        let x = &x[at..at + 16];
        // SAFETY: the slice is 16 bytes; no alignment is needed.
        unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
    }

    /// `x[at..at + 32]`.
    #[inline]
    pub(in crate::cpu) fn u8x32(x: &[u8], at: usize) -> __m256i {
        let x = &x[at..at + 32];
        // SAFETY: the slice is 32 bytes; no alignment is needed.
        unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
    }

    /// The bytes of some vectors.
    #[inline]
    pub(in crate::cpu) fn bytes(v: &[__m256i]) -> &[i8] {
        // SAFETY: a vector is 32 bytes, each of which may hold anything.
        unsafe { std::slice::from_raw_parts(v.as_ptr().cast(), 32 * v.len()) }
    }

    /// `x[at..at + 4]`.
    #[inline]
    pub(in crate::cpu) fn f32x4(x: &[f32], at: usize) -> __m128 {
        let x = &x[at..at + 4];
        // SAFETY: the slice is 4 floats; no alignment is needed.
        unsafe { _mm_loadu_ps(x.as_ptr()) }
    }

    /// `x[at..at + 4]`.
    #[inline]
    pub(in crate::cpu) fn i32x4(x: &[i32], at: usize) -> __m128i {
        let x = &x[at..at + 4];
        // SAFETY: the slice is 4 numbers; no alignment is needed.
        unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
    }

    /// `x[at..at + 8]`.
    #[inline]
    pub(in crate::cpu) fn f32x8(x: &[f32], at: usize) -> __m256 {
        let x = &x[at..at + 8];
        // SAFETY: the slice is 8 floats; no alignment is needed.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }

    /// `x[at..at + 8] = v`.
    #[inline]
    pub(in crate::cpu) fn put_f32x8(x: &mut [f32], at: usize, v: __m256) {
        let x = &mut x[at..at + 8];
        // SAFETY: the slice is 8 floats; no alignment is needed.
        unsafe { _mm256_storeu_ps(x.as_mut_ptr(), v) }
    }

    /// `x[at..at + 8]`.
    #[inline]
    pub(super) fn i16x8(x: &[i16], at: usize) -> __m128i {
        let x = &x[at..at + 8];
        // SAFETY: the slice is 8 numbers; no alignment is needed.
        unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
    }

    /// `x[at..at + 16] = v`.
    #[inline]
    pub(super) fn put_i16x16(x: &mut [i16], at: usize, v: __m256i) {
        let x = &mut x[at..at + 16];
        // SAFETY: the slice is 16 numbers; no alignment is needed.
        unsafe { _mm256_storeu_si256(x.as_mut_ptr().cast(), v) }
    }

    /// `x[at]` and `x[at + 1]`, four times.
    #[inline]
    pub(super) fn two_i32(x: &[i32], at: usize) -> __m256i {
        let x = &x[at..at + 2];
        // SAFETY: the slice is 8 bytes; no alignment is needed.
        _mm256_set1_epi64x(unsafe { x.as_ptr().cast::<i64>().read_unaligned() })
    }

    /// `x[at..at + 8] = v`.
    #[inline]
    pub(super) fn put_i32x8(x: &mut [i32], at: usize, v: __m256i) {
        let x = &mut x[at..at + 8];
        // SAFETY: the slice is 8 numbers; no alignment is needed.
        unsafe { _mm256_storeu_si256(x.as_mut_ptr().cast(), v) }
    }
}
