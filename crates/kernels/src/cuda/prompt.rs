//! Several tokens: products through cuBLAS.

use super::{
    Cuda, CudaError, StepKernels, Weights,
    blas::{Blas, Lies, Operand},
};
use crate::DType;
use cudarc::{cublas::sys::cudaDataType, driver::CudaSlice};

/// How weights lie in a product `y = x W^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orientation {
    /// A row an output, `[outputs, inputs]`.
    RowPerOutput,
    /// A row an input, `[inputs, outputs]`: transposed down projections.
    RowPerInput,
}

/// Products of many rows, with the memory for their operands.
pub struct PromptKernels {
    blas: Blas,
    /// Inputs in the weights' type.
    rounded: CudaSlice<u16>,
    /// Quantised weights, unpacked.
    unpacked: CudaSlice<u16>,
}

impl PromptKernels {
    /// Room for inputs of so many elements, and for quantised weights of so many.
    ///
    /// # Errors
    /// [`CudaError::NoBlas`], or what the driver and cuBLAS say.
    pub fn new(cuda: &Cuda, inputs: usize, weights: usize) -> Result<PromptKernels, CudaError> {
        Ok(PromptKernels {
            blas: Blas::new(cuda)?,
            rounded: cuda.zeros(inputs.max(1))?,
            unpacked: cuda.zeros(weights.max(1))?,
        })
    }

    /// `out = x W^T` for `tokens` rows of `x` from row `first`. Inputs are rounded to the type of weights of 16 bits, and to `f16` for quantised ones.
    ///
    /// # Errors
    /// What the driver and cuBLAS say.
    ///
    /// # Panics
    /// If lengths do not fit.
    #[allow(clippy::too_many_arguments)] // the operands of a product
    pub fn matmul(
        &mut self,
        cuda: &Cuda,
        step: &StepKernels,
        w: &Weights,
        orientation: Orientation,
        (x, first, tokens): (&CudaSlice<f32>, usize, usize),
        out: &mut CudaSlice<f32>,
    ) -> Result<(), CudaError> {
        let (outputs, inputs) = match orientation {
            Orientation::RowPerOutput => (w.rows, w.cols),
            Orientation::RowPerInput => (w.cols, w.rows),
        };
        assert!((first + tokens) * inputs <= x.len() && tokens * outputs <= out.len());
        let at = first * inputs;
        let (weights, of_weights) = if w.dtype.is_quantized() {
            step.unpack(cuda, w, &mut self.unpacked)?;
            (cuda.address(&self.unpacked), DType::F16)
        } else {
            (cuda.address(&w.data), w.dtype)
        };
        let (input, kind) = match of_weights {
            DType::F32 => (cuda.address(x) + 4 * at as u64, cudaDataType::CUDA_R_32F),
            dtype => {
                step.round(cuda, (x, at), dtype, &mut self.rounded, tokens * inputs)?;
                let kind = match dtype {
                    DType::BF16 => cudaDataType::CUDA_R_16BF,
                    _ => cudaDataType::CUDA_R_16F,
                };
                (cuda.address(&self.rounded), kind)
            }
        };
        let x = Operand {
            at: input,
            lies: Lies::Straight,
        };
        let w = Operand {
            at: weights,
            lies: match orientation {
                Orientation::RowPerOutput => Lies::Transposed,
                Orientation::RowPerInput => Lies::Straight,
            },
        };
        // SAFETY: all three are on the card and as long as was checked.
        unsafe {
            self.blas
                .multiply((x, w, kind), [tokens, inputs, outputs], cuda.address(out))
        }
    }
}
