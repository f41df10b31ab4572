//! Rows in parts: what the blocks of a row are made of, sorted, so that vectors of 64 bytes are full of one thing.
//!
//! ```text
//! a row of n groups of four 32s:  | levels of group 0 | ... n - 1 | fifth bits of group 0 | ... n - 1 | heads of block 0 | 1 | ...
//!
//! levels, 8 bits:  | 16 bytes, elements 0 to 15 of each of the four 32s | 16 bytes, elements 16 to 31 of each |
//! levels, 4 bits:  | 16 bytes of each of the four 32s, low nibbles elements 0 to 15, high nibbles elements 16 to 31 |
//! fifth bits:      | 16 bytes: bit r of byte i is that of element i of the r-th sixteen, in the order of 8-bit levels |
//! ```
//!
//! A head is the scales and minima of a block, as its format has them. Nothing but the order of bits changes, and the last
//! group is filled up with zeros. Rows can still be read one by one: parts are for those that are read only where a
//! neuron is kept. Fewer instructions take them apart than a row of blocks, whose 16 or so bytes of levels must be picked from
//! between scales.

use crate::{dtype::DType, matrix::MatRef};
use std::ops::Range;

/// Elements that share a vector of 4-bit levels.
pub(crate) const GROUP: usize = 128;

/// The sizes of what a block is made of.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    /// Bytes of levels in a group.
    levels: usize,
    /// Bytes of fifth bits in a group.
    fifth: usize,
    /// Bytes of a block's head.
    head: usize,
    /// Blocks in two groups.
    blocks: usize,
}

impl Parts {
    pub(crate) const fn of(dtype: DType) -> Option<Parts> {
        let (levels, fifth, head, blocks) = match dtype {
            DType::Q8_0 => (128, 0, 2, 8),
            DType::Q4_0 => (64, 0, 2, 8),
            DType::Q4_1 => (64, 0, 4, 8),
            DType::Q5_0 => (64, 16, 2, 8),
            DType::Q5_1 => (64, 16, 4, 8),
            DType::Q4_K => (64, 0, 16, 1),
            DType::Q5_K => (64, 16, 16, 1),
            _ => return None,
        };
        Some(Parts {
            levels,
            fifth,
            head,
            blocks,
        })
    }

    /// Bytes of levels, fifth bits and heads in a row of so many groups.
    pub(crate) const fn sizes(self, groups: usize) -> [usize; 3] {
        [
            groups * self.levels,
            groups * self.fifth,
            groups * self.blocks * self.head / 2,
        ]
    }

    fn split(self, row: &[u8], groups: usize) -> [&[u8]; 3] {
        let [levels, fifth, _] = self.sizes(groups);
        let (levels, rest) = row.split_at(levels);
        let (fifth, heads) = rest.split_at(fifth);
        [levels, fifth, heads]
    }

    fn split_mut(self, row: &mut [u8], groups: usize) -> [&mut [u8]; 3] {
        let [levels, fifth, _] = self.sizes(groups);
        let (levels, rest) = row.split_at_mut(levels);
        let (fifth, heads) = rest.split_at_mut(fifth);
        [levels, fifth, heads]
    }
}

/// Groups of a row of `cols` elements.
pub(crate) const fn groups(dtype: DType, cols: usize) -> usize {
    // Whole blocks: a K-quant's is two groups.
    let unit = if dtype.block_len() > GROUP {
        dtype.block_len()
    } else {
        GROUP
    };
    cols.next_multiple_of(unit) / GROUP
}

/// Whether rows of that type come in parts.
pub const fn has_parts(dtype: DType) -> bool {
    Parts::of(dtype).is_some()
}

/// Bytes of a row of `cols` elements in parts.
///
/// # Panics
/// If the type has no parts.
pub fn parts_bytes(dtype: DType, cols: usize) -> usize {
    let parts = Parts::of(dtype).unwrap_or_else(|| panic!("{dtype} has no parts"));
    parts.sizes(groups(dtype, cols)).iter().sum()
}

