//! Training predictors: products of `f32` matrices, losses with their gradients, and AdamW.

use super::{
    Cuda, CudaError,
    blas::{Blas, Lies, Operand},
    driver,
    launch::{Grid, Source, sources},
};
use crate::cpu::Act;
use cudarc::{
    cublas::sys::cudaDataType,
    driver::{CudaFunction, CudaSlice},
};
use std::ops::Range;

const SOURCES: [Source; 3] = sources!["types.cu", "flow.cu", "train.cu"];

/// `CHUNK` and `LOSS_THREADS` of `train.cu`.
const CHUNK: usize = 64;
const LOSS_THREADS: usize = 128;
/// Threads of the kernels that take one element a thread.
const THREADS: usize = 256;
/// Neurons to a word of labels.
const WORD: usize = u32::BITS as usize;

/// A vector on the card from one of its elements on.
pub type Part<'a> = (&'a CudaSlice<f32>, usize);
/// The same, to be written to.
pub type PartMut<'a> = (&'a mut CudaSlice<f32>, usize);

/// Which factor of a product lies transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transposed {
    /// None: `x` is `[n, k]` and `w` `[k, m]`.
    Neither,
    /// `x` is `[k, n]`.
    Left,
    /// `w` is `[m, k]`.
    Right,
}

/// Labels of some tokens.
#[derive(Clone, Copy)]
pub struct Labelled<'a> {
    /// Tokens.
    pub tokens: usize,
    /// Neurons.
    pub inter: usize,
    /// `[tokens]` rows of whole words, a bit a neuron.
    pub labels: &'a CudaSlice<u32>,
    /// Factor of slopes.
    pub scale: f32,
}

/// The operands of a product's loss.
pub struct ProductLoss<'a> {
    /// `[tokens, inter]` without bias; becomes slopes.
    pub gate: &'a mut CudaSlice<f32>,
    /// The same.
    pub up: &'a mut CudaSlice<f32>,
    /// `[inter]`.
    pub gate_bias: Part<'a>,
    /// `[inter]`.
    pub up_bias: Part<'a>,
    /// ln sharpness and level.
    pub squash: Part<'a>,
    /// Factors of scores, `[inter]`.
    pub weight: &'a CudaSlice<f32>,
    /// Added to the squared score.
    pub floor: f32,
    /// Of the gate.
    pub act: Act,
}

/// One step of AdamW.
#[derive(Clone, Debug)]
pub struct Step {
    /// Learning rate.
    pub rate: f32,
    /// Weight decay.
    pub decay: f32,
    /// The parameters that decay.
    pub decayed: Range<usize>,
    /// Decays of the two moments.
    pub betas: [f32; 2],
    /// What the moments are multiplied by, since they began at 0.
    pub scales: [f32; 2],
    /// Keeps the division from zero.
    pub epsilon: f32,
}

/// The kernels of training.
pub struct TrainKernels {
    blas: Blas,
    standardise: CudaFunction,
    logit_loss: CudaFunction,
    product_loss: CudaFunction,
    column_sums: CudaFunction,
    adamw: CudaFunction,
    magnitudes: CudaFunction,
    round_ternary: CudaFunction,
}

#[repr(C)]
struct StandardiseArguments {
    x: u64,
    mean: u64,
    factor: u64,
    n: u64,
    cols: u32,
}

#[repr(C)]
struct LogitLossArguments {
    logits: u64,
    bias: u64,
    labels: u64,
    bias_parts: u64,
    sums: u64,
    tokens: u32,
    inter: u32,
    words: u32,
    scale: f32,
}

#[repr(C)]
struct ProductLossArguments {
    gate: u64,
    up: u64,
    gate_bias: u64,
    up_bias: u64,
    squash: u64,
    weight: u64,
    labels: u64,
    gate_parts: u64,
    up_parts: u64,
    sums: u64,
    tokens: u32,
    inter: u32,
    words: u32,
    gelu: u32,
    scale: f32,
    floor: f32,
}

