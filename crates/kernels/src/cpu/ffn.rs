//! Gated FFNs over the neurons that a token needs: deciding, then reading only what is kept.

use super::{Act, Input, Kernels, Score, Team, parallel::ROWS, team::Disjoint};
use crate::matrix::MatRef;
use std::ops::Range;

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

/// How the signal that decides about a neuron is known.
#[derive(Clone, Copy)]
pub enum Decider<'a> {
    /// It is `act(gate x)`, computed for every neuron.
    Gate,
    /// It is `up x`, computed for every neuron.
    Up,
    /// It is estimated for every neuron; gate and up are read for the neurons kept.
    Estimate(Estimate<'a>, &'a Input),
    /// It is `act(g) * u` with the high planes of gate and up, computed for every neuron; the low planes are read for the neurons kept.
    Planes(Planes<'a>),
}

/// Gate and up in two planes each that add up to the weights: of the neurons kept, only the low planes remain to be read.
#[derive(Clone, Copy)]
pub struct Planes<'a> {
    /// High planes of gate and of up, `[inter, hidden]`.
    pub high: [MatRef<'a>; 2],
    /// Low planes of gate and of up, `[inter, hidden]`.
    pub low: [MatRef<'a>; 2],
}

/// A signal estimated from an input `z` by cheaper matrices than gate and up.
#[derive(Clone, Copy)]
pub enum Estimate<'a> {
    /// `W z + b`.
    Logits(Affine<'a>),
    /// `act(W z + b)`.
    Gate(Affine<'a>),
    /// `act(W_gate z + b_gate) * (W_up z + b_up)`.
    Product {
        /// Stands for gate.
        gate: Affine<'a>,
        /// Stands for up.
        up: Affine<'a>,
    },
}

/// `W z + b`.
#[derive(Clone, Copy)]
pub struct Affine<'a> {
    /// W, `[inter, width of z]`.
    pub weight: MatRef<'a>,
    /// b, `[inter]`; nothing is added without it.
    pub bias: Option<&'a [f32]>,
}

impl Affine<'_> {
    fn check(&self, inter: usize) {
        assert_eq!(self.weight.rows(), inter, "estimate: neurons");
        assert!(self.bias.is_none_or(|b| b.len() == inter), "estimate: bias");
    }

    fn rows(&self, k: &Kernels, range: Range<usize>, z: &Input, out: &mut [f32]) {
        k.dot_rows(self.weight.rows_range(range.clone()), z, out);
        if let Some(bias) = self.bias {
            out.iter_mut().zip(&bias[range]).for_each(|(o, b)| *o += b);
        }
    }
}

impl Estimate<'_> {
    fn check(&self, inter: usize) {
        match self {
            Estimate::Logits(w) | Estimate::Gate(w) => w.check(inter),
            Estimate::Product { gate, up } => {
                gate.check(inter);
                up.check(inter);
            }
        }
    }

    /// The signals of the neurons `range`; `spare` is as long as `out`.
    fn rows(
        &self,
        k: &Kernels,
        act: Act,
        range: Range<usize>,
        z: &Input,
        out: &mut [f32],
        spare: &mut [f32],
    ) {
        match self {
            Estimate::Logits(w) => w.rows(k, range, z, out),
            Estimate::Gate(w) => {
                w.rows(k, range, z, out);
                k.act(act, out);
            }
            Estimate::Product { gate, up } => {
                gate.rows(k, range.clone(), z, out);
                up.rows(k, range, z, spare);
                k.glu(act, out, spare);
            }
        }
    }
}

