//! The little linear algebra that initialisation needs: a Cholesky factor, its inverse, and the leading eigenvectors of a
//! symmetric matrix. Matrices are row-major, `[n, n]`.

use super::machine::Products;
use crate::error::Result;
use countdown_kernels::cpu::Team;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// Rows or columns that are finished together, so that the others can be worked on side by side.
const BLOCK: usize = 32;

/// The lower triangular L with `L L^T = c`; `None` where `c` is not positive definite.
pub(super) fn cholesky(c: &[f32], n: usize, team: &mut Team) -> Option<Vec<f64>> {
    let mut l = vec![0f64; n * n];
    let entry = |i: usize, j: usize, row: &[f64], other: &[f64]| {
        f64::from(c[i * n + j]) - dot(&row[..j], &other[..j])
    };
    for first in (0..n).step_by(BLOCK) {
        let end = (first + BLOCK).min(n);
        for i in first..end {
            let (done, row) = l.split_at_mut(i * n);
            let row = &mut row[..n];
            for j in first..i {
                let other = &done[j * n..j * n + n];
                row[j] = entry(i, j, row, other) / other[j];
            }
            let square = entry(i, i, row, row);
            if !(square > 0.0 && square.is_finite()) {
                return None;
            }
            row[i] = square.sqrt();
        }
        // These columns of the rows below.
        let (done, below) = l.split_at_mut(end * n);
        team.split(below, n, |at, rows| {
            for (i, row) in (end + at / n..).zip(rows.chunks_exact_mut(n)) {
                for j in first..end {
                    let other = &done[j * n..j * n + n];
                    row[j] = entry(i, j, row, other) / other[j];
                }
            }
        });
    }
    Some(l)
}

/// The inverse of a lower triangular matrix.
pub(super) fn invert_lower(l: &[f64], n: usize, team: &mut Team) -> Vec<f64> {
    // Column by column, each in a row of its own.
    let mut columns = vec![0f64; n * n];
    team.split(&mut columns, BLOCK * n, |at, columns| {
        for (block, columns) in columns.chunks_mut(BLOCK * n).enumerate() {
            let first = at / n + block * BLOCK;
            for i in first..n {
                let row = &l[i * n..i * n + n];
                for (c, column) in (first..=i).zip(columns.chunks_exact_mut(n)) {
                    let unit = f64::from(u8::from(i == c));
                    column[i] = (unit - dot(&row[c..i], &column[c..i])) / row[i];
                }
            }
        }
    });
    let mut inverse = vec![0f64; n * n];
    team.split(&mut inverse, n, |at, rows| {
        for (i, row) in (at / n..).zip(rows.chunks_exact_mut(n)) {
            for (c, x) in row[..=i].iter_mut().enumerate() {
                *x = columns[c * n + i];
            }
        }
    });
    inverse
}

/// Rounds of the subspace iteration. The spaces sought come from spectra that fall off, and what is left out of them at the
/// edge is worth about as much as what is taken in.
const ROUNDS: usize = 24;

/// An orthonormal basis, `[rank, n]`, of the space of the leading eigenvectors of a positive semi-definite `g`, by subspace
/// iteration from a random start.
pub(super) fn leading_space(
    g: &[f32],
    n: usize,
    rank: usize,
    seed: u64,
    products: &mut Products,
) -> Result<Vec<f32>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut basis: Vec<f32> = (0..rank * n).map(|_| uniform(&mut random)).collect();
    orthonormalise(&mut basis, n, &mut random, products.team());
    let mut next = vec![0.0; rank * n];
    for _ in 0..ROUNDS {
        products.times(&basis, g, n, &mut next)?;
        std::mem::swap(&mut basis, &mut next);
        orthonormalise(&mut basis, n, &mut random, products.team());
    }
    Ok(basis)
}

fn uniform(random: &mut ChaCha8Rng) -> f32 {
    random.next_u32() as f32 / u32::MAX as f32 - 0.5
}

/// What is left of a vector counts as nothing below this share of it.
const NOTHING: f64 = 1e-6;

/// Makes `v` orthogonal to the rows of `others`, which are orthonormal, twice; returns whether anything is left of it.
fn project(v: &mut [f64], others: &[f64]) -> bool {
    let before = dot(v, v).sqrt();
    for _ in 0..2 {
        for other in others.chunks_exact(v.len()) {
            axpy(-dot(other, v), other, v);
        }
    }
    let norm = dot(v, v).sqrt();
    norm > NOTHING * before && norm > 0.0
}