#[repr(C)]
struct ColumnsArguments {
    parts: u64,
    out: u64,
    rows: u32,
    cols: u32,
}

#[repr(C)]
struct AdamWArguments {
    parameters: u64,
    first: u64,
    second: u64,
    gradient: u64,
    n: u64,
    decayed_from: u64,
    decayed_to: u64,
    rate: f32,
    decay: f32,
    beta1: f32,
    beta2: f32,
    first_scale: f32,
    second_scale: f32,
    epsilon: f32,
}

#[repr(C)]
struct TernaryArguments {
    weights: u64,
    out: u64,
    n: u64,
    scale: f32,
}

impl TrainKernels {
    /// Compiles, or takes what was compiled before.
    ///
    /// # Errors
    /// [`CudaError::NoCompiler`], [`CudaError::NoBlas`], [`CudaError::Code`] or what the driver says.
    pub fn new(cuda: &Cuda) -> Result<TrainKernels, CudaError> {
        let module = cuda.module(&SOURCES, &[])?;
        let find = |name: &str| Cuda::function(&module, name, 0);
        Ok(TrainKernels {
            blas: Blas::new(cuda)?,
            standardise: find("standardise")?,
            logit_loss: find("logit_loss")?,
            product_loss: find("product_loss")?,
            column_sums: find("column_sums")?,
            adamw: find("adamw")?,
            magnitudes: find("magnitudes")?,
            round_ternary: find("round_ternary")?,
        })
    }

    /// `out = x w` in `f32` throughout, for `x` `[n, k]` and `w` `[k, m]`, one of which may lie transposed; `out` `[n, m]`.
    ///
    /// # Errors
    /// What cuBLAS says.
    ///
    /// # Panics
    /// If lengths do not fit (so below).
    pub fn multiply(
        &self,
        cuda: &Cuda,
        transposed: Transposed,
        (x, w): (Part<'_>, Part<'_>),
        [n, k, m]: [usize; 3],
        out: PartMut<'_>,
    ) -> Result<(), CudaError> {
        assert!(out.1 + n * m <= out.0.len());
        let operand = |part, len, side| Operand {
            at: address(cuda, part, len),
            lies: if transposed == side {
                Lies::Transposed
            } else {
                Lies::Straight
            },
        };
        let x = operand(x, n * k, Transposed::Left);
        let w = operand(w, k * m, Transposed::Right);
        let out = cuda.address(out.0) + 4 * out.1 as u64;
        // SAFETY: all three are on the card and as long as was checked.
        unsafe {
            self.blas
                .multiply((x, w, cudaDataType::CUDA_R_32F), [n, k, m], out)
        }
    }

    /// `x = (x - mean) * factor` for the first `rows` rows of `x`, each of as many elements as `mean` and `factor` have.
    ///
    /// # Errors
    /// What the driver says (so below).
    pub fn standardise(
        &self,
        cuda: &Cuda,
        x: &mut CudaSlice<f32>,
        rows: usize,
        (mean, factor): (&CudaSlice<f32>, &CudaSlice<f32>),
    ) -> Result<(), CudaError> {
        let (n, cols) = (rows * mean.len(), mean.len());
        assert!(factor.len() == cols && n <= x.len());
        let arguments = StandardiseArguments {
            x: cuda.address(x),
            mean: cuda.address(mean),
            factor: cuda.address(factor),
            n: n as u64,
            cols: cols as u32,
        };
        // SAFETY: as `Standardise` is declared; lengths were checked.
        unsafe { cuda.launch(&self.standardise, elements(cuda, n), arguments) }
    }

