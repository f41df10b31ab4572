//! Gated FFNs for one token, each one launch (`src/ffn.cu`): a block scores its share of the neurons, decides, and takes its share of all
//! that are kept.

use super::{
    Cuda, CudaError, EMPTY, Footprint, Output, Predictor, PredictorShape, RESERVED, Taken, Weights,
    joined::FfnLaunch,
    launch::{Grid, Source, sources},
    products::{PRODUCTS, ProductArguments},
    weights,
};
use crate::{cpu::Act, dtype::DType};
use cudarc::driver::{CudaFunction, CudaSlice};

const SOURCES: [Source; 17] = sources![
    "types.cu",
    "products.cu",
    "weights.cu",
    "base.cu",
    "barrier.cu",
    "ring.cu",
    "flow.cu",
    "levels.cu",
    "state.cu",
    "score_rows.cu",
    "score_low_rank.cu",
    "score_outer.cu",
    "select.cu",
    "neurons.cu",
    "joined.cu",
    "gather.cu",
    "ffn.cu"
];

/// Registers of a multiprocessor, and what a thread may have of them. With fewer than the least, kernels would keep in memory what they use all the time.
const REGISTERS: usize = 65_536;
const LEAST_REGISTERS: usize = 64;
const MOST_REGISTERS: usize = 255;
/// Blocks whose counts fit a warp's registers.
const MOST_BLOCKS: usize = 256;
/// Neurons more than its even share that a block may have.
const DEALT: usize = 16;

/// The part of its share of the memory's bandwidth that a block asks for at most, so that none gets less.
const PACE: f64 = 0.96;

/// The part of its share of the neurons expected that a block begins on: less than all, since some keep fewer.
const EARLY: f64 = 0.85;

/// What device code is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FfnShape {
    /// Width of input and output, a multiple of 8.
    pub hidden: usize,
    /// Neurons.
    pub inter: usize,
    /// Type of gate and up.
    pub weights: DType,
    /// Type of down.
    pub down: DType,
    /// What decides about neurons; without it all that decides by gate or up, or not at all.
    pub predictor: Option<PredictorShape>,
    /// Activation of the gate.
    pub act: Act,
    /// What runs beside it.
    pub neighbours: Neighbours,
}

/// The launches before and after that of an FFN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Neighbours {
    /// Products, which need half of a multiprocessor's shared memory.
    Products,
    /// Attention: the products between belong to the FFN's launch ([`FfnLaunch::join_output`], [`FfnLaunch::join_next`]), whose rows stream through all of a multiprocessor that
    /// attention leaves.
    Attention {
        /// What attention's blocks take of it.
        footprint: Footprint,
        /// Type that the last of the products after may have instead of that of gate and up; quantised if that is.
        values: Option<DType>,
        /// Width of what attention makes, a multiple of 8.
        attended: usize,
        /// How the output of attention, and of the FFN, is added to the residual stream.
        sums: Taken,
    },
}

impl Neighbours {
    /// How sums are added to the residual stream, where launches join.
    pub(super) fn sums(self) -> Option<Taken> {
        match self {
            Neighbours::Products => None,
            Neighbours::Attention { sums, .. } => Some(sums),
        }
    }
}

impl FfnShape {
    /// Shared memory of a block.
    fn shared(&self, cuda: &Cuda) -> usize {
        match self.neighbours {
            Neighbours::Products => cuda.card.shared_of_two(),
            Neighbours::Attention { footprint, .. } => {
                let taken = footprint.shared + 2 * RESERVED;
                cuda.card.shared.saturating_sub(taken) / 128 * 128
            }
        }
    }

