//! A borrowed weight matrix. Its constructor is the one place that checks lengths; kernels rely on it.

use crate::{
    dtype::DType,
    quant::{TILE, has_tiles},
};
use std::ops::Range;

/// Why bytes are not a matrix of the shape asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A row would not be a whole number of blocks.
    #[error("{cols} columns are no whole number of {dtype} blocks of {} elements", dtype.block_len())]
    Columns {
        /// Storage type asked for.
        dtype: DType,
        /// Columns asked for.
        cols: usize,
    },
    /// The number of bytes is not `rows * row_bytes`.
    #[error("{rows} x {cols} {dtype} needs {expected} bytes, got {got}")]
    Bytes {
        /// Storage type asked for.
        dtype: DType,
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
        /// Bytes that shape needs (saturated at `usize::MAX`).
        expected: usize,
        /// Bytes given.
        got: usize,
    },
}

/// A row-major matrix `[rows, cols]` over borrowed bytes. The bytes need no alignment, and rows may lie apart: what is between them
/// belongs to someone else.
#[derive(Clone, Copy)]
pub struct MatRef<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    /// Bytes from one row to the next.
    stride: usize,
    is_tiled: bool,
    data: &'a [u8],
}

impl<'a> MatRef<'a> {
    /// A view of `data` as `[rows, cols]` elements of `dtype`, one row behind the other.
    ///
    /// # Errors
    /// [`ShapeError`] if `cols` is no whole number of blocks or `data` has another length.
    pub fn new(dtype: DType, rows: usize, cols: usize, data: &'a [u8]) -> Result<Self, ShapeError> {
        let stride = dtype.row_bytes(cols);
        MatRef::strided(dtype, rows, cols, stride.unwrap_or(0), data)
    }

    /// A view of rows that begin `stride` bytes after one another, the first at the beginning of `data` and the last at its end.
    ///
    /// # Errors
    /// [`ShapeError`] if `cols` is no whole number of blocks, rows would overlap or `data` has another length.
    pub fn strided(
        dtype: DType,
        rows: usize,
        cols: usize,
        stride: usize,
        data: &'a [u8],
    ) -> Result<Self, ShapeError> {
        let row_bytes = dtype
            .row_bytes(cols)
            .ok_or(ShapeError::Columns { dtype, cols })?;
        let expected = match rows {
            0 => 0,
            n => stride.saturating_mul(n - 1).saturating_add(row_bytes),
        };
        if stride < row_bytes || expected != data.len() {
            return Err(ShapeError::Bytes {
                dtype,
                rows,
                cols,
                expected: expected.max(row_bytes.saturating_mul(rows)),
                got: data.len(),
            });
        }
        Ok(MatRef {
            dtype,
            rows,
            cols,
            row_bytes,
            stride,
            is_tiled: false,
            data,
        })
    }

    /// A view of the tiles that [`quant::tile`](crate::quant::tile) makes of a matrix.
    ///
    /// # Errors
    /// [`ShapeError`] as for [`MatRef::new`].
    ///
    /// # Panics
    /// If the type has no tiles or `rows` do not fill them.
    pub fn tiles(
        dtype: DType,
        rows: usize,
        cols: usize,
        data: &'a [u8],
    ) -> Result<Self, ShapeError> {
        assert!(
            has_tiles(dtype) && rows.is_multiple_of(TILE),
            "{rows} rows of {dtype} are no tiles"
        );
        Ok(MatRef {
            is_tiled: true,
            ..MatRef::new(dtype, rows, cols, data)?
        })
    }

