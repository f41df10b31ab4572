//! Low-bit copies: gate and up once more in a cheaper storage type. No training; every step reads the copy for all neurons
//! and the weights themselves for those kept.

use super::{Outer, Predictor};
use crate::{
    error::{Error, Result},
    model::{Linear, Matrix, Model},
    sparsity::Signal,
};
use countdown_kernels::{DType, cpu::Team, quant};
use std::sync::Arc;

/// A copy of what `signal` needs, for each layer: gate for `Gate`, up for `Up`, both for `Product`.
///
/// # Errors
/// [`Error::Input`] where rows are no whole number of blocks or the signal is no copy's; [`Error::Machine`] where threads are missing.
pub fn copies(
    model: &Model,
    dtype: DType,
    signal: Signal,
    threads: usize,
) -> Result<Vec<Arc<Predictor>>> {
    let mut team = Team::new(threads).map_err(|e| Error::Machine {
        cause: format!("cannot start {threads} threads: {e}"),
        remedy: "use fewer threads (-t)".into(),
    })?;
    let mut copy = |m: &Matrix| {
        let packed = pack(m, dtype, &mut team)?;
        Ok(Linear {
            weight: packed,
            bias: None,
        })
    };
    let layer = |l: &crate::model::Layer| {
        let outer = match signal {
            Signal::Gate => Outer::Gate(copy(&l.ffn.gate)?),
            Signal::Product => Outer::Product {
                gate: copy(&l.ffn.gate)?,
                up: copy(&l.ffn.up)?,
            },
            Signal::Up => {
                return Err(Error::Input {
                    cause: "a copy of up alone predicts what reading up itself decides".into(),
                    remedy: "use m-countdown without a predictor".into(),
                });
            }
        };
        Ok(Arc::new(Predictor { inner: None, outer }))
    };
    model.layers.iter().map(layer).collect()
}

/// `m` in another storage type, rows packed in parallel.
fn pack(m: &Matrix, dtype: DType, team: &mut Team) -> Result<Matrix> {
    let (rows, cols) = (m.rows(), m.cols());
    let bytes = dtype.row_bytes(cols).ok_or_else(|| Error::Input {
        cause: format!(
            "a copy in {} bits needs a hidden size that is a multiple of {}; this model's is {cols}",
            dtype.bits_per_weight(),
            dtype.block_len()
        ),
        remedy: "use a trained predictor for this model".into(),
    })?;
    let view = m.view();
    let mut data = vec![0; rows * bytes];
    team.split(&mut data, bytes, |at, part| {
        let mut row = vec![0.0; cols];
        for (r, out) in part.chunks_exact_mut(bytes).enumerate() {
            quant::unpack_row(m.dtype(), view.row(at / bytes + r), &mut row);
            quant::pack_row(dtype, &row, out);
        }
    });
    Matrix::new(dtype, rows, cols, data.into()).map_err(|e| Error::Input {
        cause: format!("a copy cannot be made: {e}"),
        remedy: "use a trained predictor for this model".into(),
    })
}
