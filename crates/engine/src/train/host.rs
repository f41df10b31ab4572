//! Training's arithmetic on the host.
//!
//! Products are the kernels' own. A minibatch is cut into shards, each computed by one thread, so sums are added in an order
//! that the number of threads does not change.

use super::{
    adamw,
    arithmetic::{AdamStep, Arithmetic, Labelled, Part, PartMut, ProductLoss},
    elementwise::{ProductRow, Squash, WORD, logit_loss, product_loss},
    init::standardise,
    students::Ternary,
};
use crate::{backend::cpu::kernels, error::Result};
use countdown_kernels::{
    DType, MatRef,
    cpu::{
        Kernels, Team,
        gemm::{GemmWork, matmul, matmul_transposed},
    },
};
use std::ops::Range;

/// Tokens that a thread takes at a time: enough for products to be quick, few enough for their activations to stay in cache.
const SHARD: usize = 256;

/// The host's threads.
pub(crate) struct Host {
    pub(super) team: Team,
    kernels: &'static Kernels,
    gemm: GemmWork,
    transposed: Vec<f32>,
}

impl Host {
    /// Operations that `threads` compute together.
    ///
    /// # Errors
    /// [`Error::Machine`](crate::Error::Machine) if a thread cannot be started or there are no kernels of the set that was asked for.
    pub(crate) fn new(threads: usize) -> Result<Host> {
        Ok(Host {
            team: crate::session::team(threads)?,
            kernels: kernels()?,
            gemm: GemmWork::new(),
            transposed: Vec::new(),
        })
    }

    /// `out = x w^T`: `x` `[n, k]`, `w` `[m, k]`, `out` `[n, m]`.
    ///
    /// # Panics
    /// If lengths do not fit (so below).
    pub(super) fn product_transposed(&mut self, x: &[f32], w: &[f32], k: usize, out: &mut [f32]) {
        self.packed_transposed(x, view(w, w.len() / k, k), out);
    }

    /// `out = x w`: `x` `[n, k]`, `w` `[k, m]`, `out` `[n, m]`.
    pub(super) fn product(&mut self, x: &[f32], w: &[f32], k: usize, out: &mut [f32]) {
        self.packed(x, view(w, k, w.len() / k), out);
    }

    /// `out = x w^T` for packed weights.
    pub(super) fn packed_transposed(&mut self, x: &[f32], w: MatRef<'_>, out: &mut [f32]) {
        let (team, gemm) = (&mut self.team, &mut self.gemm);
        matmul(team, self.kernels, w, x, x.len() / w.cols(), out, gemm);
    }

    /// `out = x w` for packed weights.
    pub(super) fn packed(&mut self, x: &[f32], w: MatRef<'_>, out: &mut [f32]) {
        let (team, gemm) = (&mut self.team, &mut self.gemm);
        matmul_transposed(team, self.kernels, w, x, x.len() / w.rows(), out, gemm);
    }
}

fn view(data: &[f32], rows: usize, cols: usize) -> MatRef<'_> {
    MatRef::new(DType::F32, rows, cols, bytemuck::cast_slice(data))
        .expect("the callers' lengths are rows times columns")
}

fn part<'a>((v, at): Part<'a, Vec<f32>>, len: usize) -> &'a [f32] {
    &v[at..at + len]
}

fn part_mut<'a>((v, at): PartMut<'a, Vec<f32>>, len: usize) -> &'a mut [f32] {
    &mut v[at..at + len]
}

/// `out = m^T`: `m` `[rows, cols]`, in tiles that fit the cache.
pub(super) fn transpose(m: &[f32], cols: usize, out: &mut Vec<f32>) {
    const TILE: usize = 32;
    let rows = m.len() / cols;
    out.resize(m.len(), 0.0);
    for top in (0..rows).step_by(TILE) {
        for left in (0..cols).step_by(TILE) {
            for c in left..(left + TILE).min(cols) {
                for r in top..(top + TILE).min(rows) {
                    out[c * rows + r] = m[r * cols + c];
                }
            }
        }
    }
}

