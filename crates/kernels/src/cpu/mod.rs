//! The CPU: inner loops per instruction set behind one table, and the team of threads that runs them.
//!
//! [`Kernels`] is the table, one per instruction set, to be had only where the CPU has that set. Its methods work
//! on one thread; the functions of [`parallel`], [`ffn`] and [`gemm`] spread them over a [`Team`].

pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod drive;
pub mod ffn;
pub mod gemm;
mod generic;
mod input;
mod isa;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod parallel;
#[cfg(target_arch = "x86_64")]
mod parts;
mod scalar;
mod team;
#[cfg(test)]
mod tests;

pub use generic::{exp, soft_cap};
pub use input::Input;
pub use isa::{Isa, IsaError};
pub use team::Team;

use crate::{
    dtype::DType,
    matrix::{Layout, MatRef},
    quant,
};
use gemm::{DEPTH, LANES, Pair};
use half::bf16;
use std::ops::Range;

/// A gated FFN's activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// x / (1 + e^-x).
    Silu,
    /// The GELU's tanh approximation, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    GeluTanh,
}

/// How a neuron's signal `s` is compared with a threshold.
#[derive(Clone, Copy, Debug)]
pub enum Score<'a> {
    /// By `|s|`.
    Magnitude,
    /// By `s`.
    Value,
    /// By the larger of `s * positive[i]` and `-s * negative[i]`.
    Weighted {
        /// `[inter]`.
        positive: &'a [f32],
        /// `[inter]`.
        negative: &'a [f32],
    },
}

impl<'a> Score<'a> {
    /// The same for a range of neurons.
    fn range(self, range: Range<usize>) -> Score<'a> {
        match self {
            Score::Weighted { positive, negative } => Score::Weighted {
                positive: &positive[range.clone()],
                negative: &negative[range],
            },
            same => same,
        }
    }

    fn check(self, neurons: usize) {
        if let Score::Weighted { positive, negative } = self {
            assert!(
                positive.len() == neurons && negative.len() == neurons,
                "score: weights"
            );
        }
    }
}

// The rows of a list, or all rows for `None`; as many as the output or the coefficients have elements. A list may go on: with rows
// that come next.
type Rows<'a> = Option<&'a [u32]>;
type Dot = unsafe fn(MatRef, Rows, &Input, &mut [f32]);
type Axpy = unsafe fn(MatRef, Rows, &[f32], Range<usize>, &mut [f32]);
type Tiles = unsafe fn(MatRef, &Input, &mut [f32]);
type Unpack = unsafe fn(&[u8], &mut [f32]);
type Panel = unsafe fn(&[[f32; DEPTH]], &[[f32; LANES]], &mut [[f32; LANES]]);
type UnpackBf16 = unsafe fn(&[u8], &mut [bf16]);
type PanelBf16 = unsafe fn(&[[Pair; DEPTH]], &[[Pair; LANES]], &mut [[f32; LANES]]);
type Select = unsafe fn(&[f32], Score, f32, u32, &mut [u32]) -> usize;

const DTYPES: usize = DType::ALL.len();

