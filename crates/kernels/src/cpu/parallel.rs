//! Products spread over a team. Results do not depend on the number of threads.

use super::{Act, Input, Kernels, Team, team::Disjoint};
use crate::matrix::MatRef;

/// Rows are cut in multiples of this, so that kernels which take several rows at once seldom have a rest.
const ROWS: usize = 8;
/// Columns of a sum are cut in multiples of this: whole blocks of the short formats, whole cache lines of output.
const COLS: usize = 32;

/// `out[i] = m[i] x` for every row.
///
/// # Panics
/// As [`Kernels::dot_rows`].
pub fn gemv(team: &mut Team, k: &Kernels, m: MatRef, x: &Input, out: &mut [f32]) {
    assert_eq!(out.len(), m.rows(), "gemv: output");
    team.split(out, ROWS, |at, out| {
        k.dot_rows(m.rows_range(at..at + out.len()), x, out);
    });
}

/// `y = sum over i of coef[i] * m[i]`. Overwrites `y`.
///
/// # Panics
/// As [`Kernels::axpy_rows`].
pub fn axpy(team: &mut Team, k: &Kernels, m: MatRef, coef: &[f32], y: &mut [f32]) {
    assert_eq!(y.len(), m.cols(), "axpy: output");
    by_columns(team, m, y, |cols, y| k.axpy_rows(m, coef, cols, y));
}

/// `y = sum over j of coef[j] * m[rows[j]]`. Overwrites `y`; other rows are not read.
///
/// # Panics
/// As [`Kernels::axpy_list`].
pub fn axpy_list(
    team: &mut Team,
    k: &Kernels,
    m: MatRef,
    rows: &[u32],
    coef: &[f32],
    y: &mut [f32],
) {
    assert_eq!(y.len(), m.cols(), "axpy_list: output");
    by_columns(team, m, y, |cols, y| k.axpy_list(m, rows, coef, cols, y));
}

/// Zeroes `y` and runs `f` on one range of columns a thread.
fn by_columns(
    team: &mut Team,
    m: MatRef,
    y: &mut [f32],
    f: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync,
) {
    // One piece a thread: the shorter the piece of a row, the worse memory is read.
    let grain = m.dtype().block_len().max(COLS);
    let cols = m.cols();
    let piece = cols.div_ceil(team.threads()).max(1).next_multiple_of(grain);
    let y = Disjoint::new(y);
    team.for_each(cols.div_ceil(piece), |i| {
        let range = i * piece..((i + 1) * piece).min(cols);
        // SAFETY: the ranges of different pieces do not overlap, and each piece runs once.
        let y = unsafe { y.slice(range.clone()) };
        y.fill(0.0);
        f(range, y);
    });
}

/// The matrices of a gated FFN, `y = down^T (act(gate x) * (up x))`. All three are `[inter, hidden]`: a neuron is
/// one row of each.
#[derive(Clone, Copy)]
pub struct SparseFfn<'a> {
    /// Gate, `[inter, hidden]`.
    pub gate: MatRef<'a>,
    /// Up, `[inter, hidden]`.
    pub up: MatRef<'a>,
    /// Down, transposed: `[inter, hidden]`.
    pub down: MatRef<'a>,
    /// Activation of the gate.
    pub act: Act,
}

/// The matrix whose product decides which neurons are kept. It is computed for every neuron.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decider {
    /// The signal is `act(gate x)`.
    Gate,
    /// The signal is `up x`.
    Up,
}

/// Memory for sparse FFN calls, and what the last one kept.
pub struct FfnWork {
    signal: Vec<f32>,
    other: Vec<f32>,
    rows: Vec<u32>,
    counts: Vec<usize>,
    kept: usize,
}

impl FfnWork {
    /// Memory for FFNs of up to `inter` neurons; calls allocate nothing.
    pub fn new(inter: usize) -> FfnWork {
        FfnWork {
            signal: vec![0.0; inter],
            other: vec![0.0; inter],
            rows: vec![0; inter],
            counts: vec![0; inter],
            kept: 0,
        }
    }

    /// The neurons the last call kept, ascending.
    pub fn kept_rows(&self) -> &[u32] {
        &self.rows[..self.kept]
    }

    /// The coefficients of [`FfnWork::kept_rows`]: `act(gate x) * (up x)`.
    pub fn coefficients(&self) -> &[f32] {
        &self.other[..self.kept]
    }
}

