//! One token: embedding, norms and sums; its products are in `products.rs`.

use super::{
    Cuda, CudaError, Weights,
    launch::{Grid, Source, sources},
    weights::{TYPES, number},
};
use crate::{DType, cpu::Act};
use cudarc::driver::{CudaFunction, CudaSlice};

const SOURCES: [Source; 5] = sources!["types.cu", "weights.cu", "flow.cu", "embed.cu", "rows.cu"];
/// `ROW_THREADS` of `rows.cu`.
const ROW_THREADS: usize = 512;
/// Threads of the kernels that take one element a thread.
const THREADS: usize = 256;

/// Where a result goes.
pub enum Output<'a> {
    /// It replaces what is there.
    Write(&'a mut CudaSlice<f32>),
    /// It is added to what is there.
    Add(&'a mut CudaSlice<f32>),
}

impl Output<'_> {
    /// The same once more.
    pub fn again(&mut self) -> Output<'_> {
        match self {
            Output::Write(s) => Output::Write(s),
            Output::Add(s) => Output::Add(s),
        }
    }

    /// The buffer.
    pub(super) fn slice(&self) -> &CudaSlice<f32> {
        match self {
            Output::Write(s) | Output::Add(s) => s,
        }
    }

    /// Addresses of what is added and of the result, `at` elements from the buffer's beginning.
    pub(super) fn addresses(&self, cuda: &Cuda, at: usize) -> (u64, u64) {
        let to = cuda.address(self.slice()) + 4 * at as u64;
        match self {
            Output::Write(_) => (0, to),
            Output::Add(_) => (to, to),
        }
    }
}

/// Kernels of a step but for attention and FFNs.
pub struct StepKernels {
    /// Products, by the type and length of rows.
    pub(super) gemv: Vec<((DType, usize), CudaFunction)>,
    /// The counter of products' launches, 0 between them.
    pub(super) tickets: CudaSlice<u32>,
    embed: [CudaFunction; TYPES.len()],
    /// To `f16`, of the quantised types.
    unpack: [Option<CudaFunction>; TYPES.len()],
    rms_norm: CudaFunction,
    norm_add: CudaFunction,
    add: CudaFunction,
    cap: CudaFunction,
    multiply: CudaFunction,
    round: [CudaFunction; 2],
}

#[repr(C)]
struct EmbedArguments {
    table: u64,
    tokens: u64,
    out: u64,
    cols: u32,
    stride: u32,
    scale: f32,
}

#[repr(C)]
struct NormArguments {
    x: u64,
    weight: u64,
    y: u64,
    cols: u32,
    eps: f32,
}

#[repr(C)]
pub(super) struct NormAddArguments {
    pub(super) x: u64,
    pub(super) y: u64,
    pub(super) weight: u64,
    pub(super) cols: u32,
    pub(super) eps: f32,
    pub(super) scale: f32,
}

#[repr(C)]
struct AddArguments {
    x: u64,
    y: u64,
    n: u64,
    every: u32,
    scale: f32,
}

#[repr(C)]
struct CapArguments {
    x: u64,
    n: u64,
    scale: f32,
    cap: f32,
}

#[repr(C)]
struct MultiplyArguments {
    gate: u64,
    up: u64,
    n: u64,
    gelu: u32,
}

#[repr(C)]
struct RoundArguments {
    x: u64,
    to: u64,
    n: u64,
}

#[repr(C)]
struct UnpackArguments {
    rows: u64,
    out: u64,
    cols: u32,
    stride: u32,
}

/// `x += scale norm(y)` that is ready to be launched, behind what makes y. What it was made of must live until that has run.
pub struct NormAddLaunch {
    function: CudaFunction,
    grid: Grid,
    pub(super) arguments: NormAddArguments,
}

impl NormAddLaunch {
    /// Launches it, in the order of calls.
    ///
    /// # Errors
    /// What the driver says.
    pub fn launch(self, cuda: &Cuda) -> Result<(), CudaError> {
        // SAFETY: as `NormAdd` is declared; `prepare_norm_add` checked lengths.
        unsafe { cuda.launch(&self.function, self.grid, self.arguments) }
    }
}

