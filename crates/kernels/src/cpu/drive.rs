//! The loops around hand-written steps, shared by the instruction sets: which rows, which groups of blocks, and what
//! is done with a rest. They are inlined into functions that have the steps' target features.

use super::{AHEAD, Rows, row_of};
use crate::{matrix::MatRef, quant::TILE};
use std::{
    arch::x86_64::{_MM_HINT_T0, _mm_prefetch},
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
    let steps = m.row_bytes().div_ceil(N);
    by_rows::<R>(
        m,
        rows,
        steps,
        out,
        |w, coming| products(w.map(|i| m.row(i)), coming, zero, &load, &step, &rest).map(&sum),
        |w, coming| products(w.map(|i| m.row(i)), coming, zero, &load, &step, &rest).map(&sum),
    );
}

/// Products of rows, `R` at a time, each in so many steps: `many` computes those of `R` rows, `one` that of a single one.
///
/// Of all rows, the `R` are taken one from each `R`th of the matrix, so that memory is read as `R` long streams: that is what the
/// hardware fetches ahead best (twice to three times the speed of `R` rows that follow each other), though not far enough: what
/// follows in the streams is asked for by hand. Rows of a list are too short for it to see anything; there it is those that come later.
#[inline(always)]
pub(super) fn by_rows<const R: usize>(
    m: MatRef,
    rows: Rows,
    steps: usize,
    out: &mut [f32],
    many: impl Fn([usize; R], Coming<R>) -> [f32; R],
    one: impl Fn([usize; 1], Coming<1>) -> [f32; 1],
) {
    let part = out.len() / R;
    // Together: how far the R rows are apart, and how far it is from one R to the next.
    let (apart, onwards) = match rows {
        None => (part, 1),
        Some(_) => (1, R),
    };
    for j in 0..part {
        let first = j * onwards;
        let w = array(0, |r| row_of(rows, first + r * apart));
        let coming = match rows {
            None if m.stride() == m.row_bytes() => Coming::in_streams(m, w, steps),
            _ => Coming::after(m, rows, first, steps),
        };
        for (r, product) in many(w, coming).into_iter().enumerate() {
            out[first + r * apart] = product;
        }
    }
    for (j, out) in out.iter_mut().enumerate().skip(part * R) {
        [*out] = one([row_of(rows, j)], Coming::after(m, rows, j, steps));
    }
}

/// `[f(0), f(1), ...]`. The standard library's way calls `f` out of line where that is compiled for more target features.
#[inline(always)]
pub(super) fn array<const R: usize, T: Copy>(blank: T, f: impl Fn(usize) -> T) -> [T; R] {
    let mut all = [blank; R];
    for (r, to) in all.iter_mut().enumerate() {
        *to = f(r);
    }
    all
}

/// Bytes that come later, asked for while those before them are computed: rows of a list, or what follows rows in their streams.
#[derive(Clone, Copy)]
pub(super) struct Coming<const R: usize> {
    rows: [*const u8; R],
    /// Bytes of each, in whole lines.
    bytes: usize,
    /// Bytes of each that are asked for in a step, in 2^-16: shares of a line add up, so that requests are spread evenly.
    share: usize,
}

impl<const R: usize> Coming<R> {
    /// Those [`AHEAD`] places behind the `R` from place `at` on, to be asked for in so many steps.
    #[inline(always)]
    pub(super) fn after(m: MatRef, rows: Rows, at: usize, steps: usize) -> Coming<R> {
        let later = rows.and_then(|rows| rows.get(at + AHEAD..));
        let Some(later) = later.filter(|later| !later.is_empty()) else {
            return Coming {
                rows: [std::ptr::null(); R],
                bytes: 0,
                share: 0,
            };
        };
        let row = |r: usize| later[r.min(later.len() - 1)] as usize;
        Coming::spread(m, steps, |r| m.row_data(row(r)).as_ptr())
    }

    /// What follows these rows in the streams they are read in, to be asked for in so many steps.
    #[inline(always)]
    fn in_streams(m: MatRef, rows: [usize; R], steps: usize) -> Coming<R> {
        let behind = |r: usize| m.row_data(rows[r]).as_ptr().wrapping_add(STREAM_AHEAD);
        Coming::spread(m, steps, behind)
    }

    /// As much as a row of `m` from each `start(r)` on, to be asked for evenly in so many steps.
    #[inline(always)]
    fn spread(m: MatRef, steps: usize, start: impl Fn(usize) -> *const u8) -> Self {
        let bytes = m.row_bytes().next_multiple_of(LINE);
        Coming {
            rows: array(std::ptr::null(), start),
            bytes,
            share: (bytes << 16).div_ceil(steps.max(1)),
        }
    }

    /// Asks for a step's share of the rows.
    #[inline(always)]
    pub(super) fn ask(&self, step: usize) {
        let line = |step: usize| ((step * self.share) >> 16) & !(LINE - 1);
        let (mut at, end) = (line(step), line(step + 1).min(self.bytes));
        while at < end {
            for row in self.rows {
                ask(row.wrapping_add(at));
            }
            at += LINE;
        }
    }
}