/// Gram-Schmidt over rows, a block at a time: side by side against all blocks before it, then among themselves. A row that the ones
/// before it span is drawn anew.
fn orthonormalise(rows: &mut [f32], n: usize, random: &mut ChaCha8Rng, team: &mut Team) {
    let mut done: Vec<f64> = Vec::with_capacity(rows.len());
    for rows in rows.chunks_mut(BLOCK * n) {
        let mut block: Vec<f64> = rows.iter().map(|x| f64::from(*x)).collect();
        let before = done.len();
        team.split(&mut block, n, |_, vectors| {
            for v in vectors.chunks_exact_mut(n) {
                if !project(v, &done) {
                    v.fill(0.0);
                }
            }
        });
        for (row, v) in rows.chunks_exact_mut(n).zip(block.chunks_exact_mut(n)) {
            let mut is_left = project(v, &done[before..]);
            while !is_left {
                v.iter_mut().for_each(|x| *x = f64::from(uniform(random)));
                is_left = project(v, &done);
            }
            let norm = dot(v, v).sqrt();
            v.iter_mut().for_each(|x| *x /= norm);
            row.iter_mut().zip(&*v).for_each(|(r, x)| *r = *x as f32);
            done.extend_from_slice(v);
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0f64; 8];
    let (whole, rest) = a.as_chunks::<8>();
    let (other, other_rest) = b.as_chunks::<8>();
    for (a, b) in whole.iter().zip(other) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    let tail: f64 = rest.iter().zip(other_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + tail
}

fn axpy(factor: f64, x: &[f64], y: &mut [f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::machine::Machine;

    /// A positive definite matrix whose eigenvalues fall by half from one to the next, and its eigenvectors as rows.
    fn known(n: usize) -> (Vec<f32>, Vec<f32>) {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let mut v: Vec<f32> = (0..n * n).map(|_| uniform(&mut random)).collect();
        orthonormalise(&mut v, n, &mut random, &mut Team::new(2).unwrap());
        let mut c = vec![0f32; n * n];
        for (k, row) in v.chunks_exact(n).enumerate() {
            let value = 0.5f32.powi(k.min(20) as i32);
            for i in 0..n {
                for j in 0..n {
                    c[i * n + j] += value * row[i] * row[j];
                }
            }
        }
        (c, v)
    }

    #[test]
    fn factor_times_its_transpose_is_the_matrix_and_the_inverse_undoes_it() {
        for n in [13, BLOCK, 2 * BLOCK + 7] {
            factor_and_inverse(n);
        }
    }

    fn factor_and_inverse(n: usize) {
        let (c, _) = known(n);
        let mut team = Team::new(2).unwrap();
        let l = cholesky(&c, n, &mut team).unwrap();
        assert_eq!(l, cholesky(&c, n, &mut Team::new(1).unwrap()).unwrap());
        let inverse = invert_lower(&l, n, &mut team);
        for i in 0..n {
            for j in 0..n {
                let product = dot(&l[i * n..i * n + n], &l[j * n..j * n + n]);
                assert!((product - f64::from(c[i * n + j])).abs() < 1e-6);
                let one: f64 = (0..n).map(|k| inverse[i * n + k] * l[k * n + j]).sum();
                assert!(
                    (one - f64::from(u8::from(i == j))).abs() < 1e-6,
                    "{i} {j}: {one}"
                );
            }
        }
        let negative: Vec<f32> = c.iter().map(|x| -x).collect();
        assert!(cholesky(&negative, n, &mut team).is_none());
    }

    #[test]
    fn the_leading_space_holds_the_leading_eigenvectors() {
        let n = 20;
        let (c, vectors) = known(n);
        let mut products = Machine::host(1).products().unwrap();
        let basis = leading_space(&c, n, 4, 1, &mut products).unwrap();
        for (k, v) in vectors.chunks_exact(n).take(4).enumerate() {
            let inside: f32 = basis
                .chunks_exact(n)
                .map(|b| b.iter().zip(v).map(|(b, v)| b * v).sum::<f32>().powi(2))
                .sum();
            assert!(inside > 0.9999, "eigenvector {k}: {inside}");
        }
    }

    #[test]
    fn a_matrix_of_lower_rank_still_gives_a_whole_basis() {
        let mut products = Machine::host(1).products().unwrap();
        let basis = leading_space(&[0.0; 36], 6, 6, 1, &mut products).unwrap();
        for (i, a) in basis.chunks_exact(6).enumerate() {
            for (j, b) in basis.chunks_exact(6).enumerate() {
                let dot: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                assert!((dot - f32::from(u8::from(i == j))).abs() < 1e-5);
            }
        }
    }
}
