//! What one thread needs to train: products of row-major `f32` matrices, and memory that is used again.
//!
//! The products are the kernels' own, run by a team of one: a minibatch is cut into shards, and a thread takes whole shards.
//! Sums are therefore added in an order that the number of threads does not change.

use crate::{backend::cpu::kernels, error::Result};
use countdown_kernels::{
    DType, MatRef,
    cpu::{
        Kernels, Team,
        gemm::{GemmWork, matmul, matmul_transposed},
    },
};

/// A thread's products.
pub(super) struct Products {
    team: Team,
    kernels: &'static Kernels,
    gemm: GemmWork,
}

impl Products {
    /// Products that `threads` compute together; 1 where each thread has its own.
    ///
    /// # Errors
    /// [`Error::Machine`] if a thread cannot be started or there are no kernels of the set that was asked for.
    pub(super) fn new(threads: usize) -> Result<Products> {
        Ok(Products {
            team: crate::session::team(threads)?,
            kernels: kernels()?,
            gemm: GemmWork::new(),
        })
    }

    /// `out = x w^T`: `x` `[n, k]`, `w` `[m, k]`, `out` `[n, m]`.
    ///
    /// # Panics
    /// If lengths do not fit (so below).
    pub(super) fn times_transposed(&mut self, x: &[f32], w: &[f32], k: usize, out: &mut [f32]) {
        let n = x.len() / k;
        let w = view(w, w.len() / k, k);
        let (team, gemm) = (&mut self.team, &mut self.gemm);
        matmul(team, self.kernels, w, x, n, out, gemm);
    }

    /// `out = x w`: `x` `[n, k]`, `w` `[k, m]`, `out` `[n, m]`.
    pub(super) fn times(&mut self, x: &[f32], w: &[f32], k: usize, out: &mut [f32]) {
        let n = x.len() / k;
        let w = view(w, k, w.len() / k);
        let (team, gemm) = (&mut self.team, &mut self.gemm);
        matmul_transposed(team, self.kernels, w, x, n, out, gemm);
    }

    /// `out[t] = w x[t]` for packed weights `w` `[inter, hidden]`: the product of `x` with every row.
    pub(super) fn times_packed_transposed(&mut self, x: &[f32], w: MatRef<'_>, out: &mut [f32]) {
        let (team, gemm) = (&mut self.team, &mut self.gemm);
        matmul(team, self.kernels, w, x, x.len() / w.cols(), out, gemm);
    }

    /// `out[t] = m[t] w` for packed weights `w` `[inter, hidden]`: the FFN's last product.
    pub(crate) fn times_packed(&mut self, x: &[f32], w: MatRef<'_>, out: &mut [f32]) {
        let (team, gemm) = (&mut self.team, &mut self.gemm);
        matmul_transposed(team, self.kernels, w, x, x.len() / w.rows(), out, gemm);
    }
}

fn view(data: &[f32], rows: usize, cols: usize) -> MatRef<'_> {
    MatRef::new(DType::F32, rows, cols, bytemuck::cast_slice(data))
        .expect("the callers' lengths are rows times columns")
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

/// What a thread works with: its products, and memory for a shard's activations and their gradients.
pub struct Work {
    pub(super) products: Products,
    /// Inner activations `[tokens, rank]`, their gradients, and the transpose of either.
    pub(super) inner: Vec<f32>,
    pub(super) inner_grad: Vec<f32>,
    pub(super) transposed: Vec<f32>,
    /// Logits or gate, and up, `[tokens, inter]`, turned into gradients in place.
    pub(super) first: Vec<f32>,
    pub(super) second: Vec<f32>,
    /// Weights as the forward pass sees them, where those differ from the parameters.
    pub(super) weights: Vec<f32>,
}

impl Work {
    /// Empty memory and one thread.
    ///
    /// # Errors
    /// [`Error::Machine`](crate::Error::Machine) if there are no kernels of the instruction set that was asked for.
    pub fn new() -> Result<Work> {
        Ok(Work {
            products: Products::new(1)?,
            inner: Vec::new(),
            inner_grad: Vec::new(),
            transposed: Vec::new(),
            first: Vec::new(),
            second: Vec::new(),
            weights: Vec::new(),
        })
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
        let mut p = Products::new(1).unwrap();
        let mut out = vec![0.0; n * m];
        p.times(&x, &w, k, &mut out);
        assert_eq!(out, exact);
        let mut transposed = Vec::new();
        transpose(&w, m, &mut transposed);
        out.fill(0.0);
        p.times_transposed(&x, &transposed, k, &mut out);
        assert_eq!(out, exact);
    }
}