    /// Registers that a thread may have for blocks of the next launch to find room beside its own, or where that leaves too few, for its own alone. Each quarter of a
    /// multiprocessor has a quarter of them, for a quarter of the warps.
    fn registers(&self) -> usize {
        let threads = |warps: usize| 32 * warps.div_ceil(4);
        let all = REGISTERS / 4;
        let own = threads(self.threads() / 32);
        let others = match self.neighbours {
            Neighbours::Products => all / 2,
            Neighbours::Attention { footprint: a, .. } => {
                threads(a.warps) * a.registers.next_multiple_of(8)
            }
        };
        let beside = all.saturating_sub(others) / own;
        let each = if beside < LEAST_REGISTERS {
            all / own
        } else {
            beside
        };
        (each / 8 * 8).min(MOST_REGISTERS)
    }

    /// Threads that hold x and y between them, or what attention makes (`base.cu`).
    fn team(&self) -> usize {
        let widest = match self.neighbours {
            Neighbours::Products => self.hidden,
            Neighbours::Attention { attended, .. } => self.hidden.max(attended),
        };
        let half = 32 * widest.div_ceil(1024);
        if self.weights.is_quantized() {
            half
        } else {
            2 * half
        }
    }

    fn threads(&self) -> usize {
        let team = self.team();
        let teams = ((256 + team / 2) / team).max(1);
        // Two warps more stream weights and choose.
        teams * team + 64
    }

    /// Neurons that a block has at most.
    pub(super) fn rows(&self, blocks: usize) -> usize {
        (self.inter.div_ceil(blocks) + DEALT).next_multiple_of(4)
    }
}

/// Weights of a gated FFN on the card, `[inter, hidden]`.
#[derive(Clone, Copy)]
pub struct FfnWeights<'a> {
    /// Gate.
    pub gate: &'a Weights,
    /// Up.
    pub up: &'a Weights,
    /// Down, transposed.
    pub down: &'a Weights,
}

/// How a neuron's signal `s` is compared with a threshold.
#[derive(Clone, Copy)]
pub enum Score<'a> {
    /// By `|s|`.
    Magnitude,
    /// By `s`.
    Value,
    /// By the larger of `s * positive[i]` and `-s * negative[i]`, each `[inter]`.
    Weighted {
        /// For signals above zero.
        positive: &'a CudaSlice<f32>,
        /// For signals below zero.
        negative: &'a CudaSlice<f32>,
    },
}

/// Neurons whose score exceeds a threshold are kept.
#[derive(Clone, Copy)]
pub struct Cut<'a> {
    /// What is compared.
    pub score: Score<'a>,
    /// With what.
    pub tau: f32,
    /// About how many neurons are kept: blocks begin on some before they know of each other's. Results do not depend on it but for rounding.
    pub expected: usize,
}

/// Which neurons are computed, and what says so.
#[derive(Clone, Copy)]
pub enum Decide<'a> {
    /// All.
    All,
    /// By `act(gate x)`.
    Gate(Cut<'a>),
    /// By `up x`.
    Up(Cut<'a>),
    /// By what a predictor says.
    Predicted {
        /// The predictor.
        predictor: &'a Predictor,
        /// The cut.
        cut: Cut<'a>,
    },
}

impl<'a> Decide<'a> {
    fn kernel(&self) -> usize {
        match self {
            Decide::All => 0,
            Decide::Gate(_) => 1,
            Decide::Up(_) => 2,
            Decide::Predicted { .. } => 3,
        }
    }

    fn cut(&self) -> Option<Cut<'a>> {
        match *self {
            Decide::All => None,
            Decide::Gate(cut) | Decide::Up(cut) | Decide::Predicted { cut, .. } => Some(cut),
        }
    }
}

/// By [`Decide::kernel`].
const KERNELS: [&str; 4] = ["ffn_dense", "ffn_by_gate", "ffn_by_up", PREDICTED];
const PREDICTED: &str = "ffn_predicted";

/// Kernels of one shape, and the memory that their blocks speak through. One launch at a time uses it: those of one stream.
pub struct FfnKernels {
    shape: FfnShape,
    blocks: usize,
    shared: usize,
    /// By [`Decide::kernel`]; where there is a predictor, only what decides by it.
    functions: [Option<CudaFunction>; KERNELS.len()],
    partial: CudaSlice<u32>,
    low: CudaSlice<u32>,
    shares: CudaSlice<u32>,
    entries: CudaSlice<u32>,
}

