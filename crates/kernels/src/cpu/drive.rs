//! The loops around hand-written steps, shared by the instruction sets: which rows, which groups of blocks, and what
//! is done with a rest. They are inlined into functions that have the steps' target features.

use super::{Rows, row_of};
use crate::matrix::MatRef;
use std::{
    arch::x86_64::{_MM_HINT_T1, _mm_prefetch},
    ops::Range,
};

/// Dot products as [`dot_with_rest`] computes them, where a short last group is padded with zero bytes.
#[inline(always)]
pub(super) fn dot<const R: usize, const N: usize, X, A: Copy>(
    m: MatRef,
    rows: Rows,
    out: &mut [f32],
    zero: A,
    load: impl Fn(usize) -> X,
    step: impl Fn(&[u8; N], &X, A) -> A,
    sum: impl Fn(A) -> f32,
) {
    let rest = |w: &[u8], x: &X, acc| {
        let mut padded = [0; N];
        padded[..w.len()].copy_from_slice(w);
        step(&padded, x, acc)
    };
    dot_with_rest::<R, N, X, A>(m, rows, out, zero, load, &step, rest, sum);
}

/// Dot products, `R` rows at once, each in steps over `N` bytes of weights.
///
/// `load(g)` gives the activations of group `g`; `step` adds a group's products to an accumulator; `sum` adds its lanes up.
/// The last group of a row may be short; then `rest` adds its products. Its activations are padded with zeros.
/// A row sees the same steps alone as among others.
///
/// Of all rows, the `R` are taken one from each `R`th of the matrix, so that memory is read as `R` long streams: that is what the
/// hardware fetches ahead best (twice to three times the speed of `R` rows that follow each other). Rows of a list are too
/// short for it to see anything, so those that come next are asked for by hand.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the arguments of a kernel and the parts of its steps
pub(super) fn dot_with_rest<const R: usize, const N: usize, X, A: Copy>(
    m: MatRef,
    rows: Rows,
    out: &mut [f32],
    zero: A,
    load: impl Fn(usize) -> X,
    step: impl Fn(&[u8; N], &X, A) -> A,
    rest: impl Fn(&[u8], &X, A) -> A,
    sum: impl Fn(A) -> f32,
) {
    let row = |j| m.row(row_of(rows, j));
    let part = out.len() / R;
    let last = rows.map_or(0, |rows| rows.len().saturating_sub(1));
    // Together: how far the R rows are apart, and how far it is from one R to the next.
    let (apart, onwards) = match rows {
        None => (part, 1),
        Some(_) => (1, R),
    };
    for j in 0..part {
        let first = j * onwards;
        let w: [&[u8]; R] = std::array::from_fn(|r| row(first + r * apart));
        let acc = if rows.is_none() {
            products(w, |_, _| (), zero, &load, &step, &rest)
        } else {
            let next: [&[u8]; R] = std::array::from_fn(|r| row((first + R + r).min(last)));
            let fetch = |r: usize, g| prefetch::<N>(next[r], g);
            products(w, fetch, zero, &load, &step, &rest)
        };
        for (r, acc) in acc.into_iter().enumerate() {
            out[first + r * apart] = sum(acc);
        }
    }
    for (j, out) in out.iter_mut().enumerate().skip(part * R) {
        let [acc] = products([row(j)], |_, _| (), zero, &load, &step, &rest);
        *out = sum(acc);
    }
}

#[inline(always)]
fn products<const R: usize, const N: usize, X, A: Copy>(
    w: [&[u8]; R],
    fetch: impl Fn(usize, usize),
    zero: A,
    load: &impl Fn(usize) -> X,
    step: &impl Fn(&[u8; N], &X, A) -> A,
    rest: &impl Fn(&[u8], &X, A) -> A,
) -> [A; R] {
    let parts = w.map(|w| w.as_chunks::<N>());
    let full = parts[0].0.len();
    // Rows are equally long; saying so spares a check a step.
    let groups = parts.map(|p| &p.0[..full]);
    let mut acc = [zero; R];
    #[allow(clippy::needless_range_loop)] // one index into R rows
    for g in 0..full {
        let x = load(g);
        for r in 0..R {
            fetch(r, g);
            acc[r] = step(&groups[r][g], &x, acc[r]);
        }
    }
    if !parts[0].1.is_empty() {
        let x = load(full);
        for r in 0..R {
            fetch(r, full);
            acc[r] = rest(parts[r].1, &x, acc[r]);
        }
    }
    acc
}

/// Rows that [`axpy`] adds in one pass over the sums.
const ROWS: usize = 4;

