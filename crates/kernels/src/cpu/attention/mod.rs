//! Causal attention over a key/value cache.
//!
//! Both of its products, queries with keys and weights with values, are [panels](super::gemm): the rows are the queries that share a
//! key/value head, the lanes are positions in one and elements of the head in the other. Keys and values are unpacked
//! once for all of those queries.

mod cache;
mod rope;
#[cfg(test)]
mod tests;

pub use cache::LayerCache;
pub use rope::RopeTable;

use super::{
    Kernels, Team, exp,
    gemm::{DEPTH, LANES},
    team::Disjoint,
};
use std::ops::Range;

/// Positions whose scores are weighed together, a multiple of `LANES` and at most `DEPTH`: what is unpacked of them stays in the
/// first cache.
const SPAN: usize = 128;

/// So many queries share what is unpacked, where there are as many.
const TOGETHER: usize = 48;

/// The geometry of one attention call.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Factor on q.k before the softmax.
    pub scale: f32,
    /// Scores are bounded by this, see [`Kernels::soft_cap`]; not at all if `None`.
    pub soft_cap: Option<f32>,
    /// Positions a query sees, its own included.
    pub window: Option<usize>,
    /// Position of the first query.
    pub start: usize,
}

impl Attention {
    /// Query heads that share keys and values.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Tokens whose queries are computed together.
    fn together(&self) -> usize {
        (TOGETHER / self.group()).max(1)
    }

    /// The positions that token `t` of the call sees.
    fn seen(&self, t: usize) -> Range<usize> {
        let end = self.start + t + 1;
        end.saturating_sub(self.window.unwrap_or(end))..end
    }
}

/// Working memory of [`attend`].
pub struct AttentionWork {
    threads: Vec<Scratch>,
    /// What each span says of a single token, `[spans, heads, head_dim]`.
    parts: Vec<f32>,
    /// What that counts for, `[spans, heads]`.
    weights: Vec<Weight>,
}

/// Queries of one key/value head in the making.
struct Scratch {
    /// Scaled, `[head_dim / DEPTH, rows]`.
    queries: Vec<[f32; DEPTH]>,
    /// Unpacked keys of a block of positions, `[head_dim]`.
    keys: Vec<[f32; LANES]>,
    /// Scores of a span, then its weights, `[rows]`.
    scores: Vec<[f32; DEPTH]>,
    /// Scores of a block of positions, `[rows]`, or unpacked values of a span, `[SPAN]`.
    lanes: Vec<[f32; LANES]>,
    /// Weighted sums of values, `[head_dim / LANES, rows]`.
    sums: Vec<[f32; LANES]>,
    /// `[rows]`.
    weights: Vec<Weight>,
}

/// The largest score so far, and the sum of the exponentials of all scores less that one.
#[derive(Clone, Copy)]
struct Weight {
    max: f32,
    sum: f32,
}

impl Weight {
    const NONE: Weight = Weight {
        max: f32::NEG_INFINITY,
        sum: 0.0,
    };
}

impl AttentionWork {
    /// For a team of `threads`, calls that have `a`'s heads, of `head_dim` elements, and contexts up to `context`.
    pub fn new(threads: usize, a: &Attention, head_dim: usize, context: usize) -> AttentionWork {
        let rows = a.together() * a.group();
        let scratch = || Scratch {
            queries: vec![[0.0; DEPTH]; rows * head_dim.div_ceil(DEPTH)],
            keys: vec![[0.0; LANES]; head_dim],
            scores: vec![[0.0; DEPTH]; rows],
            lanes: vec![[0.0; LANES]; rows.max(SPAN)],
            sums: vec![[0.0; LANES]; rows * head_dim.div_ceil(LANES)],
            weights: vec![Weight::NONE; rows],
        };
        let spans = context.div_ceil(SPAN);
        AttentionWork {
            threads: (0..threads).map(|_| scratch()).collect(),
            parts: vec![0.0; spans * a.heads * head_dim],
            weights: vec![Weight::NONE; spans * a.heads],
        }
    }
}