    /// Turns logits without bias, `[tokens, inter]`, into `scale` times the slopes of their cross-entropy with the labels, and writes the slopes by the
    /// bias. Returns the sum of losses.
    pub fn logit_loss(
        &self,
        cuda: &Cuda,
        logits: &mut CudaSlice<f32>,
        bias: Part<'_>,
        to: Labelled<'_>,
        bias_grad: PartMut<'_>,
    ) -> Result<f64, CudaError> {
        let (grid, words) = to.grid();
        assert!(to.tokens * to.inter <= logits.len());
        let bias_parts = cuda.zeros(grid.blocks.1 * to.inter)?;
        let sums = cuda.zeros(grid.blocks.0 * grid.blocks.1)?;
        let arguments = LogitLossArguments {
            logits: cuda.address(logits),
            bias: address(cuda, bias, to.inter),
            labels: cuda.address(to.labels),
            bias_parts: cuda.address(&bias_parts),
            sums: cuda.address(&sums),
            tokens: to.tokens as u32,
            inter: to.inter as u32,
            words: words as u32,
            scale: to.scale,
        };
        // SAFETY: as `LogitLoss` is declared; lengths were checked.
        unsafe { cuda.launch(&self.logit_loss, grid, arguments)? };
        self.column_sums(cuda, &bias_parts, to.inter, bias_grad)?;
        let [loss] = totals(cuda, &sums)?;
        Ok(loss)
    }

    /// The same for gate and up of a product. Slopes by their biases and by ln sharpness and level go to these places of `gradient`.
    pub fn product_loss(
        &self,
        cuda: &Cuda,
        loss: ProductLoss<'_>,
        to: Labelled<'_>,
        gradient: &mut CudaSlice<f32>,
        [gate_bias, up_bias, squash]: [usize; 3],
    ) -> Result<f64, CudaError> {
        let (grid, words) = to.grid();
        let n = to.tokens * to.inter;
        assert!(n <= loss.gate.len() && n <= loss.up.len() && to.inter <= loss.weight.len());
        let gate_parts = cuda.zeros(grid.blocks.1 * to.inter)?;
        let up_parts = cuda.zeros(grid.blocks.1 * to.inter)?;
        let sums = cuda.zeros(3 * grid.blocks.0 * grid.blocks.1)?;
        let arguments = ProductLossArguments {
            gate: cuda.address(loss.gate),
            up: cuda.address(loss.up),
            gate_bias: address(cuda, loss.gate_bias, to.inter),
            up_bias: address(cuda, loss.up_bias, to.inter),
            squash: address(cuda, loss.squash, 2),
            weight: cuda.address(loss.weight),
            labels: cuda.address(to.labels),
            gate_parts: cuda.address(&gate_parts),
            up_parts: cuda.address(&up_parts),
            sums: cuda.address(&sums),
            tokens: to.tokens as u32,
            inter: to.inter as u32,
            words: words as u32,
            gelu: u32::from(loss.act == Act::GeluTanh),
            scale: to.scale,
            floor: loss.floor,
        };
        // SAFETY: as `ProductLoss` is declared; lengths were checked.
        unsafe { cuda.launch(&self.product_loss, grid, arguments)? };
        self.column_sums(cuda, &gate_parts, to.inter, (&mut *gradient, gate_bias))?;
        self.column_sums(cuda, &up_parts, to.inter, (&mut *gradient, up_bias))?;
        let [loss, level, sharpness] = totals(cuda, &sums)?;
        let slopes = [sharpness, level].map(|s| s as f32);
        let mut place = gradient.slice_mut(squash..squash + 2);
        let written = cuda.stream.memcpy_htod(&slopes, &mut place);
        written.map_err(|e| driver("copying to the card", e))?;
        Ok(loss)
    }

    /// Sums of the columns of `parts`, rows of `cols`.
    fn column_sums(
        &self,
        cuda: &Cuda,
        parts: &CudaSlice<f32>,
        cols: usize,
        out: PartMut<'_>,
    ) -> Result<(), CudaError> {
        assert!(out.1 + cols <= out.0.len());
        let arguments = ColumnsArguments {
            parts: cuda.address(parts),
            out: cuda.address(out.0) + 4 * out.1 as u64,
            rows: (parts.len() / cols) as u32,
            cols: cols as u32,
        };
        let grid = Grid::of(cols.div_ceil(THREADS), THREADS);
        // SAFETY: as `Columns` is declared; lengths were checked.
        unsafe { cuda.launch(&self.column_sums, grid, arguments) }
    }

