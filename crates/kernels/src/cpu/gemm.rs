//! Products with many tokens at once: prefill and training.
//!
//! Weights stay packed: a thread unpacks a tile that fits its cache and multiplies it with all tokens before it takes the
//! next. Both products come down to one kernel, a panel: rows of up to `DEPTH` units, broadcast one by one, times
//! as many rows of `LANES` vector lanes. In [`matmul`] the lanes are tokens, reordered once a call, and the rows are weights;
//! in [`matmul_transposed`] the lanes are columns of weights and the rows are tokens.
//!
//! A unit is what one step of a panel multiplies in every lane: one `f32` or, where the CPU has AVX-512 BF16 and weights are neither
//! `F32` nor `F16`, a pair of `bf16` that follow each other along the summed dimension, at twice the speed. Then unpacked weights and activations
//! are rounded to `bf16`, to nearest with ties to even (BF16 weights are moved as they are), and their products are added in `f32`.
//! That changes a product by up to one part in 128 (in 256 for BF16 weights); over the terms of a sum it largely evens out.

use super::{Bf16, Input, Kernels, Team, parallel::gemv, team::Disjoint};
use crate::matrix::MatRef;
use half::bf16;
use std::ops::Range;

/// Lanes of a panel.
pub(super) const LANES: usize = 32;
/// Those that lie together in a panel in halves (see [`put`]).
pub(super) const HALF: usize = LANES / 2;
/// Units of a row that are multiplied before the next are unpacked: a multiple of every block length.
pub(super) const DEPTH: usize = 256;
/// Two elements that follow each other along the summed dimension.
pub(super) type Pair = [bf16; 2];

/// Rows of a tile: a multiple of the rows that a kernel holds in registers.
const TILE: usize = 48;
/// Columns of a strip of a transposed product, where blocks are not longer.
const STRIP: usize = 4 * LANES;
/// The longest block.
const WIDEST: usize = 256;
/// Units that are reordered from tokens to lanes at a time.
const REORDERED: usize = 32;
/// Up to so many tokens are multiplied one by one: reading packed weights again is cheaper than unpacking them.
const FEW: usize = 4;

/// Memory for [`matmul`] and [`matmul_transposed`]. It grows to what the largest product needs; then calls allocate nothing.
#[derive(Default)]
pub struct GemmWork {
    singles: Memory<f32>,
    pairs: Memory<Pair>,
    input: Input,
}

#[derive(Default)]
struct Memory<U> {
    /// The activations as panels, `[panels, units]`.
    panels: Vec<[U; LANES]>,
    threads: Vec<Scratch<U>>,
}

#[derive(Default)]
struct Scratch<U> {
    /// Rows to be broadcast: unpacked weights, or activations.
    tile: Vec<[U; DEPTH]>,
    /// Sums of a tile, `[panels, TILE]`.
    sums: Vec<[f32; LANES]>,
    /// A strip of unpacked weights, `[panels, DEPTH]`.
    strip: Vec<[U; LANES]>,
}

impl GemmWork {
    /// Empty memory.
    pub fn new() -> GemmWork {
        GemmWork::default()
    }
}

impl<U: Copy + Default> Memory<U> {
    fn reserve(&mut self, threads: usize, sums: usize, strip: usize) {
        if self.threads.len() < threads {
            self.threads.resize_with(threads, || Scratch {
                tile: vec![[U::default(); DEPTH]; TILE],
                sums: Vec::new(),
                strip: Vec::new(),
            });
        }
        for s in &mut self.threads {
            grow(&mut s.sums, sums);
            grow(&mut s.strip, strip);
        }
    }
}

fn grow<U: Copy + Default>(v: &mut Vec<[U; LANES]>, len: usize) {
    if v.len() < len {
        v.resize(len, [U::default(); LANES]);
    }
}

/// The kernels of a panel and of its operands, by their unit.
trait Panels: Sync {
    type Unit: Copy + Default + Send + Sync;
    /// Elements in a unit.
    const LEN: usize;

    /// Whether panels lie in halves of their lanes (see [`put`]).
    fn in_halves(&self) -> bool;

