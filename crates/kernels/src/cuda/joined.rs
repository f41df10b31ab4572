//! An FFN together with the products before and after it (`src/joined.cu`): attention's output, and the next layer's queries, keys and values. Two launches a layer instead of
//! four leave one place where the memory waits instead of three.

use super::{
    Cuda, CudaError, CudaSlice, EMPTY, Taken,
    attention::AttentionShape,
    ffn::{Arguments, FfnShape, Neighbours},
    launch::Grid,
    products::{ProductArguments, ProductsLaunch},
    step::NormAddLaunch,
};
use crate::DType;
use cudarc::driver::CudaFunction;

/// An FFN that is ready to be launched. What it was made of must live until that has run.
pub struct FfnLaunch {
    pub(super) function: CudaFunction,
    pub(super) grid: Grid,
    pub(super) arguments: Arguments,
    pub(super) shape: FfnShape,
    /// Whether the products that join after it are what attention is given next.
    pub(super) is_for_attention: bool,
    /// What is done with its result: follows it, unless products join after it.
    pub(super) then: Option<NormAddLaunch>,
}

/// Memory that blocks of joined launches speak through; all of one stream share it. Launches of FFNs use two sets in turns: one empties what it and attention before it have read,
/// and only the launch after the next writes that again.
pub struct Joints {
    sets: [Words; 2],
    turn: usize,
    /// What the last launch of an FFN has passed on, which the next one empties.
    passed: Passed,
    /// Whether attention has put what it made where the next launch of an FFN takes it.
    is_attended: bool,
}

struct Words {
    /// What attention has made, `[heads * head_dim]`.
    attended: CudaSlice<u32>,
    /// What an FFN is given, `[hidden]`.
    made: CudaSlice<u32>,
    /// What it has made, `[hidden]`.
    passed: CudaSlice<u32>,
    /// The residual stream after it, `[hidden]`, where that is not what it has made.
    carried: CudaSlice<u32>,
    /// Queries, keys and values made of that, one after the other.
    projected: CudaSlice<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Passed {
    Nothing,
    /// Its output.
    Output,
    /// And queries, keys and values.
    Projections,
}

/// What attention takes from joints and puts there, as addresses.
pub(super) struct Attended {
    pub(super) out: u64,
    /// Queries, keys and values, and a word that is there before them.
    pub(super) projected: Option<[u64; 2]>,
}

impl Joints {
    /// For vectors of `hidden`, and attention of a shape.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(cuda: &Cuda, hidden: usize, shape: AttentionShape) -> Result<Joints, CudaError> {
        let empty = |len: usize| cuda.upload(&vec![EMPTY; len]);
        let words = || {
            Ok(Words {
                attended: empty(shape.heads * shape.head_dim)?,
                made: empty(hidden)?,
                passed: empty(hidden)?,
                carried: empty(hidden)?,
                projected: empty((shape.heads + 2 * shape.kv_heads) * shape.head_dim)?,
            })
        };
        Ok(Joints {
            sets: [words()?, words()?],
            turn: 0,
            passed: Passed::Nothing,
            is_attended: false,
        })
    }

    /// Where attention puts its output, and finds its input if the launch of an FFN before has put it there.
    pub(super) fn attend(&mut self, cuda: &Cuda, width: usize) -> Attended {
        let (now, before) = (&self.sets[self.turn], &self.sets[1 - self.turn]);
        assert_eq!(width, now.attended.len(), "as wide as what joints are for");
        self.is_attended = true;
        let projected = [&before.projected, &before.passed].map(|w| cuda.address(w));
        Attended {
            out: cuda.address(&now.attended),
            projected: Some(projected).filter(|_| self.passed == Passed::Projections),
        }
    }

