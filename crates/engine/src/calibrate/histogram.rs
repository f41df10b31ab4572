//! Counting scores in bins of equal ratio, so that any quantile can be read off afterwards in bounded memory.

/// Bits of a float that a bin leaves out: what remains is 128 bins to a factor of two.
const BIN_SHIFT: u32 = 16;

/// How often scores fell into each bin, and what dropping them would cost.
pub(super) struct Histogram {
    bins: Vec<Bin>,
    total: u64,
}

#[derive(Clone, Copy, Default)]
struct Bin {
    count: u32,
    cost: f32,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            bins: vec![Bin::default(); 1 << (32 - BIN_SHIFT)],
            total: 0,
        }
    }
}

/// The bits of a float, arranged so that they are ordered as the floats are.
fn ordered(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    }
}

/// The float that `ordered` maps to `key`.
fn float(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 {
        key & !(1 << 31)
    } else {
        !key
    })
}

impl Histogram {
    #[inline]
    pub(super) fn add(&mut self, score: f32, cost: f32) {
        // Zeros of either sign are one score.
        let bin = &mut self.bins[(ordered(score + 0.0) >> BIN_SHIFT) as usize];
        bin.count += 1;
        bin.cost += cost;
        self.total += 1;
    }

    /// Adds what another has counted, and leaves it empty.
    pub(super) fn take(&mut self, other: &mut Histogram) {
        self.total += std::mem::take(&mut other.total);
        for (bin, part) in self.bins.iter_mut().zip(&mut other.bins) {
            bin.count += part.count;
            bin.cost += part.cost;
            *part = Bin::default();
        }
    }

    /// The value that a share `q` of all scores does not exceed, linear within a bin; below every score for q = 0.
    pub(super) fn quantile(&self, q: f64) -> f32 {
        let wanted = q * self.total as f64;
        if wanted <= 0.0 {
            return f32::NEG_INFINITY;
        }
        let mut below = 0.0;
        for (bin, b) in (0u32..).zip(&self.bins) {
            let n = f64::from(b.count);
            if n > 0.0 && below + n >= wanted {
                let low = f64::from(float(bin << BIN_SHIFT));
                let high = f64::from(float((bin << BIN_SHIFT) | ((1 << BIN_SHIFT) - 1)));
                return (low + (high - low) * (wanted - below) / n) as f32;
            }
            below += n;
        }
        f32::MAX
    }

    /// For every share of `0, 1 / steps, ..., 1` of scores dropped, lowest first, the share of all cost that goes with them.
    pub(super) fn costs(&self, steps: usize) -> Vec<f64> {
        let all: f64 = self.bins.iter().map(|b| f64::from(b.cost)).sum();
        let mut costs = Vec::with_capacity(steps + 1);
        let (mut count, mut cost) = (0.0, 0.0);
        for b in &self.bins {
            let n = f64::from(b.count);
            while costs.len() <= steps {
                let wanted = costs.len() as f64 / steps as f64 * self.total as f64;
                if wanted > count + n || n == 0.0 {
                    break;
                }
                let part = (wanted - count) / n;
                costs.push((cost + part * f64::from(b.cost)) / all.max(f64::MIN_POSITIVE));
            }
            count += n;
            cost += f64::from(b.cost);
        }
        costs.resize(steps + 1, 1.0);
        costs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_within_a_bin_of_the_exact_one_whatever_the_signs() {
        for sign in [1.0, -1.0] {
            let mut h = Histogram::default();
            let mut values: Vec<f32> = (1..=10_000)
                .map(|i| sign * (i as f32).powi(3) * 1e-9)
                .collect();
            values.sort_by(f32::total_cmp);
            values.iter().for_each(|&v| h.add(v, 1.0));
            for q in [0.1, 0.5, 0.7, 0.9, 0.999] {
                let exact = values[(q * 10_000.0) as usize - 1];
                let got = h.quantile(q);
                assert!((got / exact - 1.0).abs() < 0.01, "{q}: {got} for {exact}");
                let dropped = values.iter().filter(|v| **v <= got).count();
                assert!((dropped as f64 / 10_000.0 - q).abs() < 0.002);
            }
        }
    }

    #[test]
    fn a_target_of_zero_keeps_scores_of_zero() {
        let mut h = Histogram::default();
        (0..10).for_each(|_| h.add(0.0, 0.0));
        (0..10).for_each(|_| h.add(-0.0, 0.0));
        assert!(h.quantile(0.0) < 0.0);
        assert!(h.quantile(0.5) >= 0.0);
    }

    #[test]
    fn costs_add_up_from_the_lowest_score() {
        let mut h = Histogram::default();
        for (score, cost) in [(4.0, 4.0), (1.0, 1.0), (3.0, 3.0), (2.0, 2.0)] {
            h.add(score, cost);
        }
        assert_eq!(h.costs(4), [0.0, 0.1, 0.3, 0.6, 1.0]);
        assert_eq!(h.costs(8)[1], 0.05);
    }
}
