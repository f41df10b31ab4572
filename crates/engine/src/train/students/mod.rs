//! What can be trained: maps from an FFN's input to a score a neuron, each with its loss and its gradient in closed form.
//!
//! A student owns no numbers: parameters are one vector, which the optimiser and the state file need not understand.

mod low_rank;
mod product;
mod ternary;
#[cfg(test)]
mod tests;

pub use low_rank::LowRank;
pub use product::Product;
pub use ternary::Ternary;

use super::work::Work;
use std::ops::Range;

/// A shard of a minibatch.
#[derive(Clone, Copy)]
pub struct Shard<'a> {
    /// Inputs, `[tokens, hidden]`.
    pub x: &'a [f32],
    /// Labels, `[tokens]` rows of [`super::Labels::words_per_token`] words.
    pub labels: &'a [u32],
    /// Factor of the gradient: one by the elements of the whole minibatch, for a mean.
    pub scale: f32,
}

impl Shard<'_> {
    /// Each token's words.
    fn label_rows(&self, tokens: usize) -> std::slice::ChunksExact<'_, u32> {
        self.labels.chunks_exact(self.labels.len() / tokens)
    }
}

/// A predictor while it is trained.
pub trait Student: Sync {
    /// Parameters in all.
    fn parameters(&self) -> usize;

    /// The parameters that weight decay draws towards zero: factors, not biases.
    fn decayed(&self) -> Range<usize>;

    /// Overwrites `gradient` by `shard.scale` times the gradient of the shard's loss. Returns the loss summed over tokens and
    /// neurons.
    ///
    /// # Panics
    /// If a length does not fit (so below).
    fn gradient(
        &self,
        parameters: &[f32],
        shard: Shard<'_>,
        work: &mut Work,
        gradient: &mut [f32],
    ) -> f64;

    /// Writes what the finished predictor compares with its cut, `[tokens, inter]`, for inputs `[tokens, hidden]`.
    fn scores(&self, parameters: &[f32], x: &[f32], work: &mut Work, out: &mut [f32]);
}