/// `v` with exactly `len` elements, whose values are to be overwritten.
pub(super) fn sized(v: &mut Vec<f32>, len: usize) -> &mut [f32] {
    v.resize(len, 0.0);
    v
}

impl Labelled<'_, Vec<u32>> {
    /// Each token's words.
    fn rows(&self) -> std::slice::ChunksExact<'_, u32> {
        let words = self.inter.div_ceil(WORD);
        self.labels[..self.tokens * words].chunks_exact(words)
    }
}

impl Arithmetic for Host {
    type Vector = Vec<f32>;
    type Words = Vec<u32>;

    fn alone(&self) -> Result<Host> {
        Host::new(1)
    }

    fn shard(&self, _batch: usize) -> usize {
        SHARD
    }

    fn each<T: Send>(&mut self, items: &mut [T], f: impl Fn(&mut T) + Sync) {
        self.team
            .split(items, 1, |_, items| items.iter_mut().for_each(&f));
    }

    fn take(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn give(&self, v: Vec<f32>) -> Result<Vec<f32>> {
        Ok(v)
    }

    fn read(&self, v: &Vec<f32>) -> Result<Vec<f32>> {
        Ok(v.clone())
    }

    fn load(&self, values: &[f32], to: &mut Vec<f32>) -> Result<()> {
        sized(to, values.len()).copy_from_slice(values);
        Ok(())
    }

    fn no_words(&self) -> Result<Vec<u32>> {
        Ok(Vec::new())
    }

    fn load_words(&self, words: &[u32], to: &mut Vec<u32>) -> Result<()> {
        to.clear();
        to.extend_from_slice(words);
        Ok(())
    }

    fn room(&self, v: &mut Vec<f32>, len: usize) -> Result<()> {
        sized(v, len);
        Ok(())
    }

    fn standardise(
        &mut self,
        x: &mut Vec<f32>,
        rows: usize,
        [mean, factor]: [&Vec<f32>; 2],
    ) -> Result<()> {
        standardise(&mut x[..rows * mean.len()], mean, factor);
        Ok(())
    }

    fn times(
        &mut self,
        x: Part<'_, Vec<f32>>,
        w: Part<'_, Vec<f32>>,
        [n, k, m]: [usize; 3],
        out: PartMut<'_, Vec<f32>>,
    ) -> Result<()> {
        self.product(part(x, n * k), part(w, k * m), k, part_mut(out, n * m));
        Ok(())
    }

    fn times_transposed(
        &mut self,
        x: Part<'_, Vec<f32>>,
        w: Part<'_, Vec<f32>>,
        [n, k, m]: [usize; 3],
        out: PartMut<'_, Vec<f32>>,
    ) -> Result<()> {
        self.product_transposed(part(x, n * k), part(w, k * m), k, part_mut(out, n * m));
        Ok(())
    }

    fn transposed_times(
        &mut self,
        x: Part<'_, Vec<f32>>,
        w: Part<'_, Vec<f32>>,
        [n, k, m]: [usize; 3],
        out: PartMut<'_, Vec<f32>>,
    ) -> Result<()> {
        let mut transposed = std::mem::take(&mut self.transposed);
        transpose(part(x, n * k), n, &mut transposed);
        self.product(&transposed, part(w, k * m), k, part_mut(out, n * m));
        self.transposed = transposed;
        Ok(())
    }

    fn add(&mut self, to: &mut Vec<f32>, from: &Vec<f32>, n: usize) -> Result<()> {
        let pairs = to[..n].iter_mut().zip(&from[..n]);
        pairs.for_each(|(a, b)| *a += *b);
        Ok(())
    }

    fn ternary(&mut self, weights: Part<'_, Vec<f32>>, n: usize, out: &mut Vec<f32>) -> Result<()> {
        let weights = part(weights, n);
        Ternary::rounded(weights, Ternary::scale(weights), out);
        Ok(())
    }

    fn logit_loss(
        &mut self,
        logits: &mut Vec<f32>,
        bias: Part<'_, Vec<f32>>,
        to: Labelled<'_, Vec<u32>>,
        bias_grad: PartMut<'_, Vec<f32>>,
    ) -> Result<f64> {
        let (bias, bias_grad) = (part(bias, to.inter), part_mut(bias_grad, to.inter));
        bias_grad.fill(0.0);
        let rows = logits.chunks_exact_mut(to.inter).zip(to.rows());
        let loss = rows.map(|(row, labels)| logit_loss(row, bias, labels, to.scale, bias_grad));
        Ok(loss.sum())
    }

    fn product_loss(
        &mut self,
        loss: ProductLoss<'_, Vec<f32>>,
        to: Labelled<'_, Vec<u32>>,
        gradient: &mut Vec<f32>,
    ) -> Result<f64> {
        let inter = to.inter;
        let [gate_bias, up_bias, squash] = loss.places;
        let (front, slopes) = gradient.split_at_mut(squash);
        let (front, up_bias_grad) = front.split_at_mut(up_bias);
        let gate_bias_grad = &mut front[gate_bias..];
        gate_bias_grad.fill(0.0);
        up_bias_grad.fill(0.0);
        let shape = Squash {
            ln_sharpness: loss.parameters[squash],
            level: loss.parameters[squash + 1],
            floor: loss.floor,
        };
        let mut sums = [0.0; 3];
        let gates = loss.gate.chunks_exact_mut(inter);
        let rows = gates.zip(loss.up.chunks_exact_mut(inter));
        for ((gate, up), labels) in rows.zip(to.rows()) {
            let row = ProductRow {
                gate,
                up,
                gate_bias: part((loss.parameters, gate_bias), inter),
                up_bias: part((loss.parameters, up_bias), inter),
                weight: loss.weight,
                labels,
                gate_bias_grad,
                up_bias_grad,
            };
            let part = product_loss(loss.act, row, shape, to.scale);
            sums.iter_mut().zip(part).for_each(|(s, p)| *s += p);
        }
        let [loss, level, sharpness] = sums;
        slopes.copy_from_slice(&[sharpness as f32, level as f32]);
        Ok(loss)
    }

    fn adamw(
        &mut self,
        step: AdamStep,
        state: [&mut Vec<f32>; 3],
        gradients: &[&Vec<f32>],
        decayed: Range<usize>,
    ) -> Result<()> {
        adamw::step(&mut self.team, step, state, gradients, decayed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_what_they_say() {
        let (n, k, m) = (7, 5, 3);
        let x: Vec<f32> = (0..n * k).map(|i| (i % 11) as f32 - 5.0).collect();
        let w: Vec<f32> = (0..k * m).map(|i| (i % 7) as f32 - 3.0).collect();
        let exact: Vec<f32> = (0..n * m)
            .map(|i| (0..k).map(|j| x[i / m * k + j] * w[j * m + i % m]).sum())
            .collect();
        let mut host = Host::new(1).unwrap();
        let mut out = vec![0.0; n * m];
        let shape = [n, k, m];
        let (mut turned_x, mut turned_w) = (Vec::new(), Vec::new());
        transpose(&x, k, &mut turned_x);
        transpose(&w, m, &mut turned_w);
        host.times((&x, 0), (&w, 0), shape, (&mut out, 0)).unwrap();
        assert_eq!(out, exact);
        out.fill(0.0);
        host.times_transposed((&x, 0), (&turned_w, 0), shape, (&mut out, 0))
            .unwrap();
        assert_eq!(out, exact);
        out.fill(0.0);
        host.transposed_times((&turned_x, 0), (&w, 0), shape, (&mut out, 0))
            .unwrap();
        assert_eq!(out, exact);
    }
}
