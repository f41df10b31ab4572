//! Weights on the card.

use super::{Cuda, CudaError};
use crate::{DType, MatRef, quant};
use cudarc::driver::CudaSlice;
use std::borrow::Cow;

/// Columns that share a scale.
const BLOCK: usize = 32;

/// The number that device code knows a type by (`src/weights.cu`), and columns of a 16-byte vector of it.
pub(super) fn kind(dtype: DType) -> Option<(usize, usize)> {
    match dtype {
        DType::BF16 => Some((0, 8)),
        DType::F16 => Some((1, 8)),
        DType::F32 => Some((2, 4)),
        DType::Q8_0 => Some((3, 16)),
        DType::Q4_0 => Some((4, 32)),
        _ => None,
    }
}

/// A matrix on the card, in rows of whole 16-byte vectors; those of quantised types as `src/weights.cu` draws them.
pub struct Weights {
    pub(super) data: CudaSlice<u8>,
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Bytes from row to row.
    pub(super) stride: usize,
}

impl Weights {
    /// Bytes that a matrix of such a shape takes on the card.
    ///
    /// # Errors
    /// [`CudaError::Weights`] for a type that has no kernels, or rows that are no whole vectors.
    pub fn bytes(dtype: DType, rows: usize, cols: usize) -> Result<usize, CudaError> {
        let unsupported = CudaError::Weights { dtype, cols };
        let (_, vector) = kind(dtype).ok_or(unsupported)?;
        let whole = if dtype.is_quantized() { BLOCK } else { vector };
        if !cols.is_multiple_of(whole) {
            return Err(CudaError::Weights { dtype, cols });
        }
        Ok(rows * row_bytes(dtype, cols))
    }

    /// A copy on the card. Matrices may lie in any layout of the host.
    ///
    /// # Errors
    /// As [`Weights::bytes`], and what the driver says.
    pub fn upload(cuda: &Cuda, m: MatRef) -> Result<Weights, CudaError> {
        let (dtype, rows, cols) = (m.dtype(), m.rows(), m.cols());
        Weights::bytes(dtype, rows, cols)?;
        let data = device_rows(m);
        Ok(Weights {
            data: cuda.upload(&data)?,
            dtype,
            rows,
            cols,
            stride: row_bytes(dtype, cols),
        })
    }

    /// Storage type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

fn row_bytes(dtype: DType, cols: usize) -> usize {
    let scales = cols / BLOCK * 2;
    match dtype {
        DType::Q8_0 => (cols + scales).next_multiple_of(16),
        DType::Q4_0 => (cols / 2 + scales).next_multiple_of(16),
        DType::F32 => 4 * cols,
        _ => 2 * cols,
    }
}

/// Rows as device code reads them.
fn device_rows(m: MatRef<'_>) -> Cow<'_, [u8]> {
    let blocks = quant::blocks_of(m);
    if !m.dtype().is_quantized() {
        return blocks;
    }
    let stored = m.cols() / m.dtype().block_len() * m.dtype().block_bytes();
    let stride = row_bytes(m.dtype(), m.cols());
    let mut out = vec![0; m.rows() * stride];
    for (row, to) in blocks
        .chunks_exact(stored)
        .zip(out.chunks_exact_mut(stride))
    {
        let levels = m.dtype().block_bytes() - 2;
        let (all_levels, scales) = to.split_at_mut(levels * m.cols() / BLOCK);
        let blocks = row.chunks_exact(m.dtype().block_bytes());
        let places = all_levels.chunks_exact_mut(levels);
        for ((block, to), scale) in blocks.zip(places).zip(scales.chunks_exact_mut(2)) {
            scale.copy_from_slice(&block[..2]);
            match m.dtype() {
                DType::Q4_0 => nibbles(&block[2..], to),
                _ => to.copy_from_slice(&block[2..]),
            }
        }
    }
    Cow::Owned(out)
}

/// A block of Q4_0, where byte i holds columns i and 16 + i, so that eight columns are four bytes.
fn nibbles(block: &[u8], to: &mut [u8]) {
    let level = |column: usize| match column {
        0..16 => block[column] & 15,
        _ => block[column - 16] >> 4,
    };
    for (i, byte) in to.iter_mut().enumerate() {
        let first = i / 4 * 8 + i % 4;
        *byte = level(first) | level(first + 4) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_columns_of_q4_0_are_four_bytes_low_nibbles_first() {
        let values: Vec<f32> = (0..32).map(|i| (i % 16) as f32 - 8.0).collect();
        let mut block = vec![0; DType::Q4_0.block_bytes()];
        quant::pack_row(DType::Q4_0, &values, &mut block);
        let m = MatRef::new(DType::Q4_0, 1, 32, &block).unwrap();
        let row = device_rows(m);
        assert_eq!(row.len(), 32);
        for (column, value) in values.iter().enumerate() {
            let byte = row[column / 8 * 4 + column % 4];
            let level = if column % 8 < 4 { byte & 15 } else { byte >> 4 };
            assert_eq!(f32::from(level) - 8.0, *value, "column {column}");
        }
        assert_eq!(row[16..18], block[..2]);
    }
}
