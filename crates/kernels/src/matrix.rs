//! A borrowed weight matrix. Its constructor is the one place that checks lengths; kernels rely on it.

use crate::{
    dtype::DType,
    quant::{self, TILE},
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

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A row is its blocks, one after another. What is between rows belongs to someone else.
    Rows {
        /// Bytes from one row to the next.
        stride: usize,
    },
    /// A row is the parts of its blocks, each of all blocks (see [`RowForm::Parts`](crate::quant::RowForm)).
    Parts {
        /// Bytes from one row to the next.
        stride: usize,
    },
    /// Sixteen rows at a time, block by block (see [`quant::tile`]).
    Tiles,
}

/// A matrix `[rows, cols]` over borrowed bytes, which need no alignment.
#[derive(Clone, Copy)]
pub struct MatRef<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    layout: Layout,
    data: &'a [u8],
}

impl<'a> MatRef<'a> {
    /// A view of `data` as `[rows, cols]` elements of `dtype`, one row behind the other.
    ///
    /// # Errors
    /// [`ShapeError`] if `cols` is no whole number of blocks or `data` has another length.
    pub fn new(dtype: DType, rows: usize, cols: usize, data: &'a [u8]) -> Result<Self, ShapeError> {
        let bytes = dtype.row_bytes(cols).unwrap_or(0);
        MatRef::with_layout(dtype, rows, cols, Layout::Rows { stride: bytes }, data)
    }

    /// A view of a matrix that lies otherwise. The first row is at the beginning of `data` and the last at its end.
    ///
    /// # Errors
    /// [`ShapeError`] if `cols` is no whole number of blocks, rows would overlap or `data` has another length.
    ///
    /// # Panics
    /// If the type does not come in that layout, or `rows` do not fill tiles.
    pub fn with_layout(
        dtype: DType,
        rows: usize,
        cols: usize,
        layout: Layout,
        data: &'a [u8],
    ) -> Result<Self, ShapeError> {
        let blocks = dtype
            .row_bytes(cols)
            .ok_or(ShapeError::Columns { dtype, cols })?;
        let (row_bytes, stride) = match layout {
            Layout::Rows { stride } => (blocks, stride),
            Layout::Parts { stride } => (quant::parts_bytes(dtype, cols), stride),
            Layout::Tiles => {
                assert!(
                    quant::has_tiles(dtype) && rows.is_multiple_of(TILE),
                    "{rows} rows of {dtype} are no tiles"
                );
                (blocks, blocks)
            }
        };
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
            layout,
            data,
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
    /// How it lies in memory.
    pub fn layout(&self) -> Layout {
        self.layout
    }
    /// Whether rows lie in tiles, so that none can be read by itself.
    pub fn is_tiled(&self) -> bool {
        self.layout == Layout::Tiles
    }
    /// All bytes, from the first row's first to the last row's last.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Bytes from a row to the next.
    pub(crate) fn stride(&self) -> usize {
        match self.layout {
            Layout::Rows { stride } | Layout::Parts { stride } => stride,
            Layout::Tiles => self.row_bytes,
        }
    }

    /// The blocks of row `i`.
    ///
    /// # Panics
    /// If `i >= rows`, or rows do not lie as blocks.
    #[inline]
    pub fn row(&self, i: usize) -> &'a [u8] {
        assert!(
            matches!(self.layout, Layout::Rows { .. }),
            "tiles and parts have no rows of blocks"
        );
        &self.data[i * self.stride()..][..self.row_bytes]
    }

    /// The bytes of row `i`, be it blocks or parts.
    ///
    /// # Panics
    /// If `i >= rows`, or the matrix is tiles.
    #[inline]
    pub(crate) fn row_data(&self, i: usize) -> &'a [u8] {
        assert!(!self.is_tiled(), "tiles have no rows");
        &self.data[i * self.stride()..][..self.row_bytes]
    }

    /// Rows `range` as a matrix of its own.
    ///
    /// # Panics
    /// If the range reaches beyond `rows`, or cuts a tile.
    pub fn rows_range(&self, range: Range<usize>) -> MatRef<'a> {
        assert!(range.end <= self.rows, "rows {range:?} of {}", self.rows);
        assert!(
            !self.is_tiled() || range.start.is_multiple_of(TILE) && range.end.is_multiple_of(TILE),
            "rows {range:?} cut a tile"
        );
        let stride = self.stride();
        let data = match range.len() {
            0 => &[],
            n => &self.data[range.start * stride..][..(n - 1) * stride + self.row_bytes],
        };
        MatRef {
            rows: range.len(),
            data,
            ..*self
        }
    }
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
        let apart =
            |stride, data| MatRef::with_layout(DType::F16, 3, 3, Layout::Rows { stride }, data);
        let m = apart(10, &data).unwrap();
        assert_eq!((m.row(0)[0], m.row(2)[5]), (0, 25));
        let r = m.rows_range(1..3);
        assert_eq!((r.rows(), r.row(0)[0], r.row(1)[5]), (2, 10, 25));
        assert_eq!(m.rows_range(3..3).data().len(), 0);
        // Rows that overlap, and a last row that is cut.
        assert!(apart(5, &data[..16]).is_err());
        assert!(apart(10, &data[..25]).is_err());
    }

    #[test]
    fn a_range_of_rows_is_a_matrix() {
        let data: Vec<u8> = (0..24).collect();
        let m = MatRef::new(DType::F16, 4, 3, &data).unwrap();
        let r = m.rows_range(1..3);
        assert_eq!((r.rows(), r.row(0)[0], r.row(1)[5]), (2, 6, 17));
    }
}
