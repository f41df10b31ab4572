//! The shape of the FFN itself at low rank: imitate gate and up, then form the product.
//!
//! |s| = |act(g)| |u| is even in u, which no linear logit can say. The score is `c |act(g~) u~|`; to be trained it becomes the
//! logit `sharpness * (ln(score^2 + floor) - level)`, sharpness and level being parameters that the finished predictor drops.

use super::{Shard, Student};
use crate::train::{
    elementwise::{ProductRow, Squash, activate, product_loss},
    work::{Work, sized, transpose},
};
use countdown_kernels::cpu::Act;
use std::ops::Range;

/// The product of two projections of one shared inner vector. Parameters: A `[rank, hidden]`, B of gate and of up, both
/// transposed `[rank, inter]`, their biases `[inter]`, then ln sharpness and level.
#[derive(Clone, Debug, PartialEq)]
pub struct Product {
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

/// A product's parameters.
#[allow(missing_docs)] // see `Product`
pub struct ProductParts<'a> {
    pub a: &'a [f32],
    pub gate: &'a [f32],
    pub up: &'a [f32],
    pub gate_bias: &'a [f32],
    pub up_bias: &'a [f32],
    pub ln_sharpness: f32,
    pub level: f32,
}

impl Product {
    /// The parts of a vector of parameters.
    pub fn parts<'a>(&self, parameters: &'a [f32]) -> ProductParts<'a> {
        let (a, rest) = parameters.split_at(self.rank * self.hidden);
        let (gate, rest) = rest.split_at(self.rank * self.inter);
        let (up, rest) = rest.split_at(self.rank * self.inter);
        let (gate_bias, rest) = rest.split_at(self.inter);
        let (up_bias, squash) = rest.split_at(self.inter);
        ProductParts {
            a,
            gate,
            up,
            gate_bias,
            up_bias,
            ln_sharpness: squash[0],
            level: squash[1],
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

    fn gradient(
        &self,
        parameters: &[f32],
        shard: Shard<'_>,
        work: &mut Work,
        gradient: &mut [f32],
    ) -> f64 {
        let (rank, inter) = (self.rank, self.inter);
        let at = self.parts(parameters);
        let (da, rest) = gradient.split_at_mut(at.a.len());
        let (dgate, rest) = rest.split_at_mut(at.gate.len());
        let (dup, rest) = rest.split_at_mut(at.up.len());
        let (dgate_bias, rest) = rest.split_at_mut(inter);
        let (dup_bias, dsquash) = rest.split_at_mut(inter);
        let tokens = shard.x.len() / self.hidden;
        let p = &mut work.products;

        let z = sized(&mut work.inner, tokens * rank);
        p.times_transposed(shard.x, at.a, self.hidden, z);
        let gate = sized(&mut work.first, tokens * inter);
        p.times(z, at.gate, rank, gate);
        let up = sized(&mut work.second, tokens * inter);
        p.times(z, at.up, rank, up);

        dgate_bias.fill(0.0);
        dup_bias.fill(0.0);
        let squash = Squash {
            ln_sharpness: at.ln_sharpness,
            level: at.level,
            floor: self.floor,
        };
        let mut sums = [0.0; 3];
        let rows = gate.chunks_exact_mut(inter).zip(up.chunks_exact_mut(inter));
        for ((gate, up), labels) in rows.zip(shard.label_rows(tokens)) {
            let row = ProductRow {
                gate,
                up,
                gate_bias: at.gate_bias,
                up_bias: at.up_bias,
                weight: &self.weight,
                labels,
                gate_bias_grad: dgate_bias,
                up_bias_grad: dup_bias,
            };
            let part = product_loss(self.act, row, squash, shard.scale);
            sums.iter_mut().zip(part).for_each(|(s, p)| *s += p);
        }
        let [loss, level, sharpness] = sums;
        dsquash.copy_from_slice(&[sharpness as f32, level as f32]);

        transpose(z, rank, &mut work.transposed);
        p.times(&work.transposed, gate, tokens, dgate);
        p.times(&work.transposed, up, tokens, dup);
        let dz = sized(&mut work.inner_grad, tokens * rank);
        p.times_transposed(gate, at.gate, inter, dz);
        // The inner activations are done with: their memory takes the second half of their gradient.
        p.times_transposed(up, at.up, inter, z);
        dz.iter_mut().zip(z).for_each(|(a, b)| *a += *b);
        transpose(dz, rank, &mut work.transposed);
        p.times(&work.transposed, shard.x, tokens, da);
        loss
    }

    fn scores(&self, parameters: &[f32], x: &[f32], work: &mut Work, out: &mut [f32]) {
        let (rank, inter) = (self.rank, self.inter);
        let at = self.parts(parameters);
        let tokens = x.len() / self.hidden;
        let p = &mut work.products;
        let z = sized(&mut work.inner, tokens * rank);
        p.times_transposed(x, at.a, self.hidden, z);
        let gate = sized(&mut work.first, tokens * inter);
        p.times(z, at.gate, rank, gate);
        p.times(z, at.up, rank, out);
        let slopes = sized(&mut work.second, inter);
        for (gate, out) in gate
            .chunks_exact_mut(inter)
            .zip(out.chunks_exact_mut(inter))
        {
            gate.iter_mut().zip(at.gate_bias).for_each(|(g, b)| *g += b);
            activate(self.act, gate, slopes);
            let factors = gate.iter().zip(at.up_bias).zip(&self.weight);
            for (out, ((a, b), w)) in out.iter_mut().zip(factors) {
                *out = (a * (*out + b) * w).abs();
            }
        }
    }
}