/// Sums of scaled rows, four rows a pass, each in blocks of `N` bytes and `E` elements, a block in pieces of `P`.
///
/// `prepare` looks at a block and its row's coefficient and fills in a state (in place, since states can be large),
/// `blank` at first; `add` adds piece `p` of the block, scaled, to `P` sums that
/// `get` and `put` move between memory and registers. Only float formats, whose `N` and `E` cover many elements, can
/// leave a rest; it is padded. Rows are added one after the other, so sums do not depend on how rows or columns are cut.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // the arguments of a kernel and the four parts of its step
pub(super) fn axpy<const N: usize, const E: usize, const P: usize, S: Copy, Y>(
    m: MatRef,
    rows: Rows,
    coef: &[f32],
    cols: Range<usize>,
    y: &mut [f32],
    blank: S,
    prepare: impl Fn(&[u8; N], f32, &mut S),
    get: impl Fn(&[f32; P]) -> Y,
    add: impl Fn(&[u8; N], &S, usize, Y) -> Y,
    put: impl Fn(Y, &mut [f32; P]),
) {
    let bytes = m.dtype().block_bytes();
    let part = cols.start / m.dtype().block_len() * bytes..cols.end / m.dtype().block_len() * bytes;
    let row = |j: usize| &m.row(row_of(rows, j))[part.clone()];
    let rest = coef.len() / ROWS * ROWS;
    let (together, alone) = coef.split_at(rest);
    let last = rows.map_or(coef.len(), <[u32]>::len).saturating_sub(1);
    for (j, c) in together.as_chunks::<ROWS>().0.iter().enumerate() {
        let w: [&[u8]; ROWS] = std::array::from_fn(|r| row(j * ROWS + r));
        let next = std::array::from_fn(|r| row((j * ROWS + ROWS + r).min(last)));
        pass::<ROWS, N, E, P, S, Y>(w, next, c, y, blank, &prepare, &get, &add, &put);
    }
    for (j, c) in alone.iter().enumerate() {
        pass::<1, N, E, P, S, Y>(
            [row(rest + j)],
            [row(last)],
            &[*c],
            y,
            blank,
            &prepare,
            &get,
            &add,
            &put,
        );
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)] // as above
fn pass<const R: usize, const N: usize, const E: usize, const P: usize, S: Copy, Y>(
    w: [&[u8]; R],
    next: [&[u8]; R],
    coef: &[f32; R],
    y: &mut [f32],
    blank: S,
    prepare: &impl Fn(&[u8; N], f32, &mut S),
    get: &impl Fn(&[f32; P]) -> Y,
    add: &impl Fn(&[u8; N], &S, usize, Y) -> Y,
    put: &impl Fn(Y, &mut [f32; P]),
) {
    let parts = w.map(|w| w.as_chunks::<N>());
    let (ys, y_rest) = y.as_chunks_mut::<E>();
    let full = ys.len();
    let groups = parts.map(|p| &p.0[..full]);
    let mut state = [blank; R];
    for (g, y) in ys.iter_mut().enumerate() {
        for next in next {
            prefetch::<N>(next, g);
        }
        for r in 0..R {
            prepare(&groups[r][g], coef[r], &mut state[r]);
        }
        for (p, y) in y.as_chunks_mut::<P>().0.iter_mut().enumerate() {
            let mut sums = get(y);
            for r in 0..R {
                sums = add(&groups[r][g], &state[r], p, sums);
            }
            put(sums, y);
        }
    }
    if !y_rest.is_empty() {
        let mut sums = [0.0; E];
        sums[..y_rest.len()].copy_from_slice(y_rest);
        for r in 0..R {
            let mut padded = [0; N];
            padded[..parts[r].1.len()].copy_from_slice(parts[r].1);
            prepare(&padded, coef[r], &mut state[r]);
            for (p, y) in sums.as_chunks_mut::<P>().0.iter_mut().enumerate() {
                put(add(&padded, &state[r], p, get(y)), y);
            }
        }
        y_rest.copy_from_slice(&sums[..y_rest.len()]);
    }
}

/// Unpacks whole blocks with the steps of [`axpy`]: each is added, scaled by 1, to `zero`; `put` may store a narrower type.
#[inline(always)]
pub(super) fn unpack<
    const N: usize,
    const E: usize,
    const P: usize,
    S: Copy,
    Y: Copy,
    T: Copy + Default,
>(
    row: &[u8],
    out: &mut [T],
    blank: S,
    prepare: impl Fn(&[u8; N], f32, &mut S),
    zero: Y,
    add: impl Fn(&[u8; N], &S, usize, Y) -> Y,
    put: impl Fn(Y, &mut [T; P]),
) {
    let mut state = blank;
    let mut block = |w: &[u8; N], out: &mut [T; E]| {
        prepare(w, 1.0, &mut state);
        for (p, out) in out.as_chunks_mut::<P>().0.iter_mut().enumerate() {
            put(add(w, &state, p, zero), out);
        }
    };
    let (ws, w_rest) = row.as_chunks::<N>();
    let (outs, out_rest) = out.as_chunks_mut::<E>();
    for (w, out) in ws.iter().zip(outs) {
        block(w, out);
    }
    if !out_rest.is_empty() {
        let (mut padded, mut all) = ([0; N], [T::default(); E]);
        padded[..w_rest.len()].copy_from_slice(w_rest);
        block(&padded, &mut all);
        out_rest.copy_from_slice(&all[..out_rest.len()]);
    }
}

/// Asks for the cache lines of group `g` of a row that comes next. They come to the second cache: it has more lines under way at
/// a time than the first, so that rows here and there are read up to half as fast again.
#[inline(always)]
fn prefetch<const N: usize>(row: &[u8], g: usize) {
    for line in (0..N).step_by(64) {
        let p = row.as_ptr().wrapping_add(g * N + line);
        // SAFETY: a prefetch of any address is allowed and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) };
    }
}

/// Asks for all cache lines of `part`.
pub(super) fn fetch(part: &[u8]) {
    for line in 0..part.len().div_ceil(64) {
        prefetch::<64>(part, line);
    }
}