    /// Empties what attention has put and was given where no FFN takes it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn forget(&mut self, cuda: &Cuda) -> Result<(), CudaError> {
        let [now, before] = [self.turn, 1 - self.turn];
        let empty = |words: &mut CudaSlice<u32>| cuda.write(&vec![EMPTY; words.len()], words);
        if std::mem::take(&mut self.is_attended) {
            empty(&mut self.sets[now].attended)?;
        }
        if self.passed == Passed::Projections {
            self.passed = Passed::Output;
            empty(&mut self.sets[before].projected)?;
        }
        Ok(())
    }

    /// Whether all of it is empty, as it must be when nothing is to follow. For tests.
    ///
    /// # Errors
    /// What the driver says.
    pub fn is_at_rest(&self, cuda: &Cuda) -> Result<bool, CudaError> {
        for w in &self.sets {
            for memory in [&w.attended, &w.made, &w.passed, &w.carried, &w.projected] {
                if cuda.download(memory)?.iter().any(|v| *v != EMPTY) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

impl FfnLaunch {
    /// The same, and what is done with its result, y: x += norm(y) where x is what the FFN is given.
    ///
    /// # Panics
    /// If it is something else, or the shape's neighbours do not say [`Taken::Normed`].
    #[must_use]
    pub fn then(mut self, next: NormAddLaunch) -> FfnLaunch {
        let (a, n) = (&mut self.arguments, &next.arguments);
        assert!((n.y, n.x) == (a.y, a.x) && (n.scale, a.residual) == (1.0, 0));
        assert!(self.shape.neighbours.sums() != Some(Taken::AsIs));
        a.stream = n.x;
        a.y_norm = n.weight;
        a.added_eps = n.eps;
        self.then = Some(next);
        self
    }

    /// Makes a product that is added to the FFN's input, as it is or normed, and to nothing else, part of its launch. Gives it back where it is none, or the FFN's kernels have no
    /// room for it.
    #[must_use]
    pub fn join_output(&mut self, product: ProductsLaunch) -> Option<ProductsLaunch> {
        let Neighbours::Attention { attended, sums, .. } = self.shape.neighbours else {
            return Some(product);
        };
        let (a, p) = (&mut self.arguments, &product.arguments);
        let [first, others @ ..] = &p.products;
        let is_added = match (sums, &product.then) {
            (Taken::AsIs, None) => first.adds == 1 && [first.out; 2] == [a.residual, a.x],
            (Taken::Normed, Some(then)) => {
                let n = &then.arguments;
                let to = (n.y, n.x, n.scale, n.eps) == (first.out, a.x, 1.0, a.added_eps);
                to && first.adds == 0 && self.then.is_some()
            }
            _ => false,
        };
        let is_output = first.rows as usize == self.shape.hidden
            && others.iter().all(|p| p.rows == 0)
            && p.norm == 0
            && is_added;
        let key = (self.shape.weights, attended);
        if !(is_output && fits(&self.shape, key, self.grid.blocks.0, &product)) {
            return Some(product);
        }
        a.output = *first;
        a.attended = p.x;
        a.output_norm = product.then.map_or(0, |n| n.arguments.weight);
        None
    }

    /// Makes products with the FFN's output, or its norm, part of its launch; in a second call, one more of the type that [`Neighbours::Attention`] allows. Such a launch must be
    /// followed by another one of an FFN with the same [`Joints`]. Gives the products back where they are none, or the FFN's kernels have no room for them.
    #[must_use]
    pub fn join_next(&mut self, products: ProductsLaunch) -> Option<ProductsLaunch> {
        let Neighbours::Attention { values, sums, .. } = self.shape.neighbours else {
            return Some(products);
        };
        let (a, p) = (&mut self.arguments, &products.arguments);
        let [first, others @ ..] = &p.products;
        let is_first = a.next.iter().all(|p| p.rows == 0);
        let is_values = a.values.rows == 0
            && others.iter().all(|p| p.rows == 0)
            && (p.norm, p.eps) == (a.next_norm, a.next_eps);
        let dtype = Some(self.shape.weights).filter(|_| is_first);
        let dtype = dtype.or(values.filter(|_| is_values));
        let is_made = match sums {
            Taken::AsIs => p.x == a.y,
            Taken::Normed => p.x == a.stream && self.then.is_some(),
        };
        let is_next = is_made && p.products.iter().all(|p| p.adds == 0);
        let key = |d| (d, self.shape.hidden);
        let fits = |d| fits(&self.shape, key(d), self.grid.blocks.0, &products);
        if !is_next || !dtype.is_some_and(fits) {
            return Some(products);
        }
        if is_first {
            a.next = p.products;
            a.next_norm = p.norm;
            a.next_eps = p.eps;
        } else {
            a.values = *first;
        }
        None
    }

    /// Has the queries, keys and values that joined it passed to attention as they come, which must be the next launch; their buffers are not written. Does nothing where others
    /// joined, or none.
    pub fn join_attention(&mut self, cuda: &Cuda, qkv: [&CudaSlice<f32>; 3]) {
        let outs = products_after(&mut self.arguments).map(|p| p.out);
        self.is_for_attention = outs.eq(qkv.map(|b| cuda.address(b)));
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
            self.speak_through(cuda, j)?;
        }
        let is_added = products_after(&mut self.arguments).next().is_some();
        // SAFETY: as `Ffn` is declared; `prepare` checked lengths, and `prepare_products` those of what joined.
        unsafe { cuda.launch(&self.function, self.grid, self.arguments)? };
        let then = self.then.filter(|_| !is_added);
        then.map_or(Ok(()), |next| next.launch(cuda))
    }

    /// Says where blocks find what others pass, and what they are to empty.
    fn speak_through(&mut self, cuda: &Cuda, j: &mut Joints) -> Result<(), CudaError> {
        let a = &mut self.arguments;
        if a.output.rows == 0 {
            j.forget(cuda)?;
        }
        let (now, before) = (&j.sets[j.turn], &j.sets[1 - j.turn]);
        a.made = cuda.address(&now.made);
        a.passed = cuda.address(&now.passed);
        a.carried = cuda.address(&now.carried);
        if std::mem::take(&mut j.is_attended) {
            a.words = cuda.address(&now.attended);
        }
        if j.passed != Passed::Nothing {
            a.passed_before = cuda.address(&before.passed);
            a.carried_before = cuda.address(&before.carried);
        }
        if j.passed == Passed::Projections {
            a.projected_before = cuda.address(&before.projected);
            a.projected = before.projected.len() as u32;
        }
        j.passed = match products_after(a).map(|p| p.rows as usize).sum() {
            0 => Passed::Nothing,
            rows if self.is_for_attention => {
                assert_eq!(rows, now.projected.len(), "as many as attention is given");
                let mut at = cuda.address(&now.projected);
                for p in products_after(a) {
                    p.out = at;
                    at += 4 * u64::from(p.rows);
                }
                Passed::Projections
            }
            _ => Passed::Output,
        };
        j.turn = 1 - j.turn;
        Ok(())
    }
}

/// The products that joined after an FFN, in order.
fn products_after(a: &mut Arguments) -> impl Iterator<Item = &mut ProductArguments> {
    let all = a.next.iter_mut().chain([&mut a.values]);
    all.filter(|p| p.rows > 0)
}

/// Whether rows are of a type and length, and such as the FFN's kernels stream, two of one product together where they are short, and sums of a block's have room.
fn fits(shape: &FfnShape, key: (DType, usize), blocks: usize, products: &ProductsLaunch) -> bool {
    let rows = products.arguments.products.map(|p| p.rows as usize);
    let pairs: usize = rows.iter().map(|rows| rows / 2).sum();
    products.key == key
        && rows.iter().all(|rows| rows.is_multiple_of(2))
        && 2 * pairs.div_ceil(blocks) <= shape.rows(blocks)
}