    /// Storage type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Number of columns, in elements.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }
    /// Whether rows lie in tiles, not one by one.
    pub fn is_tiled(&self) -> bool {
        self.is_tiled
    }
    /// All bytes, from the first row's first to the last row's last.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The bytes of row `i`.
    ///
    /// # Panics
    /// If `i >= rows`, or the matrix is tiles.
    #[inline]
    pub fn row(&self, i: usize) -> &'a [u8] {
        assert!(!self.is_tiled, "tiles have no rows");
        &self.data[i * self.stride..][..self.row_bytes]
    }

    /// Rows `range` as a matrix of its own.
    ///
    /// # Panics
    /// If the range reaches beyond `rows`, or cuts a tile.
    pub fn rows_range(&self, range: Range<usize>) -> MatRef<'a> {
        assert!(range.end <= self.rows, "rows {range:?} of {}", self.rows);
        assert!(
            !self.is_tiled || range.start.is_multiple_of(TILE) && range.end.is_multiple_of(TILE),
            "rows {range:?} cut a tile"
        );
        let data = match range.len() {
            0 => &[],
            n => &self.data[range.start * self.stride..][..(n - 1) * self.stride + self.row_bytes],
        };
        MatRef {
            rows: range.len(),
            data,
            ..*self
        }
    }
}

/// The rows of matrices of equally many side by side: row 0 of each, row 1 of each, and so on. Each is then
/// [`MatRef::strided`] with the row bytes of all together.
///
/// # Panics
/// If the numbers of rows differ.
pub fn interleave(matrices: &[MatRef]) -> Vec<u8> {
    let rows = matrices.first().map_or(0, MatRef::rows);
    assert!(
        matrices.iter().all(|m| m.rows() == rows),
        "interleave: rows"
    );
    let stride: usize = matrices.iter().map(MatRef::row_bytes).sum();
    let mut data = Vec::with_capacity(rows * stride);
    for i in 0..rows {
        matrices
            .iter()
            .for_each(|m| data.extend_from_slice(m.row(i)));
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked_once_here() {
        let data = [0u8; 36];
        assert!(MatRef::new(DType::Q4_0, 1, 64, &data).is_ok());
        assert!(matches!(
            MatRef::new(DType::Q4_0, 1, 63, &data),
            Err(ShapeError::Columns { .. })
        ));
        assert!(matches!(
            MatRef::new(DType::Q4_0, 2, 64, &data),
            Err(ShapeError::Bytes { expected: 72, .. })
        ));
        assert!(MatRef::new(DType::F32, usize::MAX, 2, &data).is_err());
    }

    #[test]
    fn rows_may_lie_apart() {
        let data: Vec<u8> = (0..26).collect();
        let m = MatRef::strided(DType::F16, 3, 3, 10, &data).unwrap();
        assert_eq!((m.row(0)[0], m.row(2)[5]), (0, 25));
        let r = m.rows_range(1..3);
        assert_eq!((r.rows(), r.row(0)[0], r.row(1)[5]), (2, 10, 25));
        assert_eq!(m.rows_range(3..3).data().len(), 0);
        // Rows that overlap, and a last row that is cut.
        assert!(MatRef::strided(DType::F16, 3, 3, 5, &data[..16]).is_err());
        assert!(MatRef::strided(DType::F16, 3, 3, 10, &data[..25]).is_err());
    }

    #[test]
    fn rows_are_laid_side_by_side() {
        let (a, b): (Vec<u8>, Vec<u8>) = ((0..4).collect(), (10..18).collect());
        let m = [
            MatRef::new(DType::F16, 2, 1, &a).unwrap(),
            MatRef::new(DType::F16, 2, 2, &b).unwrap(),
        ];
        let both = interleave(&m);
        assert_eq!(both, [0, 1, 10, 11, 12, 13, 2, 3, 14, 15, 16, 17]);
        let second = MatRef::strided(DType::F16, 2, 2, 6, &both[2..]).unwrap();
        assert_eq!((second.row(0), second.row(1)), (m[1].row(0), m[1].row(1)));
    }

    #[test]
    fn a_range_of_rows_is_a_matrix() {
        let data: Vec<u8> = (0..24).collect();
        let m = MatRef::new(DType::F16, 4, 3, &data).unwrap();
        let r = m.rows_range(1..3);
        assert_eq!((r.rows(), r.row(0)[0], r.row(1)[5]), (2, 6, 17));
    }
}