impl StepKernels {
    /// Compiles, or takes what was compiled before.
    ///
    /// # Errors
    /// [`CudaError::NoCompiler`], [`CudaError::Code`] or what the driver says.
    pub fn new(cuda: &Cuda) -> Result<StepKernels, CudaError> {
        let module = cuda.module(&SOURCES, &[])?;
        let plain = |name: &str| Cuda::function(&module, name, 0);
        let of_types = |what: &str, shared: usize| {
            let find =
                |(_, t): &(DType, &str)| Cuda::function(&module, &format!("{what}_{t}"), shared);
            TYPES.iter().map(find).collect::<Result<Vec<_>, _>>()
        };
        let mut unpack = [const { None }; TYPES.len()];
        for ((dtype, name), to) in TYPES.iter().zip(&mut unpack) {
            if dtype.is_quantized() {
                *to = Some(plain(&format!("unpack_{name}"))?);
            }
        }
        let all = "there is a kernel for each type";
        Ok(StepKernels {
            gemv: Vec::new(),
            tickets: cuda.zeros(1)?,
            embed: of_types("embed", 0)?.try_into().expect(all),
            unpack,
            rms_norm: plain("rms_norm")?,
            norm_add: plain("norm_add")?,
            add: plain("add")?,
            cap: plain("cap")?,
            multiply: plain("multiply")?,
            round: [plain("round_bf16")?, plain("round_f16")?],
        })
    }

    /// Rows of `table` for `count` of `tokens` from the `at`-th, times `scale`, to `out`, `[count, cols]`.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// If buffers are too short. A token beyond the table reads beyond it.
    pub fn embed(
        &self,
        cuda: &Cuda,
        table: &Weights,
        (tokens, at, count): (&CudaSlice<u32>, usize, usize),
        scale: f32,
        out: &mut CudaSlice<f32>,
    ) -> Result<(), CudaError> {
        assert!(at + count <= tokens.len() && count * table.cols <= out.len());
        let arguments = EmbedArguments {
            table: cuda.address(&table.data),
            tokens: cuda.address(tokens) + 4 * at as u64,
            out: cuda.address(out),
            cols: table.cols as u32,
            stride: table.stride as u32,
            scale,
        };
        let function = &self.embed[number_of(table)];
        // SAFETY: as `Embed` is declared; lengths were checked, and tokens are the caller's to check.
        unsafe { cuda.launch(function, Grid::of(count, THREADS), arguments) }
    }

    /// RMS norms of the first `rows` rows of `x` times `weight`, `[cols]`, to `out`, or in place where that is `None`.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// If buffers are too short.
    pub fn norm(
        &self,
        cuda: &Cuda,
        x: &CudaSlice<f32>,
        rows: usize,
        (weight, eps): (&CudaSlice<f32>, f32),
        out: Option<&mut CudaSlice<f32>>,
    ) -> Result<(), CudaError> {
        let cols = weight.len();
        let y = out.map_or(x, |y| &*y);
        assert!(rows * cols <= x.len() && rows * cols <= y.len());
        let arguments = NormArguments {
            x: cuda.address(x),
            weight: cuda.address(weight),
            y: cuda.address(y),
            cols: cols as u32,
            eps,
        };
        let grid = Grid::of(rows, row_threads(cols));
        // SAFETY: as `Norm` is declared; lengths were checked.
        unsafe { cuda.launch(&self.rms_norm, grid, arguments) }
    }

    /// `x += scale y'` for the first `rows` rows of `y` and `x`, y' being the RMS norm of a row of y times `weight`, `[cols]`; not launched yet.
    ///
    /// # Panics
    /// If buffers are too short.
    pub fn prepare_norm_add(
        &self,
        cuda: &Cuda,
        x: &mut CudaSlice<f32>,
        (y, scale): (&CudaSlice<f32>, f32),
        rows: usize,
        (weight, eps): (&CudaSlice<f32>, f32),
    ) -> NormAddLaunch {
        let cols = weight.len();
        assert!(rows * cols <= x.len() && rows * cols <= y.len());
        NormAddLaunch {
            function: self.norm_add.clone(),
            grid: Grid::of(rows, row_threads(cols)),
            arguments: NormAddArguments {
                x: cuda.address(x),
                y: cuda.address(y),
                weight: cuda.address(weight),
                cols: cols as u32,
                eps,
                scale,
            },
        }
    }