/// The kernels of one instruction set, for one thread. Lengths are asserted once a call.
///
/// Floats are added in an order that depends on the instruction set but not on how work is cut: a row's dot product is
/// the same in a list as among all rows, and a column's sum is the same in every range of columns. With AVX2, rows of Q8_0 in parts
/// are summed in fixed point, eight at a time from the first of a call, to 1 in 4,087 of the largest sum that their scales allow.
pub struct Kernels {
    isa: Isa,
    /// By `DType as usize`, like all arrays here.
    dot: [Dot; DTYPES],
    /// Products of tiles, where they are quicker than those of rows.
    tiles: [Option<Tiles>; DTYPES],
    /// Those of them whose longer rows are read at the speed of memory as they are.
    quick_rows: &'static [DType],
    axpy: [Axpy; DTYPES],
    /// Products with rows in parts, and sums of such rows as a whole, where they are quicker than those of rows of blocks.
    dot_parts: [Option<Dot>; DTYPES],
    axpy_parts: [Option<Axpy>; DTYPES],
    unpack: [Unpack; DTYPES],
    panel: Panel,
    /// The same with a panel whose lanes lie in two halves, one behind the other, where that is quicker.
    panel_in_halves: Option<Panel>,
    /// Where the CPU multiplies `bf16`.
    bf16: Option<Bf16>,
    fill: unsafe fn(&mut Input, &[f32]),
    act: unsafe fn(Act, &mut [f32]),
    glu: unsafe fn(Act, &mut [f32], &[f32]),
    rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    exp_below: unsafe fn(&mut [f32], f32) -> (f32, f32),
    soft_cap: unsafe fn(f32, &mut [f32]),
    log_sum_exp: unsafe fn(&[f32]) -> f64,
    kl_divergence: unsafe fn(&[f32], &[f32], [f64; 2]) -> f64,
    select_above: Select,
}

/// The kernels of products with many tokens in `bf16`, rounded to nearest, ties to even, with sums in `f32`. NaN stays NaN.
struct Bf16 {
    unpack: [UnpackBf16; DTYPES],
    round: unsafe fn(&[f32], &mut [bf16]),
    panel: PanelBf16,
}

/// `[f::<F32>, f::<F16>, ...]`: a generic function for every format, in the order of `DType::ALL`.
macro_rules! per_format {
    ($($f:ident)::+) => {{
        use $crate::quant::*;
        [
            $($f)::+::<F32>, $($f)::+::<F16>, $($f)::+::<Bf16>, $($f)::+::<Q8_0>, $($f)::+::<Q4_0>, $($f)::+::<Q4_1>,
            $($f)::+::<Q5_0>, $($f)::+::<Q5_1>, $($f)::+::<Q4K>, $($f)::+::<Q5K>, $($f)::+::<Q6K>,
            $($f)::+::<Q3_0>, $($f)::+::<Q2_0>, $($f)::+::<T2>, $($f)::+::<Q8H>,
        ]
    }};
}
use per_format;

