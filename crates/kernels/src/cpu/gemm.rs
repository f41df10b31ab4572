//! Products with many tokens at once: prefill and training.
//!
//! Weights stay packed: a thread unpacks a tile of rows that fits its cache and multiplies it with all tokens before it
//! takes the next. The tokens lie in vector lanes, [`LANES`] a panel, so weights are broadcast from the tile as they
//! are unpacked, and only the activations are reordered, once a call.

use super::{Input, Kernels, Team, parallel::gemv, team::Disjoint};
use crate::matrix::MatRef;

/// Tokens (columns, for [`matmul_transposed`]) of a panel.
pub(super) const LANES: usize = 32;
/// Rows multiplied at a time: what the registers hold.
const ROWS: usize = 12;
/// Rows of a tile.
const TILE: usize = 4 * ROWS;
/// Columns of a tile: a multiple of every block length.
const DEPTH: usize = 256;
/// Up to so many tokens are multiplied one by one: reading packed weights again is cheaper than unpacking them.
const FEW: usize = 4;

/// Memory for [`matmul`] and [`matmul_transposed`]. It grows to what the largest product needs, then calls allocate nothing.
#[derive(Default)]
pub struct GemmWork {
    /// The activations as panels `[panels, cols, LANES]`.
    panels: Vec<f32>,
    threads: Vec<Scratch>,
    input: Input,
}

#[derive(Default)]
struct Scratch {
    /// Unpacked weights.
    tile: Vec<f32>,
    /// Sums of a tile, `[panels, TILE]` lanes.
    sums: Vec<[f32; LANES]>,
}

impl GemmWork {
    /// Empty memory.
    pub fn new() -> GemmWork {
        GemmWork::default()
    }

    fn reserve(&mut self, threads: usize, panels: usize, sums: usize) {
        grow(&mut self.panels, panels);
        if self.threads.len() < threads {
            self.threads.resize_with(threads, Scratch::default);
        }
        for s in &mut self.threads {
            grow(&mut s.tile, TILE * DEPTH);
            if s.sums.len() < sums {
                s.sums.resize(sums, [0.0; LANES]);
            }
        }
    }
}

