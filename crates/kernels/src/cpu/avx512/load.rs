//! Loads and stores whose bounds are checked: at compile time for groups of weights, whose length is a type.

use super::avx512;
use std::arch::x86_64::*;

macro_rules! weights {
    ($($(#[$attr:meta])* $name:ident: $vector:ty, $bytes:literal, $intrinsic:ident;)*) => {
        $(
            $(#[$attr])*
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            pub(super) fn $name<const AT: usize, const N: usize>(w: &[u8; N]) -> $vector {
                const { assert!(AT + $bytes <= N) };
                // SAFETY: in bounds by the assertion; the intrinsic needs no alignment.
                unsafe { $intrinsic(w.as_ptr().add(AT).cast()) }
            }
        )*
    };
}

weights! {
    /// Bytes `AT..AT + 16`.
    b16: __m128i, 16, _mm_loadu_si128;
    /// Bytes `AT..AT + 32`.
    b32: __m256i, 32, _mm256_loadu_si256;
    /// Bytes `AT..AT + 64`.
    b64: __m512i, 64, _mm512_loadu_si512;
}

avx512! {
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

    /// `x[..8]`.
    #[inline]
    pub(super) fn f32x8(x: &[f32]) -> __m256 {
        let x = &x[..8];
        // SAFETY: the slice is 8 floats; no alignment is needed.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }

    /// `x[..4]`.
    #[inline]
    pub(super) fn f32x4(x: &[f32]) -> __m128 {
        let x = &x[..4];
        // SAFETY: the slice is 4 floats; no alignment is needed.
        unsafe { _mm_loadu_ps(x.as_ptr()) }
    }

    /// `x[at..at + 32]`.
    #[inline]
    pub(super) fn i8x32(x: &[i8], at: usize) -> __m256i {
        let x = &x[at..at + 32];
        // SAFETY: the slice is 32 bytes; no alignment is needed.
        unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
    }

    /// `x[at..at + 16]`.
    #[inline]
    pub(super) fn i8x16(x: &[i8], at: usize) -> __m128i {
        let x = &x[at..at + 16];
        // SAFETY: the slice is 16 bytes; no alignment is needed.
        unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
    }

    /// `x[at..at + 16]`.
    #[inline]
    pub(super) fn u8x16(x: &[u8], at: usize) -> __m128i {
        let x = &x[at..at + 16];
        // SAFETY: the slice is 16 bytes; no alignment is needed.
        unsafe { _mm_loadu_si128(x.as_ptr().cast()) }
    }

    /// `x[at..at + 32]`.
    #[inline]
    pub(super) fn u8x32(x: &[u8], at: usize) -> __m256i {
        let x = &x[at..at + 32];
        // SAFETY: the slice is 32 bytes; no alignment is needed.
        unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
    }

    /// `x[at..at + 32] = v`.
    #[inline]
    pub(super) fn put_i8x32(x: &mut [i8], at: usize, v: __m256i) {
        let x = &mut x[at..at + 32];
        // SAFETY: the slice is 32 bytes; no alignment is needed.
        unsafe { _mm256_storeu_si256(x.as_mut_ptr().cast(), v) }
    }

    /// `x[at..at + 64] = v`.
    #[inline]
    pub(super) fn put_i8x64(x: &mut [i8], at: usize, v: __m512i) {
        let x = &mut x[at..at + 64];
        // SAFETY: the slice is 64 bytes; no alignment is needed.
        unsafe { _mm512_storeu_si512(x.as_mut_ptr().cast(), v) }
    }

    /// `x[at..at + 64]`.
    #[inline]
    pub(super) fn i8x64(x: &[i8], at: usize) -> __m512i {
        let x = &x[at..at + 64];
        // SAFETY: the slice is 64 bytes; no alignment is needed.
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }
}

avx512! {
/// `v` with word `i` replaced by that at byte `AT + 2 i` of the group, for each bit `i` of `MASK`.
#[inline]
pub(super) fn words_over<const AT: usize, const MASK: u32, const N: usize>(v: __m512i, w: &[u8; N]) -> __m512i {
    const { assert!(AT + 64 <= N) };
    // SAFETY: in bounds by the assertion; the intrinsic needs no alignment.
    unsafe { _mm512_mask_loadu_epi16(v, MASK, w.as_ptr().add(AT).cast()) }
}
}
