//! Dot products of tiles: a lane is a row, so a word of the sixteen rows is two vectors, which meet four activations at a time,
//! broadcast to all lanes. Sums need no adding across lanes, and the scales of rows are decoded together.
//!
//! `vpmaddubsw` multiplies unsigned levels with activations and adds pairs in 16 bits, where there is room for more: levels up
//! to 15 give at most 2 * 15 * 127 a pair, so that the eight words of a block of 32 stay below 2^15; levels up to 31 leave room for
//! four words. Only then does `vpmaddwd` add pairs of those sums in 32 bits, each times the scale of a sub-block where there is one.
//!
//! What a format subtracts from its levels is subtracted in integers, as the sum of activations. A tile's bytes follow each
//! other, and so do the tiles: one stream through memory, which is asked for ahead.

use super::{
    super::{
        DTYPES, Tiles,
        drive::{self, ask_in_stream as ask},
        input::{Block, Input, SuperBlock},
    },
    avx2, load,
};
use crate::{dtype::DType, matrix::MatRef, quant::TILE};
use std::arch::x86_64::*;

/// Types whose rows are multiplied at the speed of memory as they are, but for short ones, each of which ends in a sum across lanes.
pub(super) const QUICK_ROWS: &[DType] = &[DType::F16];

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
    table[DType::Q6_K as usize] = Some(q6_k);
    table[DType::Q3_0 as usize] = Some(q3_0);
    table[DType::Q2_0 as usize] = Some(q2_0);
    table[DType::T2 as usize] = Some(t2);
    table[DType::Q8_H as usize] = Some(q8_h);
    table
};

/// Something of sixteen rows in 32 bits each: a word of their blocks, or sums.
type Ints = [__m256i; 2];
/// A number a row.
type Floats = [__m256; 2];

/// More make dense steps of one thread of a Zen 3 up to 10 % quicker and those of two, and sparse ones, as much slower.
const STREAMS: usize = 1;