/// The estimated signals of all neurons, `[inter]`. Overwrites `spare`, which is as long.
///
/// # Panics
/// If the matrices, `z` or the outputs do not fit together.
pub fn estimate(
    team: &mut Team,
    k: &Kernels,
    estimate: &Estimate,
    act: Act,
    z: &Input,
    out: &mut [f32],
    spare: &mut [f32],
) {
    estimate.check(out.len());
    assert_eq!(out.len(), spare.len(), "estimate: output");
    let spare = Disjoint::new(spare);
    team.split(out, ROWS, |at, out| {
        let range = at..at + out.len();
        // SAFETY: the pieces of a split do not overlap, and each runs once.
        let spare = unsafe { spare.slice(range.clone()) };
        estimate.rows(k, act, range, z, out, spare);
    });
}

/// Pieces that neurons are cut in, whatever the number of threads: each has a sum of its own, and these are added in order,
/// so that results do not depend on the team. Whole rows of `down` are read by one thread, which memory likes better than
/// a share of each row.
const PIECES: usize = 16;

/// Outputs are added up in multiples of this: whole cache lines.
const SUMMED: usize = 64;

/// Neurons of a piece.
fn piece_of(inter: usize) -> usize {
    inter.div_ceil(PIECES).max(1).next_multiple_of(ROWS)
}

/// Memory for sparse FFN calls.
pub struct FfnWork {
    hidden: usize,
    signal: Vec<f32>,
    /// At the beginning of each piece the coefficients of the neurons it keeps.
    other: Vec<f32>,
    /// Products with the high planes of gate and up.
    high: [Vec<f32>; 2],
    /// At the beginning of each piece the neurons it keeps.
    rows: Vec<u32>,
    counts: [usize; PIECES],
    /// `[pieces, hidden]`.
    sums: Vec<f32>,
}

impl FfnWork {
    /// Memory for FFNs of up to `inter` neurons and `hidden` outputs; calls allocate nothing.
    pub fn new(inter: usize, hidden: usize) -> FfnWork {
        FfnWork {
            hidden,
            signal: vec![0.0; inter],
            other: vec![0.0; inter],
            high: [vec![0.0; inter], vec![0.0; inter]],
            rows: vec![0; inter],
            counts: [0; PIECES],
            sums: vec![0.0; PIECES * hidden],
        }
    }

    /// The neurons that the last call, of `inter` neurons, kept, ascending, and their coefficients `act(gate x) * (up x)`.
    #[cfg(test)]
    pub(super) fn kept(&self, inter: usize) -> (Vec<u32>, Vec<f32>) {
        let piece = piece_of(inter);
        let kept = || {
            let starts = (0..inter).step_by(piece).zip(self.counts);
            starts.flat_map(|(at, count)| at..at + count)
        };
        (
            kept().map(|i| self.rows[i]).collect(),
            kept().map(|i| self.other[i]).collect(),
        )
    }
}