    /// `x` as units, the last padded with zeros.
    fn activations(&self, x: &[f32], out: &mut [Self::Unit]);
    /// Columns `cols` of row `i`, which begin and end at blocks, as units, the last padded with zeros.
    fn row(&self, m: MatRef, i: usize, cols: Range<usize>, out: &mut [Self::Unit]);
    /// Columns `cols` of up to `LEN` rows, a unit for each column, padded with zeros.
    fn columns(&self, m: MatRef, rows: Range<usize>, cols: Range<usize>, out: &mut [Self::Unit]);
    /// `acc[r][t] += sum over k of w[r][k] * x[k][t]`, for the `k` that `x` has, which lies as [`put`] puts it; the products within a unit are
    /// added.
    fn panel(&self, w: &[[Self::Unit; DEPTH]], x: &[[Self::Unit; LANES]], acc: &mut [[f32; LANES]]);
}

impl Panels for Kernels {
    type Unit = f32;
    const LEN: usize = 1;

    fn in_halves(&self) -> bool {
        self.prefers_halves()
    }

    fn activations(&self, x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
    }

    fn row(&self, m: MatRef, i: usize, cols: Range<usize>, out: &mut [f32]) {
        self.unpack(m, i, cols, out);
    }

    fn columns(&self, m: MatRef, rows: Range<usize>, cols: Range<usize>, out: &mut [f32]) {
        self.unpack(m, rows.start, cols, out);
    }

    fn panel(&self, w: &[[f32; DEPTH]], x: &[[f32; LANES]], acc: &mut [[f32; LANES]]) {
        self.panel_in_halves(w, x, acc);
    }
}

impl Panels for Bf16 {
    type Unit = Pair;
    const LEN: usize = 2;

    fn in_halves(&self) -> bool {
        false
    }

    fn activations(&self, x: &[f32], out: &mut [Pair]) {
        let (out, pad) = out.as_flattened_mut().split_at_mut(x.len());
        self.round(x, out);
        pad.fill(bf16::ZERO);
    }

    fn row(&self, m: MatRef, i: usize, cols: Range<usize>, out: &mut [Pair]) {
        let (out, pad) = out.as_flattened_mut().split_at_mut(cols.len());
        self.unpack(m, i, cols, out);
        pad.fill(bf16::ZERO);
    }

    fn columns(&self, m: MatRef, rows: Range<usize>, cols: Range<usize>, out: &mut [Pair]) {
        let mut lines = [[bf16::ZERO; WIDEST]; 2];
        for (i, line) in rows.zip(&mut lines) {
            self.unpack(m, i, cols.clone(), &mut line[..cols.len()]);
        }
        let [a, b] = &lines;
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = [*a, *b];
        }
    }

    fn panel(&self, w: &[[Pair; DEPTH]], x: &[[Pair; LANES]], acc: &mut [[f32; LANES]]) {
        self.panel(w, x, acc);
    }
}

/// `out[t] = w x[t]` for every token: `w` `[rows, cols]`, `x` `[tokens, cols]`, `out` `[tokens, rows]`.
///
/// Up to four tokens take the path of a single token. More are multiplied in `f32` throughout or, where the CPU has AVX-512 BF16 and
/// weights are neither `F32` nor `F16`, with weights and activations rounded to `bf16` and sums in `f32` (see the [module](self)).
///
/// # Panics
/// If `x` or `out` has another length.
pub fn matmul(
    team: &mut Team,
    k: &Kernels,
    w: MatRef,
    x: &[f32],
    tokens: usize,
    out: &mut [f32],
    work: &mut GemmWork,
) {
    let (rows, cols) = (w.rows(), w.cols());
    assert_eq!(x.len(), tokens * cols, "matmul: input");
    assert_eq!(out.len(), tokens * rows, "matmul: output");
    if rows == 0 || cols == 0 {
        out.fill(0.0);
        return;
    }
    if tokens <= FEW {
        for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(rows)) {
            k.prepare(x, &mut work.input);
            gemv(team, k, w, &work.input, out);
        }
        return;
    }
    match k.bf16(w.dtype()) {
        Some(k) => product(team, k, w, x, out, &mut work.pairs),
        None => product(team, k, w, x, out, &mut work.singles),
    }
}