/// Input and output of a launch.
pub struct FfnBuffers<'a> {
    /// Rows of `[hidden]`; those of `y` if `None`.
    pub x: Option<&'a CudaSlice<f32>>,
    /// What x is multiplied by once it is divided by its root mean square, and what is added to the mean square; x is taken as it is if `None`.
    pub norm: Option<(&'a CudaSlice<f32>, f32)>,
    /// Rows of `[hidden]`.
    pub y: Output<'a>,
    /// Which row of both.
    pub row: usize,
    /// Counts of neurons kept, of which one is written where some neurons are not.
    pub kept: &'a mut CudaSlice<u32>,
    /// Which one.
    pub at: usize,
}

/// What a launch is given, as `state.cu` declares it.
#[repr(C)]
#[derive(Default)]
pub(super) struct Arguments {
    gate: u64,
    up: u64,
    down: u64,
    pub(super) x: u64,
    pub(super) residual: u64,
    pub(super) y: u64,
    kept: u64,
    positive: u64,
    negative: u64,
    tau: f32,
    score: u32,
    early: u32,
    inner: u64,
    outer: u64,
    bias: u64,
    partial: u64,
    low: u64,
    shares: u64,
    entries: u64,
    norm: u64,
    eps: f32,
    pub(super) output: ProductArguments,
    pub(super) attended: u64,
    pub(super) words: u64,
    pub(super) next: [ProductArguments; PRODUCTS],
    pub(super) values: ProductArguments,
    pub(super) next_norm: u64,
    pub(super) next_eps: f32,
    pub(super) made: u64,
    pub(super) passed: u64,
    pub(super) passed_before: u64,
    pub(super) projected_before: u64,
    pub(super) projected: u32,
    pub(super) stream: u64,
    pub(super) output_norm: u64,
    pub(super) y_norm: u64,
    pub(super) added_eps: f32,
    pub(super) carried: u64,
    pub(super) carried_before: u64,
}

impl FfnKernels {
    /// Compiles, or takes what was compiled before.
    ///
    /// # Errors
    /// [`CudaError::Weights`] for a type that has no kernels, [`CudaError::NoCompiler`], [`CudaError::Code`], also for a shape whose rows or neurons (some 31,000 on 132
    /// multiprocessors) are too many for a block's shared memory, or what the driver says.
    ///
    /// # Panics
    /// If widths are no multiples of 8, or there are 65,536 neurons or more.
    pub fn new(cuda: &Cuda, shape: FfnShape) -> Result<FfnKernels, CudaError> {
        FfnKernels::with_blocks(cuda, shape, cuda.card.multiprocessors.min(MOST_BLOCKS))
    }

