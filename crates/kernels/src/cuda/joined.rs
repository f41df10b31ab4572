//! An FFN together with the products before and after it (`src/joined.cu`): attention's output, and the next layer's queries, keys and values. Two launches a layer instead of
//! four leave one place where the memory waits instead of three.

use super::{
    Cuda, CudaError, CudaSlice, EMPTY,
    ffn::{Arguments, FfnShape, Neighbours},
    launch::Grid,
    step::ProductsLaunch,
};
use cudarc::driver::CudaFunction;

/// An FFN that is ready to be launched. What it was made of must live until that has run.
pub struct FfnLaunch {
    pub(super) function: CudaFunction,
    pub(super) grid: Grid,
    pub(super) arguments: Arguments,
    pub(super) shape: FfnShape,
}

/// Memory that blocks of joined launches speak through; all of one stream share it.
pub struct Joints {
    /// What an FFN is given, `[hidden]`.
    made: CudaSlice<u32>,
    /// What an FFN has made, `[hidden]`, in turns: a launch empties what the one before it passed.
    passed: [CudaSlice<u32>; 2],
    turn: usize,
    /// What attention has made, `[hidden]`, and whether a launch of an FFN is to take it.
    attended: CudaSlice<u32>,
    is_attended: bool,
}

impl Joints {
    /// For vectors of `hidden`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(cuda: &Cuda, hidden: usize) -> Result<Joints, CudaError> {
        let empty = || cuda.upload(&vec![EMPTY; hidden]);
        Ok(Joints {
            made: empty()?,
            passed: [empty()?, empty()?],
            turn: 0,
            attended: empty()?,
            is_attended: false,
        })
    }

    /// Where attention puts its output.
    pub(super) fn attend(&mut self, cuda: &Cuda, width: usize) -> u64 {
        assert_eq!(width, self.attended.len(), "as wide as the FFN's input");
        self.is_attended = true;
        cuda.address(&self.attended)
    }

    /// Empties what attention has put where no FFN takes it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn forget(&mut self, cuda: &Cuda) -> Result<(), CudaError> {
        if std::mem::take(&mut self.is_attended) {
            cuda.write(&vec![EMPTY; self.attended.len()], &mut self.attended)?;
        }
        Ok(())
    }

    /// Whether all of it is empty, as it must be when nothing is to follow. For tests.
    ///
    /// # Errors
    /// What the driver says.
    pub fn is_at_rest(&self, cuda: &Cuda) -> Result<bool, CudaError> {
        for memory in self.passed.iter().chain([&self.made, &self.attended]) {
            if cuda.download(memory)?.iter().any(|v| *v != EMPTY) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl FfnLaunch {
    /// Makes a product that is added to the FFN's input, and to nothing else, part of its launch. Gives it back where it is none, or the FFN's kernels have no room for it.
    #[must_use]
    pub fn join_output(&mut self, product: ProductsLaunch) -> Option<ProductsLaunch> {
        let (a, p) = (&mut self.arguments, &product.arguments);
        let [first, others @ ..] = &p.products;
        let is_output = first.rows as usize == self.shape.hidden
            && others.iter().all(|p| p.rows == 0)
            && first.adds == 1
            && p.norm == 0
            && first.out == a.residual
            && first.out == a.x;
        if !is_output || !fits(&self.shape, self.grid.blocks.0, &product) {
            return Some(product);
        }
        a.output = *first;
        a.attended = p.x;
        None
    }

    /// Makes products with the FFN's output, or its norm, part of its launch. Such a launch must be followed by another one of an FFN with the same [`Joints`]. Gives the products
    /// back where they are none, or the FFN's kernels have no room for them.
    #[must_use]
    pub fn join_next(&mut self, products: ProductsLaunch) -> Option<ProductsLaunch> {
        let (a, p) = (&mut self.arguments, &products.arguments);
        let is_next = p.x == a.y && p.products.iter().all(|p| p.adds == 0);
        if !is_next || !fits(&self.shape, self.grid.blocks.0, &products) {
            return Some(products);
        }
        a.next = p.products;
        a.next_norm = p.norm;
        a.next_eps = p.eps;
        None
    }

    /// Launches it with what joined it, in the order of calls.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// If it has [`Neighbours::Attention`] and there are no joints, or the other way round.
    pub fn launch(mut self, cuda: &Cuda, joints: Option<&mut Joints>) -> Result<(), CudaError> {
        assert_eq!(
            joints.is_some(),
            self.shape.neighbours != Neighbours::Products
        );
        if let Some(j) = joints {
            let [now, before] = [j.turn, 1 - j.turn].map(|i| cuda.address(&j.passed[i]));
            j.turn = 1 - j.turn;
            self.arguments.made = cuda.address(&j.made);
            self.arguments.passed = now;
            self.arguments.passed_before = before;
            if self.arguments.output.rows == 0 {
                j.forget(cuda)?;
            } else if std::mem::take(&mut j.is_attended) {
                self.arguments.words = cuda.address(&j.attended);
            }
        }
        // SAFETY: as `Ffn` is declared; `prepare` checked lengths, and `prepare_products` those of what joined.
        unsafe { cuda.launch(&self.function, self.grid, self.arguments) }
    }
}

/// Whether rows are such as the FFN's kernels stream, and sums of a block's have room.
fn fits(shape: &FfnShape, blocks: usize, products: &ProductsLaunch) -> bool {
    let rows: usize = products
        .arguments
        .products
        .iter()
        .map(|p| p.rows as usize)
        .sum();
    shape.neighbours != Neighbours::Products
        && products.key == (shape.weights, shape.hidden)
        && rows.div_ceil(blocks) <= shape.rows(blocks)
}
