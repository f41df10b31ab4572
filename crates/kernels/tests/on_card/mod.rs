//! What all tests on a card need.

#![allow(dead_code)] // each test file uses its part

use countdown_kernels::{DType, cuda::Cuda, reference};

/// Half the distance of neighbouring floats from 1 on.
pub(crate) const U: f64 = 1.0 / (1 << 24) as f64;

/// The first card; says so where there is none that runs kernels.
pub(crate) fn card() -> Option<Cuda> {
    match Cuda::open(0, None) {
        Ok(cuda) => Some(cuda),
        Err(e) => {
            eprintln!("SKIPPED: {e}");
            None
        }
    }
}

/// Numbers in -1..1 in no order that matters.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn many(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.next() * scale).collect()
    }
}

/// The product of a row of weights with what its type makes of x, and what its rounding is in units of: the sum of absolute terms; where levels and offsets are multiplied apart, that
/// of neither being more than three times a block's largest weight.
pub(crate) fn dot(dtype: DType, row: &[f64], x: &[f32]) -> (f64, f64) {
    let x = reference::activations(x, dtype);
    let terms = row.iter().zip(&x).map(|(w, x)| w * x);
    let magnitude = match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => row
            .chunks_exact(32)
            .zip(x.chunks_exact(32))
            .map(|(w, x)| {
                let largest = w.iter().fold(0f64, |m, w| m.max(w.abs()));
                3.0 * largest * x.iter().map(|x| x.abs()).sum::<f64>()
            })
            .sum(),
        _ => terms.clone().map(f64::abs).sum(),
    };
    (terms.sum(), magnitude)
}
