//! Logits of a full matrix whose values are -1, 0 or 1 times one scale.

use super::{Shard, Student};
use crate::train::{
    elementwise::logit_loss,
    work::{Work, sized, transpose},
};
use std::ops::Range;

/// Ternary logits. Parameters: full-precision weights, transposed `[hidden, inter]`, then b `[inter]`.
///
/// The forward pass rounds `w / scale` to -1, 0 or 1, where the scale is the mean of |w|; the gradient passes the rounding
/// unchanged (straight-through).
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // the field's own names
pub struct Ternary {
    pub hidden: usize,
    pub inter: usize,
}

impl Ternary {
    /// Weights, transposed, and b of a vector of parameters.
    pub fn parts<'a>(&self, parameters: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        parameters.split_at(self.hidden * self.inter)
    }

    /// The scale of weights: the mean of their absolute values.
    pub fn scale(weights: &[f32]) -> f32 {
        let sum: f64 = weights
            .chunks(256)
            .map(|w| f64::from(w.iter().map(|w| w.abs()).sum::<f32>()))
            .sum();
        (sum / weights.len() as f64) as f32
    }

    /// What the predictor multiplies with: each weight rounded to -1, 0 or 1 times `scale`.
    pub fn rounded(weights: &[f32], scale: f32, out: &mut Vec<f32>) {
        let half = 0.5 * scale;
        out.clear();
        out.extend(weights.iter().map(|&w| {
            if w.abs() > half {
                scale.copysign(w)
            } else {
                0.0
            }
        }));
    }
}

impl Student for Ternary {
    fn parameters(&self) -> usize {
        self.hidden * self.inter + self.inter
    }

    fn decayed(&self) -> Range<usize> {
        0..self.hidden * self.inter
    }

    fn gradient(
        &self,
        parameters: &[f32],
        shard: Shard<'_>,
        work: &mut Work,
        gradient: &mut [f32],
    ) -> f64 {
        let (weights, bias) = self.parts(parameters);
        let (dw, dbias) = gradient.split_at_mut(weights.len());
        let tokens = shard.x.len() / self.hidden;
        let p = &mut work.products;

        Ternary::rounded(weights, Ternary::scale(weights), &mut work.weights);
        let logits = sized(&mut work.first, tokens * self.inter);
        p.times(shard.x, &work.weights, self.hidden, logits);

        dbias.fill(0.0);
        let rows = logits.chunks_exact_mut(self.inter);
        let loss = rows
            .zip(shard.label_rows(tokens))
            .map(|(row, labels)| logit_loss(row, bias, labels, shard.scale, dbias))
            .sum();

        transpose(shard.x, self.hidden, &mut work.transposed);
        p.times(&work.transposed, logits, tokens, dw);
        loss
    }

    fn scores(&self, parameters: &[f32], x: &[f32], work: &mut Work, out: &mut [f32]) {
        let (weights, bias) = self.parts(parameters);
        Ternary::rounded(weights, Ternary::scale(weights), &mut work.weights);
        work.products.times(x, &work.weights, self.hidden, out);
        for row in out.chunks_exact_mut(self.inter) {
            row.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
        }
    }
}
