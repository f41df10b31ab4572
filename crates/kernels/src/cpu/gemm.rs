//! Products with many tokens at once: prefill and training.
//!
//! Weights stay packed: a thread unpacks a tile that fits its cache and multiplies it with all tokens before it takes the
//! next. Both products come down to one kernel, a panel: rows of up to `DEPTH` elements, broadcast one by one, times
//! as many rows of `LANES` vector lanes. In [`matmul`] the lanes are tokens, reordered once a call, and the rows are weights;
//! in [`matmul_transposed`] the lanes are columns of weights and the rows are tokens.

use super::{Input, Kernels, Team, parallel::gemv, team::Disjoint};
use crate::matrix::MatRef;
use std::ops::Range;

/// Lanes of a panel.
pub(super) const LANES: usize = 32;
/// Elements of a row that are multiplied before the next are unpacked: a multiple of every block length.
pub(super) const DEPTH: usize = 256;
/// Rows of a tile: a multiple of the rows that a kernel holds in registers.
const TILE: usize = 48;
/// Columns of a strip of a transposed product, where blocks are not longer.
const STRIP: usize = 4 * LANES;
/// Up to so many tokens are multiplied one by one: reading packed weights again is cheaper than unpacking them.
const FEW: usize = 4;

type Lanes = [f32; LANES];

/// Memory for [`matmul`] and [`matmul_transposed`]. It grows to what the largest product needs; then calls allocate nothing.
#[derive(Default)]
pub struct GemmWork {
    /// The activations as panels, `[panels, cols]`.
    panels: Vec<Lanes>,
    threads: Vec<Scratch>,
    input: Input,
}

#[derive(Default)]
struct Scratch {
    /// Rows to be broadcast: unpacked weights, or activations.
    tile: Vec<[f32; DEPTH]>,
    /// Sums of a tile `[panels, TILE]`, or a strip of unpacked weights `[panels, DEPTH]`.
    lanes: Vec<Lanes>,
}

impl GemmWork {
    /// Empty memory.
    pub fn new() -> GemmWork {
        GemmWork::default()
    }

    fn reserve(&mut self, threads: usize, lanes: usize) {
        if self.threads.len() < threads {
            self.threads.resize_with(threads, Scratch::default);
        }
        for s in &mut self.threads {
            if s.tile.is_empty() {
                s.tile = vec![[0.0; DEPTH]; TILE];
            }
            grow(&mut s.lanes, lanes);
        }
    }
}

fn grow(v: &mut Vec<Lanes>, len: usize) {
    if v.len() < len {
        v.resize(len, [0.0; LANES]);
    }
}

