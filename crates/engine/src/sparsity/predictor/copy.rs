//! Low-bit copies: gate and up once more in a cheaper storage type. No training; every step reads the copy for all neurons
//! and the weights themselves for those kept.

use super::{Outer, Predictor, Rest};
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
    let mut team = crate::session::team(threads)?;
    let mut copy = |m: &Matrix, bias: &Option<Vec<f32>>| {
        Ok(Linear {
            weight: pack(m, dtype, &mut team)?,
            bias: bias.clone(),
        })
    };
    let layer = |l: &crate::model::Layer| {
        let outer = match signal {
            Signal::Gate => Outer::Gate(copy(&l.ffn.gate, &l.ffn.gate_bias)?),
            Signal::Product => Outer::Product {
                gate: copy(&l.ffn.gate, &l.ffn.gate_bias)?,
                up: copy(&l.ffn.up, &l.ffn.up_bias)?,
            },
            Signal::Up => {
                return Err(Error::Input {
                    cause: "a copy of up alone predicts what reading up itself decides".into(),
                    remedy: "use m-countdown without a predictor".into(),
                });
            }
        };
        Ok(Arc::new(Predictor {
            inner: None,
            outer,
            rest: None,
        }))
    };
    model.layers.iter().map(layer).collect()
}

/// The high planes of Q8_0 weights as a copy that leaves only the low planes to be read.
///
/// # Errors
/// [`Error::Input`] where gate and up are of another type, or the signal needs but one of them.
pub fn planes(model: &Model, signal: Signal) -> Result<Vec<Arc<Predictor>>> {
    let refused = |cause: String| Error::Input {
        cause,
        remedy: "use --predictor copy4, which any model has".into(),
    };
    if signal != Signal::Product {
        return Err(refused("planes predict gate and up together".into()));
    }
    let split = |m: &Matrix| {
        if m.dtype() != DType::Q8_0 {
            return Err(refused(format!(
                "planes are the two halves of Q8_0 weights; this model's are {}",
                m.dtype()
            )));
        }
        let (high, low) = quant::split_q8_0(m.view());
        let matrix = |dtype, data: Vec<u8>| {
            Matrix::new(dtype, m.rows(), m.cols(), data.into())
                .map_err(|e| refused(format!("planes cannot be made: {e}")))
        };
        Ok((matrix(DType::Q8_H, high)?, matrix(DType::Q4_0, low)?))
    };
    let plain = |weight| Linear { weight, bias: None };
    let layer = |l: &crate::model::Layer| {
        let (gate, up) = (split(&l.ffn.gate)?, split(&l.ffn.up)?);
        Ok(Arc::new(Predictor {
            inner: None,
            outer: Outer::Product {
                gate: plain(gate.0),
                up: plain(up.0),
            },
            rest: Some(Rest {
                gate: gate.1,
                up: up.1,
            }),
        }))
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
            quant::unpack_row_of(view, at / bytes + r, &mut row);
            quant::pack_row(dtype, &row, out);
        }
    });
    Matrix::new(dtype, rows, cols, data.into()).map_err(|e| Error::Input {
        cause: format!("a copy cannot be made: {e}"),
        remedy: "use a trained predictor for this model".into(),
    })
}
