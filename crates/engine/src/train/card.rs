//! Training's arithmetic on a card: products through cuBLAS in `f32` throughout, the rest in kernels of its own.

use super::adamw::{BETA1, BETA2, EPSILON};
use super::arithmetic::{AdamStep, Arithmetic, Labelled, Part, PartMut, ProductLoss};
use crate::{backend::cuda::error, error::Result};
use countdown_kernels::{
    MatRef,
    cuda::{
        Cuda, CudaSlice, Orientation, PromptKernels, StepKernels, Weights,
        train::{self as kernels, TrainKernels, Transposed},
    },
};
use std::{ops::Range, path::Path, sync::Arc};

/// A card with the kernels of training. Clones share them.
#[derive(Clone)]
pub(crate) struct Card {
    pub(super) cuda: Arc<Cuda>,
    kernels: Arc<TrainKernels>,
    step: Arc<StepKernels>,
}

impl Card {
    /// Opens a card. Compiled kernels are kept in the folder `cache`, if there is one.
    ///
    /// # Errors
    /// [`Error::Machine`](crate::Error::Machine) where there is none, or its driver or libraries do not do (so below).
    pub(crate) fn open(ordinal: usize, cache: Option<&Path>) -> Result<Card> {
        let cuda = Cuda::open(ordinal, cache).map_err(error)?;
        Ok(Card {
            kernels: Arc::new(TrainKernels::new(&cuda).map_err(error)?),
            step: Arc::new(StepKernels::new(&cuda).map_err(error)?),
            cuda: Arc::new(cuda),
        })
    }

    /// A product of host matrices: `[n, k, m]` as [`Arithmetic::times`] has it, `w` lying as it says.
    pub(super) fn product(
        &self,
        transposed: Transposed,
        (x, w): (&[f32], &[f32]),
        shape: [usize; 3],
        out: &mut [f32],
    ) -> Result<()> {
        let mut by = || {
            let (x, w) = (self.cuda.upload(x)?, self.cuda.upload(w)?);
            let mut product = self.cuda.zeros(out.len())?;
            let factors = ((&x, 0), (&w, 0));
            self.kernels
                .multiply(&self.cuda, transposed, factors, shape, (&mut product, 0))?;
            self.cuda.read(&product, out)
        };
        by().map_err(error)
    }

    fn multiply(
        &self,
        transposed: Transposed,
        factors: (Part<'_, CudaSlice<f32>>, Part<'_, CudaSlice<f32>>),
        shape: [usize; 3],
        out: PartMut<'_, CudaSlice<f32>>,
    ) -> Result<()> {
        self.kernels
            .multiply(&self.cuda, transposed, factors, shape, out)
            .map_err(error)
    }
}

/// A packed matrix on a card, to be multiplied with host matrices of up to so many rows. Factors are rounded as those of prompts are.
pub(super) struct CardMatrix {
    card: Card,
    weights: Weights,
    prompt: PromptKernels,
}

impl CardMatrix {
    pub(super) fn new(card: &Card, w: MatRef<'_>, rows: usize) -> Result<CardMatrix> {
        let unpacked = match w.dtype().is_quantized() {
            true => w.rows() * w.cols(),
            false => 0,
        };
        let inputs = rows * w.rows().max(w.cols());
        Ok(CardMatrix {
            weights: Weights::upload(&card.cuda, w, None).map_err(error)?,
            prompt: PromptKernels::new(&card.cuda, inputs, unpacked).map_err(error)?,
            card: card.clone(),
        })
    }

    /// `out = x w`, or `x w^T`.
    pub(super) fn times(&mut self, by: Orientation, x: &[f32], out: &mut [f32]) -> Result<()> {
        let Card { cuda, step, .. } = &self.card;
        let (prompt, w) = (&mut self.prompt, &self.weights);
        let rows = match by {
            Orientation::RowPerInput => x.len() / w.rows(),
            Orientation::RowPerOutput => x.len() / w.cols(),
        };
        let mut by = || {
            let x = cuda.upload(x)?;
            let mut product = cuda.zeros(out.len())?;
            prompt.matmul(cuda, step, w, by, (&x, 0, rows), &mut product)?;
            cuda.read(&product, out)
        };
        by().map_err(error)
    }
}

fn labelled<'a>(to: &Labelled<'a, CudaSlice<u32>>) -> kernels::Labelled<'a> {
    kernels::Labelled {
        tokens: to.tokens,
        inter: to.inter,
        labels: to.labels,
        scale: to.scale,
    }
}

impl Arithmetic for Card {
    type Vector = CudaSlice<f32>;
    type Words = CudaSlice<u32>;

    fn alone(&self) -> Result<Card> {
        Ok(self.clone())
    }

    fn shard(&self, batch: usize) -> usize {
        batch.max(1)
    }

    fn each<T: Send>(&mut self, items: &mut [T], f: impl Fn(&mut T) + Sync) {
        items.iter_mut().for_each(f);
    }

