//! Logits of a full matrix whose values are -1, 0 or 1 times one scale.

use super::{Gradient, Shard, Student};
use crate::{
    error::Result,
    train::{
        arithmetic::{Arithmetic, Work},
        host::Host,
    },
};
use std::ops::Range;

/// Ternary logits. Parameters: full-precision weights, transposed `[hidden, inter]`, then b `[inter]`.
///
/// The forward pass rounds `w / scale` to -1, 0 or 1, where the scale is the mean of |w|; the gradient passes the rounding
/// unchanged (straight-through).
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // the field's own names
pub(crate) struct Ternary {
    pub hidden: usize,
    pub inter: usize,
}

impl Ternary {
    /// Weights, transposed, and b of a vector of parameters.
    pub(crate) fn parts<'a>(&self, parameters: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        parameters.split_at(self.hidden * self.inter)
    }

    /// The scale of weights: the mean of their absolute values.
    pub(crate) fn scale(weights: &[f32]) -> f32 {
        let sum: f64 = weights
            .chunks(256)
            .map(|w| f64::from(w.iter().map(|w| w.abs()).sum::<f32>()))
            .sum();
        (sum / weights.len() as f64) as f32
    }

    /// What the predictor multiplies with: each weight rounded to -1, 0 or 1 times `scale`.
    pub(crate) fn rounded(weights: &[f32], scale: f32, out: &mut Vec<f32>) {
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

    fn scores(&self, parameters: &[f32], x: &[f32], host: &mut Host, out: &mut [f32]) {
        let (weights, bias) = self.parts(parameters);
        let mut rounded = Vec::new();
        Ternary::rounded(weights, Ternary::scale(weights), &mut rounded);
        host.product(x, &rounded, self.hidden, out);
        for row in out.chunks_exact_mut(self.inter) {
            row.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
        }
    }
}

impl<A: Arithmetic> Gradient<A> for Ternary {
    fn gradient(
        &self,
        parameters: &A::Vector,
        shard: &Shard<'_, A>,
        work: &mut Work<A>,
        gradient: &mut A::Vector,
    ) -> Result<f64> {
        let (hidden, inter) = (self.hidden, self.inter);
        let tokens = shard.labelled.tokens;
        let bias = hidden * inter;
        let Work {
            by,
            first: logits,
            weights,
            ..
        } = work;
        by.room(logits, tokens * inter)?;

        by.ternary((parameters, 0), bias, weights)?;
        let x = (shard.x, 0);
        by.times(x, (weights, 0), [tokens, hidden, inter], (logits, 0))?;
        let to = (&mut *gradient, bias);
        let loss = by.logit_loss(logits, (parameters, bias), shard.labelled, to)?;
        by.transposed_times(x, (logits, 0), [hidden, tokens, inter], (gradient, 0))?;
        Ok(loss)
    }
}
