//! What all tests on a card need.

use countdown_kernels::cuda::Cuda;

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