/// Causal attention of `q` (`[tokens, heads, head_dim]`) at positions `start..` over cached keys and values, which
/// must already hold those positions. Writes `out`, `[tokens, heads, head_dim]`.
///
/// Queries go through the context span by span, with the softmax carried along (Milakov and Gimelshein, "Online normalizer
/// calculation for softmax", 2018). Threads share heads and tokens. Of a single token they share spans, which are added up in
/// the end: so many, and so long, whatever the number of threads.
///
/// # Panics
/// If lengths do not fit each other, the cache or the working memory.
pub fn attend(
    team: &mut Team,
    kernels: &Kernels,
    a: &Attention,
    cache: &LayerCache,
    q: &[f32],
    work: &mut AttentionWork,
    out: &mut [f32],
) {
    let width = a.heads * cache.head_dim;
    let tokens = q.len() / width;
    assert!(q.len() == out.len() && q.len() == tokens * width);
    assert!(a.start + tokens <= cache.context && team.threads() <= work.threads.len());
    let threads = Disjoint::new(&mut work.threads);
    let tile = |kv, tokens| Tile {
        a,
        cache,
        kv,
        tokens,
    };
    if tokens == 1 {
        let seen = a.seen(0);
        let spans = seen.start / SPAN..seen.end.div_ceil(SPAN);
        let parts = Disjoint::new(&mut work.parts[..spans.len() * width]);
        let weights = Disjoint::new(&mut work.weights[..spans.len() * a.heads]);
        team.for_each_on(spans.len() * a.kv_heads, |thread, piece| {
            let (s, kv) = (piece / a.kv_heads, piece % a.kv_heads);
            let from = (spans.start + s) * SPAN;
            // SAFETY: no two pieces that run at a time have the same thread.
            let scratch = unsafe { &mut threads.slice(thread..thread + 1)[0] };
            let tile = tile(kv, 0..1);
            tile.attend(
                kernels,
                q,
                from.max(seen.start)..(from + SPAN).min(seen.end),
                scratch,
            );
            tile.finish(scratch, &parts, s * width);
            let heads = s * a.heads + kv * a.group();
            // SAFETY: every piece has its own span and heads, and runs once.
            let to = unsafe { weights.slice(heads..heads + a.group()) };
            to.copy_from_slice(&scratch.weights[..a.group()]);
        });
        return add_up(&work.parts, &work.weights, spans.len(), cache.head_dim, out);
    }
    let (together, out) = (a.together(), Disjoint::new(out));
    let tiles = tokens.div_ceil(together);
    team.for_each_on(tiles * a.kv_heads, |thread, piece| {
        // The last tokens see the most. They come first, lest a thread end with them alone.
        let first = (tiles - 1 - piece / a.kv_heads) * together;
        let tile = tile(piece % a.kv_heads, first..(first + together).min(tokens));
        let seen = a.seen(first).start..a.seen(tile.tokens.end - 1).end;
        // SAFETY: as above.
        let scratch = unsafe { &mut threads.slice(thread..thread + 1)[0] };
        tile.attend(kernels, q, seen, scratch);
        tile.finish(scratch, &out, 0);
    });
}

/// The queries of some tokens that share a key/value head.
struct Tile<'a> {
    a: &'a Attention,
    cache: &'a LayerCache,
    kv: usize,
    tokens: Range<usize>,
}