    /// One step of AdamW down `gradient`; the moments are updated.
    pub fn adamw(
        &self,
        cuda: &Cuda,
        step: &Step,
        parameters: &mut CudaSlice<f32>,
        [first, second]: [&mut CudaSlice<f32>; 2],
        gradient: &CudaSlice<f32>,
    ) -> Result<(), CudaError> {
        let n = parameters.len();
        assert!(n == first.len() && n == second.len() && n == gradient.len());
        let arguments = AdamWArguments {
            parameters: cuda.address(parameters),
            first: cuda.address(first),
            second: cuda.address(second),
            gradient: cuda.address(gradient),
            n: n as u64,
            decayed_from: step.decayed.start as u64,
            decayed_to: step.decayed.end as u64,
            rate: step.rate,
            decay: step.decay,
            beta1: step.betas[0],
            beta2: step.betas[1],
            first_scale: step.scales[0],
            second_scale: step.scales[1],
            epsilon: step.epsilon,
        };
        // SAFETY: as `AdamW` is declared; lengths were checked.
        unsafe { cuda.launch(&self.adamw, elements(cuda, n), arguments) }
    }

    /// The first `n` of `weights` rounded to -1, 0 or 1 times the mean of their absolute values.
    pub fn ternary(
        &self,
        cuda: &Cuda,
        weights: Part<'_>,
        n: usize,
        out: &mut CudaSlice<f32>,
    ) -> Result<(), CudaError> {
        assert!(n <= out.len());
        let grid = elements(cuda, n);
        let sums = cuda.zeros(grid.blocks.0)?;
        let arguments = |out: &CudaSlice<f32>, scale: f32| TernaryArguments {
            weights: address(cuda, weights, n),
            out: cuda.address(out),
            n: n as u64,
            scale,
        };
        // SAFETY: as `Ternary` is declared; lengths were checked.
        unsafe { cuda.launch(&self.magnitudes, grid, arguments(&sums, 0.0))? };
        let [sum] = totals(cuda, &sums)?;
        let scale = (sum / n as f64) as f32;
        // SAFETY: as above.
        unsafe { cuda.launch(&self.round_ternary, grid, arguments(out, scale)) }
    }
}

impl Labelled<'_> {
    /// A block for some neurons and tokens; and words a token.
    fn grid(&self) -> (Grid, usize) {
        let words = self.inter.div_ceil(WORD);
        assert!(self.tokens > 0 && self.tokens * words <= self.labels.len());
        let grid = Grid {
            blocks: (
                self.inter.div_ceil(LOSS_THREADS),
                self.tokens.div_ceil(CHUNK),
            ),
            threads: LOSS_THREADS,
            shared: 0,
        };
        (grid, words)
    }
}

fn address(cuda: &Cuda, (data, at): Part<'_>, len: usize) -> u64 {
    assert!(at + len <= data.len());
    cuda.address(data) + 4 * at as u64
}

/// The sums of `N` numbers that each block left.
fn totals<const N: usize>(cuda: &Cuda, sums: &CudaSlice<f32>) -> Result<[f64; N], CudaError> {
    let mut totals = [0.0; N];
    for block in cuda.download(sums)?.chunks_exact(N) {
        let pairs = totals.iter_mut().zip(block);
        pairs.for_each(|(t, s)| *t += f64::from(*s));
    }
    Ok(totals)
}

/// Enough blocks to fill the card, or to have a thread an element.
fn elements(cuda: &Cuda, n: usize) -> Grid {
    let most = 8 * cuda.card().multiprocessors;
    Grid::of(n.div_ceil(THREADS).clamp(1, most), THREADS)
}