/// `out[t] = w x[t]` for every token: `w` `[rows, cols]`, `x` `[tokens, cols]`, `out` `[tokens, rows]`.
///
/// In `f32` throughout, but for up to four tokens, which take the path of a single token.
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
    let panels = tokens.div_ceil(LANES);
    work.reserve(team.threads(), panels * TILE);
    grow(&mut work.panels, panels * cols);
    let packed = &mut work.panels[..panels * cols];
    team.split(packed, cols, |at, part| {
        let first = at / cols;
        for (p, panel) in part.chunks_exact_mut(cols).enumerate() {
            fill_panel(&x[(first + p) * LANES * cols..], cols, panel);
        }
    });
    let packed = &work.panels[..panels * cols];
    let result = Disjoint::new(out);
    each_tile(
        team,
        &mut work.threads,
        rows.div_ceil(TILE),
        |tile, scratch| {
            let first = tile * TILE;
            let w = w.rows_range(first..(first + TILE).min(rows));
            let sums = &mut scratch.lanes[..panels * TILE];
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
fn each_tile(
    team: &mut Team,
    scratch: &mut [Scratch],
    tiles: usize,
    f: impl Fn(usize, &mut Scratch) + Sync,
) {
    assert!(scratch.len() >= team.threads());
    let scratch = Disjoint::new(scratch);
    team.for_each_on(tiles, |thread, tile| {
        // SAFETY: each thread takes its own, for one tile at a time.
        let scratch = unsafe { &mut scratch.slice(thread..thread + 1)[0] };
        f(tile, scratch);
    });
}

/// The first `LANES` of `tokens`, `[tokens, cols]`, as `[cols]` lanes; those beyond the last token are zero.
fn fill_panel(tokens: &[f32], cols: usize, panel: &mut [Lanes]) {
    let mut rows: [&[f32]; LANES] = [&[]; LANES];
    for (row, x) in rows.iter_mut().zip(tokens.chunks_exact(cols)) {
        *row = x;
    }
    for (c, lanes) in panel.iter_mut().enumerate() {
        *lanes = rows.map(|x| x.get(c).copied().unwrap_or(0.0));
    }
}

/// The sums of up to `TILE` rows of `w` with every panel.
fn multiply_tile(
    k: &Kernels,
    w: MatRef,
    panels: &[Lanes],
    tile: &mut [[f32; DEPTH]],
    sums: &mut [Lanes],
) {
    let cols = w.cols();
    let tile = &mut tile[..w.rows()];
    sums.fill([0.0; LANES]);
    for left in (0..cols).step_by(DEPTH) {
        let range = left..(left + DEPTH).min(cols);
        for (i, out) in tile.iter_mut().enumerate() {
            k.unpack(w, i, range.clone(), &mut out[..range.len()]);
        }
        for (x, sums) in panels.chunks_exact(cols).zip(sums.chunks_exact_mut(TILE)) {
            k.panel(tile, &x[range.clone()], &mut sums[..w.rows()]);
        }
    }
}

/// `out[t] = sum over i of s[t][i] * m[i]`: `m` `[inter, hidden]` (a transposed down matrix), `s` `[tokens, inter]`,
/// `out` `[tokens, hidden]`. In `f32` throughout.
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
    let (inter, hidden) = (m.rows(), m.cols());
    assert_eq!(s.len(), tokens * inter, "matmul_transposed: input");
    assert_eq!(out.len(), tokens * hidden, "matmul_transposed: output");
    out.fill(0.0);
    let width = m.dtype().block_len().max(STRIP);
    work.reserve(team.threads(), width / LANES * DEPTH);
    let result = Disjoint::new(out);
    each_tile(
        team,
        &mut work.threads,
        hidden.div_ceil(width),
        |strip, scratch| {
            let cols = strip * width..((strip + 1) * width).min(hidden);
            for top in (0..inter).step_by(DEPTH) {
                let rows = top..(top + DEPTH).min(inter);
                unpack_strip(k, m, rows.clone(), cols.clone(), &mut scratch.lanes);
                for first in (0..tokens).step_by(TILE) {
                    let count = TILE.min(tokens - first);
                    let tile = &mut scratch.tile[..count];
                    for (t, row) in tile.iter_mut().enumerate() {
                        let s = &s[(first + t) * inter..][rows.clone()];
                        row[..s.len()].copy_from_slice(s);
                    }
                    for (x, left) in scratch
                        .lanes
                        .chunks_exact(DEPTH)
                        .zip(cols.clone().step_by(LANES))
                    {
                        let mut sums = [[0.0; LANES]; TILE];
                        k.panel(tile, &x[..rows.len()], &mut sums[..count]);
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
fn unpack_strip(
    k: &Kernels,
    m: MatRef,
    rows: Range<usize>,
    cols: Range<usize>,
    panels: &mut [Lanes],
) {
    let mut line = [0.0; DEPTH];
    let line = &mut line[..cols.len()];
    for (r, i) in rows.enumerate() {
        k.unpack(m, i, cols.clone(), line);
        for (panel, x) in panels.chunks_exact_mut(DEPTH).zip(line.chunks(LANES)) {
            panel[r][..x.len()].copy_from_slice(x);
        }
    }
}
