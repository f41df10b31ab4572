//! Rotary embedding and causal attention over a key/value cache.

use super::{Input, Kernels, Team, team::Disjoint};
use crate::{DType, MatRef, quant};
use std::ops::Range;

/// Cosines and sines of rotary embedding for every position of a context.
#[derive(Clone, Debug)]
pub struct RopeTable {
    half: usize,
    /// Per position `half` cosines, then `half` sines.
    table: Vec<f32>,
}

impl RopeTable {
    /// For `positions` positions and heads of `head_dim` elements: angle(p, i) = p / scale * base^(-2i / head_dim).
    /// Frequencies and angles are rounded to f32, as the original frameworks do.
    pub fn new(positions: usize, head_dim: usize, base: f32, scale: f32) -> RopeTable {
        let half = head_dim / 2;
        let frequencies: Vec<f32> = (0..half)
            .map(|i| (f64::from(base).powf(-((2 * i) as f64) / head_dim as f64)) as f32 / scale)
            .collect();
        let mut table = Vec::with_capacity(positions * head_dim);
        for p in 0..positions {
            let angles = frequencies.iter().map(|f| f64::from(p as f32 * f));
            table.extend(angles.clone().map(|a| a.cos() as f32));
            table.extend(angles.map(|a| a.sin() as f32));
        }
        RopeTable { half, table }
    }

    /// Rotates every head of `x` (`[heads, head_dim]`, pairs (i, i + head_dim/2)) to `position`.
    ///
    /// # Panics
    /// If `position` is beyond the table.
    pub fn rotate(&self, x: &mut [f32], position: usize) {
        let at = &self.table[position * 2 * self.half..][..2 * self.half];
        let (cos, sin) = at.split_at(self.half);
        for head in x.chunks_exact_mut(2 * self.half) {
            let (a, b) = head.split_at_mut(self.half);
            for i in 0..self.half {
                let (re, im) = (a[i], b[i]);
                a[i] = re * cos[i] - im * sin[i];
                b[i] = im * cos[i] + re * sin[i];
            }
        }
    }
}

/// Keys and values of one layer, each `[kv_heads, context, head_dim]` of a storage type.
#[derive(Clone, Debug)]
pub struct LayerCache {
    dtype: DType,
    context: usize,
    head_dim: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl LayerCache {
    /// Bytes that a cache of these sizes takes (keys and values), or `None` where they overflow or `head_dim` is no whole
    /// number of blocks.
    pub fn bytes(dtype: DType, kv_heads: usize, context: usize, head_dim: usize) -> Option<usize> {
        dtype
            .row_bytes(head_dim)?
            .checked_mul(kv_heads)?
            .checked_mul(context)?
            .checked_mul(2)
    }

    /// An empty cache.
    ///
    /// # Panics
    /// If [`LayerCache::bytes`] gives `None` for these sizes.
    pub fn new(dtype: DType, kv_heads: usize, context: usize, head_dim: usize) -> LayerCache {
        let bytes = LayerCache::bytes(dtype, kv_heads, context, head_dim)
            .expect("sizes were checked by the caller")
            / 2;
        LayerCache {
            dtype,
            context,
            head_dim,
            keys: vec![0; bytes],
            values: vec![0; bytes],
        }
    }

    /// Stores the key and the value (each `[kv_heads, head_dim]`) of a position.
    ///
    /// # Panics
    /// If `position` is beyond the context.
    pub fn store(&mut self, position: usize, key: &[f32], value: &[f32]) {
        assert!(position < self.context);
        let row = self.row_bytes();
        for (cache, new) in [(&mut self.keys, key), (&mut self.values, value)] {
            for (h, head) in new.chunks_exact(self.head_dim).enumerate() {
                let at = (h * self.context + position) * row;
                quant::pack_row(self.dtype, head, &mut cache[at..at + row]);
            }
        }
    }

    fn row_bytes(&self) -> usize {
        self.dtype
            .row_bytes(self.head_dim)
            .expect("checked by `new`")
    }

    fn rows<'a>(&self, cache: &'a [u8], head: usize, rows: Range<usize>) -> MatRef<'a> {
        let bytes = self.row_bytes();
        let start = (head * self.context + rows.start) * bytes;
        let data = &cache[start..start + rows.len() * bytes];
        MatRef::new(self.dtype, rows.len(), self.head_dim, data).expect("cut to fit")
    }
}

/// Working memory of [`attend`], one part a thread.
pub struct AttentionWork {
    parts: Vec<(Input, Vec<f32>)>,
}

impl AttentionWork {
    /// For a team of `threads`, contexts up to `context` and heads of `head_dim`.
    pub fn new(threads: usize, context: usize, head_dim: usize) -> AttentionWork {
        let part = || (Input::with_capacity(head_dim), vec![0.0; context]);
        AttentionWork {
            parts: (0..threads).map(|_| part()).collect(),
        }
    }
}

/// The geometry of one attention call.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Factor on q.k before the softmax.
    pub scale: f32,
    /// Positions a query sees, its own included.
    pub window: Option<usize>,
    /// Position of the first query.
    pub start: usize,
}

