//! Tiles: the rows of a matrix sixteen at a time, block by block, so that a vector holds the same elements of sixteen rows.
//!
//! ```text
//! a row's block:      | head | word 0 | word 1 | ...        in Q6_K:  | word 0 | word 1 | ... | head |
//! a block of a tile:  | heads of 16 rows | word 0 of 16 rows | word 1 of 16 rows | ...
//! ```
//!
//! A row's block is cut into a head, the bytes that are no whole word (the scale of formats whose blocks are 4 n + 2 bytes, otherwise
//! nothing), and words of four bytes. Nothing but the order of bytes changes, but for Q3_0, whose words are drawn anew ([`super::q3_0`]). Products with tiles need no sums across lanes and
//! decode the scales of sixteen rows at once: two to four times fewer instructions than row by row. In return
//! a row is no run of bytes any more: tiles are for matrices that are read as a whole.

use super::q3_0;
use crate::{
    bytes::{Buffer, Bytes},
    cpu::Team,
    dtype::DType,
    matrix::MatRef,
};
use std::ops::Range;

/// Rows of a tile.
pub const TILE: usize = 16;

/// Whether a matrix of that type can be laid out in tiles.
pub const fn has_tiles(dtype: DType) -> bool {
    matches!(
        dtype,
        DType::F16
            | DType::Q8_0
            | DType::Q4_0
            | DType::Q4_1
            | DType::Q5_0
            | DType::Q5_1
            | DType::Q4_K
            | DType::Q5_K
            | DType::Q6_K
            | DType::Q3_0
            | DType::Q2_0
            | DType::T2
            | DType::Q8_H
    )
}

/// Where the head is in a row's block.
fn head(dtype: DType) -> Range<usize> {
    let bytes = dtype.block_bytes();
    let len = bytes % 4;
    match dtype {
        DType::Q6_K => bytes - len..bytes,
        _ => 0..len,
    }
}

/// The bytes of a matrix of rows as tiles; `None` for a type that has no tiles, or rows that do not fill them.
///
/// # Panics
/// If the matrix is tiles already.
pub fn tile(m: MatRef, team: &mut Team) -> Option<Bytes> {
    if !has_tiles(m.dtype()) || !m.rows().is_multiple_of(TILE) {
        return None;
    }
    let (bytes, row_bytes) = (m.dtype().block_bytes(), m.row_bytes());
    let head = head(m.dtype());
    let mut out = Buffer::zeroed(m.rows() * row_bytes);
    team.split(&mut out, TILE * row_bytes, |at, part| {
        let first = at / row_bytes;
        for (i, tile) in part.chunks_exact_mut(TILE * row_bytes).enumerate() {
            let rows: [_; TILE] = std::array::from_fn(|r| m.row(first + i * TILE + r));
            for (b, out) in tile.chunks_exact_mut(TILE * bytes).enumerate() {
                let blocks = rows.map(|row| &row[b * bytes..][..bytes]);
                match m.dtype() {
                    DType::Q3_0 => {
                        let drawn = blocks.map(q3_0::to_tile);
                        put_blocks(drawn.each_ref().map(|b| &b[..]), head.clone(), out);
                    }
                    _ => put_blocks(blocks, head.clone(), out),
                }
            }
        }
    });
    Some(out.into())
}

/// Puts the blocks of sixteen rows into that of a tile, in the order of the tile.
fn put_blocks(blocks: [&[u8]; TILE], head: Range<usize>, out: &mut [u8]) {
    let (heads, words) = out.split_at_mut(TILE * head.len());
    for (r, block) in blocks.iter().enumerate() {
        heads[r * head.len()..][..head.len()].copy_from_slice(&block[head.clone()]);
    }
    // A head is first or last.
    let rest = blocks.map(|block| match head.start {
        0 => block[head.end..].as_chunks::<4>().0,
        _ => block[..head.start].as_chunks::<4>().0,
    });
    for (w, words) in words
        .as_chunks_mut::<{ 4 * TILE }>()
        .0
        .iter_mut()
        .enumerate()
    {
        for (word, row) in words.as_chunks_mut::<4>().0.iter_mut().zip(&rest) {
            *word = row[w];
        }
    }
}

/// The block of row `r` of that of a tile.
fn take_block(block: &[u8], head: Range<usize>, r: usize, out: &mut [u8]) {
    let (heads, words) = block.split_at(TILE * head.len());
    let (before, rest) = out.split_at_mut(head.start);
    let (scale, behind) = rest.split_at_mut(head.len());
    scale.copy_from_slice(&heads[r * head.len()..][..head.len()]);
    let row = [before, behind].map(|words| words.as_chunks_mut::<4>().0);
    for (w, word) in row.into_iter().flatten().enumerate() {
        word.copy_from_slice(&words[4 * (TILE * w + r)..][..4]);
    }
}

/// Blocks `first..` of row `i` of tiles, as many as `out` has room for.
pub(super) fn take_blocks(m: MatRef, i: usize, first: usize, out: &mut [u8]) {
    let head = head(m.dtype());
    let bytes = m.dtype().block_bytes();
    let tile = &m.data()[i / TILE * TILE * m.row_bytes()..][..TILE * m.row_bytes()];
    let blocks = tile.chunks_exact(TILE * bytes).skip(first);
    for (out, block) in out.chunks_exact_mut(bytes).zip(blocks) {
        take_block(block, head.clone(), i % TILE, out);
        if m.dtype() == DType::Q3_0 {
            out.copy_from_slice(&q3_0::to_row(out));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{matrix::Layout, quant::blocks_of};

    #[test]
    fn tiles_are_rows_in_another_order() {
        let mut team = Team::new(2).unwrap();
        for dtype in DType::ALL {
            let cols = 2 * dtype.block_len().max(32);
            let row_bytes = dtype.row_bytes(cols).unwrap();
            let data: Vec<u8> = (0..3 * TILE * row_bytes)
                .map(|i| (i * 7 % 251) as u8)
                .collect();
            let m = MatRef::new(dtype, 3 * TILE, cols, &data).unwrap();
            let Some(tiles) = tile(m, &mut team) else {
                assert!(!has_tiles(dtype));
                continue;
            };
            let t = MatRef::with_layout(dtype, 3 * TILE, cols, Layout::Tiles, &tiles).unwrap();
            assert_eq!(*blocks_of(t), data, "{dtype}");
            let part = t.rows_range(TILE..3 * TILE);
            assert_eq!(*blocks_of(part), data[TILE * row_bytes..]);
            // Rows that do not fill a tile.
            let short = MatRef::new(dtype, TILE - 1, cols, &data[..(TILE - 1) * row_bytes]);
            assert!(tile(short.unwrap(), &mut team).is_none());
        }
    }

    #[test]
    #[should_panic(expected = "tiles and parts have no rows")]
    fn a_row_of_tiles_is_refused() {
        let data = [0; 16 * 18];
        let m = MatRef::with_layout(DType::Q4_0, 16, 32, Layout::Tiles, &data);
        let _ = m.unwrap().row(3);
    }
}
