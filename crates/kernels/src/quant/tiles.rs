//! Tiles: the rows of a matrix sixteen at a time, block by block, so that a vector holds the same elements of sixteen rows.
//!
//! ```text
//! a block of a tile:  | heads of 16 rows | word 0 of 16 rows | word 1 of 16 rows | ...
//! ```
//!
//! A row's block is cut into a head, the bytes that are no whole word (the scale of formats whose blocks are 4 n + 2 bytes, otherwise
//! nothing), and words of four bytes. Nothing but the order of bytes changes. Products with tiles need no sums across lanes and
//! decode the scales of sixteen rows at once: two to four times fewer instructions than row by row. In return
//! a row is no run of bytes any more: tiles are for matrices that are read as a whole.

use crate::{cpu::Team, dtype::DType, matrix::MatRef};

/// Rows of a tile.
pub const TILE: usize = 16;

/// Whether a matrix of that type can be laid out in tiles.
pub const fn has_tiles(dtype: DType) -> bool {
    matches!(
        dtype,
        DType::F16
            | DType::Q4_0
            | DType::Q5_0
            | DType::Q4_K
            | DType::Q3_0
            | DType::T2
            | DType::Q8_H
    )
}

/// Where the first word of a row is in the block of a tile, for blocks of `bytes`.
fn first_word(bytes: usize, row: usize) -> usize {
    TILE * (bytes % 4) + 4 * row
}

/// The bytes of a matrix of rows as tiles; `None` for a type that has no tiles, or rows that do not fill them.
///
/// # Panics
/// If the matrix is tiles already.
pub fn tile(m: MatRef, team: &mut Team) -> Option<Vec<u8>> {
    if !has_tiles(m.dtype()) || !m.rows().is_multiple_of(TILE) {
        return None;
    }
    let (bytes, row_bytes) = (m.dtype().block_bytes(), m.row_bytes());
    let mut out = vec![0; m.rows() * row_bytes];
    team.split(&mut out, TILE * row_bytes, |at, part| {
        let first = at / row_bytes;
        for (i, tile) in part.chunks_exact_mut(TILE * row_bytes).enumerate() {
            for r in 0..TILE {
                let row = m.row(first + i * TILE + r).chunks_exact(bytes);
                for (block, out) in row.zip(tile.chunks_exact_mut(TILE * bytes)) {
                    put_block(block, r, out);
                }
            }
        }
    });
    Some(out)
}

/// Puts the block of row `r` into that of a tile.
fn put_block(block: &[u8], r: usize, out: &mut [u8]) {
    let (head, words) = block.split_at(block.len() % 4);
    out[r * head.len()..][..head.len()].copy_from_slice(head);
    let at = first_word(block.len(), r);
    for (w, word) in words.as_chunks::<4>().0.iter().enumerate() {
        out[at + w * 4 * TILE..][..4].copy_from_slice(word);
    }
}

/// Blocks `first..` of row `i` of tiles, as many as `out` has room for.
pub(super) fn take_blocks(m: MatRef, i: usize, first: usize, out: &mut [u8]) {
    let bytes = m.dtype().block_bytes();
    let tile = &m.data()[i / TILE * TILE * m.row_bytes()..][..TILE * m.row_bytes()];
    let blocks = tile.chunks_exact(TILE * bytes).skip(first);
    for (out, block) in out.chunks_exact_mut(bytes).zip(blocks) {
        let (head, words) = out.split_at_mut(bytes % 4);
        head.copy_from_slice(&block[i % TILE * head.len()..][..head.len()]);
        let at = first_word(bytes, i % TILE);
        for (w, word) in words.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            word.copy_from_slice(&block[at + w * 4 * TILE..][..4]);
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