    /// The same with so many blocks, at most one for each multiprocessor. For tests.
    ///
    /// # Errors
    /// As [`FfnKernels::new`].
    ///
    /// # Panics
    /// As [`FfnKernels::new`], or if there are more blocks than multiprocessors.
    pub fn with_blocks(
        cuda: &Cuda,
        shape: FfnShape,
        blocks: usize,
    ) -> Result<FfnKernels, CudaError> {
        let FfnShape { hidden, inter, .. } = shape;
        let rank = shape.predictor.map_or(0, |p| p.rank());
        assert!(hidden.is_multiple_of(8) && rank.is_multiple_of(8));
        assert!(
            (1..1 << 16).contains(&inter),
            "counts of neurons are 16 bits"
        );
        assert!((1..=cuda.card.multiprocessors.min(MOST_BLOCKS)).contains(&blocks));
        let number = |dtype: DType| {
            let cols = hidden;
            weights::number(dtype).ok_or(CudaError::Weights { dtype, cols })
        };
        let shared = shape.shared(cuda);
        let (is_joined, values, attended, sums) = match shape.neighbours {
            Neighbours::Products => (false, None, hidden, Taken::AsIs),
            Neighbours::Attention {
                values,
                attended,
                sums,
                ..
            } => (true, values, attended, sums),
        };
        assert!(attended.is_multiple_of(8));
        let defines = [
            ("HIDDEN", hidden),
            ("INTER", inter),
            ("BLOCKS", blocks),
            ("SHARED_BYTES", shared),
            ("PACE", pace(cuda.card.bandwidth, blocks)),
            ("JOINED", usize::from(is_joined)),
            ("VALUES", number(values.unwrap_or(shape.weights))?),
            ("ATTENDED", attended),
            ("NORMED", usize::from(sums == Taken::Normed)),
            ("WEIGHTS", number(shape.weights)?),
            ("DOWN", number(shape.down)?),
            ("ACT_GELU", usize::from(shape.act == Act::GeluTanh)),
        ];
        let of_predictor = PredictorShape::defines(shape.predictor, number)?;
        let defines = [&defines[..], &of_predictor].concat();
        let module = cuda.module_of(&SOURCES, Some(shape.registers()), &defines)?;
        let mut functions = [const { None }; KERNELS.len()];
        for (name, to) in KERNELS.iter().zip(&mut functions) {
            if shape.predictor.is_some() == (*name == PREDICTED) {
                *to = Some(Cuda::function(&module, name, shared)?);
            }
        }
        let empty = |len: usize| cuda.upload(&vec![EMPTY; len]);
        Ok(FfnKernels {
            shape,
            blocks,
            shared,
            functions,
            partial: empty(blocks * hidden)?,
            low: empty(rank.max(1))?,
            // Half words, eight blocks' together.
            shares: empty(4 * blocks.div_ceil(8))?,
            entries: empty(2 * blocks * shape.rows(blocks))?,
        })
    }