    /// `x += scale * y`, the first `n` elements; a shorter `y` is added to every run of its length.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// If `x` is too short.
    pub fn add(
        &self,
        cuda: &Cuda,
        x: &mut CudaSlice<f32>,
        (y, scale): (&CudaSlice<f32>, f32),
        n: usize,
    ) -> Result<(), CudaError> {
        assert!(n <= x.len() && !y.is_empty());
        let arguments = AddArguments {
            x: cuda.address(x),
            y: cuda.address(y),
            n: n as u64,
            every: if y.len() < n { y.len() as u32 } else { 0 },
            scale,
        };
        // SAFETY: as `Add` is declared; lengths were checked.
        unsafe { cuda.launch(&self.add, elements(cuda, n), arguments) }
    }

    /// `x = cap tanh(scale x / cap)`, the first `n` elements; without a cap `x = scale x`.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// If `x` is too short.
    pub fn cap(
        &self,
        cuda: &Cuda,
        x: &mut CudaSlice<f32>,
        (scale, cap): (f32, Option<f32>),
        n: usize,
    ) -> Result<(), CudaError> {
        assert!(n <= x.len());
        let arguments = CapArguments {
            x: cuda.address(x),
            n: n as u64,
            scale,
            cap: cap.unwrap_or(0.0),
        };
        // SAFETY: as `Cap` is declared; lengths were checked.
        unsafe { cuda.launch(&self.cap, elements(cuda, n), arguments) }
    }

    /// `gate = act(gate) * up`, the first `n` elements; without `up` only the activation.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// If buffers are too short.
    pub fn multiply(
        &self,
        cuda: &Cuda,
        gate: &mut CudaSlice<f32>,
        up: Option<&CudaSlice<f32>>,
        n: usize,
        act: Act,
    ) -> Result<(), CudaError> {
        assert!(n <= gate.len() && up.is_none_or(|u| n <= u.len()));
        let arguments = MultiplyArguments {
            gate: cuda.address(gate),
            up: up.map_or(0, |u| cuda.address(u)),
            n: n as u64,
            gelu: u32::from(act == Act::GeluTanh),
        };
        // SAFETY: as `Multiply` is declared; lengths were checked.
        unsafe { cuda.launch(&self.multiply, elements(cuda, n), arguments) }
    }

    /// The first `n` elements of `x` as `BF16` or else `F16`.
    pub(super) fn round(
        &self,
        cuda: &Cuda,
        (x, at): (&CudaSlice<f32>, usize),
        dtype: DType,
        to: &mut CudaSlice<u16>,
        n: usize,
    ) -> Result<(), CudaError> {
        assert!(at + n <= x.len() && n <= to.len());
        let arguments = RoundArguments {
            x: cuda.address(x) + 4 * at as u64,
            to: cuda.address(to),
            n: n as u64,
        };
        let function = &self.round[usize::from(dtype != DType::BF16)];
        // SAFETY: as `Round` is declared; lengths were checked.
        unsafe { cuda.launch(function, elements(cuda, n), arguments) }
    }

    /// Quantised weights as `f16`, `[rows, cols]`.
    pub(super) fn unpack(
        &self,
        cuda: &Cuda,
        w: &Weights,
        to: &mut CudaSlice<u16>,
    ) -> Result<(), CudaError> {
        assert!(w.dtype.is_quantized() && w.rows * w.cols <= to.len());
        let arguments = UnpackArguments {
            rows: cuda.address(&w.data),
            out: cuda.address(to),
            cols: w.cols as u32,
            stride: w.stride as u32,
        };
        let function = self.unpack[number_of(w)].as_ref();
        let function = function.expect("quantised types have such a kernel");
        // SAFETY: as `Unpack` is declared; lengths were checked.
        unsafe { cuda.launch(function, Grid::of(w.rows, THREADS), arguments) }
    }
}

/// Threads of a block that takes a row.
fn row_threads(cols: usize) -> usize {
    cols.next_multiple_of(32).min(ROW_THREADS)
}

fn number_of(w: &Weights) -> usize {
    number(w.dtype).expect("uploaded weights have kernels")
}

/// Enough blocks to fill the card, or to have a thread an element.
fn elements(cuda: &Cuda, n: usize) -> Grid {
    let most = 8 * cuda.card().multiprocessors;
    Grid::of(n.div_ceil(THREADS).clamp(1, most), THREADS)
}
