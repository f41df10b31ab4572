//! Gated FFNs for one token, each one launch (`src/ffn.cu`): a block scores its share of the neurons, decides, and takes its share of all
//! that are kept.

use super::{Cuda, CudaError, driver, jit};
use crate::{cpu::Act, dtype::DType, matrix::MatRef};
use cudarc::driver::{
    CudaFunction, CudaSlice, DevicePtr,
    sys::{
        CUfunction_attribute, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
        CUlaunchConfig, cuLaunchKernelEx,
    },
};
use std::ffi::{c_char, c_void};

/// The files of device code, in the order in which they are one translation unit.
const SOURCES: [(&str, &str); 11] = {
    macro_rules! sources {
        ($($name:literal),*) => { [$(($name, include_str!(concat!("src/", $name)))),*] };
    }
    sources![
        "base.cu",
        "ring.cu",
        "flow.cu",
        "state.cu",
        "score_rows.cu",
        "score_low_rank.cu",
        "score_copy.cu",
        "select.cu",
        "neurons.cu",
        "gather.cu",
        "ffn.cu"
    ]
};

/// Shared memory of a block: less than half of a multiprocessor's, so that the next launch's blocks find room beside it.
const SHARED_BYTES: usize = 115_712;
/// What the memory that blocks speak through holds between launches.
const EMPTY: u32 = u32::MAX;
/// Blocks whose counts fit a warp's registers.
const MOST_BLOCKS: usize = 256;
/// Neurons more than its even share that a block may have.
const DEALT: usize = 16;

/// The part of its share of the neurons expected that a block begins on: less than all, since some keep fewer.
const EARLY: f64 = 0.85;

/// What device code is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FfnShape {
    /// Width of input and output, a multiple of 8.
    pub hidden: usize,
    /// Neurons.
    pub inter: usize,
    /// Width of a low-rank predictor, a multiple of 8; 8 where there is none.
    pub rank: usize,
    /// Type of the weights, `F16` or `BF16`.
    pub weights: DType,
    /// Activation of the gate.
    pub act: Act,
}

impl FfnShape {
    /// Threads that hold x and y between them, in two halves.
    fn team(&self) -> usize {
        2 * 32 * self.hidden.div_ceil(1024)
    }

    fn threads(&self) -> usize {
        let team = self.team();
        let teams = if team < 256 { 256 / team } else { 1 };
        // Two warps more stream weights and choose.
        teams * team + 64
    }

    /// Neurons that a block has at most.
    fn rows(&self, blocks: usize) -> usize {
        (self.inter.div_ceil(blocks) + DEALT).next_multiple_of(4)
    }
}

/// Weights of a gated FFN on the card, 16 bits each, `[inter, hidden]`.
#[derive(Clone, Copy)]
pub struct FfnWeights<'a> {
    /// Gate.
    pub gate: &'a CudaSlice<u16>,
    /// Up.
    pub up: &'a CudaSlice<u16>,
    /// Down, transposed.
    pub down: &'a CudaSlice<u16>,
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
    /// By `B (A x) + bias`.
    LowRank {
        /// `[rank, hidden]`.
        a: &'a CudaSlice<u16>,
        /// `[inter, rank]`.
        b: &'a CudaSlice<u16>,
        /// `[inter]`.
        bias: Option<&'a CudaSlice<f32>>,
        /// The cut.
        cut: Cut<'a>,
    },
    /// By `act(g) * u`, computed with a copy of gate and up in 4 bits ([`copy4`]) and x in 8.
    Copy4 {
        /// The copy.
        copy: &'a CudaSlice<u8>,
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
            Decide::LowRank { .. } => 3,
            Decide::Copy4 { .. } => 4,
        }
    }

    fn cut(&self) -> Option<Cut<'a>> {
        match *self {
            Decide::All => None,
            Decide::Gate(cut) | Decide::Up(cut) => Some(cut),
            Decide::LowRank { cut, .. } | Decide::Copy4 { cut, .. } => Some(cut),
        }
    }
}

/// By [`Decide::kernel`].
const KERNELS: [&str; 5] = [
    "ffn_dense",
    "ffn_by_gate",
    "ffn_by_up",
    "ffn_low_rank",
    "ffn_copy4",
];

/// Kernels of one shape, and the memory that their blocks speak through. One launch at a time uses it: those of one stream.
pub struct FfnKernels {
    shape: FfnShape,
    blocks: usize,
    /// By [`Decide::kernel`]; no copy in 4 bits where rows are no whole number of blocks.
    functions: [Option<CudaFunction>; KERNELS.len()],
    partial: CudaSlice<u32>,
    low: CudaSlice<u32>,
    shares: CudaSlice<u32>,
    entries: CudaSlice<u32>,
}

