//! What students are computed by: vectors of numbers, on the host or on a card, and a handful of operations on them.

use crate::error::Result;
use countdown_kernels::cpu::Act;
use std::ops::Range;

/// A vector from one of its elements on.
pub(crate) type Part<'a, V> = (&'a V, usize);
/// The same, to be written to.
pub(crate) type PartMut<'a, V> = (&'a mut V, usize);

/// Labels of some tokens.
pub(crate) struct Labelled<'a, W> {
    /// `[tokens]` rows of [`super::Labels::words_per_token`] words.
    pub labels: &'a W,
    /// Tokens.
    pub tokens: usize,
    /// Neurons.
    pub inter: usize,
    /// Factor of the gradient: one by the elements of the whole minibatch, for a mean.
    pub scale: f32,
}

impl<W> Clone for Labelled<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for Labelled<'_, W> {}

/// The operands of a product's loss.
pub(crate) struct ProductLoss<'a, V> {
    /// `[tokens, inter]`, the bias not yet added; becomes `scale` times the gradient.
    pub gate: &'a mut V,
    /// The same.
    pub up: &'a mut V,
    /// Where in `parameters` and in the gradient the biases of gate and up are, and ln sharpness with the level behind it.
    pub places: [usize; 3],
    /// All parameters.
    pub parameters: &'a V,
    /// Factor of each neuron's score, `[inter]`.
    pub weight: &'a V,
    /// Added to the squared score.
    pub floor: f32,
    /// Of the gate.
    pub act: Act,
}

/// One step of the optimiser.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamStep {
    /// Learning rate.
    pub rate: f32,
    /// Weight decay.
    pub decay: f32,
    /// What the two moments are multiplied by, since they began at 0.
    pub scales: [f32; 2],
}

/// Vectors and operations. Matrices are row-major parts of vectors; operations give the same bits each time, and those on
/// the host do so on any number of threads.
///
/// Operations panic if lengths do not fit, and fail where a card does.
pub(crate) trait Arithmetic: Sized + Send {
    /// Numbers.
    type Vector: Send + Sync;
    /// Labels.
    type Words: Send + Sync;

    /// One like it for one of several shards that are computed side by side.
    fn alone(&self) -> Result<Self>;
    /// Tokens of a batch that are computed together.
    fn shard(&self, batch: usize) -> usize;
    /// Runs `f` for all, side by side where it can.
    fn each<T: Send>(&mut self, items: &mut [T], f: impl Fn(&mut T) + Sync);

    /// Makes a vector of numbers.
    fn take(&self, values: Vec<f32>) -> Result<Self::Vector>;
    /// Makes numbers of a vector.
    fn give(&self, v: Self::Vector) -> Result<Vec<f32>>;
    /// A copy of the numbers.
    fn read(&self, v: &Self::Vector) -> Result<Vec<f32>>;
    /// Overwrites the beginning of a vector, which grows where it is too short.
    fn load(&self, values: &[f32], to: &mut Self::Vector) -> Result<()>;
    /// No words, to be overwritten.
    fn no_words(&self) -> Result<Self::Words>;
    /// Overwrites the beginning of words, which grow where they are too short.
    fn load_words(&self, words: &[u32], to: &mut Self::Words) -> Result<()>;
    /// Makes a vector of at least `len` elements, which are to be overwritten.
    fn room(&self, v: &mut Self::Vector, len: usize) -> Result<()>;

    /// `x = (x - mean) * factor`, `[rows, mean's length]`.
    fn standardise(
        &mut self,
        x: &mut Self::Vector,
        rows: usize,
        change: [&Self::Vector; 2],
    ) -> Result<()>;
    /// `out = x w`: `x` `[n, k]`, `w` `[k, m]`, `out` `[n, m]`.
    fn times(
        &mut self,
        x: Part<'_, Self::Vector>,
        w: Part<'_, Self::Vector>,
        shape: [usize; 3],
        out: PartMut<'_, Self::Vector>,
    ) -> Result<()>;
    /// `out = x w^T`: `x` `[n, k]`, `w` `[m, k]`.
    fn times_transposed(
        &mut self,
        x: Part<'_, Self::Vector>,
        w: Part<'_, Self::Vector>,
        shape: [usize; 3],
        out: PartMut<'_, Self::Vector>,
    ) -> Result<()>;
    /// `out = x^T w`: `x` `[k, n]`, `w` `[k, m]`.
    fn transposed_times(
        &mut self,
        x: Part<'_, Self::Vector>,
        w: Part<'_, Self::Vector>,
        shape: [usize; 3],
        out: PartMut<'_, Self::Vector>,
    ) -> Result<()>;
    /// `to += from`, the first `n` elements.
    fn add(&mut self, to: &mut Self::Vector, from: &Self::Vector, n: usize) -> Result<()>;
    /// The first `n` weights of a part rounded to -1, 0 or 1 times the mean of their absolute values.
    fn ternary(
        &mut self,
        weights: Part<'_, Self::Vector>,
        n: usize,
        out: &mut Self::Vector,
    ) -> Result<()>;
    /// Turns logits, the bias not yet added, into `scale` times the gradient by them, and writes that by the bias. Returns the
    /// loss summed over tokens and neurons.
    fn logit_loss(
        &mut self,
        logits: &mut Self::Vector,
        bias: Part<'_, Self::Vector>,
        to: Labelled<'_, Self::Words>,
        bias_grad: PartMut<'_, Self::Vector>,
    ) -> Result<f64>;
    /// Turns gate and up into `scale` times the gradients by them, and writes those by biases, ln sharpness and level. Returns
    /// the loss summed over tokens and neurons.
    fn product_loss(
        &mut self,
        loss: ProductLoss<'_, Self::Vector>,
        to: Labelled<'_, Self::Words>,
        gradient: &mut Self::Vector,
    ) -> Result<f64>;
    /// A step of AdamW down the sum of gradients, for parameters and their two moments. Only `decayed` parameters decay.
    fn adamw(
        &mut self,
        step: AdamStep,
        state: [&mut Self::Vector; 3],
        gradients: &[&Self::Vector],
        decayed: Range<usize>,
    ) -> Result<()>;
}

/// What a shard is computed with: memory for activations and their gradients.
pub(crate) struct Work<A: Arithmetic> {
    pub(super) by: A,
    /// Inner activations `[tokens, rank]`, and their gradients.
    pub(super) inner: A::Vector,
    pub(super) inner_grad: A::Vector,
    /// Logits or gate, and up, `[tokens, inter]`, turned into gradients in place.
    pub(super) first: A::Vector,
    pub(super) second: A::Vector,
    /// Weights as the forward pass sees them, where those differ from the parameters.
    pub(super) weights: A::Vector,
}

impl<A: Arithmetic> Work<A> {
    /// Empty memory.
    ///
    /// # Errors
    /// [`Error::Machine`](crate::Error::Machine) where a card has none.
    pub(crate) fn new(by: A) -> Result<Work<A>> {
        let empty = || by.take(Vec::new());
        Ok(Work {
            inner: empty()?,
            inner_grad: empty()?,
            first: empty()?,
            second: empty()?,
            weights: empty()?,
            by,
        })
    }
}
