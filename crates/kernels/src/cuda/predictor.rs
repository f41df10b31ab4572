//! Predictors on a card: what decides about neurons before any of their rows are read.

use super::{Cuda, CudaError, Weights, weights::device_rows};
use crate::{
    DType, MatRef,
    cpu::{
        Team,
        ffn::{Affine, Estimate},
    },
};
use cudarc::driver::CudaSlice;

/// What kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PredictorShape {
    /// What is made of the outer matrices' products.
    pub form: Form,
    /// Type of the outer matrices, which have a row a neuron.
    pub outer: DType,
    /// Rows and type of the inner matrix, a multiple of 8; without it the outer ones are multiplied with x, rounded to 8 bits, and of a quantised type.
    pub inner: Option<(usize, DType)>,
}

/// What is made of products of rows and z, which is the inner matrix times x, or x.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `w z + b`.
    Logits,
    /// `act(w z + b)`.
    Gate,
    /// `act(w_gate z + b_gate) * (w_up z + b_up)`.
    Product,
}

impl PredictorShape {
    /// Width of z where that is not x; 0 where it is.
    pub(super) fn rank(&self) -> usize {
        self.inner.map_or(0, |(rank, _)| rank)
    }

    /// What device code is compiled with; without a predictor types do not matter.
    pub(super) fn defines(
        shape: Option<PredictorShape>,
        number: impl Fn(DType) -> Result<usize, CudaError>,
    ) -> Result<[(&'static str, usize); 4], CudaError> {
        let form = match shape.map(|s| s.form) {
            None => 0,
            Some(Form::Logits) => 1,
            Some(Form::Gate) => 2,
            Some(Form::Product) => 3,
        };
        let (rank, inner) = shape.and_then(|s| s.inner).unwrap_or((0, DType::BF16));
        Ok([
            ("FORM", form),
            ("RANK", rank),
            ("INNER", number(inner)?),
            ("OUTER", number(shape.map_or(DType::BF16, |s| s.outer))?),
        ])
    }
}

/// A predictor's matrices on a card.
pub struct Predictor {
    pub(super) shape: PredictorShape,
    pub(super) inner: Option<Weights>,
    /// `[inter, matrices, row]`: a neuron's rows one behind the other.
    pub(super) outer: CudaSlice<u8>,
    /// `[matrices, inter]`.
    pub(super) bias: Option<CudaSlice<f32>>,
    /// Neurons, and columns of the outer matrices.
    size: (usize, usize),
}

impl Predictor {
    /// A copy on the card: of the inner matrix, `[rank, hidden]`, and the outer ones, `[inter, rank or hidden]`. A team lays out rows together.
    ///
    /// # Errors
    /// [`CudaError::Weights`] for types that have no kernels, rows that are no whole vectors, and outer matrices of floats where there is no inner one; and what the driver says.
    ///
    /// # Panics
    /// If two outer matrices differ in type or shape.
    pub fn upload(
        cuda: &Cuda,
        inner: Option<MatRef>,
        outer: Estimate,
        team: &mut Team,
    ) -> Result<Predictor, CudaError> {
        let (form, affines) = match outer {
            Estimate::Logits(w) => (Form::Logits, vec![w]),
            Estimate::Gate(w) => (Form::Gate, vec![w]),
            Estimate::Product { gate, up } => (Form::Product, vec![gate, up]),
        };
        let of = |w: &Affine| (w.weight.dtype(), w.weight.rows(), w.weight.cols());
        let (dtype, inter, cols) = of(&affines[0]);
        assert!(affines.iter().all(|w| of(w) == (dtype, inter, cols)));
        let bytes = Weights::bytes(dtype, inter, cols)?;
        if inner.is_none() && !dtype.is_quantized() {
            return Err(CudaError::Weights { dtype, cols });
        }
        let rows = affines.iter().map(|w| device_rows(w.weight, Some(team)));
        let rows: Vec<_> = rows.collect();
        let mut together = Vec::with_capacity(bytes * affines.len());
        let stride = bytes / inter;
        for i in 0..inter {
            for m in &rows {
                together.extend_from_slice(&m[i * stride..][..stride]);
            }
        }
        let bias = affines.iter().any(|w| w.bias.is_some()).then(|| {
            let none = vec![0.0; inter];
            let biases = affines.iter().map(|w| w.bias.unwrap_or(&none));
            cuda.upload(&biases.collect::<Vec<_>>().concat())
        });
        let inner = inner.map(|a| Weights::upload(cuda, a, Some(team)));
        let inner = inner.transpose()?;
        Ok(Predictor {
            shape: PredictorShape {
                form,
                outer: dtype,
                inner: inner.as_ref().map(|a| (a.rows, a.dtype)),
            },
            inner,
            outer: cuda.upload(&together)?,
            bias: bias.transpose()?,
            size: (inter, cols),
        })
    }

    /// What kernels must be compiled for.
    pub fn shape(&self) -> PredictorShape {
        self.shape
    }

    /// Whether it predicts for FFNs of such a size.
    pub(super) fn fits(&self, hidden: usize, inter: usize) -> bool {
        let width = self.inner.as_ref().map_or(hidden, |a| a.rows);
        self.size == (inter, width) && self.inner.as_ref().is_none_or(|a| a.cols == hidden)
    }
}
