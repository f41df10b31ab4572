//! Products of matrices with one vector (`src/gemv.cu`).

use super::{
    Cuda, CudaError, Output, StepKernels, Weights,
    launch::{Grid, Source, sources},
    step::NormAddLaunch,
    weights::number,
};
use crate::DType;
use cudarc::driver::{CudaFunction, CudaSlice};

const SOURCES: [Source; 7] = sources![
    "types.cu",
    "products.cu",
    "weights.cu",
    "barrier.cu",
    "flow.cu",
    "levels.cu",
    "gemv.cu"
];

/// `GEMV_THREADS` of `gemv.cu`, and `PRODUCTS` of `products.cu`.
const GEMV_THREADS: usize = 320;
pub(super) const PRODUCTS: usize = 3;
/// What of a block's shared memory is neither slots nor levels of x (`GemvState`, and up to a multiple of 128).
const GEMV_STATE: usize = 4736;
/// Bytes of a slot, about, and its rows at most (`GEMV_SLOT_ROWS_MAX`); slots at most (`GEMV_SLOTS_MAX`) and at least.
const SLOT_BYTES: usize = 16 << 10;
const MOST_SLOT_ROWS: usize = 8;
const MOST_SLOTS: usize = 16;
const LEAST_SLOTS: usize = 2;
/// The part of the rows that are dealt to blocks beforehand: multiprocessors differ in speed by less than what is left.
const DEALT: f64 = 0.8;

/// One product of several with the same vector.
pub struct Product<'a> {
    /// `[rows, cols]`.
    pub weights: &'a Weights,
    /// `[rows]`, added.
    pub bias: Option<&'a CudaSlice<f32>>,
    /// `[rows]`.
    pub out: Output<'a>,
}

/// `Product` of `products.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct ProductArguments {
    pub(super) weights: u64,
    pub(super) bias: u64,
    pub(super) out: u64,
    pub(super) rows: u32,
    pub(super) adds: u32,
}

#[repr(C)]
pub(super) struct GemvArguments {
    pub(super) products: [ProductArguments; PRODUCTS],
    pub(super) x: u64,
    pub(super) norm: u64,
    pub(super) eps: f32,
    rows: u32,
    dealt: u32,
    slots: u32,
    slot_rows: u32,
    slot_bytes: u32,
    tickets: u64,
}

/// Products that are ready to be launched, by themselves or with an FFN ([`super::FfnLaunch`]). What they were made of must live until that has run.
pub struct ProductsLaunch {
    function: CudaFunction,
    grid: Grid,
    pub(super) arguments: GemvArguments,
    /// Type and length of rows.
    pub(super) key: (DType, usize),
    /// What follows it.
    pub(super) then: Option<NormAddLaunch>,
}

impl ProductsLaunch {
    /// The same, and what is done with its result.
    #[must_use]
    pub fn then(self, next: NormAddLaunch) -> ProductsLaunch {
        ProductsLaunch {
            then: Some(next),
            ..self
        }
    }

    /// Launches them, in the order of calls.
    ///
    /// # Errors
    /// What the driver says.
    pub fn launch(self, cuda: &Cuda) -> Result<(), CudaError> {
        // SAFETY: as `Gemv` is declared; `prepare_products` checked lengths.
        unsafe { cuda.launch(&self.function, self.grid, self.arguments)? };
        self.then.map_or(Ok(()), |next| next.launch(cuda))
    }
}