/// Writes row `i` of a matrix of rows of blocks in parts into zeros.
///
/// # Panics
/// If the type has no parts, or the matrix does not lie in rows of blocks.
pub(super) fn put_row(m: MatRef, i: usize, out: &mut [u8]) {
    let dtype = m.dtype();
    let parts = Parts::of(dtype).expect("the type has parts");
    let [levels, fifth, heads] = parts.split_mut(out, groups(dtype, m.cols()));
    let blocks = m.row(i).chunks_exact(dtype.block_bytes());
    for ((b, block), head) in blocks.enumerate().zip(heads.chunks_exact_mut(parts.head)) {
        head.copy_from_slice(&block[..parts.head]);
        let rest = &block[parts.head..];
        match dtype {
            DType::Q8_0 => {
                for (half, rest) in rest.chunks_exact(16).enumerate() {
                    levels[byte_levels_at(b, half)..][..16].copy_from_slice(rest);
                }
            }
            DType::Q4_0 | DType::Q4_1 => levels[16 * b..][..16].copy_from_slice(rest),
            DType::Q5_0 | DType::Q5_1 => {
                let (bits, nibbles) = rest.split_at(4);
                levels[16 * b..][..16].copy_from_slice(nibbles);
                for (half, bits) in bits.as_chunks().0.iter().enumerate() {
                    let (at, r) = fifth_of(b, half);
                    put_bits(u16::from_le_bytes(*bits), r, &mut fifth[at]);
                }
            }
            DType::Q4_K => swap_nibbles(rest, &mut levels[128 * b..][..128]),
            _ => {
                let (bits, nibbles) = rest.split_at(32);
                swap_nibbles(nibbles, &mut levels[128 * b..][..128]);
                for j in 0..8 {
                    for (half, bits) in bits.chunks_exact(16).enumerate() {
                        let (at, r) = fifth_of(8 * b + j, half);
                        put_bits(take_bits(bits, j), r, &mut fifth[at]);
                    }
                }
            }
        }
    }
}

/// Where the 8-bit levels of half a 32 are.
fn byte_levels_at(b: usize, half: usize) -> usize {
    b / 4 * 128 + half * 64 + b % 4 * 16
}

/// Where the bytes are that have the fifth bits of half a 32, and which bit of each it is.
fn fifth_of(b: usize, half: usize) -> (Range<usize>, usize) {
    let at = b / 4 * 16;
    (at..at + 16, half * 4 + b % 4)
}

/// Sets bit `r` of byte `i` where bit `i` of the word is; they are zero.
fn put_bits(word: u16, r: usize, bytes: &mut [u8]) {
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte |= ((word >> i & 1) as u8) << r;
    }
}

/// Bit `i` is bit `r` of byte `i`.
fn take_bits(bytes: &[u8], r: usize) -> u16 {
    let bits = bytes.iter().enumerate();
    bits.fold(0, |word, (i, byte)| word | u16::from(byte >> r & 1) << i)
}

/// From 64 elements to 32 bytes (low nibbles the first 32, high nibbles the last) to 32 elements to 16 bytes; and back, since that
/// only swaps the second and the third of each four sixteens.
fn swap_nibbles(from: &[u8], to: &mut [u8]) {
    for (from, to) in from.chunks_exact(32).zip(to.chunks_exact_mut(32)) {
        for i in 0..16 {
            let (a, b) = (from[i], from[16 + i]);
            to[i] = a & 15 | b << 4;
            to[16 + i] = a >> 4 | b & 0xf0;
        }
    }
}