impl Tile<'_> {
    fn rows(&self) -> usize {
        self.tokens.len() * self.a.group()
    }

    /// Where the query, and the output, of row `r` lies in `[tokens, heads, head_dim]`.
    fn place(&self, r: usize) -> Range<usize> {
        let (group, dim) = (self.a.group(), self.cache.head_dim);
        let head = self.kv * group + r % group;
        let at = ((self.tokens.start + r / group) * self.a.heads + head) * dim;
        at..at + dim
    }

    /// Fills `s` with the sums and weights of the positions `seen`, as far as each query sees them.
    fn attend(&self, k: &Kernels, q: &[f32], seen: Range<usize>, s: &mut Scratch) {
        let (rows, dim) = (self.rows(), self.cache.head_dim);
        for r in 0..rows {
            for (c, part) in q[self.place(r)].chunks(DEPTH).enumerate() {
                let scaled = s.queries[c * rows + r].iter_mut().zip(part);
                scaled.for_each(|(to, x)| *to = x * self.a.scale);
            }
        }
        s.sums[..dim.div_ceil(LANES) * rows].fill([0.0; LANES]);
        s.weights[..rows].fill(Weight::NONE);
        let mut from = seen.start / LANES * LANES;
        while from < seen.end {
            let to = ((from / SPAN + 1) * SPAN).min(seen.end);
            self.score(k, from..to, s);
            self.weigh(k, from..to, s);
            self.add_values(k, from..to, s);
            from = to;
        }
    }

    /// Products of queries and the keys of `span`, which begins with a block.
    fn score(&self, k: &Kernels, span: Range<usize>, s: &mut Scratch) {
        let rows = self.rows();
        let keys = &mut s.keys[..self.cache.head_dim];
        let lanes = &mut s.lanes[..rows];
        for (b, at) in span.step_by(LANES).enumerate() {
            self.cache.keys(k, self.kv, at, keys);
            lanes.fill([0.0; LANES]);
            for (queries, keys) in s.queries.chunks(rows).zip(keys.chunks(DEPTH)) {
                k.panel(queries, keys, lanes);
            }
            for (scores, lanes) in s.scores.iter_mut().zip(&*lanes) {
                scores[LANES * b..LANES * (b + 1)].copy_from_slice(lanes);
            }
        }
    }

    /// Scores of `span` become weights, relative to the largest score so far, and what was summed before is scaled accordingly.
    fn weigh(&self, k: &Kernels, span: Range<usize>, s: &mut Scratch) {
        let rows = self.rows();
        for r in 0..rows {
            let seen = self.a.seen(self.tokens.start + r / self.a.group());
            let at = |position: usize| position.clamp(span.start, span.end) - span.start;
            let (from, to) = (at(seen.start), at(seen.end));
            let scores = &mut s.scores[r][..span.len()];
            scores[..from].fill(0.0);
            scores[to..].fill(0.0);
            if from == to {
                continue;
            }
            if let Some(cap) = self.a.soft_cap {
                k.soft_cap(cap, &mut scores[from..to]);
            }
            let before = s.weights[r];
            let (max, sum) = k.exp_below(&mut scores[from..to], before.max);
            let factor = exp(before.max - max);
            s.weights[r] = Weight {
                max,
                sum: before.sum * factor + sum,
            };
            if factor != 1.0 {
                let sums = s.sums.iter_mut().skip(r).step_by(rows);
                sums.flatten().for_each(|x| *x *= factor);
            }
        }
    }

    /// Adds the weighted values of `span`.
    fn add_values(&self, k: &Kernels, span: Range<usize>, s: &mut Scratch) {
        let rows = self.rows();
        let panels = self.cache.head_dim.div_ceil(LANES);
        let values = &mut s.lanes[..span.len()];
        for (p, sums) in s.sums.chunks_exact_mut(rows).take(panels).enumerate() {
            self.cache.values(k, self.kv, p, span.start, values);
            k.panel(&s.scores[..rows], values, sums);
        }
    }

    /// Writes the means that `s` has come to from `base` of `out` on.
    fn finish(&self, s: &Scratch, out: &Disjoint<f32>, base: usize) {
        let rows = self.rows();
        for r in 0..rows {
            let place = self.place(r);
            // SAFETY: every tile has its own queries (and, of a single token, its own span at `base`), and is computed once.
            let out = unsafe { out.slice(base + place.start..base + place.end) };
            let inverse = 1.0 / s.weights[r].sum;
            for (p, out) in out.chunks_mut(LANES).enumerate() {
                let sums = out.iter_mut().zip(&s.sums[p * rows + r]);
                sums.for_each(|(y, sum)| *y = sum * inverse);
            }
        }
    }
}

/// `out`, `[heads, head_dim]`, is the mean of what so many spans say, as their weights count.
fn add_up(parts: &[f32], weights: &[Weight], spans: usize, dim: usize, out: &mut [f32]) {
    let (width, heads) = (out.len(), out.len() / dim);
    for (h, out) in out.chunks_exact_mut(dim).enumerate() {
        let weights = || weights[h..].iter().step_by(heads).take(spans);
        let max = weights().fold(f32::NEG_INFINITY, |max, w| max.max(w.max));
        let sum: f32 = weights().map(|w| w.sum * exp(w.max - max)).sum();
        out.fill(0.0);
        for (w, part) in weights().zip(parts.chunks_exact(width)) {
            let share = w.sum * exp(w.max - max) / sum;
            let part = &part[h * dim..(h + 1) * dim];
            out.iter_mut().zip(part).for_each(|(y, x)| *y += share * x);
        }
    }
}