impl StepKernels {
    /// Products of up to three matrices of one type with row `row` of `x`, `[rows, cols]`, or with its RMS norm times a weight, `[cols]`. The first ones of a type and length
    /// compile.
    ///
    /// # Errors
    /// [`CudaError::Weights`] for rows that are too long for shared memory, or what the compiler or the driver says.
    ///
    /// # Panics
    /// If there are more, or lengths or types do not fit.
    pub fn products(
        &mut self,
        cuda: &Cuda,
        x: (&CudaSlice<f32>, usize),
        norm: Option<(&CudaSlice<f32>, f32)>,
        products: &[Product<'_>],
    ) -> Result<(), CudaError> {
        self.prepare_products(cuda, x, norm, products)?.launch(cuda)
    }

    /// The same, not launched yet.
    ///
    /// # Errors
    /// As [`StepKernels::products`].
    ///
    /// # Panics
    /// As [`StepKernels::products`].
    pub fn prepare_products(
        &mut self,
        cuda: &Cuda,
        (x, row): (&CudaSlice<f32>, usize),
        norm: Option<(&CudaSlice<f32>, f32)>,
        products: &[Product<'_>],
    ) -> Result<ProductsLaunch, CudaError> {
        let first = products.first().expect("there is something to multiply");
        let (dtype, cols) = (first.weights.dtype, first.weights.cols);
        assert!(products.len() <= PRODUCTS && (row + 1) * cols <= x.len());
        assert!(norm.is_none_or(|(w, _)| w.len() == cols));
        let row_bytes = first.weights.stride;
        let slot_rows = (SLOT_BYTES / row_bytes).clamp(1, MOST_SLOT_ROWS);
        let slot_bytes = (slot_rows * row_bytes).next_multiple_of(128);
        // The state, and x in levels (`levels_bytes` of `levels.cu`).
        let others = GEMV_STATE
            + if dtype.is_quantized() {
                cols + cols / 4
            } else {
                0
            };
        let shared = cuda.card.shared_of_two();
        let slots = (shared.saturating_sub(others) / slot_bytes).min(MOST_SLOTS);
        if slots < LEAST_SLOTS {
            return Err(CudaError::Weights { dtype, cols });
        }
        let rows: usize = products.iter().map(|p| p.weights.rows).sum();
        let mut arguments = GemvArguments {
            products: [ProductArguments::default(); PRODUCTS],
            x: cuda.address(x) + (4 * row * cols) as u64,
            norm: norm.map_or(0, |(w, _)| cuda.address(w)),
            eps: norm.map_or(0.0, |(_, eps)| eps),
            rows: rows as u32,
            dealt: (rows as f64 * DEALT) as u32,
            slots: slots as u32,
            slot_rows: slot_rows as u32,
            slot_bytes: slot_bytes as u32,
            tickets: cuda.address(&self.tickets),
        };
        for (p, to) in products.iter().zip(&mut arguments.products) {
            let w = p.weights;
            assert!(w.dtype == dtype && w.cols == cols && w.rows <= p.out.slice().len());
            assert!(p.bias.is_none_or(|b| b.len() == w.rows));
            *to = ProductArguments {
                weights: cuda.address(&w.data),
                bias: p.bias.map_or(0, |b| cuda.address(b)),
                out: cuda.address(p.out.slice()),
                rows: w.rows as u32,
                adds: u32::from(matches!(p.out, Output::Add(_))),
            };
        }
        let most = cuda.card().multiprocessors;
        let grid = Grid {
            blocks: (rows.div_ceil(8).min(most), 1),
            threads: GEMV_THREADS,
            shared: slots * slot_bytes + others,
        };
        Ok(ProductsLaunch {
            function: self.gemv(cuda, dtype, cols)?.clone(),
            grid,
            arguments,
            key: (dtype, cols),
            then: None,
        })
    }

    /// The kernel for products of such rows, compiled if it is not there.
    fn gemv(&mut self, cuda: &Cuda, dtype: DType, cols: usize) -> Result<&CudaFunction, CudaError> {
        let key = (dtype, cols);
        let at = match self.gemv.iter().position(|(k, _)| *k == key) {
            Some(at) => at,
            None => {
                let definitions = [
                    ("GEMV_STATE", GEMV_STATE),
                    ("COLS", cols),
                    (
                        "WEIGHTS",
                        number(dtype).expect("uploaded weights have kernels"),
                    ),
                ];
                let module = cuda.module(&SOURCES, &definitions)?;
                let shared = cuda.card.shared_of_two();
                let function = Cuda::function(&module, "gemv", shared)?;
                self.gemv.push((key, function));
                self.gemv.len() - 1
            }
        };
        Ok(&self.gemv[at].1)
    }
}