/// [`matmul`] by panels.
fn product<K: Panels>(
    team: &mut Team,
    k: &K,
    w: MatRef,
    x: &[f32],
    out: &mut [f32],
    work: &mut Memory<K::Unit>,
) {
    let (rows, cols) = (w.rows(), w.cols());
    let tokens = x.len() / cols;
    let (panels, units) = (tokens.div_ceil(LANES), cols.div_ceil(K::LEN));
    work.reserve(team.threads(), panels * TILE, 0);
    grow(&mut work.panels, panels * units);
    let packed = &mut work.panels[..panels * units];
    team.split(packed, units, |at, part| {
        let first = at / units;
        for (p, panel) in part.chunks_exact_mut(units).enumerate() {
            fill_panel(k, &x[(first + p) * LANES * cols..], cols, panel);
        }
    });
    let packed = &work.panels[..panels * units];
    let result = Disjoint::new(out);
    each_tile(
        team,
        &mut work.threads,
        rows.div_ceil(TILE),
        |tile, scratch| {
            let first = tile * TILE;
            let w = w.rows_range(first..(first + TILE).min(rows));
            let sums = &mut scratch.sums[..panels * TILE];
            multiply_tile(k, w, packed, &mut scratch.tile, sums);
            for t in 0..tokens {
                let at = t * rows + first;
                // SAFETY: every tile has its own rows, so its own part of every token's output, and runs once.
                let out = unsafe { result.slice(at..at + w.rows()) };
                for (out, sums) in out.iter_mut().zip(&sums[t / LANES * TILE..]) {
                    *out = sums[t % LANES];
                }
            }
        },
    );
}

/// Runs `f(tile, scratch)` once for each of `tiles`, each on whichever thread is free, with that thread's scratch.
fn each_tile<U: Send>(
    team: &mut Team,
    scratch: &mut [Scratch<U>],
    tiles: usize,
    f: impl Fn(usize, &mut Scratch<U>) + Sync,
) {
    assert!(scratch.len() >= team.threads());
    let scratch = Disjoint::new(scratch);
    team.for_each_on(tiles, |thread, tile| {
        // SAFETY: each thread takes its own, for one tile at a time.
        let scratch = unsafe { &mut scratch.slice(thread..thread + 1)[0] };
        f(tile, scratch);
    });
}

/// The first `LANES` of `tokens`, `[tokens, cols]`, as a panel, `[units]`; those beyond the last token are zero.
fn fill_panel<K: Panels>(k: &K, tokens: &[f32], cols: usize, panel: &mut [[K::Unit; LANES]]) {
    let mut rows = [[K::Unit::default(); REORDERED]; LANES];
    for (b, block) in panel.chunks_mut(DEPTH).enumerate() {
        for first in (0..block.len()).step_by(REORDERED) {
            let count = REORDERED.min(block.len() - first);
            let left = (b * DEPTH + first) * K::LEN;
            let range = left..(left + REORDERED * K::LEN).min(cols);
            for (x, row) in tokens.chunks_exact(cols).zip(&mut rows) {
                k.activations(&x[range.clone()], &mut row[..count]);
            }
            for u in 0..count {
                put(k, block, first + u, &rows.each_ref().map(|row| row[u]));
            }
        }
    }
}

/// Puts the first lanes of unit `u` of a panel of up to `DEPTH` units: side by side, or half of them there and the others behind the first
/// halves of all units. What a kernel multiplies with all rows should be no more than the first cache holds, and its lines next to each
/// other, or they have but half of its places.
#[inline(always)]
fn put<K: Panels>(k: &K, panel: &mut [[K::Unit; LANES]], u: usize, lanes: &[K::Unit]) {
    if k.in_halves() {
        let units = panel.len();
        let halves = panel.as_flattened_mut().as_chunks_mut::<HALF>().0;
        for (h, lanes) in lanes.chunks(HALF).enumerate() {
            halves[h * units + u][..lanes.len()].copy_from_slice(lanes);
        }
    } else {
        panel[u][..lanes.len()].copy_from_slice(lanes);
    }
}