avx2! {
    fn f16(m: MatRef, x: &Input, out: &mut [f32]) {
        let add = |w: &[u8; 32], x: f32, acc: Floats| {
            let x = _mm256_set1_ps(x);
            let w = sixteen_halves(w);
            [_mm256_fmadd_ps(w[0], x, acc[0]), _mm256_fmadd_ps(w[1], x, acc[1])]
        };
        let (fours, rest) = x.x().as_chunks::<4>();
        let tiles = m.data().chunks_exact(TILE * m.row_bytes());
        for (tile, out) in tiles.zip(out.chunks_exact_mut(TILE)) {
            let (w, w_rest) = tile.as_chunks::<32>().0.split_at(4 * fours.len());
            // Four sums, which do not wait for each other.
            let mut acc = [[_mm256_setzero_ps(); 2]; 4];
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
            for (half, out) in out.chunks_exact_mut(8).enumerate() {
                let pairs = [0, 2].map(|i| _mm256_add_ps(acc[i][half], acc[i + 1][half]));
                load::put_f32x8(out, 0, _mm256_add_ps(pairs[0], pairs[1]));
            }
        }
    }

    fn q8_0(m: MatRef, x: &Input, out: &mut [f32]) {
        let ones = [_mm256_set1_epi16(1); 2];
        tiles::<544, _>(m, x.blocks(), out, |w, x, acc| {
            let mut sums = nothing();
            for v in 0..8 {
                let (q, x) = (word(w, 32 + 64 * v), four(x.levels, v));
                // |w| (x sign w): the magnitude of -128 is 128 as an unsigned byte. A pair of those fills 16 bits.
                let pairs = both(q, |q| _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q)));
                sums = widen(pairs, ones, sums);
            }
            add(sixteen_halves(w), sums, x, acc)
        });
    }

    fn q4_0(m: MatRef, x: &Input, out: &mut [f32]) {
        sixteen_levels(m, x, out, 1, 8);
    }

    fn q8_h(m: MatRef, x: &Input, out: &mut [f32]) {
        sixteen_levels(m, x, out, 16, 120);
    }

    /// Blocks of a scale and nibbles: levels that far apart, less the offset.
    #[inline]
    fn sixteen_levels(m: MatRef, x: &Input, out: &mut [f32], apart: i16, offset: i32) {
        tiles::<288, _>(m, x.blocks(), out, |w, x, acc| {
            let sums = nibbles(w, 32, x);
            let sums = widen(sums, [_mm256_set1_epi16(apart); 2], start(x, offset));
            add(sixteen_halves(w), sums, x, acc)
        });
    }

    fn q4_1(m: MatRef, x: &Input, out: &mut [f32]) {
        tiles::<320, _>(m, x.blocks(), out, |w, x, acc| {
            let sums = nibbles(w, 64, x);
            let sums = widen(sums, [_mm256_set1_epi16(1); 2], nothing());
            add_affine(two_halves(word(w, 0)), sums, x, acc)
        });
    }

    /// Sums, in 16 bits, of products with a block of nibbles, which are at byte `at` of a tile's.
    #[inline]
    fn nibbles<const N: usize>(w: &[u8; N], at: usize, x: Block) -> Ints {
        let mut sums = nothing();
        for v in 0..4 {
            let [low, high] = halves(word(w, at + 64 * v));
            sums = meet(low, x, v, sums);
            sums = meet(high, x, 4 + v, sums);
        }
        sums
    }

    fn q5_0(m: MatRef, x: &Input, out: &mut [f32]) {
        tiles::<352, _>(m, x.blocks(), out, |w, x, acc| {
            let sums = five_bits(w, 32, x, start(x, 16));
            add(sixteen_halves(w), sums, x, acc)
        });
    }

    fn q5_1(m: MatRef, x: &Input, out: &mut [f32]) {
        tiles::<384, _>(m, x.blocks(), out, |w, x, acc| {
            let sums = five_bits(w, 64, x, nothing());
            add_affine(two_halves(word(w, 0)), sums, x, acc)
        });
    }

    /// Adds the products with a block's fifth bits and nibbles, which are from byte `at` of a tile's on.
    #[inline]
    fn five_bits<const N: usize>(w: &[u8; N], at: usize, x: Block, mut sums: Ints) -> Ints {
        // The same byte of a row's word of fifth bits four times, and the bit for each level of a group of four.
        let first = _mm256_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c, 0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c);
        let bits = _mm256_set1_epi32(0x8040_2010_u32 as i32);
        let with = |q: Ints, fifth: Ints, byte: usize| {
            let bytes = _mm256_add_epi8(first, _mm256_set1_epi8(byte as i8));
            let with = |half: usize| with_fifth(q[half], _mm256_shuffle_epi8(fifth[half], bytes), bits);
            [with(0), with(1)]
        };
        let odd = word(w, at);
        // The bits of even groups, where those of odd ones are.
        let even = both(odd, |f| _mm256_slli_epi32::<4>(f));
        for byte in 0..2 {
            let mut narrow = nothing();
            for (v, fifth) in [(2 * byte, even), (2 * byte + 1, odd)] {
                let [low, high] = halves(word(w, at + 64 + 64 * v));
                narrow = meet(with(low, fifth, byte), x, v, narrow);
                narrow = meet(with(high, fifth, 2 + byte), x, 4 + v, narrow);
            }
            sums = widen(narrow, [_mm256_set1_epi16(1); 2], sums);
        }
        sums
    }

    fn q3_0(m: MatRef, x: &Input, out: &mut [f32]) {
        let (first, second) = (_mm256_set1_epi8(7), _mm256_set1_epi8(0x38));
        let (pair, third) = (_mm256_set1_epi8(3), _mm256_set1_epi8(4));
        tiles::<224, _>(m, x.blocks(), out, |w, x, acc| {
            // As the format's drawing of tiles says. Sums of products with levels, and with levels where they lie three bits higher: of two
            // groups, 2 * 2 * 56 * 127, and no more.
            let (mut sums, mut eightfold) = (nothing(), nothing());
            let words = [word(w, 32), word(w, 96), word(w, 160)];
            for (v, w) in words.into_iter().enumerate() {
                sums = meet(both(w, |w| _mm256_and_si256(w, first)), x, 2 * v, sums);
            }
            let [a, b, c] = words;
            eightfold = meet(both(a, |a| _mm256_and_si256(a, second)), x, 1, eightfold);
            eightfold = meet(both(b, |b| _mm256_and_si256(b, second)), x, 3, eightfold);
            sums = meet(both(c, |c| _mm256_and_si256(_mm256_srli_epi16::<3>(c), first)), x, 5, sums);
            let with = |low, high| {
                let low = _mm256_and_si256(_mm256_srli_epi16::<6>(low), pair);
                _mm256_or_si256(low, _mm256_and_si256(high, third))
            };
            let six = |half: usize| with(a[half], _mm256_srli_epi16::<4>(c[half]));
            let seven = |half: usize| with(b[half], _mm256_srli_epi16::<5>(c[half]));
            sums = meet([six(0), six(1)], x, 6, sums);
            sums = meet([seven(0), seven(1)], x, 7, sums);
            for half in 0..2 {
                let more = _mm256_srai_epi16::<3>(eightfold[half]);
                sums[half] = _mm256_add_epi16(sums[half], more);
            }
            let sums = widen(sums, [_mm256_set1_epi16(1); 2], start(x, 4));
            add(sixteen_halves(w), sums, x, acc)
        });
    }

    fn q2_0(m: MatRef, x: &Input, out: &mut [f32]) {
        // Twice the sums, since levels are one and a half off.
        let twice = [_mm256_set1_epi16(2); 2];
        tiles::<160, _>(m, x.blocks(), out, |w, x, acc| {
            let sums = widen(two_bits(w, 32, x), twice, start(x, 3));
            add_times(sixteen_halves(w), sums, 0.5 * x.scale, acc)
        });
    }

    fn t2(m: MatRef, x: &Input, out: &mut [f32]) {
        let once = [_mm256_set1_epi16(1); 2];
        tiles::<128, _>(m, x.blocks(), out, |w, x, acc| {
            let sums = widen(two_bits(w, 0, x), once, start(x, 1));
            scaled(sums, x, acc)
        });
    }

    /// Sums, in 16 bits, of products with a block of two-bit levels, which are at byte `at` of a tile's.
    #[inline]
    fn two_bits<const N: usize>(w: &[u8; N], at: usize, x: Block) -> Ints {
        let (first, second) = (_mm256_set1_epi8(3), _mm256_set1_epi8(12));
        // Sums of products with levels, and with levels where they lie two bits higher.
        let (mut sums, mut fourfold) = (nothing(), nothing());
        // As the formats' drawings say: group 2 p + v is pair p of word v.
        for v in 0..2 {
            let w = word(w, at + 64 * v);
            for (p, w) in [(0, w), (2, both(w, |w| _mm256_srli_epi16::<4>(w)))] {
                sums = meet(both(w, |w| _mm256_and_si256(w, first)), x, 2 * p + v, sums);
                fourfold = meet(both(w, |w| _mm256_and_si256(w, second)), x, 2 * p + 2 + v, fourfold);
            }
        }
        for half in 0..2 {
            let more = _mm256_srai_epi16::<2>(fourfold[half]);
            sums[half] = _mm256_add_epi16(sums[half], more);
        }
        sums
    }

    fn q4_k(m: MatRef, x: &Input, out: &mut [f32]) {
        tiles::<2304, _>(m, x.super_blocks(), out, |w, x, acc| {
            super_block::<2304, 8>(w, x, acc, |chunk, v, half| {
                let q = next(w, 256 + 512 * chunk + 64 * v + 32 * half);
                [low(q), low(_mm256_srli_epi16::<4>(q))]
            })
        });
    }

    fn q5_k(m: MatRef, x: &Input, out: &mut [f32]) {
        tiles::<2816, _>(m, x.super_blocks(), out, |w, x, acc| {
            for v in 0..8 {
                ask(w, 256 + 64 * v);
            }
            super_block::<2816, 4>(w, x, acc, |chunk, v, half| {
                // The bits of the first chunks, where those of the last are.
                let up = _mm256_set1_epi32(if chunk < 2 { 4 } else { 0 });
                let fifth = _mm256_sllv_epi32(load::u8x32(w, 256 + 64 * v + 32 * half), up);
                let bit = |i: usize| _mm256_set1_epi8((16_u8 << (2 * chunk % 4 + i)) as i8);
                let q = next(w, 768 + 512 * chunk + 64 * v + 32 * half);
                [
                    with_fifth(low(q), fifth, bit(0)),
                    with_fifth(low(_mm256_srli_epi16::<4>(q)), fifth, bit(1)),
                ]
            })
        });
    }

    /// Adds the products of a block of a format that begins as Q4_K does. `levels(chunk, v, half)` gives word `v` of sub-blocks
    /// `2 chunk` and `2 chunk + 1` for that half of the rows, so small that products with `ROOM` words can be added in 16 bits.
    #[inline]
    fn super_block<const N: usize, const ROOM: usize>(
        w: &[u8; N],
        x: SuperBlock,
        mut acc: Floats,
        levels: impl Fn(usize, usize, usize) -> [__m256i; 2],
    ) -> Floats {
        let six = _mm256_set1_epi8(63);
        // Four bits of a byte of `rest`, below the upper two bits of one of `upper`.
        let later = |rest, upper| {
            let upper = _mm256_and_si256(_mm256_srli_epi16::<2>(upper), _mm256_set1_epi8(0x30));
            _mm256_or_si256(low(rest), upper)
        };
        let [d, dmin] = two_halves(word(w, 0));
        // Half of the rows at a time, or registers would not do.
        for (half, acc) in acc.iter_mut().enumerate() {
            let at = |word: usize| next(w, 64 * word + 32 * half);
            let (s, n, rest) = (at(1), at(2), at(3));
            let factors = [_mm256_and_si256(s, six), later(rest, s)];
            let minima = [_mm256_and_si256(n, six), later(_mm256_srli_epi16::<4>(rest), n)];
            let (mut products, mut below) = (_mm256_setzero_ps(), _mm256_setzero_ps());
            for chunk in 0..4 {
                let mut sums = [_mm256_setzero_si256(); 2];
                for part in 0..8 / ROOM {
                    let mut narrow = [_mm256_setzero_si256(); 2];
                    for v in ROOM * part..ROOM * part + ROOM {
                        let q = levels(chunk, v, half);
                        for i in 0..2 {
                            narrow[i] = meet_eight(q[i], four(x.levels, 8 * (2 * chunk + i) + v), narrow[i]);
                        }
                    }
                    for i in 0..2 {
                        let factor = spread_byte(factors[chunk / 2], 2 * chunk % 4 + i);
                        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(narrow[i], factor));
                    }
                }
                for (i, sums) in sums.into_iter().enumerate() {
                    let j = 2 * chunk + i;
                    products = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(x.scales[j]), products);
                    // The byte alone in its lane.
                    let min = _mm256_srlv_epi32(minima[chunk / 2], _mm256_set1_epi32(8 * (j % 4) as i32));
                    let min = _mm256_cvtepi32_ps(_mm256_and_si256(min, _mm256_set1_epi32(255)));
                    below = _mm256_fmadd_ps(min, _mm256_set1_ps(x.sums[j]), below);
                }
            }
            *acc = _mm256_fmadd_ps(products, d[half], *acc);
            *acc = _mm256_fnmadd_ps(below, dmin[half], *acc);
        }
        acc
    }

    fn q6_k(m: MatRef, x: &Input, out: &mut [f32]) {
        const BYTES: usize = 3360;
        let upper = _mm256_set1_epi8(0x30);
        let six = |q, high| _mm256_or_si256(low(q), _mm256_and_si256(high, upper));
        tiles::<BYTES, _>(m, x.super_blocks(), out, |w, x, mut acc| {
            let d = sixteen_halves(w);
            let mut starts = [_mm256_setzero_si256(); 16];
            for (j, starts) in starts.as_chunks_mut().0.iter_mut().enumerate() {
                *starts = less_32(load::i8x32(x.levels, 32 * j));
            }
            for (half, acc) in acc.iter_mut().enumerate() {
                let at = |word: usize| 32 + 64 * word + 32 * half;
                let mut products = _mm256_setzero_ps();
                // As the format's drawing says: half h of a block has its low nibbles from word 16 h on, its upper pairs from word
                // 32 + 8 h on. The 32 bytes k of its nibbles belong to blocks k and k + 2 of the activations' four.
                for h in 0..2 {
                    for k in 0..2 {
                        let blocks = [4 * h + k, 4 * h + k + 2];
                        let mut sums = [_mm256_setzero_si256(); 2];
                        for s in 0..2 {
                            let mut narrow = [starts[2 * blocks[0] + s], starts[2 * blocks[1] + s]];
                            for v in 4 * s..4 * s + 4 {
                                let word = 16 * h + 8 * k + v;
                                // Every second line with each half of the rows, or all requests came with the first; and further
                                // ahead, since the first half of the next block needs all of them.
                                if word < BYTES / 128 + 1 {
                                    ask(w, 1024 + 64 * (2 * word + half));
                                }
                                let q = load::u8x32(w, at(word));
                                let high = load::u8x32(w, at(32 + 8 * h + v));
                                let high = _mm256_srlv_epi32(high, _mm256_set1_epi32(2 * k as i32));
                                let q = [
                                    six(q, _mm256_slli_epi16::<4>(high)),
                                    six(_mm256_srli_epi16::<4>(q), high),
                                ];
                                for i in 0..2 {
                                    narrow[i] = meet_eight(q[i], four(x.levels, 8 * blocks[i] + v), narrow[i]);
                                }
                            }
                            for i in 0..2 {
                                let j = 2 * blocks[i] + s;
                                let factor = spread_byte(load::u8x32(w, at(48 + j / 4)), j % 4);
                                sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(narrow[i], factor));
                            }
                        }
                        for i in 0..2 {
                            let scale = _mm256_set1_ps(x.scales[blocks[i]]);
                            products = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[i]), scale, products);
                        }
                    }
                }
                *acc = _mm256_fmadd_ps(products, d[half], *acc);
            }
            acc
        });
    }

    /// What 32 below each level takes off the products with the first and the second half of a block, in 16 bits, where the rest of
    /// four words, at most 8 * 32 * 127, has room: every two activations of four by themselves.
    #[inline]
    fn less_32(levels: __m256i) -> [__m256i; 2] {
        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(32), levels);
        let pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b01_00_11_10>(pairs));
        let pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32::<0b10_11_00_01>(pairs));
        let less = _mm256_sub_epi16(_mm256_setzero_si256(), pairs);
        [_mm256_permute2x128_si256::<0x00>(less, less), _mm256_permute2x128_si256::<0x11>(less, less)]
    }

    /// [`drive::tiles`] with two vectors of rows.
    #[inline]
    fn tiles<const N: usize, B: Copy>(
        m: MatRef,
        x: impl Iterator<Item = B> + Clone,
        out: &mut [f32],
        step: impl Fn(&[u8; N], B, Floats) -> Floats,
    ) {
        let put = |out: &mut [f32], [low, high]: Floats| {
            load::put_f32x8(out, 0, low);
            load::put_f32x8(out, 8, high);
        };
        drive::tiles::<STREAMS, N, _, _>(m, x, out, [_mm256_setzero_ps(); 2], step, put);
    }

    /// The word at byte `at` of a tile's block.
    #[inline]
    fn word<const N: usize>(w: &[u8; N], at: usize) -> Ints {
        [next(w, at), load::u8x32(w, at + 32)]
    }

    /// Eight rows' word at byte `at` of a tile's block, while what comes later is asked for.
    #[inline]
    fn next<const N: usize>(w: &[u8; N], at: usize) -> __m256i {
        ask(w, at);
        load::u8x32(w, at)
    }

    /// `f` of both vectors.
    #[inline]
    fn both(v: Ints, f: impl Fn(__m256i) -> __m256i) -> Ints {
        [f(v[0]), f(v[1])]
    }

    /// The low nibbles of bytes.
    #[inline]
    fn low(q: __m256i) -> __m256i {
        _mm256_and_si256(q, _mm256_set1_epi8(15))
    }

    /// Low nibbles, high nibbles.
    #[inline]
    fn halves(q: Ints) -> [Ints; 2] {
        [both(q, |q| low(q)), both(q, |q| low(_mm256_srli_epi16::<4>(q)))]
    }

    /// Nibbles with their fifth bits, which are set where that bit of `high`, from 16 up, is.
    #[inline]
    fn with_fifth(q: __m256i, high: __m256i, bit: __m256i) -> __m256i {
        let fifth = _mm256_min_epu8(_mm256_and_si256(high, bit), _mm256_set1_epi8(16));
        _mm256_or_si256(q, fifth)
    }

    /// Sums of nothing yet.
    #[inline]
    fn nothing() -> Ints {
        [_mm256_setzero_si256(); 2]
    }

    /// Activations `4 group..4 group + 4`, in all lanes.
    #[inline]
    fn four<const L: usize>(x: &[i8; L], group: usize) -> __m256i {
        let x = &x[4 * group..4 * group + 4];
        _mm256_set1_epi32(i32::from_le_bytes([x[0] as u8, x[1] as u8, x[2] as u8, x[3] as u8]))
    }

    /// Adds, in 16 bits, pairs of products of levels with activations `4 group..4 group + 4` of a block.
    #[inline]
    fn meet(q: Ints, x: Block, group: usize, sums: Ints) -> Ints {
        let x = four(x.levels, group);
        [meet_eight(q[0], x, sums[0]), meet_eight(q[1], x, sums[1])]
    }

    /// The same with the levels of eight rows.
    #[inline]
    fn meet_eight(q: __m256i, x: __m256i, sums: __m256i) -> __m256i {
        _mm256_add_epi16(sums, _mm256_maddubs_epi16(q, x))
    }

    /// Adds a row's two sums of 16 bits, each times its factor, to that of 32.
    #[inline]
    fn widen(narrow: Ints, factor: Ints, sums: Ints) -> Ints {
        let add = |half: usize| _mm256_add_epi32(sums[half], _mm256_madd_epi16(narrow[half], factor[half]));
        [add(0), add(1)]
    }

    /// Byte `i` of every row's four, with its sign, in both halves of its lane.
    #[inline]
    fn spread_byte(v: __m256i, i: usize) -> __m256i {
        // Into the upper byte of each half; 0x80 leaves the lower one empty.
        let first = _mm256_setr_epi32(
            0x0080_0080, 0x0480_0480, 0x0880_0880, 0x0c80_0c80, 0x0080_0080, 0x0480_0480, 0x0880_0880, 0x0c80_0c80,
        );
        let at = _mm256_add_epi16(first, _mm256_set1_epi16((i as i16) << 8));
        _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(v, at))
    }

    /// Sums that begin at what `offset` takes off the products with a block.
    #[inline]
    fn start(x: Block, offset: i32) -> Ints {
        [_mm256_set1_epi32(-offset * x.total); 2]
    }

    /// Adds the sums for a block, times its scale.
    #[inline]
    fn scaled(sums: Ints, x: Block, acc: Floats) -> Floats {
        let scale = _mm256_set1_ps(x.scale);
        let add = |half: usize| _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[half]), scale, acc[half]);
        [add(0), add(1)]
    }

    /// The same for weights that have a scale a row as well.
    #[inline]
    fn add(d: Floats, sums: Ints, x: Block, acc: Floats) -> Floats {
        add_times(d, sums, x.scale, acc)
    }

    /// The same where the scale is another one.
    #[inline]
    fn add_times(d: Floats, sums: Ints, scale: f32, acc: Floats) -> Floats {
        let scale = _mm256_set1_ps(scale);
        let add = |half: usize| {
            let sum = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[half]), scale);
            _mm256_fmadd_ps(sum, d[half], acc[half])
        };
        [add(0), add(1)]
    }

    /// The same for weights `d q + m`.
    #[inline]
    fn add_affine([d, m]: [Floats; 2], sums: Ints, x: Block, acc: Floats) -> Floats {
        let acc = add(d, sums, x, acc);
        let sum = _mm256_set1_ps(x.sum);
        [_mm256_fmadd_ps(m[0], sum, acc[0]), _mm256_fmadd_ps(m[1], sum, acc[1])]
    }

    /// The `f16` that a block of a tile begins with, one a row.
    #[inline]
    fn sixteen_halves<const N: usize>(w: &[u8; N]) -> Floats {
        ask(w, 0);
        [_mm256_cvtph_ps(load::b16::<0, N>(w)), _mm256_cvtph_ps(load::b16::<16, N>(w))]
    }

    /// The lower and the upper `f16` of each word.
    #[inline]
    fn two_halves(v: Ints) -> [Floats; 2] {
        let apart = _mm256_setr_epi8(
            0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
            0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
        );
        let v = both(v, |v| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_shuffle_epi8(v, apart)));
        [
            [_mm256_cvtph_ps(_mm256_castsi256_si128(v[0])), _mm256_cvtph_ps(_mm256_castsi256_si128(v[1]))],
            [
                _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(v[0])),
                _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(v[1])),
            ],
        ]
    }
}