    fn take(&self, values: Vec<f32>) -> Result<CudaSlice<f32>> {
        if values.is_empty() {
            return self.cuda.zeros(1).map_err(error);
        }
        self.cuda.upload(&values).map_err(error)
    }

    fn give(&self, v: CudaSlice<f32>) -> Result<Vec<f32>> {
        self.read(&v)
    }

    fn read(&self, v: &CudaSlice<f32>) -> Result<Vec<f32>> {
        self.cuda.download(v).map_err(error)
    }

    fn load(&self, values: &[f32], to: &mut CudaSlice<f32>) -> Result<()> {
        self.room(to, values.len())?;
        self.cuda.write(values, to).map_err(error)
    }

    fn no_words(&self) -> Result<CudaSlice<u32>> {
        self.cuda.zeros(1).map_err(error)
    }

    fn load_words(&self, words: &[u32], to: &mut CudaSlice<u32>) -> Result<()> {
        if to.len() < words.len() {
            *to = self.cuda.zeros(words.len()).map_err(error)?;
        }
        self.cuda.write(words, to).map_err(error)
    }

    fn room(&self, v: &mut CudaSlice<f32>, len: usize) -> Result<()> {
        if v.len() < len {
            *v = self.cuda.zeros(len).map_err(error)?;
        }
        Ok(())
    }

    fn standardise(
        &mut self,
        x: &mut CudaSlice<f32>,
        rows: usize,
        [mean, factor]: [&CudaSlice<f32>; 2],
    ) -> Result<()> {
        self.kernels
            .standardise(&self.cuda, x, rows, (mean, factor))
            .map_err(error)
    }

    fn times(
        &mut self,
        x: Part<'_, CudaSlice<f32>>,
        w: Part<'_, CudaSlice<f32>>,
        shape: [usize; 3],
        out: PartMut<'_, CudaSlice<f32>>,
    ) -> Result<()> {
        self.multiply(Transposed::Neither, (x, w), shape, out)
    }

    fn times_transposed(
        &mut self,
        x: Part<'_, CudaSlice<f32>>,
        w: Part<'_, CudaSlice<f32>>,
        shape: [usize; 3],
        out: PartMut<'_, CudaSlice<f32>>,
    ) -> Result<()> {
        self.multiply(Transposed::Right, (x, w), shape, out)
    }

    fn transposed_times(
        &mut self,
        x: Part<'_, CudaSlice<f32>>,
        w: Part<'_, CudaSlice<f32>>,
        shape: [usize; 3],
        out: PartMut<'_, CudaSlice<f32>>,
    ) -> Result<()> {
        self.multiply(Transposed::Left, (x, w), shape, out)
    }

    fn add(&mut self, to: &mut CudaSlice<f32>, from: &CudaSlice<f32>, n: usize) -> Result<()> {
        assert!(n <= from.len());
        self.step.add(&self.cuda, to, (from, 1.0), n).map_err(error)
    }

    fn ternary(
        &mut self,
        weights: Part<'_, CudaSlice<f32>>,
        n: usize,
        out: &mut CudaSlice<f32>,
    ) -> Result<()> {
        self.room(out, n)?;
        self.kernels
            .ternary(&self.cuda, weights, n, out)
            .map_err(error)
    }

    fn logit_loss(
        &mut self,
        logits: &mut CudaSlice<f32>,
        bias: Part<'_, CudaSlice<f32>>,
        to: Labelled<'_, CudaSlice<u32>>,
        bias_grad: PartMut<'_, CudaSlice<f32>>,
    ) -> Result<f64> {
        self.kernels
            .logit_loss(&self.cuda, logits, bias, labelled(&to), bias_grad)
            .map_err(error)
    }

    fn product_loss(
        &mut self,
        loss: ProductLoss<'_, CudaSlice<f32>>,
        to: Labelled<'_, CudaSlice<u32>>,
        gradient: &mut CudaSlice<f32>,
    ) -> Result<f64> {
        let of = |place| (loss.parameters, loss.places[place]);
        let operands = kernels::ProductLoss {
            gate_bias: of(0),
            up_bias: of(1),
            squash: of(2),
            gate: loss.gate,
            up: loss.up,
            weight: loss.weight,
            floor: loss.floor,
            act: loss.act,
        };
        self.kernels
            .product_loss(&self.cuda, operands, labelled(&to), gradient, loss.places)
            .map_err(error)
    }

    fn adamw(
        &mut self,
        step: AdamStep,
        [parameters, first, second]: [&mut CudaSlice<f32>; 3],
        gradients: &[&CudaSlice<f32>],
        decayed: Range<usize>,
    ) -> Result<()> {
        let &[gradient] = gradients else {
            unreachable!("a batch is one shard on a card")
        };
        let step = kernels::Step {
            rate: step.rate,
            decay: step.decay,
            decayed,
            betas: [BETA1, BETA2],
            scales: step.scales,
            epsilon: EPSILON,
        };
        self.kernels
            .adamw(&self.cuda, &step, parameters, [first, second], gradient)
            .map_err(error)
    }
}