/// A gated FFN over the neurons whose score exceeds `tau` (see [`Kernels::select_above`]). Of the neurons not kept, only what
/// decides is read. Writes `y` and returns how many were kept.
///
/// One parallel region decides, computes coefficients and sums rows of `down`, piece by piece; a short one adds the pieces' sums.
///
/// # Panics
/// If the matrices' shapes, `x`, `y` or the score's weights do not fit together, or `work` is for fewer neurons.
#[allow(clippy::too_many_arguments)] // each is a different thing, and this is the hot call of a layer
pub fn sparse_ffn(
    team: &mut Team,
    k: &Kernels,
    w: &SparseFfn,
    decide: Decider,
    score: Score,
    tau: f32,
    x: &Input,
    work: &mut FfnWork,
    y: &mut [f32],
) -> usize {
    let inter = check(w, work, y);
    score.check(inter);
    match &decide {
        Decider::Estimate(estimate, _) => estimate.check(inter),
        Decider::Planes(p) => {
            let all = p.high.iter().chain(&p.low);
            assert!(
                all.into_iter().all(|m| m.rows() == inter),
                "planes: neurons"
            );
        }
        Decider::Gate | Decider::Up => {}
    }
    let (piece, hidden) = (piece_of(inter), y.len());
    let pieces = inter.div_ceil(piece);
    let signal = Disjoint::new(&mut work.signal[..inter]);
    let other = Disjoint::new(&mut work.other[..inter]);
    let [gate_high, up_high] = &mut work.high;
    let gate_high = Disjoint::new(&mut gate_high[..inter]);
    let up_high = Disjoint::new(&mut up_high[..inter]);
    let rows = Disjoint::new(&mut work.rows[..inter]);
    let counts = Disjoint::new(&mut work.counts[..pieces]);
    let sums = Disjoint::new(&mut work.sums[..pieces * hidden]);
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
        // SAFETY: as above.
        let mut high = unsafe { [gate_high.slice(range.clone()), up_high.slice(range.clone())] };
        match &decide {
            Decider::Gate => {
                k.dot_rows(w.gate.rows_range(range.clone()), x, signal);
                k.act(w.act, signal);
            }
            Decider::Up => k.dot_rows(w.up.rows_range(range.clone()), x, signal),
            Decider::Estimate(estimate, z) => {
                estimate.rows(k, w.act, range.clone(), z, signal, other);
            }
            Decider::Planes(p) => {
                for (m, out) in p.high.iter().zip(&mut high) {
                    k.dot_rows(m.rows_range(range.clone()), x, out);
                }
                signal.copy_from_slice(high[0]);
                k.glu(w.act, signal, high[1]);
            }
        }
        let score = score.range(range.clone());
        *count = k.select_above(signal, score, tau, range.start as u32, rows);
        let rows = &rows[..*count];
        let coef = &mut other[..*count];
        let known = |i: u32| signal[i as usize - range.start];
        match decide {
            Decider::Gate => {
                k.dot_list(w.up, rows, x, coef);
                coef.iter_mut().zip(rows).for_each(|(c, &i)| *c *= known(i));
            }
            Decider::Up => {
                k.dot_list(w.gate, rows, x, coef);
                k.act(w.act, coef);
                coef.iter_mut().zip(rows).for_each(|(c, &i)| *c *= known(i));
            }
            Decider::Estimate(..) => {
                // The estimates have done their work.
                let gate = &mut signal[..*count];
                exact(k, w, rows, x, gate, coef);
            }
            Decider::Planes(p) => {
                let gate = &mut signal[..*count];
                for ((m, high), out) in p.low.iter().zip(high).zip([&mut *gate, &mut *coef]) {
                    k.dot_list(*m, rows, x, out);
                    let known = |i: u32| high[i as usize - range.start];
                    out.iter_mut().zip(rows).for_each(|(o, &i)| *o += known(i));
                }
                k.act(w.act, gate);
                coef.iter_mut().zip(gate).for_each(|(c, g)| *c *= *g);
            }
        }
        // SAFETY: as above.
        let sum = unsafe { sums.slice(p * hidden..(p + 1) * hidden) };
        sum_rows(k, w.down, rows, coef, sum);
    });
    add_up(team, &work.sums[..pieces * hidden], y);
    work.counts[..pieces].iter().sum()
}

/// The sum of a piece's rows of `down`.
fn sum_rows(k: &Kernels, down: MatRef, rows: &[u32], coef: &[f32], sum: &mut [f32]) {
    sum.fill(0.0);
    k.axpy_list(down, rows, coef, 0..sum.len(), sum);
}

/// `y` = the pieces' `sums`, `[pieces, hidden]`, added in their order.
fn add_up(team: &mut Team, sums: &[f32], y: &mut [f32]) {
    let hidden = y.len();
    team.split(y, SUMMED, |at, y| {
        y.fill(0.0);
        for sum in sums.chunks_exact(hidden) {
            y.iter_mut().zip(&sum[at..]).for_each(|(y, s)| *y += s);
        }
    });
}

