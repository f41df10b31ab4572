//! The loops around hand-written steps over rows in parts ([`RowForm::Parts`](crate::quant::RowForm)), shared by the instruction sets
//! as those of [`drive`] are.

use super::{
    Rows,
    drive::{self, Coming},
    row_of,
};
use crate::{
    matrix::MatRef,
    quant::{Parts, groups},
};
use std::marker::PhantomData;

/// Where levels, fifth bits and heads begin in a row, and how many groups it has.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) fifth: usize,
    pub(super) heads: usize,
    pub(super) groups: usize,
}

impl Shape {
    pub(super) fn of(m: MatRef) -> Shape {
        let parts = Parts::of(m.dtype()).expect("a matrix in parts is of a type that has them");
        let groups = groups(m.dtype(), m.cols());
        let [levels, fifth, _] = parts.sizes(groups);
        Shape {
            fifth: levels,
            heads: levels + fifth,
            groups,
        }
    }
}

/// Some rows, equally long, so that a bound is checked once for all of them.
#[derive(Clone, Copy)]
pub(super) struct Lot<'a, const R: usize> {
    rows: [*const u8; R],
    len: usize,
    bytes: PhantomData<&'a [u8]>,
}

impl<'a, const R: usize> Lot<'a, R> {
    #[inline(always)]
    fn of(m: MatRef<'a>, rows: [usize; R]) -> Lot<'a, R> {
        Lot {
            rows: drive::array(std::ptr::null(), |r| m.row_data(rows[r]).as_ptr()),
            len: m.row_bytes(),
            bytes: PhantomData,
        }
    }

    /// Bytes `at..at + N` of row `r`.
    #[inline(always)]
    pub(super) fn get<const N: usize>(&self, r: usize, at: usize) -> &'a [u8; N] {
        assert!(at + N <= self.len);
        // SAFETY: a row is `len` bytes that live as long as the matrix; in bounds by the assertion.
        unsafe { &*self.rows[r].add(at).cast() }
    }
}

/// Products of `R` rows at once, each in so many steps: `step(rows, r, s, activations(s), sums)` adds to the sums of row `r` of some,
/// `zero` at first, and `sum` adds the lanes up. A row sees the same steps alone as among others.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the arguments of a kernel and the parts of its steps
pub(super) fn dot<const R: usize, X, A: Copy>(
    m: MatRef,
    rows: Rows,
    out: &mut [f32],
    steps: usize,
    zero: A,
    activations: impl Fn(usize) -> X,
    step: impl Fn(&Lot<R>, usize, usize, &X, A) -> A,
    sum: impl Fn(A) -> f32,
) {
    drive::by_rows::<R>(
        m,
        rows,
        steps,
        out,
        |w, coming| {
            let lot = Lot::of(m, w);
            let mut acc = [zero; R];
            for s in 0..steps {
                let x = activations(s);
                coming.ask(s);
                for (r, acc) in acc.iter_mut().enumerate() {
                    *acc = step(&lot, r, s, &x, *acc);
                }
            }
            drive::array(0.0, |r| sum(acc[r]))
        },
        |w, coming| {
            let lot = Lot::of(m, [w[0]; R]);
            let mut acc = zero;
            for s in 0..steps {
                coming.ask(s);
                acc = step(&lot, 0, s, &activations(s), acc);
            }
            [sum(acc)]
        },
    );
}

/// Sums of scaled rows, `R` a pass: `many` adds those of `R` rows to `y`, `one` a single one. Whole rows, since a row in parts
/// is not cut.
#[inline(always)]
pub(super) fn axpy<const R: usize>(
    m: MatRef,
    rows: Rows,
    coef: &[f32],
    y: &mut [f32],
    many: impl Fn(Lot<R>, &[f32; R], Coming<R>, &mut [f32]),
    one: impl Fn(Lot<1>, &[f32; 1], Coming<1>, &mut [f32]),
) {
    let steps = groups(m.dtype(), m.cols());
    let (together, alone) = coef.as_chunks::<R>();
    for (j, c) in together.iter().enumerate() {
        let lot = Lot::of(m, drive::array(0, |r| row_of(rows, R * j + r)));
        many(lot, c, Coming::after(m, rows, R * j, steps), y);
    }
    for (j, c) in alone.iter().enumerate() {
        let j = R * together.len() + j;
        let lot = Lot::of(m, [row_of(rows, j)]);
        one(lot, &[*c], Coming::after(m, rows, j, steps), y);
    }
}

/// Lots of `R` rows with their coefficients. The last lot is filled up with its first row, times zero.
#[inline(always)]
pub(super) fn lots<const R: usize>(
    m: MatRef,
    rows: Rows,
    coef: &[f32],
    mut f: impl FnMut(Lot<R>, &[f32; R], Coming<R>),
) {
    let steps = groups(m.dtype(), m.cols());
    for (n, some) in coef.chunks(R).enumerate() {
        let row = |r: usize| row_of(rows, R * n + if r < some.len() { r } else { 0 });
        let c = drive::array(0.0, |r| some.get(r).copied().unwrap_or(0.0));
        let lot = Lot::of(m, drive::array(0, row));
        f(lot, &c, Coming::after(m, rows, R * n, steps));
    }
}