/// The generic elementwise loops under a set of target features.
macro_rules! elementwise {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        fn fill(input: &mut Input, x: &[f32]) {
            input.fill(x);
        }
        #[target_feature(enable = $features)]
        fn act(f: Act, x: &mut [f32]) {
            generic::act(f, x);
        }
        #[target_feature(enable = $features)]
        fn glu(f: Act, gate: &mut [f32], up: &[f32]) {
            generic::glu(f, gate, up);
        }
        #[target_feature(enable = $features)]
        fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
            generic::rms_norm(x, weight, eps, out);
        }
        #[target_feature(enable = $features)]
        fn exp_below(x: &mut [f32], so_far: f32) -> (f32, f32) {
            generic::exp_below(x, so_far)
        }
        #[target_feature(enable = $features)]
        fn soft_cap(cap: f32, x: &mut [f32]) {
            generic::soft_cap(cap, x);
        }
        #[target_feature(enable = $features)]
        fn log_sum_exp(x: &[f32]) -> f64 {
            generic::log_sum_exp(x)
        }
        #[target_feature(enable = $features)]
        fn kl_divergence(p: &[f32], q: &[f32], log_sums: [f64; 2]) -> f64 {
            generic::kl_divergence(p, q, log_sums)
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use elementwise;

/// The row that is `j`-th in a list.
#[inline(always)]
fn row_of(rows: Rows, j: usize) -> usize {
    rows.map_or(j, |rows| rows[j] as usize)
}

impl Kernels {
    /// The kernels this CPU can run, the best last.
    pub fn available() -> Vec<&'static Kernels> {
        let mut all = vec![&scalar::KERNELS];
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            all.push(&neon::KERNELS);
        }
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if avx2 {
                all.push(&avx2::KERNELS);
            }
            if avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vnni")
            {
                all.push(if is_x86_feature_detected!("avx512bf16") {
                    &avx512::WITH_BF16
                } else {
                    &avx512::KERNELS
                });
            }
        }
        all
    }

    /// The best kernels this CPU can run.
    pub fn best() -> &'static Kernels {
        Kernels::available().pop().unwrap_or(&scalar::KERNELS)
    }

    /// The kernels of the instruction set named, or the best for `None`.
    ///
    /// # Errors
    /// [`IsaError`] if there is no such set, or this CPU lacks it.
    pub fn select(name: Option<&str>) -> Result<&'static Kernels, IsaError> {
        let Some(name) = name else {
            return Ok(Kernels::best());
        };
        let all = Kernels::available();
        all.iter()
            .find(|k| k.isa.name() == name)
            .copied()
            .ok_or_else(|| IsaError {
                asked: name.into(),
                has: all.iter().map(|k| k.isa.name()).collect(),
            })
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Whether products with many tokens round weights of that type, and the activations they meet, to `bf16` (see [`gemm`]).
    pub fn rounds_to_bf16(&self, weights: DType) -> bool {
        self.bf16(weights).is_some()
    }

    /// The kernels that multiply weights of that type, rounded, with many tokens; `None` where they are not rounded.
    fn bf16(&self, weights: DType) -> Option<&Bf16> {
        let is_exact = matches!(weights, DType::F32 | DType::F16);
        self.bf16.as_ref().filter(|_| !is_exact)
    }

    /// `out[i] = m[i] x` for every row.
    ///
    /// # Panics
    /// If `x.len() != m.cols()` or `out.len() != m.rows()`.
    pub fn dot_rows(&self, m: MatRef, x: &Input, out: &mut [f32]) {
        assert_eq!(out.len(), m.rows(), "dot_rows: output");
        self.dot(m, None, x, out);
    }

    /// `out[j] = m[rows[j]] x`, for as many rows of the list as `out` has elements. Of those that follow, the first are asked for to be
    /// in a cache when their turn comes. Other rows are not read.
    ///
    /// # Panics
    /// If `x.len() != m.cols()`, `out` is longer than `rows` or a row used is not below `m.rows()`.
    pub fn dot_list(&self, m: MatRef, rows: &[u32], x: &Input, out: &mut [f32]) {
        let rows = used(m, rows, out.len());
        self.dot(m, Some(rows), x, out);
    }

    fn dot(&self, m: MatRef, rows: Rows, x: &Input, out: &mut [f32]) {
        assert_eq!(x.len(), m.cols(), "dot: input");
        let t = m.dtype() as usize;
        let kernel = match m.layout() {
            Layout::Rows { .. } => Some(self.dot[t]),
            Layout::Parts { .. } => self.dot_parts[t],
            Layout::Tiles => {
                assert!(rows.is_none(), "tiles have no rows");
                if let Some(tiles) = self.tiles[t] {
                    // SAFETY: as below.
                    return unsafe { tiles(m, x, out) };
                }
                None
            }
        };
        if let Some(kernel) = kernel {
            // SAFETY: the table is to be had only where the CPU has its instruction set (so for all calls here); rows and
            // lengths were checked. A quantised row is a whole number of blocks of 32, so `x` has its int8 blocks.
            return unsafe { kernel(m, rows, x, out) };
        }
        // Right, not quick: whoever lays out matrices asks what is preferred.
        for (j, out) in out.iter_mut().enumerate() {
            one_row(m, row_of(rows, j), |row| {
                self.dot(row, None, x, std::slice::from_mut(out));
            });
        }
    }

    /// Whether products of all rows are quicker where a matrix lies in tiles (see [`quant::tile`]).
    pub fn prefers_tiles(&self, m: MatRef) -> bool {
        const NARROW: usize = 512;
        let gains = m.cols() <= NARROW || !self.quick_rows.contains(&m.dtype());
        gains && self.tiles[m.dtype() as usize].is_some()
    }

    /// Whether products with single rows are quicker where these lie in parts (see [`RowForm::Parts`](crate::quant::RowForm)).
    pub fn multiplies_parts(&self, dtype: DType) -> bool {
        self.dot_parts[dtype as usize].is_some()
    }

    /// Whether sums of single rows are quicker where these lie in parts.
    pub fn sums_parts(&self, dtype: DType) -> bool {
        self.axpy_parts[dtype as usize].is_some()
    }

    /// Asks for what is read with the first of `rows`, which products and sums do only for rows behind those they compute.
    fn ask(&self, m: MatRef, rows: &[u32]) {
        #[cfg(target_arch = "x86_64")]
        // Rows that there are not are refused when their turn comes.
        for i in rows.iter().take(AHEAD).map(|&i| i as usize) {
            if i < m.rows() {
                drive::fetch_row(m, i);
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (m, rows);
    }

    /// `y[c - cols.start] += sum over i of coef[i] * m[i][c]`, added row after row, for `c` in `cols`.
    ///
    /// # Panics
    /// If `coef.len() != m.rows()`, `cols` reaches beyond the row or does not begin and end at blocks, or
    /// `y.len() != cols.len()`.
    pub fn axpy_rows(&self, m: MatRef, coef: &[f32], cols: Range<usize>, y: &mut [f32]) {
        assert_eq!(coef.len(), m.rows(), "axpy_rows: coefficients");
        self.axpy(m, None, coef, cols, y);
    }

    /// `y[c - cols.start] += sum over j of coef[j] * m[rows[j]][c]`, added in the order of the list, for `c` in `cols` and as many
    /// rows of the list as there are coefficients. Those that follow are treated as by [`Kernels::dot_list`].
    ///
    /// # Panics
    /// If `coef` is longer than `rows`, a row used is not below `m.rows()`, `cols` reaches beyond the row or does not begin
    /// and end at blocks, or `y.len() != cols.len()`.
    pub fn axpy_list(
        &self,
        m: MatRef,
        rows: &[u32],
        coef: &[f32],
        cols: Range<usize>,
        y: &mut [f32],
    ) {
        let rows = used(m, rows, coef.len());
        self.axpy(m, Some(rows), coef, cols, y);
    }

    fn axpy(&self, m: MatRef, rows: Rows, coef: &[f32], cols: Range<usize>, y: &mut [f32]) {
        let block = m.dtype().block_len();
        assert!(
            cols.start <= cols.end && cols.end <= m.cols(),
            "axpy: columns"
        );
        assert!(
            cols.start.is_multiple_of(block) && cols.end.is_multiple_of(block),
            "axpy: columns cut a block"
        );
        assert_eq!(y.len(), cols.len(), "axpy: output");
        let t = m.dtype() as usize;
        let kernel = match m.layout() {
            Layout::Rows { .. } => Some(self.axpy[t]),
            Layout::Parts { .. } if cols == (0..m.cols()) => self.axpy_parts[t],
            Layout::Parts { .. } | Layout::Tiles => None,
        };
        if let Some(kernel) = kernel {
            // SAFETY: as in `dot`; rows, columns and lengths were checked.
            return unsafe { kernel(m, rows, coef, cols, y) };
        }
        for (j, c) in coef.iter().enumerate() {
            one_row(m, row_of(rows, j), |row| {
                self.axpy(row, None, &[*c], cols.clone(), y);
            });
        }
    }

    /// `gate = act(gate) * up`, elementwise.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn glu(&self, act: Act, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "glu: lengths");
        // SAFETY: as in `dot`.
        unsafe { (self.glu)(act, gate, up) }
    }

    /// `x = act(x)`, elementwise.
    pub fn act(&self, act: Act, x: &mut [f32]) {
        // SAFETY: as in `dot`.
        unsafe { (self.act)(act, x) }
    }

    /// `out = x / sqrt(mean(x^2) + eps) * weight`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert!(
            x.len() == weight.len() && x.len() == out.len(),
            "rms_norm: lengths"
        );
        // SAFETY: as in `dot`.
        unsafe { (self.rms_norm)(x, weight, eps, out) }
    }

    /// `x = exp(x - m)`, where m is the largest of `x` and `so_far`: a softmax in the making. Returns m and the sum of the new `x`.
    /// A NaN makes the sum NaN, as does nothing but negative infinities.
    pub fn exp_below(&self, x: &mut [f32], so_far: f32) -> (f32, f32) {
        // SAFETY: as in `dot`.
        unsafe { (self.exp_below)(x, so_far) }
    }

    /// `x = cap * tanh(x / cap)`, elementwise: about x where it is small, never beyond `cap` and `-cap`. NaN stays NaN.
    pub fn soft_cap(&self, cap: f32, x: &mut [f32]) {
        // SAFETY: as in `dot`.
        unsafe { (self.soft_cap)(cap, x) }
    }

    /// `log(sum of exp(x))`: logits less this are log-probabilities. A NaN, or nothing but negative infinities, gives NaN.
    pub fn log_sum_exp(&self, x: &[f32]) -> f64 {
        // SAFETY: as in `dot`.
        unsafe { (self.log_sum_exp)(x) }
    }

    /// The Kullback-Leibler divergence, in nats, of the distribution with the finite logits `q` from that with `p`;
    /// `log_sums` are their [`Kernels::log_sum_exp`].
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn kl_divergence(&self, p: &[f32], q: &[f32], log_sums: [f64; 2]) -> f64 {
        assert_eq!(p.len(), q.len(), "kl_divergence: lengths");
        // SAFETY: as in `dot`.
        unsafe { (self.kl_divergence)(p, q, log_sums) }
    }

    /// Writes `base + i`, ascending, for every `i` whose score exceeds `tau`, and returns how many there are.
    /// What is not a number exceeds nothing. What `out` holds behind the count is unspecified.
    ///
    /// # Panics
    /// If `out` is shorter than `signal`, or the weights have another length.
    pub fn select_above(
        &self,
        signal: &[f32],
        score: Score,
        tau: f32,
        base: u32,
        out: &mut [u32],
    ) -> usize {
        assert!(out.len() >= signal.len(), "select_above: output");
        score.check(signal.len());
        // SAFETY: as in `dot`.
        unsafe { (self.select_above)(signal, score, tau, base, out) }
    }

    /// Makes `input` hold `x`. Allocates only if `x` is longer than the input's capacity. All instruction sets give
    /// the same input.
    pub fn prepare(&self, x: &[f32], input: &mut Input) {
        // SAFETY: as in `dot`.
        unsafe { (self.fill)(input, x) }
    }

    /// Unpacks columns `cols` of row `i`, which begin and end at blocks.
    fn unpack(&self, m: MatRef, i: usize, cols: Range<usize>, out: &mut [f32]) {
        with_blocks(m, i, cols, out.len(), |blocks| {
            self.unpack_run(m.dtype(), blocks, out)
        });
    }

    /// Unpacks blocks that follow each other.
    fn unpack_run(&self, dtype: DType, blocks: &[u8], out: &mut [f32]) {
        assert_eq!(
            Some(blocks.len()),
            dtype.row_bytes(out.len()),
            "unpack: lengths"
        );
        // SAFETY: as in `dot`; lengths were checked.
        unsafe { (self.unpack[dtype as usize])(blocks, out) }
    }

    /// `acc[r][t] += sum over k of w[r][k] * x[k][t]`, for the `k` that `x` has.
    fn panel(&self, w: &[[f32; DEPTH]], x: &[[f32; LANES]], acc: &mut [[f32; LANES]]) {
        assert!(w.len() == acc.len() && x.len() <= DEPTH, "panel: lengths");
        // SAFETY: as in `dot`; lengths were checked.
        unsafe { (self.panel)(w, x, acc) }
    }

    /// The same with a panel as [`gemm`] lays it out: in halves, where [`Kernels::prefers_halves`].
    fn panel_in_halves(&self, w: &[[f32; DEPTH]], x: &[[f32; LANES]], acc: &mut [[f32; LANES]]) {
        assert!(w.len() == acc.len() && x.len() <= DEPTH, "panel: lengths");
        let panel = self.panel_in_halves.unwrap_or(self.panel);
        // SAFETY: as in `dot`; lengths were checked.
        unsafe { panel(w, x, acc) }
    }

    fn prefers_halves(&self) -> bool {
        self.panel_in_halves.is_some()
    }
}

