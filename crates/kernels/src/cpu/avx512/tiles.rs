//! Dot products of tiles: a lane is a row, so sixteen rows meet four activations at a time, broadcast to all lanes. Sums need no
//! adding across lanes, and the scales of sixteen rows are decoded together.
//!
//! Levels are unsigned; what a format subtracts from them is subtracted in integers: sums start at minus that, times
//! the block's sum of activations. A tile's bytes follow each other, and so do the tiles: streams through memory, which are asked for ahead.

use super::{
    super::{
        DTYPES, Tiles,
        drive::{self, ask_in_stream as ask},
        input::{Block, Input, SuperBlock},
    },
    avx512, load,
};
use crate::{dtype::DType, matrix::MatRef, quant::TILE};
use std::arch::x86_64::*;

/// A single one comes to a thread of an Intel Xeon at some 12 GB/s, two at 14 to 17, as four of rows do at 17 to 19.
const STREAMS: usize = 2;

/// Types whose rows are multiplied at the speed of memory as they are, but for short ones, each of which ends in a sum across lanes.
pub(super) const QUICK_ROWS: &[DType] = &[DType::F16, DType::Q8_0];

/// Neither Q6_K nor Q2_0, whose longer rows are as quick as tiles.
pub(super) const TABLE: [Option<Tiles>; DTYPES] = {
    let mut table: [Option<Tiles>; DTYPES] = [None; DTYPES];
    table[DType::F16 as usize] = Some(f16);
    table[DType::Q8_0 as usize] = Some(q8_0);
    table[DType::Q4_0 as usize] = Some(q4_0);
    table[DType::Q4_1 as usize] = Some(q4_1);
    table[DType::Q5_0 as usize] = Some(q5_0);
    table[DType::Q5_1 as usize] = Some(q5_1);
    table[DType::Q4_K as usize] = Some(q4_k);
    table[DType::Q5_K as usize] = Some(q5_k);
    table[DType::Q3_0 as usize] = Some(q3_0);
    table[DType::T2 as usize] = Some(t2);
    table[DType::Q8_H as usize] = Some(q8_h);
    table
};

