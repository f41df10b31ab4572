//! The shape of the FFN itself at low rank: imitate gate and up, then form the product.
//!
//! |s| = |act(g)| |u| is even in u, which no linear logit can say. The score is `c |act(g~) u~|`; to be trained it becomes the
//! logit `sharpness * (ln(score^2 + floor) - level)`, sharpness and level being parameters that the finished predictor drops.

use super::{Gradient, Shard, Student};
use crate::{
    error::Result,
    train::{
        arithmetic::{Arithmetic, ProductLoss, Work},
        elementwise::activate,
        host::Host,
    },
};
use countdown_kernels::cpu::Act;
use std::ops::Range;

/// The product of two projections of one shared inner vector. Parameters: A `[rank, hidden]`, B of gate and of up, both
/// transposed `[rank, inter]`, their biases `[inter]`, then ln sharpness and level.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Product {
    /// Inputs.
    pub hidden: usize,
    /// Neurons.
    pub inter: usize,
    /// Of the shared projection.
    pub rank: usize,
    /// Activation of the gate.
    pub act: Act,
    /// Factor of each neuron's score, `[inter]`: 1, or the norm of its column of down.
    pub weight: Vec<f32>,
    /// Added to the squared score, so that its logarithm is bounded; small against the squared score at the cut.
    pub floor: f32,
}

/// A product's parameters that its predictor keeps.
#[allow(missing_docs)] // see `Product`
pub(crate) struct ProductParts<'a> {
    pub a: &'a [f32],
    pub gate: &'a [f32],
    pub up: &'a [f32],
    pub gate_bias: &'a [f32],
    pub up_bias: &'a [f32],
}

impl Product {
    /// The parts of a vector of parameters.
    pub(crate) fn parts<'a>(&self, parameters: &'a [f32]) -> ProductParts<'a> {
        let (a, rest) = parameters.split_at(self.rank * self.hidden);
        let (gate, rest) = rest.split_at(self.rank * self.inter);
        let (up, rest) = rest.split_at(self.rank * self.inter);
        let (gate_bias, rest) = rest.split_at(self.inter);
        let up_bias = &rest[..self.inter];
        ProductParts {
            a,
            gate,
            up,
            gate_bias,
            up_bias,
        }
    }
}

impl Student for Product {
    fn parameters(&self) -> usize {
        self.rank * (self.hidden + 2 * self.inter) + 2 * self.inter + 2
    }

    fn decayed(&self) -> Range<usize> {
        0..self.rank * (self.hidden + 2 * self.inter)
    }

    fn constants(&self) -> &[f32] {
        &self.weight
    }

    fn scores(&self, parameters: &[f32], x: &[f32], host: &mut Host, out: &mut [f32]) {
        let (rank, inter) = (self.rank, self.inter);
        let at = self.parts(parameters);
        let tokens = x.len() / self.hidden;
        let mut z = vec![0.0; tokens * rank];
        host.product_transposed(x, at.a, self.hidden, &mut z);
        let mut gate = vec![0.0; tokens * inter];
        host.product(&z, at.gate, rank, &mut gate);
        host.product(&z, at.up, rank, out);
        let mut slopes = vec![0.0; inter];
        for (gate, out) in gate
            .chunks_exact_mut(inter)
            .zip(out.chunks_exact_mut(inter))
        {
            gate.iter_mut().zip(at.gate_bias).for_each(|(g, b)| *g += b);
            activate(self.act, gate, &mut slopes);
            let factors = gate.iter().zip(at.up_bias).zip(&self.weight);
            for (out, ((a, b), w)) in out.iter_mut().zip(factors) {
                *out = (a * (*out + b) * w).abs();
            }
        }
    }
}

impl<A: Arithmetic> Gradient<A> for Product {
    fn gradient(
        &self,
        parameters: &A::Vector,
        shard: &Shard<'_, A>,
        work: &mut Work<A>,
        gradient: &mut A::Vector,
    ) -> Result<f64> {
        let (hidden, inter, rank) = (self.hidden, self.inter, self.rank);
        let tokens = shard.labelled.tokens;
        let (a, gates) = (0, rank * hidden);
        let ups = gates + rank * inter;
        let gate_bias = ups + rank * inter;
        let up_bias = gate_bias + inter;
        let squash = up_bias + inter;
        let at = |place| (parameters, place);
        let Work {
            by,
            inner: z,
            inner_grad: dz,
            first: gate,
            second: up,
            ..
        } = work;
        by.room(z, tokens * rank)?;
        by.room(dz, tokens * rank)?;
        by.room(gate, tokens * inter)?;
        by.room(up, tokens * inter)?;

        let x = (shard.x, 0);
        let (outwards, inwards) = ([tokens, rank, inter], [tokens, inter, rank]);
        by.times_transposed(x, at(a), [tokens, hidden, rank], (z, 0))?;
        by.times((z, 0), at(gates), outwards, (gate, 0))?;
        by.times((z, 0), at(ups), outwards, (up, 0))?;
        let loss = ProductLoss {
            gate,
            up,
            places: [gate_bias, up_bias, squash],
            parameters,
            weight: shard.constants,
            floor: self.floor,
            act: self.act,
        };
        let loss = by.product_loss(loss, shard.labelled, gradient)?;
        let by_token = [rank, tokens, inter];
        by.transposed_times((z, 0), (gate, 0), by_token, (gradient, gates))?;
        by.transposed_times((z, 0), (up, 0), by_token, (gradient, ups))?;
        by.times_transposed((gate, 0), at(gates), inwards, (dz, 0))?;
        // The inner activations are done with: their memory takes the second half of their gradient.
        by.times_transposed((up, 0), at(ups), inwards, (z, 0))?;
        by.add(dz, z, tokens * rank)?;
        by.transposed_times((dz, 0), x, [rank, tokens, hidden], (gradient, a))?;
        Ok(loss)
    }
}
