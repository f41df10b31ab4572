//! Weights on the card.

use super::{Cuda, CudaError, blocks};
use crate::{DType, MatRef, cpu::Team, quant};
use cudarc::driver::CudaSlice;
use std::borrow::Cow;

/// The number that device code knows a type by (`src/weights.cu`).
pub(super) fn number(dtype: DType) -> Option<usize> {
    let types = TYPES.iter().map(|(t, _)| *t);
    types.chain(PREDICTORS).position(|t| t == dtype)
}

/// Types of model files that have kernels, in the order of their numbers, with what device code calls them.
pub(super) const TYPES: [(DType, &str); 11] = [
    (DType::BF16, "bf16"),
    (DType::F16, "f16"),
    (DType::F32, "f32"),
    (DType::Q8_0, "q8_0"),
    (DType::Q4_0, "q4_0"),
    (DType::Q4_1, "q4_1"),
    (DType::Q5_0, "q5_0"),
    (DType::Q5_1, "q5_1"),
    (DType::Q4_K, "q4_k"),
    (DType::Q5_K, "q5_k"),
    (DType::Q6_K, "q6_k"),
];

/// Those of predictors alone, whose numbers follow.
pub(super) const PREDICTORS: [DType; 3] = [DType::Q3_0, DType::Q2_0, DType::T2];

/// Columns that float types are read in.
const RUN: usize = 8;

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
        let whole = dtype.block_len().max(RUN);
        if number(dtype).is_none() || !cols.is_multiple_of(whole) {
            return Err(CudaError::Weights { dtype, cols });
        }
        Ok(rows * row_bytes(dtype, cols))
    }

    /// A copy on the card. Matrices may lie in any layout of the host; a team lays out quantised rows together.
    ///
    /// # Errors
    /// As [`Weights::bytes`], and what the driver says.
    pub fn upload(cuda: &Cuda, m: MatRef, team: Option<&mut Team>) -> Result<Weights, CudaError> {
        let (dtype, rows, cols) = (m.dtype(), m.rows(), m.cols());
        Weights::bytes(dtype, rows, cols)?;
        let data = device_rows(m, team);
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
    match dtype {
        DType::F32 => 4 * cols,
        DType::F16 | DType::BF16 => 2 * cols,
        _ => blocks::row_bytes(dtype, cols),
    }
}

/// Rows as device code reads them.
pub(super) fn device_rows<'a>(m: MatRef<'a>, team: Option<&mut Team>) -> Cow<'a, [u8]> {
    let stored = quant::blocks_of(m);
    if !m.dtype().is_quantized() {
        return stored;
    }
    let from = m.cols() / m.dtype().block_len() * m.dtype().block_bytes();
    let stride = row_bytes(m.dtype(), m.cols());
    let mut out = vec![0; m.rows() * stride];
    let put = |at: usize, part: &mut [u8]| {
        let rows = stored[at / stride * from..].chunks_exact(from);
        for (row, to) in rows.zip(part.chunks_exact_mut(stride)) {
            blocks::put_row(m.dtype(), row, to);
        }
    };
    match team {
        Some(team) => team.split(&mut out, stride, put),
        None => put(0, &mut out),
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_team_lays_out_the_same_rows() {
        let (rows, cols) = (37, 512);
        let mut team = Team::new(3).unwrap();
        let types = TYPES.iter().map(|(t, _)| *t).chain(PREDICTORS);
        for dtype in types.filter(|t| t.is_quantized()) {
            let bytes = rows * dtype.row_bytes(cols).unwrap();
            let data: Vec<u8> = (0..bytes).map(|i| (i * 31 + i / 7) as u8).collect();
            let m = MatRef::new(dtype, rows, cols, &data).unwrap();
            assert_eq!(
                device_rows(m, Some(&mut team)),
                device_rows(m, None),
                "{dtype}"
            );
        }
    }
}