/// A gated FFN over the neurons whose score exceeds `tau` (see [`Kernels::select_above`]; `weights` are per neuron).
/// Of the neurons not kept, only the deciding matrix is read. Writes `y` and returns how many were kept.
///
/// Two parallel regions: one decides and computes coefficients, one sums the rows of `down`.
///
/// # Panics
/// If the matrices' shapes, `x`, `y` or the weights do not fit together, or `work` is for fewer neurons.
#[allow(clippy::too_many_arguments)] // each is a different thing, and this is the hot call of a layer
pub fn sparse_ffn(
    team: &mut Team,
    k: &Kernels,
    w: &SparseFfn,
    decide: Decider,
    weights: Option<(&[f32], &[f32])>,
    tau: f32,
    x: &Input,
    work: &mut FfnWork,
    y: &mut [f32],
) -> usize {
    let inter = check(w, work);
    if let Some((pos, neg)) = weights {
        assert!(
            pos.len() == inter && neg.len() == inter,
            "sparse_ffn: weights"
        );
    }
    let (first, second) = match decide {
        Decider::Gate => (w.gate, w.up),
        Decider::Up => (w.up, w.gate),
    };
    let piece = team.piece_len(inter, ROWS);
    let pieces = inter.div_ceil(piece);
    let signal = Disjoint::new(&mut work.signal[..inter]);
    let other = Disjoint::new(&mut work.other[..inter]);
    let rows = Disjoint::new(&mut work.rows[..inter]);
    let counts = Disjoint::new(&mut work.counts[..pieces]);
    team.for_each(pieces, |p| {
        let range = p * piece..((p + 1) * piece).min(inter);
        // SAFETY: here and below: the ranges of different pieces do not overlap, and each piece runs once.
        let signal = unsafe { signal.slice(range.clone()) };
        // SAFETY: as above.
        let rows = unsafe { rows.slice(range.clone()) };
        // SAFETY: as above.
        let other = unsafe { other.slice(range.clone()) };
        // SAFETY: as above.
        let count = unsafe { &mut counts.slice(p..p + 1)[0] };
        k.dot_rows(first.rows_range(range.clone()), x, signal);
        if decide == Decider::Gate {
            k.act(w.act, signal);
        }
        let weights = weights.map(|(pos, neg)| (&pos[range.clone()], &neg[range.clone()]));
        *count = k.select_above(signal, weights, tau, range.start as u32, rows);
        let rows = &rows[..*count];
        let other = &mut other[..*count];
        k.dot_list(second, rows, x, other);
        if decide == Decider::Up {
            k.act(w.act, other);
        }
        for (c, &row) in other.iter_mut().zip(rows) {
            *c *= signal[row as usize - range.start];
        }
    });
    work.kept = 0;
    for p in 0..pieces {
        let (from, count) = (p * piece, work.counts[p]);
        work.rows.copy_within(from..from + count, work.kept);
        work.other.copy_within(from..from + count, work.kept);
        work.kept += count;
    }
    axpy_list(team, k, w.down, work.kept_rows(), work.coefficients(), y);
    work.kept
}

/// A gated FFN over the neurons `rows` (ascending), whatever their scores. No row of any matrix is read for the others.
///
/// # Panics
/// If the matrices' shapes, `x` or `y` do not fit together, a row is not below their number, or `work` is for fewer neurons.
pub fn sparse_ffn_rows(
    team: &mut Team,
    k: &Kernels,
    w: &SparseFfn,
    rows: &[u32],
    x: &Input,
    work: &mut FfnWork,
    y: &mut [f32],
) {
    check(w, work);
    work.kept = rows.len();
    work.rows[..rows.len()].copy_from_slice(rows);
    let gate = Disjoint::new(&mut work.signal[..rows.len()]);
    team.split(&mut work.other[..rows.len()], ROWS, |at, coef| {
        let rows = &rows[at..at + coef.len()];
        // SAFETY: the pieces of a split do not overlap, and each runs once.
        let gate = unsafe { gate.slice(at..at + coef.len()) };
        k.dot_list(w.gate, rows, x, gate);
        k.dot_list(w.up, rows, x, coef);
        k.act(w.act, gate);
        // The order of the factors is that of `sparse_ffn`; a product of two does not depend on it.
        coef.iter_mut().zip(gate).for_each(|(c, g)| *c *= *g);
    });
    axpy_list(team, k, w.down, rows, work.coefficients(), y);
}

/// Checks that the matrices fit each other and the work, and returns the number of neurons.
fn check(w: &SparseFfn, work: &FfnWork) -> usize {
    let shape = |m: MatRef| (m.rows(), m.cols());
    assert!(
        shape(w.gate) == shape(w.up) && w.down.rows() == w.gate.rows(),
        "sparse_ffn: shapes"
    );
    assert!(work.signal.len() >= w.gate.rows(), "sparse_ffn: work");
    w.gate.rows()
}
