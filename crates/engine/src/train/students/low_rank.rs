//! Logits of low rank: `B (A x) + b`.

use super::{Gradient, Shard, Student};
use crate::{
    error::Result,
    train::{
        arithmetic::{Arithmetic, Work},
        host::Host,
    },
};
use std::ops::Range;

/// Logits of low rank. Parameters: A `[rank, hidden]`, then B transposed `[rank, inter]`, then b `[inter]`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // the field's own names
pub(crate) struct LowRank {
    pub hidden: usize,
    pub inter: usize,
    pub rank: usize,
}

impl LowRank {
    /// A, B transposed and b of a vector of parameters.
    pub(crate) fn parts<'a>(&self, parameters: &'a [f32]) -> (&'a [f32], &'a [f32], &'a [f32]) {
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

    fn scores(&self, parameters: &[f32], x: &[f32], host: &mut Host, out: &mut [f32]) {
        let (a, b, bias) = self.parts(parameters);
        let mut z = vec![0.0; x.len() / self.hidden * self.rank];
        host.product_transposed(x, a, self.hidden, &mut z);
        host.product(&z, b, self.rank, out);
        for row in out.chunks_exact_mut(self.inter) {
            row.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
        }
    }
}

impl<A: Arithmetic> Gradient<A> for LowRank {
    fn gradient(
        &self,
        parameters: &A::Vector,
        shard: &Shard<'_, A>,
        work: &mut Work<A>,
        gradient: &mut A::Vector,
    ) -> Result<f64> {
        let (hidden, inter, rank) = (self.hidden, self.inter, self.rank);
        let tokens = shard.labelled.tokens;
        let (a, b) = (0, rank * hidden);
        let bias = b + rank * inter;
        let at = |place| (parameters, place);
        let Work {
            by,
            inner: z,
            inner_grad: dz,
            first: logits,
            ..
        } = work;
        by.room(z, tokens * rank)?;
        by.room(dz, tokens * rank)?;
        by.room(logits, tokens * inter)?;

        let x = (shard.x, 0);
        by.times_transposed(x, at(a), [tokens, hidden, rank], (z, 0))?;
        by.times((z, 0), at(b), [tokens, rank, inter], (logits, 0))?;
        let to = (&mut *gradient, bias);
        let loss = by.logit_loss(logits, at(bias), shard.labelled, to)?;
        by.transposed_times((z, 0), (logits, 0), [rank, tokens, inter], (gradient, b))?;
        by.times_transposed((logits, 0), at(b), [tokens, inter, rank], (dz, 0))?;
        by.transposed_times((dz, 0), x, [rank, tokens, hidden], (gradient, a))?;
        Ok(loss)
    }
}