/// The sums of up to `TILE` rows of `w` with every panel.
fn multiply_tile<K: Panels>(
    k: &K,
    w: MatRef,
    panels: &[[K::Unit; LANES]],
    tile: &mut [[K::Unit; DEPTH]],
    sums: &mut [[f32; LANES]],
) {
    let (cols, units) = (w.cols(), w.cols().div_ceil(K::LEN));
    let tile = &mut tile[..w.rows()];
    sums.fill([0.0; LANES]);
    for first in (0..units).step_by(DEPTH) {
        let range = first..(first + DEPTH).min(units);
        let elements = first * K::LEN..(range.end * K::LEN).min(cols);
        for (i, out) in tile.iter_mut().enumerate() {
            k.row(w, i, elements.clone(), &mut out[..range.len()]);
        }
        for (x, sums) in panels.chunks_exact(units).zip(sums.chunks_exact_mut(TILE)) {
            k.panel(tile, &x[range.clone()], &mut sums[..w.rows()]);
        }
    }
}

/// `out[t] = sum over i of s[t][i] * m[i]`: `m` `[inter, hidden]` (a transposed down matrix), `s` `[tokens, inter]`,
/// `out` `[tokens, hidden]`.
///
/// Rounded as in [`matmul`] of more than four tokens, however few there are.
///
/// # Panics
/// If `s` or `out` has another length.
pub fn matmul_transposed(
    team: &mut Team,
    k: &Kernels,
    m: MatRef,
    s: &[f32],
    tokens: usize,
    out: &mut [f32],
    work: &mut GemmWork,
) {
    assert_eq!(s.len(), tokens * m.rows(), "matmul_transposed: input");
    assert_eq!(out.len(), tokens * m.cols(), "matmul_transposed: output");
    match k.bf16(m.dtype()) {
        Some(k) => product_transposed(team, k, m, s, tokens, out, &mut work.pairs),
        None => product_transposed(team, k, m, s, tokens, out, &mut work.singles),
    }
}

/// [`matmul_transposed`] by panels.
fn product_transposed<K: Panels>(
    team: &mut Team,
    k: &K,
    m: MatRef,
    s: &[f32],
    tokens: usize,
    out: &mut [f32],
    work: &mut Memory<K::Unit>,
) {
    let (inter, hidden) = (m.rows(), m.cols());
    out.fill(0.0);
    let width = m.dtype().block_len().max(STRIP);
    work.reserve(team.threads(), 0, width / LANES * DEPTH);
    let result = Disjoint::new(out);
    each_tile(
        team,
        &mut work.threads,
        hidden.div_ceil(width),
        |strip, scratch| {
            let cols = strip * width..((strip + 1) * width).min(hidden);
            for top in (0..inter).step_by(DEPTH * K::LEN) {
                let rows = top..(top + DEPTH * K::LEN).min(inter);
                let units = rows.len().div_ceil(K::LEN);
                unpack_strip(k, m, rows.clone(), cols.clone(), &mut scratch.strip);
                for first in (0..tokens).step_by(TILE) {
                    let count = TILE.min(tokens - first);
                    let tile = &mut scratch.tile[..count];
                    for (t, row) in tile.iter_mut().enumerate() {
                        let s = &s[(first + t) * inter..][rows.clone()];
                        k.activations(s, &mut row[..units]);
                    }
                    for (x, left) in scratch
                        .strip
                        .chunks_exact(DEPTH)
                        .zip(cols.clone().step_by(LANES))
                    {
                        let mut sums = [[0.0; LANES]; TILE];
                        k.panel(tile, &x[..units], &mut sums[..count]);
                        for (t, sums) in sums[..count].iter().enumerate() {
                            let row = (first + t) * hidden;
                            // SAFETY: every strip has its own columns, and runs once.
                            let out = unsafe {
                                result.slice(row + left..row + (left + LANES).min(cols.end))
                            };
                            out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                        }
                    }
                }
            }
        },
    );
}

/// Unpacks `m[rows][cols]` into panels `[panels, DEPTH]`. What lanes beyond `cols` hold is never used.
fn unpack_strip<K: Panels>(
    k: &K,
    m: MatRef,
    rows: Range<usize>,
    cols: Range<usize>,
    panels: &mut [[K::Unit; LANES]],
) {
    let mut line = [K::Unit::default(); WIDEST];
    let line = &mut line[..cols.len()];
    let units = rows.len().div_ceil(K::LEN);
    for (u, first) in rows.clone().step_by(K::LEN).enumerate() {
        let together = first..(first + K::LEN).min(rows.end);
        k.columns(m, together, cols.clone(), line);
        for (panel, x) in panels.chunks_exact_mut(DEPTH).zip(line.chunks(LANES)) {
            put(k, &mut panel[..units], u, x);
        }
    }
}
