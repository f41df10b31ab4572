//! Predictors: cheap estimates of what decides about neurons, so that neither gate nor up need be read for all of them.
//!
//! All kinds are one type: an optional narrow matrix that every neuron shares, then one or two matrices with a row a neuron.
//! A low-bit copy is two such matrices of a cheap storage type; a low-rank predictor has the narrow matrix; a ternary one a
//! matrix of 2-bit weights.

mod copy;
mod estimate;
mod kind;

pub use copy::{copies, planes};
pub use estimate::Estimator;
pub use kind::{PREDICTORS, PredictorKind};

use crate::{
    error::{Error, Result},
    model::{Linear, Matrix},
};
use countdown_kernels::cpu::{
    Input,
    ffn::{Affine, Decider, Estimate, Planes},
};
use std::sync::Arc;

/// Estimates the signals of a layer's neurons from the FFN's input `x`.
#[derive(Clone, Debug, PartialEq)]
pub struct Predictor {
    /// `[rank, hidden]`: z = A x. Without it z is x itself.
    pub inner: Option<Matrix>,
    /// From z to a signal a neuron.
    pub outer: Outer,
    /// What the outer matrices of an [`Outer::Product`] leave out of gate and up, so that of the neurons kept only this is read.
    pub rest: Option<Rest>,
}

/// Low planes of gate and up: added to the high planes they give the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Rest {
    /// `[inter, hidden]`.
    pub gate: Matrix,
    /// `[inter, hidden]`.
    pub up: Matrix,
}

/// The matrices that have a row a neuron, `[inter, rank or hidden]`, and what is made of their products.
#[derive(Clone, Debug, PartialEq)]
pub enum Outer {
    /// `W z + b`, a score by its value: how likely the neuron is needed.
    Logits(Linear),
    /// `act(W z + b)`: imitates the activated gate.
    Gate(Linear),
    /// `act(W_gate z + b_gate) * (W_up z + b_up)`: imitates the coefficient.
    Product {
        /// Imitates gate.
        gate: Linear,
        /// Imitates up.
        up: Linear,
    },
}

/// A predictor for each layer of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct PredictorSet {
    /// What kind they are, for people and file names: `copy3`, `low-rank-128`.
    pub name: String,
    /// One a layer.
    pub layers: Vec<Arc<Predictor>>,
}

impl Outer {
    /// The matrices.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let (first, second) = match self {
            Outer::Logits(l) | Outer::Gate(l) => (l, None),
            Outer::Product { gate, up } => (gate, Some(up)),
        };
        std::iter::once(first).chain(second)
    }
}

impl Predictor {
    /// Whether scores are the estimates' values (logits) rather than their magnitudes.
    pub fn scores_by_value(&self) -> bool {
        matches!(self.outer, Outer::Logits(_))
    }

    /// Bytes read for every token.
    pub fn bytes(&self) -> usize {
        let inner = self.inner.as_ref().map_or(0, Matrix::bytes);
        let outer = self.outer.linears().map(|l| {
            let bias = l.bias.as_ref().map_or(0, |b| size_of_val(&b[..]));
            l.weight.bytes() + bias
        });
        inner + outer.sum::<usize>()
    }

    /// Bytes of gate and up that are left to be read if all neurons are kept; `None` where that is the weights themselves.
    pub fn rest_bytes(&self) -> Option<usize> {
        let rest = self.rest.as_ref()?;
        Some(rest.gate.bytes() + rest.up.bytes())
    }

    /// Neurons.
    pub fn inter(&self) -> usize {
        let (Outer::Logits(l) | Outer::Gate(l) | Outer::Product { gate: l, .. }) = &self.outer;
        l.weight.rows()
    }

    /// The width of z.
    pub fn width(&self, hidden: usize) -> usize {
        self.inner.as_ref().map_or(hidden, Matrix::rows)
    }

    /// Refuses shapes other than those of a layer.
    ///
    /// # Errors
    /// [`Error::Plan`] saying what does not fit.
    pub fn check_shape(&self, layer: usize, inter: usize, hidden: usize) -> Result<()> {
        let bad = |what: String| Error::Plan {
            cause: format!("has a predictor in layer {layer} {what}"),
            remedy: "make the plan again with `countdown train` or `countdown calibrate`".into(),
        };
        if let Some(a) = &self.inner
            && a.cols() != hidden
        {
            return Err(bad(format!(
                "for hidden size {}, the model has {hidden}",
                a.cols()
            )));
        }
        let width = self.width(hidden);
        if let Some(rest) = &self.rest {
            let fits = |m: &Matrix| (m.rows(), m.cols()) == (inter, hidden);
            let is_product = matches!(&self.outer, Outer::Product { gate, up } if gate.bias.is_none() && up.bias.is_none());
            if self.inner.is_some() || !is_product || !fits(&rest.gate) || !fits(&rest.up) {
                return Err(bad("whose planes do not fit".into()));
            }
        }
        for l in self.outer.linears() {
            let (rows, cols) = (l.weight.rows(), l.weight.cols());
            if (rows, cols) != (inter, width) {
                return Err(bad(format!(
                    "of {rows} x {cols}, where {inter} x {width} fits"
                )));
            }
            let Some(bias) = &l.bias else { continue };
            if bias.len() != inter || !bias.iter().all(|b| b.is_finite()) {
                return Err(bad("whose bias does not fit or is not finite".into()));
            }
        }
        Ok(())
    }

    /// What decides in a step whose z (x itself without an inner matrix) is `z`.
    pub(crate) fn decider<'a>(&'a self, z: &'a Input) -> Decider<'a> {
        match (&self.outer, &self.rest) {
            (Outer::Product { gate, up }, Some(rest)) => Decider::Planes(Planes {
                high: [gate.weight.view(), up.weight.view()],
                low: [rest.gate.view(), rest.up.view()],
            }),
            _ => Decider::Estimate(self.estimate(), z),
        }
    }

    /// The outer matrices as kernels take them.
    pub(crate) fn estimate(&self) -> Estimate<'_> {
        fn affine(l: &Linear) -> Affine<'_> {
            Affine {
                weight: l.weight.view(),
                bias: l.bias.as_deref(),
            }
        }
        match &self.outer {
            Outer::Logits(l) => Estimate::Logits(affine(l)),
            Outer::Gate(l) => Estimate::Gate(affine(l)),
            Outer::Product { gate, up } => Estimate::Product {
                gate: affine(gate),
                up: affine(up),
            },
        }
    }
}