avx512! {
    fn f16(m: MatRef, x: &Input, out: &mut [f32]) {
        let add = |w: &[u8; 32], x: f32, acc| {
            _mm512_fmadd_ps(_mm512_cvtph_ps(load::b32::<0, 32>(w)), _mm512_set1_ps(x), acc)
        };
        let (fours, rest) = x.x().as_chunks::<4>();
        let tiles = m.data().chunks_exact(TILE * m.row_bytes());
        for (tile, out) in tiles.zip(out.chunks_exact_mut(TILE)) {
            let (w, w_rest) = tile.as_chunks::<32>().0.split_at(4 * fours.len());
            // Four sums, which do not wait for each other.
            let mut acc = [_mm512_setzero_ps(); 4];
            for (w, x) in w.as_chunks::<4>().0.iter().zip(fours) {
                ask(&w[0], 0);
                ask(&w[2], 0);
                for i in 0..4 {
                    acc[i] = add(&w[i], x[i], acc[i]);
                }
            }
            for (w, x) in w_rest.iter().zip(rest) {
                acc[0] = add(w, *x, acc[0]);
            }
            let pairs = [_mm512_add_ps(acc[0], acc[1]), _mm512_add_ps(acc[2], acc[3])];
            load::put_f32x16(out, 0, _mm512_add_ps(pairs[0], pairs[1]));
        }
    }

    fn q8_0(m: MatRef, x: &Input, out: &mut [f32]) {
        // Levels plus 128 are levels without a sign.
        let sign = _mm512_set1_epi8(i8::MIN);
        tiles::<544, _>(m, x.blocks(), out, |w, x, acc| {
            let mut sums = start(x, 128);
            for v in 0..8 {
                let q = _mm512_xor_si512(word(w, 32 + 64 * v), sign);
                sums[v % 2] = _mm512_dpbusd_epi32(sums[v % 2], q, four(x.levels, v));
            }
            add(w, sums, x, acc)
        });
    }

    fn q4_0(m: MatRef, x: &Input, out: &mut [f32]) {
        tiles::<288, _>(m, x.blocks(), out, |w, x, acc| {
            let q = |v: usize| halves(word(w, 32 + 64 * v));
            add(w, groups([q(0), q(1), q(2), q(3)], x, 8), x, acc)
        });
    }

    fn q8_h(m: MatRef, x: &Input, out: &mut [f32]) {
        // Sixteen times a level is the level in the upper half of its byte.
        let high = _mm512_set1_epi8(-16);
        let halves = |q| [_mm512_and_si512(_mm512_slli_epi16::<4>(q), high), _mm512_and_si512(q, high)];
        tiles::<288, _>(m, x.blocks(), out, |w, x, acc| {
            let q = |v: usize| halves(word(w, 32 + 64 * v));
            add(w, groups([q(0), q(1), q(2), q(3)], x, 120), x, acc)
        });
    }

    fn q4_1(m: MatRef, x: &Input, out: &mut [f32]) {
        tiles::<320, _>(m, x.blocks(), out, |w, x, acc| {
            let q = |v: usize| halves(word(w, 64 + 64 * v));
            add_affine(w, groups([q(0), q(1), q(2), q(3)], x, 0), x, acc)
        });
    }

    fn q5_0(m: MatRef, x: &Input, out: &mut [f32]) {
        tiles::<352, _>(m, x.blocks(), out, |w, x, acc| {
            add(w, five_bits(w, 32, x, start(x, 16)), x, acc)
        });
    }

    fn q5_1(m: MatRef, x: &Input, out: &mut [f32]) {
        tiles::<384, _>(m, x.blocks(), out, |w, x, acc| {
            add_affine(w, five_bits(w, 64, x, start(x, 0)), x, acc)
        });
    }

    /// Adds the products with a block's fifth bits and nibbles, which are from byte `at` of a tile's on.
    #[inline]
    fn five_bits<const N: usize>(w: &[u8; N], at: usize, x: Block, mut sums: [__m512i; 2]) -> [__m512i; 2] {
        // Which byte of a row's word has the fifth bits of a group of four, and which of its bits.
        let bytes = _mm512_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3);
        let bytes = _mm512_mullo_epi32(bytes, _mm512_set1_epi32(0x0404_0404));
        let bits = [_mm512_set1_epi32(0x0804_0201), _mm512_set1_epi32(0x8040_2010_u32 as i32)];
        let fifth = _mm512_set1_epi8(16);
        let high = word(w, at);
        let mut spread = [high; 4];
        for (i, s) in spread.iter_mut().enumerate() {
            let byte = _mm512_add_epi8(bytes, _mm512_set1_epi8(i as i8));
            *s = _mm512_shuffle_epi8(high, byte);
        }
        for v in 0..4 {
            let q = word(w, at + 64 + 64 * v);
            for (half, q) in halves(q).into_iter().enumerate() {
                let group = 4 * half + v;
                let set = _mm512_test_epi8_mask(spread[group / 2], bits[group % 2]);
                let q = _mm512_mask_add_epi8(q, set, q, fifth);
                sums[half] = _mm512_dpbusd_epi32(sums[half], q, four(x.levels, group));
            }
        }
        sums
    }

    fn q3_0(m: MatRef, x: &Input, out: &mut [f32]) {
        let (first, second) = (_mm512_set1_epi8(7), _mm512_set1_epi8(0x38));
        let third = _mm512_set1_epi8(4);
        // 0xca: first ? second : third. What lies beside the three bits is masked out.
        let with = |low, high| {
            let q = _mm512_ternarylogic_epi32::<0xca>(third, high, _mm512_srli_epi16::<6>(low));
            _mm512_and_si512(q, first)
        };
        tiles::<224, _>(m, x.blocks(), out, |w, x, acc| {
            // As the format's drawing of tiles says. Sums of products with levels, and with levels where they lie three bits higher.
            let mut sums = start(x, 4);
            let mut eightfold = _mm512_setzero_si512();
            let words = [word(w, 32), word(w, 96), word(w, 160)];
            for (v, w) in words.into_iter().enumerate() {
                sums[0] = _mm512_dpbusd_epi32(sums[0], _mm512_and_si512(w, first), four(x.levels, 2 * v));
                let higher = _mm512_and_si512(w, second);
                eightfold = _mm512_dpbusd_epi32(eightfold, higher, four(x.levels, 2 * v + 1));
            }
            let [a, b, c] = words;
            let rest = [with(a, _mm512_srli_epi16::<4>(c)), with(b, _mm512_srli_epi16::<5>(c))];
            for (i, q) in rest.into_iter().enumerate() {
                sums[1] = _mm512_dpbusd_epi32(sums[1], q, four(x.levels, 6 + i));
            }
            sums[1] = _mm512_add_epi32(sums[1], _mm512_srai_epi32::<3>(eightfold));
            add(w, sums, x, acc)
        });
    }

    fn t2(m: MatRef, x: &Input, out: &mut [f32]) {
        let pair = _mm512_set1_epi8(3);
        tiles::<128, _>(m, x.blocks(), out, |w, x, acc| {
            let mut sums = start(x, 1);
            // As the format's drawing says: group 2 p + v is pair p of word v.
            for (v, sum) in sums.iter_mut().enumerate() {
                let w = word(w, 64 * v);
                let q = [
                    w,
                    _mm512_srli_epi16::<2>(w),
                    _mm512_srli_epi16::<4>(w),
                    _mm512_srli_epi16::<6>(w),
                ];
                for (p, q) in q.into_iter().enumerate() {
                    let q = _mm512_and_si512(q, pair);
                    *sum = _mm512_dpbusd_epi32(*sum, q, four(x.levels, 2 * p + v));
                }
            }
            let sum = _mm512_cvtepi32_ps(_mm512_add_epi32(sums[0], sums[1]));
            _mm512_fmadd_ps(sum, _mm512_set1_ps(x.scale), acc)
        });
    }

    fn q4_k(m: MatRef, x: &Input, out: &mut [f32]) {
        tiles::<2304, _>(m, x.super_blocks(), out, |w, x, acc| {
            super_block(w, x, acc, |chunk, v| halves(word(w, 256 + 512 * chunk + 64 * v)))
        });
    }

    fn q5_k(m: MatRef, x: &Input, out: &mut [f32]) {
        let fifth = _mm512_set1_epi8(16);
        tiles::<2816, _>(m, x.super_blocks(), out, |w, x, acc| {
            for v in 0..8 {
                ask(w, 256 + 64 * v);
            }
            super_block(w, x, acc, |chunk, v| {
                let high = load::u8x64(w, 256 + 64 * v);
                let [low, upper] = halves(word(w, 768 + 512 * chunk + 64 * v));
                let with = |q, j: usize| {
                    let set = _mm512_test_epi8_mask(high, _mm512_set1_epi8((1_u8 << j) as i8));
                    _mm512_mask_add_epi8(q, set, q, fifth)
                };
                [with(low, 2 * chunk), with(upper, 2 * chunk + 1)]
            })
        });
    }

    /// Adds the products of a block of a format that begins as Q4_K does. `levels(chunk, v)` gives word `v` of sub-blocks `2 chunk` and
    /// `2 chunk + 1`.
    #[inline]
    fn super_block<const N: usize>(
        w: &[u8; N],
        x: SuperBlock,
        acc: __m512,
        levels: impl Fn(usize, usize) -> [__m512i; 2],
    ) -> __m512 {
        let six = _mm512_set1_epi32(63);
        let low = _mm512_set1_epi32(15);
        // Bits 6 and 7 of a byte, as bits 4 and 5.
        let upper = _mm512_set1_epi32(0x30);
        let at = |v, bits: i32| _mm512_srlv_epi32(v, _mm512_set1_epi32(bits));
        let [s, n, rest] = [word(w, 64), word(w, 128), word(w, 192)];
        let (mut scaled, mut minima) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        for chunk in 0..4 {
            let mut sums = [_mm512_setzero_si512(); 2];
            for v in 0..8 {
                let [low, high] = levels(chunk, v);
                sums[0] = _mm512_dpbusd_epi32(sums[0], low, four(x.levels, 8 * 2 * chunk + v));
                sums[1] = _mm512_dpbusd_epi32(sums[1], high, four(x.levels, 8 * (2 * chunk + 1) + v));
            }
            for (half, sum) in sums.into_iter().enumerate() {
                let j = 2 * chunk + half;
                let byte = 8 * (j % 4) as i32;
                let (scale, min) = if j < 4 {
                    (_mm512_and_si512(at(s, byte), six), _mm512_and_si512(at(n, byte), six))
                } else {
                    let scale = _mm512_and_si512(at(rest, byte), low);
                    let min = _mm512_and_si512(at(rest, byte + 4), low);
                    (
                        _mm512_or_si512(scale, _mm512_and_si512(at(s, byte + 2), upper)),
                        _mm512_or_si512(min, _mm512_and_si512(at(n, byte + 2), upper)),
                    )
                };
                let product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(x.scales[j]));
                scaled = _mm512_fmadd_ps(product, _mm512_cvtepi32_ps(scale), scaled);
                minima = _mm512_fmadd_ps(_mm512_set1_ps(x.sums[j]), _mm512_cvtepi32_ps(min), minima);
            }
        }
        let [d, dmin] = two_halves(w);
        _mm512_fnmadd_ps(minima, dmin, _mm512_fmadd_ps(scaled, d, acc))
    }

    /// [`drive::tiles`] with a lane a row.
    #[inline]
    fn tiles<const N: usize, B: Copy>(
        m: MatRef,
        x: impl Iterator<Item = B> + Clone,
        out: &mut [f32],
        step: impl Fn(&[u8; N], B, __m512) -> __m512,
    ) {
        let put = |out: &mut [f32], acc| load::put_f32x16(out, 0, acc);
        drive::tiles::<STREAMS, N, _, _>(m, x, out, _mm512_setzero_ps(), step, put);
    }

    /// The word at byte `at` of a tile's block, one a row, while what comes later is asked for.
    #[inline]
    fn word<const N: usize>(w: &[u8; N], at: usize) -> __m512i {
        ask(w, at);
        load::u8x64(w, at)
    }

    /// Activations `4 group..4 group + 4`, in all lanes.
    #[inline]
    fn four<const L: usize>(x: &[i8; L], group: usize) -> __m512i {
        let x = &x[4 * group..4 * group + 4];
        _mm512_set1_epi32(i32::from_le_bytes([x[0] as u8, x[1] as u8, x[2] as u8, x[3] as u8]))
    }

    /// Low nibbles, high nibbles.
    #[inline]
    fn halves(q: __m512i) -> [__m512i; 2] {
        let low = _mm512_set1_epi8(15);
        [_mm512_and_si512(q, low), _mm512_and_si512(_mm512_srli_epi16::<4>(q), low)]
    }

    /// Sums of products of levels with a block: the first of each pair are groups 0 to 3, the second 4 to 7.
    #[inline]
    fn groups(q: [[__m512i; 2]; 4], x: Block, offset: i32) -> [__m512i; 2] {
        let mut sums = start(x, offset);
        for (v, [low, high]) in q.into_iter().enumerate() {
            sums[0] = _mm512_dpbusd_epi32(sums[0], low, four(x.levels, v));
            sums[1] = _mm512_dpbusd_epi32(sums[1], high, four(x.levels, 4 + v));
        }
        sums
    }

    /// Two sums, of which one starts at what `offset` takes off the products with a block.
    #[inline]
    fn start(x: Block, offset: i32) -> [__m512i; 2] {
        [_mm512_set1_epi32(-offset * x.total), _mm512_setzero_si512()]
    }

    /// Adds the sums for a block, scaled; the tile's block begins with the scales of its rows.
    #[inline]
    fn add<const N: usize>(w: &[u8; N], sums: [__m512i; 2], x: Block, acc: __m512) -> __m512 {
        // Words begin behind the scales: a line in five would not be asked for.
        ask(w, 0);
        let sum = _mm512_cvtepi32_ps(_mm512_add_epi32(sums[0], sums[1]));
        let scaled = _mm512_mul_ps(sum, _mm512_set1_ps(x.scale));
        _mm512_fmadd_ps(scaled, _mm512_cvtph_ps(load::b32::<0, N>(w)), acc)
    }

    /// Adds the sums for a block, scaled, of weights `d q + m`; the tile's block begins with `d` and `m` of its rows.
    #[inline]
    fn add_affine<const N: usize>(w: &[u8; N], sums: [__m512i; 2], x: Block, acc: __m512) -> __m512 {
        let [d, m] = two_halves(w);
        let sum = _mm512_cvtepi32_ps(_mm512_add_epi32(sums[0], sums[1]));
        let acc = _mm512_fmadd_ps(_mm512_mul_ps(sum, _mm512_set1_ps(x.scale)), d, acc);
        _mm512_fmadd_ps(m, _mm512_set1_ps(x.sum), acc)
    }

    /// The lower and the upper `f16` of the first word of each row.
    #[inline]
    fn two_halves<const N: usize>(w: &[u8; N]) -> [__m512; 2] {
        let both = word(w, 0);
        let half = |v| _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
        [half(both), half(_mm512_srli_epi32::<16>(both))]
    }
}