#[inline(always)]
fn products<const R: usize, const N: usize, X, A: Copy>(
    w: [&[u8]; R],
    coming: Coming<R>,
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
        coming.ask(g);
        for r in 0..R {
            acc[r] = step(&groups[r][g], &x, acc[r]);
        }
    }
    if !parts[0].1.is_empty() {
        let x = load(full);
        coming.ask(full);
        for r in 0..R {
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
    let steps = cols.len().div_ceil(E);
    let rest = coef.len() / ROWS * ROWS;
    let (together, alone) = coef.split_at(rest);
    for (j, c) in together.as_chunks::<ROWS>().0.iter().enumerate() {
        let w = array(&[][..], |r| row(j * ROWS + r));
        let coming = Coming::after(m, rows, j * ROWS, steps);
        pass::<ROWS, N, E, P, S, Y>(w, coming, c, y, blank, &prepare, &get, &add, &put);
    }
    for (j, c) in alone.iter().enumerate() {
        pass::<1, N, E, P, S, Y>(
            [row(rest + j)],
            Coming::after(m, rows, rest + j, steps),
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
    coming: Coming<R>,
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
        coming.ask(g);
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

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for the cache line of an address, into the first cache: from the second, products would have to ask once more.
#[inline(always)]
fn ask(address: *const u8) {
    // SAFETY: a prefetch of any address is allowed and never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
}

/// Asks for all cache lines of `part`.
pub(super) fn fetch(part: &[u8]) {
    for at in (0..part.len()).step_by(LINE) {
        ask(part.as_ptr().wrapping_add(at));
    }
}

/// Asks for what is read with row `i`.
pub(super) fn fetch_row(m: MatRef, i: usize) {
    for at in (0..m.row_bytes()).step_by(LINE) {
        ask(m.row_data(i).as_ptr().wrapping_add(at));
    }
}

/// Products of tiles: `step(bytes, activations, sums)` for the blocks of each and those of the activations, from `zero` on; `put` stores the sums of a tile's rows.
///
/// `S` tiles at once, one from each `S`th of the matrix, so that memory is read as so many streams.
#[inline(always)]
pub(super) fn tiles<const S: usize, const N: usize, X: Copy, A: Copy>(
    m: MatRef,
    x: impl Iterator<Item = X> + Clone,
    out: &mut [f32],
    zero: A,
    step: impl Fn(&[u8; N], X, A) -> A,
    put: impl Fn(&mut [f32], A),
) {
    let bytes = TILE * m.row_bytes();
    let tile = |i: usize| m.data()[i * bytes..][..bytes].as_chunks::<N>().0;
    let count = out.len() / TILE;
    let part = count / S;
    for i in 0..part {
        let tiles: [_; S] = array(tile(i), |s| tile(s * part + i));
        let mut acc = [zero; S];
        // Activations may be padded.
        for (b, x) in (0..tiles[0].len()).zip(x.clone()) {
            for (acc, tile) in acc.iter_mut().zip(tiles) {
                *acc = step(&tile[b], x, *acc);
            }
        }
        for (s, acc) in acc.into_iter().enumerate() {
            put(&mut out[(s * part + i) * TILE..][..TILE], acc);
        }
    }
    for i in S * part..count {
        let mut acc = zero;
        for (w, x) in tile(i).iter().zip(x.clone()) {
            acc = step(w, x, acc);
        }
        put(&mut out[i * TILE..][..TILE], acc);
    }
}

/// How many bytes ahead of what is multiplied a stream is asked for, at least. Products take so long that the hardware
/// alone does not keep as many lines under way as for plain reading.
const STREAM_AHEAD: usize = 2048;

/// Asks for what lies `STREAM_AHEAD` bytes behind byte `at` of a block, or, where blocks are longer, at the same byte of the next.
#[inline(always)]
pub(super) fn ask_in_stream<const N: usize>(w: &[u8; N], at: usize) {
    let ahead = const { if N > STREAM_AHEAD { N } else { STREAM_AHEAD } };
    ask(w.as_ptr().wrapping_add(at + ahead));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dtype::DType, matrix::Layout};

    /// What `tiles` makes of so many tiles of two blocks, the first byte of which numbers them.
    fn sums<const S: usize>(count: usize) -> Vec<f32> {
        let mut data = vec![0; count * 2 * 128];
        for (i, block) in data.chunks_exact_mut(128).enumerate() {
            block[0] = i as u8;
        }
        let m = MatRef::with_layout(DType::T2, count * TILE, 64, Layout::Tiles, &data);
        let mut out = vec![-1.0; count * TILE];
        let step = |w: &[u8; 128], x, acc| acc + f32::from(w[0]) * x;
        // One more than a row's blocks: padding.
        let x = [1.0, 100.0, 1e6].into_iter();
        tiles::<S, 128, _, _>(m.unwrap(), x, &mut out, 0.5, step, |out, acc| {
            out.fill(acc);
        });
        out
    }

    #[test]
    fn tiles_of_several_streams_are_those_of_one() {
        for count in 0..8 {
            let tile = |i| 0.5 + (2 * i) as f32 + 100.0 * (2 * i + 1) as f32;
            let want: Vec<f32> = (0..count * TILE).map(|row| tile(row / TILE)).collect();
            assert_eq!(sums::<1>(count), want);
            assert_eq!(sums::<2>(count), want);
            assert_eq!(sums::<3>(count), want);
        }
    }
}