/// Blocks `first..` of row `i` of a matrix of parts, as many as `out` has room for.
pub(super) fn take_blocks(m: MatRef, i: usize, first: usize, out: &mut [u8]) {
    let dtype = m.dtype();
    let parts = Parts::of(dtype).expect("a matrix of parts is of a type that has them");
    let [levels, fifth, heads] = parts.split(m.row_data(i), groups(dtype, m.cols()));
    for (b, block) in out.chunks_exact_mut(dtype.block_bytes()).enumerate() {
        let b = first + b;
        let (head, rest) = block.split_at_mut(parts.head);
        head.copy_from_slice(&heads[b * parts.head..][..parts.head]);
        match dtype {
            DType::Q8_0 => {
                for (half, rest) in rest.chunks_exact_mut(16).enumerate() {
                    rest.copy_from_slice(&levels[byte_levels_at(b, half)..][..16]);
                }
            }
            DType::Q4_0 | DType::Q4_1 => rest.copy_from_slice(&levels[16 * b..][..16]),
            DType::Q5_0 | DType::Q5_1 => {
                let (bits, nibbles) = rest.split_at_mut(4);
                nibbles.copy_from_slice(&levels[16 * b..][..16]);
                for (half, bits) in bits.as_chunks_mut().0.iter_mut().enumerate() {
                    let (at, r) = fifth_of(b, half);
                    *bits = take_bits(&fifth[at], r).to_le_bytes();
                }
            }
            DType::Q4_K => swap_nibbles(&levels[128 * b..][..128], rest),
            _ => {
                let (bits, nibbles) = rest.split_at_mut(32);
                swap_nibbles(&levels[128 * b..][..128], nibbles);
                bits.fill(0);
                for j in 0..8 {
                    for (half, bits) in bits.chunks_exact_mut(16).enumerate() {
                        let (at, r) = fifth_of(8 * b + j, half);
                        put_bits(take_bits(&fifth[at], r), j, bits);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Beside, RowForm, Rows, interleave},
        *,
    };
    use crate::cpu::Team;

    /// Bytes that differ, for a matrix of that type.
    fn bytes(dtype: DType, rows: usize, cols: usize) -> Vec<u8> {
        let len = rows * dtype.row_bytes(cols).unwrap();
        (0..len).map(|i| (i * 31 % 251) as u8).collect()
    }

    #[test]
    fn parts_are_blocks_in_another_order() {
        let mut team = Team::new(2).unwrap();
        for dtype in DType::ALL.into_iter().filter(|t| has_parts(*t)) {
            for cols in [1, 5, 28].map(|n| n * dtype.block_len().max(32)) {
                let data = bytes(dtype, 5, cols);
                let m = MatRef::new(dtype, 5, cols, &data).unwrap();
                let Beside { data, views } =
                    interleave(&[(Rows::Of(m), RowForm::Parts)], &mut team);
                let (range, layout) = views[0].clone();
                let p = MatRef::with_layout(dtype, 5, cols, layout, &data[range]).unwrap();
                for i in 0..5 {
                    let mut row = vec![0; m.row_bytes()];
                    take_blocks(p, i, 0, &mut row);
                    assert_eq!(row, m.row(i), "{dtype} {cols}");
                    let last = dtype.block_bytes();
                    let first = cols / dtype.block_len() - 1;
                    take_blocks(p, i, first, &mut row[..last]);
                    assert_eq!(row[..last], m.row(i)[first * last..], "{dtype} {cols}");
                }
            }
        }
    }

    #[test]
    fn a_group_is_halves_of_four() {
        // A level is its place: element e of Q4_0 is e modulo 16 in the first half of each 32, and 15 less that in the second.
        let mut block = [0u8; 18];
        block[2..]
            .iter_mut()
            .enumerate()
            .for_each(|(i, b)| *b = i as u8 | (15 - i as u8) << 4);
        let data = block.repeat(4);
        let m = MatRef::new(DType::Q4_0, 1, 128, &data).unwrap();
        let mut row = vec![0; parts_bytes(DType::Q4_0, 128)];
        put_row(m, 0, &mut row);
        for (i, b) in row[..64].iter().enumerate() {
            assert_eq!((*b & 15, *b >> 4), (i as u8 % 16, 15 - i as u8 % 16));
        }
    }
}