/// Input and output of a launch.
pub struct FfnBuffers<'a> {
    /// `[hidden]`.
    pub x: &'a CudaSlice<f32>,
    /// Added to the output, `[hidden]`.
    pub residual: Option<&'a CudaSlice<f32>>,
    /// `[hidden]`.
    pub y: &'a mut CudaSlice<f32>,
    /// Gets the number of neurons kept, where some are not.
    pub kept: &'a mut CudaSlice<u32>,
}

/// What a launch is given, as `state.cu` declares it.
#[repr(C)]
#[derive(Default)]
struct Arguments {
    gate: u64,
    up: u64,
    down: u64,
    x: u64,
    residual: u64,
    y: u64,
    kept: u64,
    positive: u64,
    negative: u64,
    tau: f32,
    score: u32,
    early: u32,
    gate_stride: u32,
    up_stride: u32,
    down_stride: u32,
    first: u64,
    second: u64,
    bias: u64,
    partial: u64,
    low: u64,
    shares: u64,
    entries: u64,
}

impl FfnKernels {
    /// Compiles, or takes what was compiled before.
    ///
    /// # Errors
    /// [`CudaError::NoCompiler`], [`CudaError::Code`] or what the driver says.
    ///
    /// # Panics
    /// If widths are no multiples of 8, there are 65,536 neurons or more, or weights are of another type.
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
        let FfnShape {
            hidden,
            inter,
            rank,
            ..
        } = shape;
        assert!(hidden.is_multiple_of(8) && rank.is_multiple_of(8) && rank > 0);
        assert!(
            (1..1 << 16).contains(&inter),
            "counts of neurons are 16 bits"
        );
        assert!(matches!(shape.weights, DType::F16 | DType::BF16));
        assert!((1..=cuda.card.multiprocessors.min(MOST_BLOCKS)).contains(&blocks));
        let (major, minor) = cuda.card.capability;
        let define = |name: &str, value: usize| format!("-D{name}={value}");
        let options = [
            format!("--gpu-architecture=sm_{major}{minor}"),
            "-std=c++17".into(),
            define("HIDDEN", hidden),
            define("INTER", inter),
            define("RANK", rank),
            define("BLOCKS", blocks),
            define("SHARED_BYTES", SHARED_BYTES),
            define("WEIGHTS_F16", usize::from(shape.weights == DType::F16)),
            define("ACT_GELU", usize::from(shape.act == Act::GeluTanh)),
        ];
        let source: String = SOURCES
            .iter()
            .map(|(name, text)| format!("#line 1 \"{name}\"\n{text}"))
            .collect();
        let context = cuda.stream.context();
        let module = jit::module(context, &source, &options, cuda.cache.as_deref())?;
        let function = |name: &str| {
            let f = module.load_function(name)?;
            let set = |attribute, value| f.set_attribute(attribute, value);
            set(
                CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                SHARED_BYTES as i32,
            )?;
            set(
                CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
                100,
            )?;
            Ok(f)
        };
        let mut functions = [const { None }; KERNELS.len()];
        for (name, to) in KERNELS.iter().zip(&mut functions) {
            if *name != "ffn_copy4" || hidden.is_multiple_of(32) {
                *to = Some(function(name).map_err(|e| driver("looking for a kernel", e))?);
            }
        }
        let empty = |len: usize| cuda.upload(&vec![EMPTY; len]);
        Ok(FfnKernels {
            shape,
            blocks,
            functions,
            partial: empty(blocks * hidden)?,
            low: empty(rank)?,
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

    /// `y = residual + sum over the neurons kept of act(gate x) * (up x) * down`, in the order of calls and without waiting for it.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// If lengths do not fit the shape, or a copy in 4 bits is asked for where rows are no whole number of blocks of 32.
    pub fn run(
        &mut self,
        cuda: &Cuda,
        weights: FfnWeights,
        decide: Decide,
        buffers: FfnBuffers,
    ) -> Result<(), CudaError> {
        let FfnShape {
            hidden,
            inter,
            rank,
            ..
        } = self.shape;
        let FfnWeights { gate, up, down } = weights;
        for (what, matrix) in [("gate", gate), ("up", up), ("down", down)] {
            assert_eq!(matrix.len(), inter * hidden, "ffn: {what}");
        }
        assert!(buffers.x.len() == hidden && buffers.y.len() == hidden);
        assert!(buffers.kept.len() == 1 && buffers.residual.is_none_or(|r| r.len() == hidden));
        let stride = (2 * hidden) as u32;
        let mut a = Arguments {
            gate: address(cuda, gate),
            up: address(cuda, up),
            down: address(cuda, down),
            x: address(cuda, buffers.x),
            residual: buffers.residual.map_or(0, |r| address(cuda, r)),
            y: address(cuda, buffers.y),
            kept: address(cuda, buffers.kept),
            gate_stride: stride,
            up_stride: stride,
            down_stride: stride,
            partial: address(cuda, &self.partial),
            low: address(cuda, &self.low),
            shares: address(cuda, &self.shares),
            entries: address(cuda, &self.entries),
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
                    a.positive = address(cuda, positive);
                    a.negative = address(cuda, negative);
                    2
                }
            };
        }
        match decide {
            Decide::All | Decide::Gate(_) | Decide::Up(_) => (),
            Decide::LowRank {
                a: first, b, bias, ..
            } => {
                assert!(first.len() == rank * hidden && b.len() == inter * rank);
                assert!(bias.is_none_or(|b| b.len() == inter));
                a.first = address(cuda, first);
                a.second = address(cuda, b);
                a.bias = bias.map_or(0, |b| address(cuda, b));
            }
            Decide::Copy4 { copy, .. } => {
                assert_eq!(copy.len(), inter * copy4_row(hidden), "ffn: copy");
                a.first = address(cuda, copy);
            }
        }
        let function = &self.functions[decide.kernel()];
        let function = function.as_ref().expect("rows of a copy are blocks of 32");
        self.launch(cuda, function, &mut a)
    }

