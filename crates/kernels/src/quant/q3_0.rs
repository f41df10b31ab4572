//! Q3_0: 32 three-bit levels around 4 under one scale of either sign; 3.5 bits a weight.
//!
//! ```text
//! byte  0      2                          10                       14
//!       | d    | qs[0] qs[1] ...   qs[7]  | qh[0] qh[1] ... qh[3]  |
//!       | f16  | four pairs of low bits   | eight third bits       |
//!
//! bits 2 p and 2 p + 1 of qs[i]: low bits of element i + 8 p
//! bits 2, 3, 6 and 7 of qh[i]:   third bits of elements i,     i + 8,  i + 16 and i + 24
//! bits 0, 1, 4 and 5 of qh[i]:   third bits of elements i + 4, i + 12, i + 20 and i + 28
//! w = d * (q - 4)
//! ```
//!
//! Low bits lie as in Q2_0. Third bits lie so that the four bytes twice in a row, the second time shifted left by two,
//! have at bits 2 and 6 of byte `i` what belongs above the low bits 0-1 and 4-5 of `qs[i]`, and shifted right by one, what
//! belongs above its bits 2-3 and 6-7 when those are shifted right by two.
//!
//! In tiles ([`super::tiles`]) the same bits are drawn anew, so that six of a row's eight groups of four elements take one instruction to single out:
//!
//! ```text
//! bits of byte i of | 0-2         | 3-5         | 6-7                                                  |
//! word 0            | element i   | i + 4       | low bits of i + 24                                   |
//! word 1            | i + 8       | i + 12      | low bits of i + 28                                   |
//! word 2            | i + 16      | i + 20      | third bit of i + 24, third bit of i + 28             |
//! ```
//!
//! Four levels below zero and three above lose less than four and four between which zero lies (d * (q - 3.5)): on normal
//! weights a tenth of the squared error, since the sign of the scale chooses the side.

use super::{
    Format, fit, half_at, put_half,
    q2_0::{levels, put_levels},
};
use crate::dtype::DType;

pub(crate) struct Q3_0;

const LEVELS: fit::Levels = fit::Levels { max: 7, zero: 4.0 };

impl Format for Q3_0 {
    const DTYPE: DType = DType::Q3_0;

    #[inline(always)]
    fn unpack(block: &[u8], out: &mut [f32]) {
        let d = half_at(block, 0);
        let low = levels(&block[2..10]);
        let high = &block[10..14];
        for (j, (w, low)) in out.iter_mut().zip(low).enumerate() {
            let q = low | (high[j % 4] >> third_bit(j) & 1) << 2;
            *w = d * f32::from(q as i8 - 4);
        }
    }

    fn pack(x: &[f32], block: &mut [u8]) {
        let d = put_half(block, 0, LEVELS.scale(x));
        let q = LEVELS.nearest(d, x);
        put_levels(&mut block[2..10], q);
        block[10..14].fill(0);
        for (j, q) in q.into_iter().enumerate() {
            block[10 + j % 4] |= q >> 2 << third_bit(j);
        }
    }
}

/// A bit of each of four bytes.
const ONES: u32 = 0x0101_0101;
const BYTES: usize = DType::Q3_0.block_bytes();

/// A block as tiles have it, from one of a row.
pub(super) fn to_tile(block: &[u8]) -> [u8; BYTES] {
    redrawn(block, |row| {
        let group = |g: usize| {
            let low = row[g % 2] >> (2 * (g / 2)) & (3 * ONES);
            low | (row[2] >> third_bit(4 * g) & ONES) << 2
        };
        let (six, seven) = (group(6), group(7));
        [
            group(0) | group(1) << 3 | (six & (3 * ONES)) << 6,
            group(2) | group(3) << 3 | (seven & (3 * ONES)) << 6,
            group(4) | group(5) << 3 | (six >> 2 & ONES) << 6 | (seven >> 2 & ONES) << 7,
        ]
    })
}

/// The reverse of [`to_tile`].
pub(super) fn to_row(block: &[u8]) -> [u8; BYTES] {
    redrawn(block, |tile| {
        let mut row = [0; 3];
        for g in 0..8 {
            let q = match g {
                6 | 7 => tile[g - 6] >> 6 & (3 * ONES) | (tile[2] >> g & ONES) << 2,
                _ => tile[g / 2] >> (3 * (g % 2)) & (7 * ONES),
            };
            row[g % 2] |= (q & (3 * ONES)) << (2 * (g / 2));
            row[2] |= (q >> 2 & ONES) << third_bit(4 * g);
        }
        row
    })
}

/// The block with the words behind its scale replaced.
fn redrawn(block: &[u8], draw: impl Fn([u32; 3]) -> [u32; 3]) -> [u8; BYTES] {
    let mut out = [0; BYTES];
    let (scale, words) = block.split_at(2);
    let words = words.as_chunks::<4>().0;
    let drawn = draw(std::array::from_fn(|i| u32::from_le_bytes(words[i])));
    out[..2].copy_from_slice(scale);
    for (to, word) in out[2..].as_chunks_mut().0.iter_mut().zip(drawn) {
        *to = word.to_le_bytes();
    }
    out
}

/// Where element `j` has its third bit in byte `j % 4` of `qh`.
#[inline(always)]
pub(crate) fn third_bit(j: usize) -> usize {
    let second = j / 4 % 2;
    [2, 3, 6, 7][j / 8] - 2 * second
}
