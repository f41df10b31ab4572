//! How fast this machine's memory is read: the limit of decoding.

use crate::failure::Result;
use countdown::{kernels::Bytes, session::team};
use std::{hint::black_box, time::Instant};

/// More than caches hold.
const BYTES: usize = 256 << 20;
/// Of which the best counts: whatever else runs only slows reading down.
const ROUNDS: usize = 7;
/// Streams that a thread reads side by side, as the kernels do.
const STREAMS: usize = 4;

/// Memory to be read.
pub(crate) struct Probe(Bytes);

impl Probe {
    pub(crate) fn new() -> Probe {
        // Not zero: pages of zeros may all be the same one.
        Probe(vec![1u8; BYTES].into())
    }

    /// GB/s (10^9 bytes a second) that so many threads read together.
    pub(crate) fn gb_s(&self, threads: usize) -> Result<f64> {
        let mut team = team(threads)?;
        let part = BYTES / threads;
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            let started = Instant::now();
            team.for_each(threads, |i| {
                black_box(sum(&self.0[i * part..(i + 1) * part]));
            });
            best = best.min(started.elapsed().as_secs_f64());
        }
        Ok((part * threads) as f64 / best / 1e9)
    }
}

/// The sum of all words. Two words of each stream at a time, so that adding is never the limit.
fn sum(bytes: &[u8]) -> u64 {
    const STEP: usize = 32;
    let length = bytes.len() / STREAMS / STEP;
    let streams: [&[[u8; STEP]]; STREAMS] =
        std::array::from_fn(|s| &bytes.as_chunks().0[s * length..(s + 1) * length]);
    let mut sums = [[0u64; STEP / 8]; STREAMS];
    for i in 0..length {
        for (sums, stream) in sums.iter_mut().zip(streams) {
            for (sum, word) in sums.iter_mut().zip(stream[i].as_chunks().0) {
                *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
            }
        }
    }
    sums.as_flattened()
        .iter()
        .fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_read() {
        let mut bytes = vec![0u8; 4096];
        for at in [0, 1023, 1024, 3000, 4095] {
            bytes[at] = 1;
            assert_ne!(sum(&bytes), 0, "{at}");
            bytes[at] = 0;
        }
        assert_eq!(sum(&bytes), 0);
    }
}