    fn launch(
        &self,
        cuda: &Cuda,
        function: &CudaFunction,
        arguments: &mut Arguments,
    ) -> Result<(), CudaError> {
        // The beginning of a launch overlaps the end of the one before.
        let mut overlap = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0 as c_char; 4],
            value: CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = CUlaunchConfig {
            gridDimX: self.blocks as u32,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: self.shape.threads() as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: SHARED_BYTES as u32,
            hStream: cuda.stream.cu_stream(),
            attrs: &mut overlap,
            numAttrs: 1,
        };
        let mut parameters = [std::ptr::from_mut(arguments).cast::<c_void>()];
        let mut launch = || {
            cuda.stream.context().bind_to_thread()?;
            // SAFETY: the function takes one structure by value, which `Arguments` is laid out as; all it points to is on the card and as long
            // as the shape says.
            let launched = unsafe {
                cuLaunchKernelEx(
                    &config,
                    function.cu_function(),
                    parameters.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            };
            launched.result()
        };
        launch().map_err(|e| driver("launching an FFN", e))
    }
}

/// Where data is on the card.
fn address<T>(cuda: &Cuda, data: &CudaSlice<T>) -> u64 {
    data.device_ptr(&cuda.stream).0
}

/// Bytes of a neuron in a copy of 4 bits: nibbles and scales of gate and up, on 16 bytes.
const fn copy4_row(hidden: usize) -> usize {
    (2 * (hidden / 32) * DType::Q4_0.block_bytes()).next_multiple_of(16)
}

/// A copy of gate and up as [`Decide::Copy4`] takes it, from both in Q4_0, `[inter, hidden]`:
///
/// ```text
/// a neuron:  | nibbles of gate | nibbles of up | scales of gate | scales of up | up to a multiple of 16 bytes |
/// ```
///
/// # Panics
/// If the matrices are of another type, or of different shapes.
pub fn copy4(gate: MatRef, up: MatRef) -> Vec<u8> {
    let shape = |m: MatRef| (m.dtype(), m.rows(), m.cols());
    assert!(shape(gate) == shape(up) && gate.dtype() == DType::Q4_0);
    let mut out = Vec::with_capacity(gate.rows() * copy4_row(gate.cols()));
    for i in 0..gate.rows() {
        let rows = [gate, up].map(|m| m.row(i).chunks_exact(DType::Q4_0.block_bytes()));
        let [gate, up] = &rows;
        for blocks in [gate, up] {
            blocks.clone().for_each(|b| out.extend_from_slice(&b[2..]));
        }
        for blocks in [gate, up] {
            blocks.clone().for_each(|b| out.extend_from_slice(&b[..2]));
        }
        out.resize(out.len().next_multiple_of(16), 0);
    }
    out
}
