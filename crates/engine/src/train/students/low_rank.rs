//! Logits of low rank: `B (A x) + b`.

use super::{Shard, Student};
use crate::train::{
    elementwise::logit_loss,
    work::{Work, sized, transpose},
};
use std::ops::Range;

/// Logits of low rank. Parameters: A `[rank, hidden]`, then B transposed `[rank, inter]`, then b `[inter]`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // the field's own names
pub struct LowRank {
    pub hidden: usize,
    pub inter: usize,
    pub rank: usize,
}

impl LowRank {
    /// A, B transposed and b of a vector of parameters.
    pub fn parts<'a>(&self, parameters: &'a [f32]) -> (&'a [f32], &'a [f32], &'a [f32]) {
        let (a, rest) = parameters.split_at(self.rank * self.hidden);
        let (b, bias) = rest.split_at(self.rank * self.inter);
        (a, b, bias)
    }
}

impl Student for LowRank {
    fn parameters(&self) -> usize {
        self.rank * (self.hidden + self.inter) + self.inter
    }

    fn decayed(&self) -> Range<usize> {
        0..self.rank * (self.hidden + self.inter)
    }

    fn gradient(
        &self,
        parameters: &[f32],
        shard: Shard<'_>,
        work: &mut Work,
        gradient: &mut [f32],
    ) -> f64 {
        let (a, b, bias) = self.parts(parameters);
        let (da, rest) = gradient.split_at_mut(a.len());
        let (db, dbias) = rest.split_at_mut(b.len());
        let tokens = shard.x.len() / self.hidden;
        let p = &mut work.products;

        let z = sized(&mut work.inner, tokens * self.rank);
        p.times_transposed(shard.x, a, self.hidden, z);
        let logits = sized(&mut work.first, tokens * self.inter);
        p.times(z, b, self.rank, logits);

        dbias.fill(0.0);
        let rows = logits.chunks_exact_mut(self.inter);
        let loss = rows
            .zip(shard.label_rows(tokens))
            .map(|(row, labels)| logit_loss(row, bias, labels, shard.scale, dbias))
            .sum();

        transpose(z, self.rank, &mut work.transposed);
        p.times(&work.transposed, logits, tokens, db);
        let dz = sized(&mut work.inner_grad, tokens * self.rank);
        p.times_transposed(logits, b, self.inter, dz);
        transpose(dz, self.rank, &mut work.transposed);
        p.times(&work.transposed, shard.x, tokens, da);
        loss
    }

    fn scores(&self, parameters: &[f32], x: &[f32], work: &mut Work, out: &mut [f32]) {
        let (a, b, bias) = self.parts(parameters);
        let z = sized(&mut work.inner, x.len() / self.hidden * self.rank);
        work.products.times_transposed(x, a, self.hidden, z);
        work.products.times(z, b, self.rank, out);
        for row in out.chunks_exact_mut(self.inter) {
            row.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
        }
    }
}
