//! What can be trained: maps from an FFN's input to a score a neuron, each with its loss and its gradient in closed form.
//!
//! A student owns no numbers: parameters are one vector, which the optimiser and the state file need not understand.

mod low_rank;
mod product;
mod ternary;
#[cfg(test)]
mod tests;

pub(crate) use low_rank::LowRank;
pub(crate) use product::Product;
pub(crate) use ternary::Ternary;

use super::{
    arithmetic::{Arithmetic, Labelled, Work},
    host::Host,
};
use crate::error::Result;
use std::ops::Range;

/// A shard of a minibatch.
pub(crate) struct Shard<'a, A: Arithmetic> {
    /// Inputs, `[tokens, hidden]`.
    pub x: &'a A::Vector,
    /// What they need.
    pub labelled: Labelled<'a, A::Words>,
    /// See [`Student::constants`].
    pub constants: &'a A::Vector,
}

/// A predictor while it is trained.
pub(crate) trait Student: Sync {
    /// Parameters in all.
    fn parameters(&self) -> usize;

    /// The parameters that weight decay draws towards zero: factors, not biases.
    fn decayed(&self) -> Range<usize>;

    /// Numbers that the loss takes beside parameters.
    fn constants(&self) -> &[f32] {
        &[]
    }

    /// Writes what the finished predictor compares with its cut, `[tokens, inter]`, for inputs `[tokens, hidden]`.
    ///
    /// # Panics
    /// If a length does not fit (so below).
    fn scores(&self, parameters: &[f32], x: &[f32], host: &mut Host, out: &mut [f32]);
}

/// A student's gradient, in closed form.
pub(crate) trait Gradient<A: Arithmetic>: Student {
    /// Overwrites `gradient` by the scale times the gradient of the shard's loss. Returns the loss summed over tokens and
    /// neurons.
    ///
    /// # Errors
    /// [`Error::Machine`](crate::Error::Machine) where a card fails.
    fn gradient(
        &self,
        parameters: &A::Vector,
        shard: &Shard<'_, A>,
        work: &mut Work<A>,
        gradient: &mut A::Vector,
    ) -> Result<f64>;
}