    /// Whether all memory that blocks speak through is empty, as it must be between launches. For tests.
    ///
    /// # Errors
    /// What the driver says.
    pub fn is_at_rest(&self, cuda: &Cuda) -> Result<bool, CudaError> {
        for memory in [&self.partial, &self.low, &self.shares, &self.entries] {
            if cuda.download(memory)?.iter().any(|v| *v != EMPTY) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The sum over the neurons kept of `act(gate x) * (up x) * down`, in the order of calls and without waiting for it.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// If lengths or types do not fit the shape, or it has a predictor and neurons are decided otherwise.
    pub fn run(
        &mut self,
        cuda: &Cuda,
        weights: FfnWeights,
        decide: Decide,
        buffers: FfnBuffers,
    ) -> Result<(), CudaError> {
        let launch = self.prepare(cuda, weights, decide, buffers);
        launch.launch(cuda, None)
    }

    /// The same, not launched yet.
    ///
    /// # Panics
    /// As [`FfnKernels::run`].
    pub fn prepare(
        &mut self,
        cuda: &Cuda,
        weights: FfnWeights,
        decide: Decide,
        buffers: FfnBuffers,
    ) -> FfnLaunch {
        let FfnShape { hidden, inter, .. } = self.shape;
        let FfnWeights { gate, up, down } = weights;
        for (what, matrix, dtype) in [
            ("gate", gate, self.shape.weights),
            ("up", up, self.shape.weights),
            ("down", down, self.shape.down),
        ] {
            assert!(fits(matrix, inter, hidden, dtype), "ffn: {what}");
        }
        let at = buffers.row * hidden;
        // All blocks have read x when the first writes y.
        let x = buffers.x.unwrap_or(buffers.y.slice());
        assert!(at + hidden <= x.len() && at + hidden <= buffers.y.slice().len());
        assert!(buffers.norm.is_none_or(|(w, _)| w.len() == hidden));
        assert!(buffers.at < buffers.kept.len());
        let (residual, y) = buffers.y.addresses(cuda, at);
        let mut a = Arguments {
            gate: cuda.address(&gate.data),
            up: cuda.address(&up.data),
            down: cuda.address(&down.data),
            x: cuda.address(x) + 4 * at as u64,
            norm: buffers.norm.map_or(0, |(w, _)| cuda.address(w)),
            eps: buffers.norm.map_or(0.0, |(_, eps)| eps),
            residual,
            y,
            kept: cuda.address(buffers.kept) + 4 * buffers.at as u64,
            partial: cuda.address(&self.partial),
            low: cuda.address(&self.low),
            shares: cuda.address(&self.shares),
            entries: cuda.address(&self.entries),
            ..Arguments::default()
        };
        if let Some(cut) = decide.cut() {
            a.tau = cut.tau;
            a.early = (EARLY * cut.expected as f64 / self.blocks as f64) as u32;
            a.score = match cut.score {
                Score::Magnitude => 0,
                Score::Value => 1,
                Score::Weighted { positive, negative } => {
                    assert!(positive.len() == inter && negative.len() == inter);
                    a.positive = cuda.address(positive);
                    a.negative = cuda.address(negative);
                    2
                }
            };
        }
        if let Decide::Predicted { predictor: p, .. } = decide {
            assert!(self.shape.predictor == Some(p.shape) && p.fits(hidden, inter));
            a.inner = p.inner.as_ref().map_or(0, |m| cuda.address(&m.data));
            a.outer = cuda.address(&p.outer);
            a.bias = p.bias.as_ref().map_or(0, |b| cuda.address(b));
        }
        let function = &self.functions[decide.kernel()];
        let function = function.as_ref().expect("the shape has such a kernel");
        FfnLaunch {
            function: function.clone(),
            grid: Grid {
                blocks: (self.blocks, 1),
                threads: self.shape.threads(),
                shared: self.shared,
            },
            arguments: a,
            shape: self.shape,
            is_for_attention: false,
            then: None,
        }
    }
}

/// Picoseconds a byte of one of so many blocks; 0 for no limit.
fn pace(bandwidth: usize, blocks: usize) -> usize {
    if bandwidth == 0 {
        return 0;
    }
    (1e12 * blocks as f64 / (PACE * bandwidth as f64)).round() as usize
}

fn fits(w: &Weights, rows: usize, cols: usize, dtype: DType) -> bool {
    (w.rows, w.cols, w.dtype) == (rows, cols, dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_leave_room_for_what_runs_beside() {
        let shape = |hidden, weights, neighbours| FfnShape {
            hidden,
            inter: 4 * hidden,
            weights,
            down: DType::Q8_0,
            predictor: None,
            act: Act::Silu,
            neighbours,
        };
        let attention = |registers| Neighbours::Attention {
            footprint: Footprint {
                shared: 20_000,
                warps: 8,
                registers,
            },
            values: None,
            attended: 4096,
            sums: Taken::AsIs,
        };
        let q = shape(4096, DType::Q4_0, attention(126));
        // Ten warps, three of them in a quarter, and two of attention's: 3 * 32 * 80 + 2 * 32 * 128 = 15,872 of 16,384.
        assert_eq!((q.threads(), q.registers()), (320, 80));
        let apart = shape(4096, DType::Q4_0, Neighbours::Products);
        assert_eq!(apart.registers(), 80);
        // Too few would be left: the launches run one after the other.
        let alone = shape(4096, DType::Q4_0, attention(232));
        assert_eq!(alone.registers(), 168);
        let wide = shape(8192, DType::BF16, Neighbours::Products);
        assert_eq!((wide.threads(), wide.registers()), (576, 96));
    }

    #[test]
    fn blocks_share_the_memory() {
        // An H100 and an H200, by their clocks and widths.
        let of = |clock: usize, width: usize| pace(2000 * clock * width / 8, 132);
        assert_eq!((of(2_619_000, 5120), of(3_201_000, 6144)), (41, 28));
        assert_eq!(pace(0, 132), 0);
    }
}