// Calls are safe as in `Kernels::dot`: this table is to be had only in one of a CPU that has its instructions.
impl Bf16 {
    /// As [`Kernels::unpack`].
    fn unpack(&self, m: MatRef, i: usize, cols: Range<usize>, out: &mut [bf16]) {
        with_blocks(m, i, cols, out.len(), |blocks| {
            // SAFETY: as said above; lengths were checked.
            unsafe { (self.unpack[m.dtype() as usize])(blocks, out) }
        });
    }

    /// `out = x`, rounded.
    fn round(&self, x: &[f32], out: &mut [bf16]) {
        assert_eq!(x.len(), out.len(), "round: lengths");
        // SAFETY: as said above; lengths were checked.
        unsafe { (self.round)(x, out) }
    }

    /// As [`Kernels::panel`], each `k` being two elements whose products are added.
    fn panel(&self, w: &[[Pair; DEPTH]], x: &[[Pair; LANES]], acc: &mut [[f32; LANES]]) {
        assert!(w.len() == acc.len() && x.len() <= DEPTH, "panel: lengths");
        // SAFETY: as said above; lengths were checked.
        unsafe { (self.panel)(w, x, acc) }
    }
}

/// Shows `f` the blocks of columns `cols` of row `i`, which `len` elements have room for.
fn with_blocks(m: MatRef, i: usize, cols: Range<usize>, len: usize, f: impl FnOnce(&[u8])) {
    /// Bytes of as many elements as are unpacked at a time, in the longest format that has tiles or parts.
    const MOST: usize = 2 * DEPTH * DType::F16.block_bytes();
    let t = m.dtype();
    let at = |c: usize| c / t.block_len() * t.block_bytes();
    assert!(
        len == cols.len() && len.is_multiple_of(t.block_len()),
        "unpack: lengths"
    );
    if !matches!(m.layout(), Layout::Rows { .. }) {
        let mut blocks = [0; MOST];
        let blocks = &mut blocks[..at(len)];
        quant::row_blocks(m, i, cols.start / t.block_len(), blocks);
        return f(blocks);
    }
    let part = at(cols.start)..at(cols.end);
    #[cfg(target_arch = "x86_64")]
    drive::fetch(&m.row((i + AHEAD).min(m.rows() - 1))[part.clone()]);
    f(&m.row(i)[part]);
}

/// Shows `f` row `i` as a matrix of blocks.
fn one_row(m: MatRef, i: usize, f: impl FnOnce(MatRef)) {
    let blocks = m.cols() / m.dtype().block_len();
    let mut row = vec![0; blocks * m.dtype().block_bytes()];
    quant::row_blocks(m, i, 0, &mut row);
    f(MatRef::new(m.dtype(), 1, m.cols(), &row).expect("a row of the matrix"));
}

/// How many rows ahead of the one computed may be asked for by hand, where rows, or the parts of them that are used, are too short for
/// the hardware to fetch ahead.
const AHEAD: usize = 8;

/// The rows that are computed and those that are asked for meanwhile, checked.
fn used<'a>(m: MatRef, rows: &'a [u32], computed: usize) -> &'a [u32] {
    assert!(computed <= rows.len(), "list: {computed} of {}", rows.len());
    let rows = &rows[..rows.len().min(computed + AHEAD)];
    // The largest index over all, without a branch a row.
    let end = rows.iter().fold(0, |end, &r| end.max(r as usize + 1));
    assert!(end <= m.rows(), "row {} of {}", end - 1, m.rows());
    rows
}
