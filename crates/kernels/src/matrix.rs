//! A borrowed weight matrix. Its constructor is the one place that checks lengths; kernels rely on it.

use crate::dtype::DType;
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

/// A row-major matrix `[rows, cols]` over borrowed bytes. The bytes need no alignment.
#[derive(Clone, Copy)]
pub struct MatRef<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    data: &'a [u8],
}

impl<'a> MatRef<'a> {
    /// A view of `data` as `[rows, cols]` elements of `dtype`.
    ///
    /// # Errors
    /// [`ShapeError`] if `cols` is no whole number of blocks or `data` has another length.
    pub fn new(dtype: DType, rows: usize, cols: usize, data: &'a [u8]) -> Result<Self, ShapeError> {
        let row_bytes = dtype
            .row_bytes(cols)
            .ok_or(ShapeError::Columns { dtype, cols })?;
        let expected = row_bytes.saturating_mul(rows);
        if expected != data.len() {
            return Err(ShapeError::Bytes {
                dtype,
                rows,
                cols,
                expected,
                got: data.len(),
            });
        }
        Ok(MatRef {
            dtype,
            rows,
            cols,
            row_bytes,
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
    /// All bytes.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The bytes of row `i`.
    ///
    /// # Panics
    /// If `i >= rows`.
    #[inline]
    pub fn row(&self, i: usize) -> &'a [u8] {
        &self.data[i * self.row_bytes..][..self.row_bytes]
    }

    /// Rows `range` as a matrix of its own.
    ///
    /// # Panics
    /// If the range reaches beyond `rows`.
    pub fn rows_range(&self, range: Range<usize>) -> MatRef<'a> {
        MatRef {
            rows: range.len(),
            data: &self.data[range.start * self.row_bytes..range.end * self.row_bytes],
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
    fn a_range_of_rows_is_a_matrix() {
        let data: Vec<u8> = (0..24).collect();
        let m = MatRef::new(DType::F16, 4, 3, &data).unwrap();
        let r = m.rows_range(1..3);
        assert_eq!((r.rows(), r.row(0)[0], r.row(1)[5]), (2, 6, 17));
    }
}
