//! Gated FFNs over the neurons that a token needs: deciding, then reading only what is kept.

use super::{Act, Input, Kernels, Score, Team, parallel::ROWS, team::Disjoint};
use crate::matrix::MatRef;
use std::ops::Range;

/// The matrices of a gated FFN, `y = down^T (act(gate x) * (up x))`, and the biases that models of some families add to `gate x` and
/// `up x`. All three are `[inter, hidden]`: a neuron is
/// one row of each. Rows that are read only for the neurons kept are read fastest where a neuron's lie beside each other, gate before
/// up before down ([`interleave`](crate::quant::interleave)): memory is quick in runs of two thousand bytes and more.
#[derive(Clone, Copy)]
pub struct SparseFfn<'a> {
    /// Gate, `[inter, hidden]`.
    pub gate: MatRef<'a>,
    /// Up, `[inter, hidden]`.
    pub up: MatRef<'a>,
    /// Down, transposed: `[inter, hidden]`.
    pub down: MatRef<'a>,
    /// Added to `gate x`, `[inter]`.
    pub gate_bias: Option<&'a [f32]>,
    /// Added to `up x`, `[inter]`.
    pub up_bias: Option<&'a [f32]>,
    /// Activation of the gate.
    pub act: Act,
}

impl<'a> SparseFfn<'a> {
    fn gate(&self) -> Affine<'a> {
        Affine {
            weight: self.gate,
            bias: self.gate_bias,
        }
    }

    fn up(&self) -> Affine<'a> {
        Affine {
            weight: self.up,
            bias: self.up_bias,
        }
    }
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
        self.add_bias(range, out);
    }

    fn add_bias(&self, range: Range<usize>, out: &mut [f32]) {
        if let Some(bias) = self.bias {
            out.iter_mut().zip(&bias[range]).for_each(|(o, b)| *o += b);
        }
    }

    /// As many of the rows listed as `out` has elements.
    fn list(&self, k: &Kernels, rows: &[u32], z: &Input, out: &mut [f32]) {
        k.dot_list(self.weight, rows, z, out);
        if let Some(bias) = self.bias {
            let pairs = out.iter_mut().zip(rows);
            pairs.for_each(|(o, r)| *o += bias[*r as usize]);
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

/// Neurons whose gate, up and down are read before the next ones': few enough that rows which lie beside each other in memory
/// (see [`SparseFfn`]) are read as one run, and so many that starting a product does not count. Sums in fixed point take as many rows at a time, so that they are the same whether
/// all rows are summed in one call or in several.
const TOGETHER: usize = 8;

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

/// The part of the memory that a piece has to itself.
struct Piece<'a> {
    /// Its neurons.
    range: Range<usize>,
    signal: &'a mut [f32],
    other: &'a mut [f32],
    high: [&'a mut [f32]; 2],
    rows: &'a mut [u32],
    count: &'a mut usize,
    /// Zeros at first.
    sum: &'a mut [f32],
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

    /// Runs `f` for each piece of `inter` neurons on whichever thread is free, and adds the pieces' sums in their order to `y`.
    fn each_piece(
        &mut self,
        team: &mut Team,
        inter: usize,
        y: &mut [f32],
        f: impl Fn(Piece<'_>) + Sync,
    ) {
        let (piece, hidden) = (piece_of(inter), y.len());
        let pieces = inter.div_ceil(piece);
        let [gate_high, up_high] = &mut self.high;
        let (gate_high, up_high) = (Disjoint::new(gate_high), Disjoint::new(up_high));
        let signal = Disjoint::new(&mut self.signal);
        let other = Disjoint::new(&mut self.other);
        let rows = Disjoint::new(&mut self.rows);
        let counts = Disjoint::new(&mut self.counts);
        let sums = Disjoint::new(&mut self.sums);
        team.for_each(pieces, |p| {
            let range = p * piece..((p + 1) * piece).min(inter);
            // SAFETY: the ranges of different pieces do not overlap, and each piece runs once.
            let piece = unsafe {
                Piece {
                    signal: signal.slice(range.clone()),
                    other: other.slice(range.clone()),
                    high: [gate_high.slice(range.clone()), up_high.slice(range.clone())],
                    rows: rows.slice(range.clone()),
                    count: &mut counts.slice(p..p + 1)[0],
                    sum: sums.slice(p * hidden..(p + 1) * hidden),
                    range,
                }
            };
            piece.sum.fill(0.0);
            f(piece);
        });
        let sums = &self.sums[..pieces * hidden];
        team.split(y, SUMMED, |at, y| {
            y.fill(0.0);
            for sum in sums.chunks_exact(hidden) {
                y.iter_mut().zip(&sum[at..]).for_each(|(y, s)| *y += s);
            }
        });
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
    work.each_piece(team, inter, y, |piece| {
        let Piece {
            range,
            signal,
            other,
            mut high,
            rows,
            count,
            sum,
        } = piece;
        match &decide {
            Decider::Gate => {
                w.gate().rows(k, range.clone(), x, signal);
                k.act(w.act, signal);
            }
            Decider::Up => w.up().rows(k, range.clone(), x, signal),
            Decider::Estimate(estimate, z) => {
                estimate.rows(k, w.act, range.clone(), z, signal, other);
            }
            Decider::Planes(p) => {
                for ((m, out), all) in p.high.iter().zip(&mut high).zip([w.gate(), w.up()]) {
                    k.dot_rows(m.rows_range(range.clone()), x, out);
                    all.add_bias(range.clone(), out);
                }
                signal.copy_from_slice(high[0]);
                k.glu(w.act, signal, high[1]);
            }
        }
        let score = score.range(range.clone());
        *count = k.select_above(signal, score, tau, range.start as u32, rows);
        let rows = &rows[..*count];
        let coef = &mut other[..*count];
        let of = |all: &[f32], i: u32| all[i as usize - range.start];
        let reads: &[MatRef] = match &decide {
            Decider::Gate => &[w.up, w.down],
            Decider::Up => &[w.gate, w.down],
            Decider::Estimate(..) => &[w.gate, w.up, w.down],
            Decider::Planes(p) => &[p.low[0], p.low[1], w.down],
        };
        reads.iter().for_each(|m| k.ask(*m, rows));
        sum_kept(k, w.down, rows, coef, sum, |at, rows, coef| match decide {
            Decider::Gate => {
                w.up().list(k, rows, x, coef);
                let known = rows.iter().map(|&i| of(signal, i));
                coef.iter_mut().zip(known).for_each(|(c, s)| *c *= s);
            }
            Decider::Up => {
                w.gate().list(k, rows, x, coef);
                k.act(w.act, coef);
                let known = rows.iter().map(|&i| of(signal, i));
                coef.iter_mut().zip(known).for_each(|(c, s)| *c *= s);
            }
            // The estimates have done their work.
            Decider::Estimate(..) => exact(k, w, rows, x, &mut signal[at..][..coef.len()], coef),
            Decider::Planes(p) => {
                let gate = &mut signal[at..][..coef.len()];
                for ((m, high), out) in p.low.iter().zip(&high).zip([&mut *gate, &mut *coef]) {
                    k.dot_list(*m, rows, x, out);
                    let known = rows.iter().map(|&i| of(high, i));
                    out.iter_mut().zip(known).for_each(|(o, h)| *o += h);
                }
                k.act(w.act, gate);
                coef.iter_mut().zip(gate).for_each(|(c, g)| *c *= *g);
            }
        });
    });
    let pieces = inter.div_ceil(piece_of(inter));
    work.counts[..pieces].iter().sum()
}

/// Adds the rows of `down` to `sum`, some neurons at a time, scaled by coefficients that `coefficients(at, rows, coef)` computes: those
/// of the neurons from place `at` on, as many as `coef` has elements. The rows behind them are to come next.
fn sum_kept(
    k: &Kernels,
    down: MatRef,
    rows: &[u32],
    coef: &mut [f32],
    sum: &mut [f32],
    mut coefficients: impl FnMut(usize, &[u32], &mut [f32]),
) {
    for (n, coef) in coef.chunks_mut(TOGETHER).enumerate() {
        let at = n * TOGETHER;
        coefficients(at, &rows[at..], coef);
        k.axpy_list(down, &rows[at..], coef, 0..sum.len(), sum);
    }
}

/// The coefficients of the first of `rows`; `gate` is as long as `coef`.
fn exact(k: &Kernels, w: &SparseFfn, rows: &[u32], x: &Input, gate: &mut [f32], coef: &mut [f32]) {
    w.gate().list(k, rows, x, gate);
    w.up().list(k, rows, x, coef);
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
    work.each_piece(team, inter, y, |piece| {
        let before = |end: usize| rows.partition_point(|&r| (r as usize) < end);
        // The last piece takes what lies beyond all, to be refused.
        let end = if piece.range.end == inter {
            rows.len()
        } else {
            before(piece.range.end)
        };
        let rows = &rows[before(piece.range.start)..end];
        assert!(rows.len() <= piece.range.len(), "sparse_ffn: rows");
        piece.rows[..rows.len()].copy_from_slice(rows);
        *piece.count = rows.len();
        let coef = &mut piece.other[..rows.len()];
        [w.gate, w.up, w.down]
            .into_iter()
            .for_each(|m| k.ask(m, rows));
        sum_kept(k, w.down, rows, coef, piece.sum, |at, rows, coef| {
            exact(k, w, rows, x, &mut piece.signal[at..][..coef.len()], coef);
        });
    });
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
    assert!(
        work.signal.len() >= inter && work.hidden >= hidden,
        "sum_all: work"
    );
    work.each_piece(team, inter, y, |piece| {
        let rows = down.rows_range(piece.range.clone());
        k.axpy_rows(rows, &coef[piece.range], 0..hidden, piece.sum);
    });
}

/// `gate_out = act(gate x) * (up x)` for every neuron, biases included; `up_out` is left with `up x`.
///
/// # Panics
/// If the matrices, `x` and the outputs do not fit together.
#[allow(clippy::too_many_arguments)] // each is a different thing, and this is the hot call of a layer
pub fn coefficients(
    team: &mut Team,
    k: &Kernels,
    gate: Affine,
    up: Affine,
    act: Act,
    x: &Input,
    gate_out: &mut [f32],
    up_out: &mut [f32],
) {
    let inter = gate_out.len();
    gate.check(inter);
    up.check(inter);
    assert_eq!(up_out.len(), inter, "ffn: up");
    let up_out = Disjoint::new(up_out);
    team.split(gate_out, ROWS, |at, gate_out| {
        let range = at..at + gate_out.len();
        // SAFETY: the pieces of a split do not overlap, and each runs once.
        let up_out = unsafe { up_out.slice(range.clone()) };
        gate.rows(k, range.clone(), x, gate_out);
        up.rows(k, range, x, up_out);
        k.glu(act, gate_out, up_out);
    });
}

/// Checks that the matrices fit each other, the work and the output, and returns the number of neurons.
fn check(w: &SparseFfn, work: &FfnWork, y: &[f32]) -> usize {
    let shape = |m: MatRef| (m.rows(), m.cols());
    assert!(
        shape(w.gate) == shape(w.up) && w.down.rows() == w.gate.rows(),
        "sparse_ffn: shapes"
    );
    w.gate().check(w.gate.rows());
    w.up().check(w.gate.rows());
    assert_eq!(w.down.cols(), y.len(), "sparse_ffn: output");
    assert!(
        work.signal.len() >= w.gate.rows() && work.hidden >= y.len(),
        "sparse_ffn: work"
    );
    w.gate.rows()
}