/// Causal attention of `q` (`[tokens, heads, head_dim]`) at positions `start..` over cached keys and values, which
/// must already hold those positions. Writes `out`, `[tokens, heads, head_dim]`.
///
/// # Panics
/// If lengths do not fit each other or the cache.
pub fn attend(
    team: &mut Team,
    kernels: &Kernels,
    a: &Attention,
    cache: &LayerCache,
    q: &[f32],
    work: &mut AttentionWork,
    out: &mut [f32],
) {
    let dim = cache.head_dim;
    assert!(q.len() == out.len() && q.len().is_multiple_of(a.heads * dim));
    assert!(a.start + q.len() / (a.heads * dim) <= cache.context);
    assert!(team.threads() <= work.parts.len());
    let group = a.heads / a.kv_heads;
    let rows = q.len() / dim;
    let out = Disjoint::new(out);
    let parts = Disjoint::new(&mut work.parts);
    let next = std::sync::atomic::AtomicUsize::new(0);
    team.run(&|thread| {
        // SAFETY: each thread of the team has a number of its own.
        let (input, scores) = &mut unsafe { parts.slice(thread..thread + 1) }[0];
        loop {
            let row = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if row >= rows {
                return;
            }
            // SAFETY: every row is taken by one thread once.
            let y = unsafe { out.slice(row * dim..(row + 1) * dim) };
            let end = a.start + row / a.heads + 1;
            let seen = end.saturating_sub(a.window.unwrap_or(end))..end;
            let kv = row % a.heads / group;
            let scores = &mut scores[..seen.len()];
            kernels.prepare(&q[row * dim..(row + 1) * dim], input);
            kernels.dot_rows(cache.rows(&cache.keys, kv, seen.clone()), input, scores);
            scores.iter_mut().for_each(|s| *s *= a.scale);
            kernels.softmax(scores);
            y.fill(0.0);
            kernels.axpy_rows(cache.rows(&cache.values, kv, seen), scores, 0..dim, y);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attention as its definition says, in f64.
    fn plain(a: &Attention, k: &[Vec<f32>], v: &[Vec<f32>], q: &[f32], at: usize) -> Vec<f64> {
        let dim = q.len() / a.heads;
        let mut out = vec![0.0; q.len()];
        for h in 0..a.heads {
            let kv = h / (a.heads / a.kv_heads) * dim;
            let from = (at + 1).saturating_sub(a.window.unwrap_or(usize::MAX));
            let score = |p: usize| -> f64 {
                let dot: f64 = (0..dim)
                    .map(|i| f64::from(q[h * dim + i]) * f64::from(k[p][kv + i]))
                    .sum();
                (dot * f64::from(a.scale)).exp()
            };
            let total: f64 = (from..=at).map(score).sum();
            for (p, v) in v.iter().enumerate().take(at + 1).skip(from) {
                for i in 0..dim {
                    out[h * dim + i] += score(p) / total * f64::from(v[kv + i]);
                }
            }
        }
        out
    }

    #[test]
    fn attention_is_its_definition_with_groups_windows_and_any_team() {
        let (heads, kv_heads, dim, tokens) = (6, 2, 10, 7);
        let wave = |seed: usize, n: usize| -> Vec<f32> {
            (0..n)
                .map(|i| ((seed * 31 + i * 7) as f32 * 0.37).sin())
                .collect()
        };
        let k: Vec<_> = (0..tokens).map(|p| wave(p, kv_heads * dim)).collect();
        let v: Vec<_> = (0..tokens).map(|p| wave(p + 50, kv_heads * dim)).collect();
        let mut cache = LayerCache::new(DType::F32, kv_heads, 9, dim);
        for p in 0..tokens {
            cache.store(p, &k[p], &v[p]);
        }
        for (threads, window, start) in [(1, None, 0), (3, Some(3), 2), (2, Some(1), 5)] {
            let a = Attention {
                heads,
                kv_heads,
                scale: 0.4,
                window,
                start,
            };
            let q: Vec<f32> = (start..tokens)
                .flat_map(|p| wave(p + 90, heads * dim))
                .collect();
            let mut out = vec![f32::NAN; q.len()];
            let mut team = Team::new(threads).unwrap();
            let mut work = AttentionWork::new(threads, 9, dim);
            for kernels in Kernels::available() {
                attend(&mut team, kernels, &a, &cache, &q, &mut work, &mut out);
                for (t, (q, out)) in q
                    .chunks(heads * dim)
                    .zip(out.chunks(heads * dim))
                    .enumerate()
                {
                    for (x, y) in out.iter().zip(plain(&a, &k, &v, q, start + t)) {
                        assert!((f64::from(*x) - y).abs() < 1e-5, "{}", kernels.isa());
                    }
                }
            }
        }
    }

    #[test]
    fn rope_turns_pairs_by_position_over_wavelength() {
        let table = RopeTable::new(8, 4, 100.0, 2.0);
        let mut x = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0];
        table.rotate(&mut x, 6);
        let (a, b) = (3.0f32, 0.3f32);
        let expected = [
            a.cos(),
            b.cos(),
            a.sin(),
            b.sin(),
            -a.sin(),
            -b.sin(),
            a.cos(),
            b.cos(),
        ];
        for (x, e) in x.iter().zip(expected) {
            assert!((x - e).abs() < 1e-6);
        }
    }
}
