//! Transposing a packed matrix into a packed matrix.

use super::{Format, unpack_row, with_format};
use crate::{
    bytes::{Buffer, Bytes},
    cpu::Team,
    dtype::DType,
    matrix::{MatRef, ShapeError},
};

/// Columns of the source that are unpacked at a time, where its blocks are no longer than that.
const TILE: usize = 64;

/// The transpose of `m` `[rows, cols]` as the bytes of `[cols, rows]` elements of `dtype`.
///
/// Blocks run along a row, so every value is unpacked once and rounded once more into the blocks of its new row.
/// Each thread holds one tile of `f32` (a block of rows times a few columns), never the whole matrix.
///
/// # Errors
/// [`ShapeError::Columns`] if `m.rows()` is no whole number of `dtype` blocks.
pub fn transpose_pack(m: MatRef, dtype: DType, team: &mut Team) -> Result<Bytes, ShapeError> {
    let (rows, cols) = (m.rows(), m.cols());
    let row_bytes = dtype
        .row_bytes(rows)
        .ok_or(ShapeError::Columns { dtype, cols: rows })?;
    let mut out = Buffer::zeroed(row_bytes * cols);
    let width = width(m);
    team.split(&mut out, width * row_bytes, |at, part| {
        let first = at / row_bytes;
        for (i, part) in part.chunks_mut(width * row_bytes).enumerate() {
            with_format!(dtype, F => transpose_columns::<F>(m, first + i * width, row_bytes, part));
        }
    });
    Ok(out.into())
}

/// How many columns of a matrix are transposed together: those of whole blocks.
pub(super) fn width(m: MatRef) -> usize {
    m.dtype().block_len().max(TILE)
}

/// So many columns, from `first` on, a multiple of [`width`], as rows of `dtype`.
///
/// # Panics
/// If columns are no whole number of blocks of `dtype`.
pub(super) fn columns(m: MatRef, first: usize, count: usize, dtype: DType) -> Vec<u8> {
    let row_bytes = dtype.row_bytes(m.rows()).expect("rows fill blocks");
    let mut out = vec![0; count * row_bytes];
    with_format!(dtype, F => transpose_columns::<F>(m, first, row_bytes, &mut out));
    out
}

/// Columns `first..` of `m` as rows of `out`, as many as `out` holds.
fn transpose_columns<F: Format>(m: MatRef, first: usize, row_bytes: usize, out: &mut [u8]) {
    let columns = out.len() / row_bytes;
    let source = m.dtype();
    let bytes = first / source.block_len() * source.block_bytes();
    let len = columns / source.block_len() * source.block_bytes();
    // A block of one element would read a tile of one row: take several blocks at a time.
    let high = F::LEN.max(32).min(m.rows());
    let mut tile = vec![0f32; high * columns];
    let mut line = vec![0f32; high];
    for top in (0..m.rows()).step_by(high) {
        let high = high.min(m.rows() - top);
        for (r, row) in tile.chunks_exact_mut(columns).take(high).enumerate() {
            unpack_row(source, &m.row(top + r)[bytes..bytes + len], row);
        }
        for (c, row) in out.chunks_exact_mut(row_bytes).enumerate() {
            for (r, x) in line[..high].iter_mut().enumerate() {
                *x = tile[r * columns + c];
            }
            let at = top / F::LEN * F::BYTES;
            for (x, block) in line[..high]
                .chunks_exact(F::LEN)
                .zip(row[at..].chunks_exact_mut(F::BYTES))
            {
                F::pack(x, block);
            }
        }
    }
}
