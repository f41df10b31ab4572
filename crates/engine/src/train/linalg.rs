//! The little linear algebra that initialisation needs: a Cholesky factor, its inverse, and the leading eigenvectors of a
//! symmetric matrix. Matrices are row-major, `[n, n]`.

use super::work::Products;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// The lower triangular L with `L L^T = c`; `None` where `c` is not positive definite.
pub(super) fn cholesky(c: &[f32], n: usize) -> Option<Vec<f64>> {
    let mut l = vec![0f64; n * n];
    for i in 0..n {
        let (done, row) = l.split_at_mut(i * n);
        let row = &mut row[..n];
        for j in 0..i {
            let other = &done[j * n..j * n + n];
            row[j] = (f64::from(c[i * n + j]) - dot(&row[..j], &other[..j])) / other[j];
        }
        let square = f64::from(c[i * n + i]) - dot(&row[..i], &row[..i]);
        if !(square > 0.0 && square.is_finite()) {
            return None;
        }
        row[i] = square.sqrt();
    }
    Some(l)
}

/// The inverse of a lower triangular matrix.
pub(super) fn invert_lower(l: &[f64], n: usize) -> Vec<f64> {
    let mut inverse = vec![0f64; n * n];
    for i in 0..n {
        let (done, row) = inverse.split_at_mut(i * n);
        let row = &mut row[..n];
        for j in 0..i {
            let factor = l[i * n + j];
            axpy(-factor, &done[j * n..j * n + j + 1], &mut row[..=j]);
        }
        row[i] = 1.0;
        let diagonal = l[i * n + i];
        row[..=i].iter_mut().for_each(|x| *x /= diagonal);
    }
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
) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut basis: Vec<f32> = (0..rank * n).map(|_| uniform(&mut random)).collect();
    orthonormalise(&mut basis, n, &mut random);
    let mut next = vec![0.0; rank * n];
    for _ in 0..ROUNDS {
        products.times(&basis, g, n, &mut next);
        std::mem::swap(&mut basis, &mut next);
        orthonormalise(&mut basis, n, &mut random);
    }
    basis
}

fn uniform(random: &mut ChaCha8Rng) -> f32 {
    random.next_u32() as f32 / u32::MAX as f32 - 0.5
}

/// Gram-Schmidt over rows, each made orthogonal twice. A row that the ones before it span is drawn anew.
fn orthonormalise(rows: &mut [f32], n: usize, random: &mut ChaCha8Rng) {
    let mut done: Vec<f64> = Vec::with_capacity(rows.len());
    for row in rows.chunks_exact_mut(n) {
        let mut v: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
        loop {
            let before = dot(&v, &v).sqrt();
            for _ in 0..2 {
                for other in done.chunks_exact(n) {
                    axpy(-dot(other, &v), other, &mut v);
                }
            }
            let norm = dot(&v, &v).sqrt();
            if norm > 1e-6 * before && norm > 0.0 {
                v.iter_mut().for_each(|x| *x /= norm);
                break;
            }
            v.iter_mut().for_each(|x| *x = f64::from(uniform(random)));
        }
        row.iter_mut().zip(&v).for_each(|(r, x)| *r = *x as f32);
        done.extend(v);
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

    /// A positive definite matrix whose eigenvalues fall by half from one to the next, and its eigenvectors as rows.
    fn known(n: usize) -> (Vec<f32>, Vec<f32>) {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let mut v: Vec<f32> = (0..n * n).map(|_| uniform(&mut random)).collect();
        orthonormalise(&mut v, n, &mut random);
        let mut c = vec![0f32; n * n];
        for (k, row) in v.chunks_exact(n).enumerate() {
            let value = 0.5f32.powi(k as i32);
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
        let n = 13;
        let (c, _) = known(n);
        let l = cholesky(&c, n).unwrap();
        let inverse = invert_lower(&l, n);
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
        assert!(cholesky(&negative, n).is_none());
    }

    #[test]
    fn the_leading_space_holds_the_leading_eigenvectors() {
        let n = 20;
        let (c, vectors) = known(n);
        let mut products = Products::new(1).unwrap();
        let basis = leading_space(&c, n, 4, 1, &mut products);
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
        let mut products = Products::new(1).unwrap();
        let basis = leading_space(&[0.0; 36], 6, 6, 1, &mut products);
        for (i, a) in basis.chunks_exact(6).enumerate() {
            for (j, b) in basis.chunks_exact(6).enumerate() {
                let dot: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                assert!((dot - f32::from(u8::from(i == j))).abs() < 1e-5);
            }
        }
    }
}