/// The coefficients of `rows`; `gate` is as long as `coef`.
fn exact(k: &Kernels, w: &SparseFfn, rows: &[u32], x: &Input, gate: &mut [f32], coef: &mut [f32]) {
    k.dot_list(w.gate, rows, x, gate);
    k.dot_list(w.up, rows, x, coef);
    k.act(w.act, gate);
    // The order of the factors does not matter to a product of two, so all deciders give the same bits.
    coef.iter_mut().zip(gate).for_each(|(c, g)| *c *= *g);
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
    let inter = check(w, work, y);
    let (piece, hidden) = (piece_of(inter), y.len());
    let pieces = inter.div_ceil(piece);
    let gate = Disjoint::new(&mut work.signal[..inter]);
    let coef = Disjoint::new(&mut work.other[..inter]);
    let kept = Disjoint::new(&mut work.rows[..inter]);
    let counts = Disjoint::new(&mut work.counts[..pieces]);
    let sums = Disjoint::new(&mut work.sums[..pieces * hidden]);
    team.for_each(pieces, |p| {
        let range = p * piece..((p + 1) * piece).min(inter);
        let before = |end: usize| rows.partition_point(|&r| (r as usize) < end);
        // The last piece takes what lies beyond all, to be refused.
        let end = if p + 1 == pieces {
            rows.len()
        } else {
            before(range.end)
        };
        let rows = &rows[before(range.start)..end];
        assert!(rows.len() <= range.len(), "sparse_ffn: rows");
        let range = range.start..range.start + rows.len();
        // SAFETY: here and below: a piece has no more rows than neurons, by the assertion; the neurons of different pieces do
        // not overlap, and each piece runs once.
        let (gate, coef) = unsafe { (gate.slice(range.clone()), coef.slice(range.clone())) };
        // SAFETY: as above.
        unsafe { kept.slice(range) }.copy_from_slice(rows);
        // SAFETY: as above.
        unsafe { counts.slice(p..p + 1)[0] = rows.len() };
        exact(k, w, rows, x, gate, coef);
        // SAFETY: as above.
        let sum = unsafe { sums.slice(p * hidden..(p + 1) * hidden) };
        sum_rows(k, w.down, rows, coef, sum);
    });
    add_up(team, &work.sums[..pieces * hidden], y);
}

/// `y = down^T coef` over all neurons, `down` being transposed, `[inter, hidden]`: the same bits as a sparse FFN that keeps
/// all of them.
///
/// # Panics
/// If the shapes do not fit together, or `work` is for fewer neurons or outputs.
pub fn sum_all(
    team: &mut Team,
    k: &Kernels,
    down: MatRef,
    coef: &[f32],
    work: &mut FfnWork,
    y: &mut [f32],
) {
    let (inter, hidden) = (down.rows(), down.cols());
    assert!(coef.len() == inter && y.len() == hidden, "sum_all: shapes");
    let piece = piece_of(inter);
    let pieces = inter.div_ceil(piece);
    let sums = Disjoint::new(&mut work.sums[..pieces * hidden]);
    team.for_each(pieces, |p| {
        let range = p * piece..((p + 1) * piece).min(inter);
        // SAFETY: the sums of different pieces do not overlap, and each piece runs once.
        let sum = unsafe { sums.slice(p * hidden..(p + 1) * hidden) };
        sum.fill(0.0);
        k.axpy_rows(down.rows_range(range.clone()), &coef[range], 0..hidden, sum);
    });
    add_up(team, &work.sums[..pieces * hidden], y);
}

/// Checks that the matrices fit each other, the work and the output, and returns the number of neurons.
fn check(w: &SparseFfn, work: &FfnWork, y: &[f32]) -> usize {
    let shape = |m: MatRef| (m.rows(), m.cols());
    assert!(
        shape(w.gate) == shape(w.up) && w.down.rows() == w.gate.rows(),
        "sparse_ffn: shapes"
    );
    assert_eq!(w.down.cols(), y.len(), "sparse_ffn: output");
    assert!(
        work.signal.len() >= w.gate.rows() && work.hidden >= y.len(),
        "sparse_ffn: work"
    );
    w.gate.rows()
}