fn grow(v: &mut Vec<f32>, len: usize) {
    if v.len() < len {
        v.resize(len, 0.0);
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
    work.reserve(team.threads(), panels * cols * LANES, panels * TILE);
    let packed = &mut work.panels[..panels * cols * LANES];
    team.split(packed, cols * LANES, |at, part| {
        let first = at / cols;
        for (p, panel) in part.chunks_exact_mut(cols * LANES).enumerate() {
            let tokens = &x[(first + p * LANES).min(tokens) * cols..];
            fill_panel(tokens, cols, panel);
        }
    });
    let packed = &work.panels[..panels * cols * LANES];
    let tiles = rows.div_ceil(TILE);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let scratch = Disjoint::new(&mut work.threads);
    let result = Disjoint::new(out);
    team.run(&|thread| {
        // SAFETY: each thread takes its own scratch.
        let scratch = unsafe { &mut scratch.slice(thread..thread + 1)[0] };
        loop {
            let tile = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if tile >= tiles {
                return;
            }
            let first = tile * TILE;
            let w = w.rows_range(first..(first + TILE).min(rows));
            let sums = &mut scratch.sums[..panels * TILE];
            multiply_tile(k, w, packed, &mut scratch.tile, sums);
            for t in 0..tokens {
                // SAFETY: every tile has its own rows, so its own part of every token's output.
                let out = unsafe { result.slice(t * rows + first..t * rows + first + w.rows()) };
                let sums = &sums[t / LANES * TILE..];
                for (out, sums) in out.iter_mut().zip(sums) {
                    *out = sums[t % LANES];
                }
            }
        }
    });
}

/// `[tokens, cols]` -> `[cols, LANES]`, lanes beyond the last token zero.
fn fill_panel(tokens: &[f32], cols: usize, panel: &mut [f32]) {
    let mut lanes: [&[f32]; LANES] = [&[]; LANES];
    for (lane, x) in lanes.iter_mut().zip(tokens.chunks_exact(cols)) {
        *lane = x;
    }
    for (c, out) in panel.chunks_exact_mut(LANES).enumerate() {
        for (out, x) in out.iter_mut().zip(lanes) {
            *out = x.get(c).copied().unwrap_or(0.0);
        }
    }
}

/// The sums of up to `TILE` rows of `w` with every panel.
fn multiply_tile(
    k: &Kernels,
    w: MatRef,
    panels: &[f32],
    tile: &mut [f32],
    sums: &mut [[f32; LANES]],
) {
    let cols = w.cols();
    let block = w.dtype().block_len();
    sums.fill([0.0; LANES]);
    for left in (0..cols).step_by(DEPTH) {
        let depth = DEPTH.min(cols - left);
        let bytes = |c: usize| c / block * w.dtype().block_bytes();
        for (i, out) in tile.chunks_exact_mut(DEPTH).take(w.rows()).enumerate() {
            k.unpack(
                w,
                &w.row(i)[bytes(left)..bytes(left + depth)],
                &mut out[..depth],
            );
        }
        for (x, sums) in panels
            .chunks_exact(cols * LANES)
            .zip(sums.chunks_exact_mut(TILE))
        {
            let x = &x[left * LANES..(left + depth) * LANES];
            let tile = tile.chunks(ROWS * DEPTH);
            for (w, sums) in tile.zip(sums[..w.rows()].chunks_mut(ROWS)) {
                k.panel(w, DEPTH, x, sums);
            }
        }
    }
}

/// `out[t] = sum over i of s[t][i] * m[i]`: `m` `[inter, hidden]` (a transposed down matrix), `s` `[tokens, inter]`,
/// `out` `[tokens, hidden]`.
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
    // A strip of columns is as wide as a block, so that blocks are unpacked whole, and at least one panel.
    let block = m.dtype().block_len();
    let width = block.max(LANES);
    let panels = width / LANES;
    work.reserve(team.threads(), 0, 0);
    for s in &mut work.threads {
        grow(&mut s.tile, (panels * DEPTH + 8) * LANES);
    }
    let strips = hidden.div_ceil(width);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let scratch = Disjoint::new(&mut work.threads);
    let result = Disjoint::new(out);
    team.run(&|thread| {
        // SAFETY: each thread takes its own scratch.
        let scratch = unsafe { &mut scratch.slice(thread..thread + 1)[0] };
        loop {
            let strip = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if strip >= strips {
                return;
            }
            let cols = strip * width..((strip + 1) * width).min(hidden);
            for top in (0..inter).step_by(DEPTH) {
                let rows = top..(top + DEPTH).min(inter);
                unpack_strip(k, m, rows.clone(), cols.clone(), &mut scratch.tile);
                for first in (0..tokens).step_by(ROWS) {
                    let count = ROWS.min(tokens - first);
                    let s = &s[first * inter + top..(first + count - 1) * inter + rows.end];
                    for (p, left) in cols.clone().step_by(LANES).enumerate() {
                        let x = &scratch.tile[p * DEPTH * LANES..][..rows.len() * LANES];
                        let right = (left + LANES).min(cols.end);
                        let mut sums = [[0.0; LANES]; ROWS];
                        k.panel(s, inter, x, &mut sums[..count]);
                        for (t, sums) in sums[..count].iter().enumerate() {
                            let row = (first + t) * hidden;
                            // SAFETY: every strip has its own columns.
                            let out = unsafe { result.slice(row + left..row + right) };
                            out.iter_mut().zip(sums).for_each(|(o, s)| *o += s);
                        }
                    }
                }
            }
        }
    });
}

/// Unpacks `m[rows][cols]` into panels `[panels, DEPTH, LANES]`; the lanes beyond `cols` are zero.
fn unpack_strip(
    k: &Kernels,
    m: MatRef,
    rows: std::ops::Range<usize>,
    cols: std::ops::Range<usize>,
    tile: &mut [f32],
) {
    let t = m.dtype();
    let bytes =
        cols.start / t.block_len() * t.block_bytes()..cols.end / t.block_len() * t.block_bytes();
    let panels = cols.len().div_ceil(LANES);
    let (tile, line) = tile.split_at_mut(panels * DEPTH * LANES);
    let line = &mut line[..panels * LANES];
    line[cols.len()..].fill(0.0);
    for (r, i) in rows.enumerate() {
        k.unpack(m, &m.row(i)[bytes.clone()], &mut line[..cols.len()]);
        for (p, lanes) in line.chunks_exact(LANES).enumerate() {
            tile[(p * DEPTH + r) * LANES..][..LANES].copy_from_slice(lanes);
        }
    }
}
