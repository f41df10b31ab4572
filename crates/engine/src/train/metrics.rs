//! How good a predictor is on tokens that it was not trained on.

use super::{labels::bit, machine::Packed};
use crate::error::Result;

/// The value that a share `q` of `values` does not exceed, which reorders them; below all for q = 0.
pub(super) fn quantile(values: &mut [f32], q: f64) -> f32 {
    let k = (values.len() as f64 * q) as usize;
    if k == 0 {
        return f32::NEG_INFINITY;
    }
    *values.select_nth_unstable_by(k - 1, f32::total_cmp).1
}

/// Quality of one layer's selection on held-out tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Quality {
    /// The share of neurons skipped.
    pub sparsity: f64,
    /// Of the neurons kept, the share that is labelled.
    pub precision: f64,
    /// Of the neurons labelled, the share that is kept.
    pub recall: f64,
    /// The share of the sum of |s| that the neurons kept have.
    pub mass: f64,
    /// ||y - y_kept|| / ||y||, over all tokens.
    pub error: f64,
}

/// Sums over tokens, of which [`Quality`] is made.
#[derive(Clone, Debug, Default)]
pub(super) struct QualitySums {
    neurons: f64,
    kept: f64,
    labelled: f64,
    hits: f64,
    mass: f64,
    mass_kept: f64,
    squares: f64,
    squares_lost: f64,
}

impl QualitySums {
    /// Adds tokens: what was kept `[tokens, inter]` (by `keep(token, neuron)`), their labels, their exact coefficients
    /// `[tokens, inter]`, and products of the transposed down projection `[inter, hidden]`.
    ///
    /// # Errors
    /// What a card says.
    ///
    /// # Panics
    /// If lengths do not fit.
    pub(super) fn add(
        &mut self,
        keep: impl Fn(usize, usize) -> bool,
        labels: &[u32],
        coefficients: &[f32],
        down: &mut Packed<'_>,
    ) -> Result<()> {
        let inter = down.rows();
        let tokens = coefficients.len() / inter;
        let words = labels.len() / tokens;
        let mut lost = coefficients.to_vec();
        for (t, (s, lost)) in coefficients
            .chunks_exact(inter)
            .zip(lost.chunks_exact_mut(inter))
            .enumerate()
        {
            let labels = &labels[t * words..(t + 1) * words];
            let mut counts = [0u32; 3];
            let (mut mass, mut mass_kept) = (0f32, 0f32);
            for i in 0..inter {
                let (kept, labelled) = (keep(t, i), bit(labels, i));
                counts[0] += u32::from(kept);
                counts[1] += u32::from(labelled);
                counts[2] += u32::from(kept && labelled);
                mass += s[i].abs();
                if kept {
                    mass_kept += s[i].abs();
                    lost[i] = 0.0;
                }
            }
            self.kept += f64::from(counts[0]);
            self.labelled += f64::from(counts[1]);
            self.hits += f64::from(counts[2]);
            self.mass += f64::from(mass);
            self.mass_kept += f64::from(mass_kept);
        }
        self.neurons += coefficients.len() as f64;
        let mut y = vec![0.0; tokens * down.cols()];
        let squares = |y: &[f32]| y.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        down.times(coefficients, &mut y)?;
        self.squares += squares(&y);
        down.times(&lost, &mut y)?;
        self.squares_lost += squares(&y);
        Ok(())
    }

    /// What the sums come to; ratios of nothing are 0.
    pub(super) fn quality(&self) -> Quality {
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        Quality {
            sparsity: 1.0 - ratio(self.kept, self.neurons),
            precision: ratio(self.hits, self.kept),
            recall: ratio(self.hits, self.labelled),
            mass: ratio(self.mass_kept, self.mass),
            error: ratio(self.squares_lost, self.squares).sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::machine::Machine;
    use countdown_kernels::{DType, MatRef};

    #[test]
    fn sums_come_to_what_a_hand_counts() {
        // Two tokens of four neurons, whose columns of down are the four axes.
        let mut identity = [0f32; 16];
        (0..4).for_each(|i| identity[5 * i] = 1.0);
        let down = MatRef::new(DType::F32, 4, 4, bytemuck::cast_slice(&identity)).unwrap();
        let s = [3.0, -4.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0];
        let labels = [0b0011, 0b1100];
        let kept = [[true, false, true, false], [false, false, true, true]];
        let mut sums = QualitySums::default();
        let mut down = Machine::host(1).packed(down, 2).unwrap();
        sums.add(|t, i| kept[t][i], &labels, &s, &mut down).unwrap();
        let q = sums.quality();
        assert_eq!(q.sparsity, 0.5);
        assert_eq!(q.precision, 0.75);
        assert_eq!(q.recall, 0.75);
        assert_eq!(q.mass, 0.6);
        assert!((q.error - (16.0f64 / 30.0).sqrt()).abs() < 1e-9);
    }

    #[test]
    fn a_quantile_leaves_its_share_below() {
        let mut v: Vec<f32> = (0..100).map(|i| ((i * 37) % 100) as f32).collect();
        let cut = quantile(&mut v, 0.7);
        assert_eq!(v.iter().filter(|x| **x > cut).count(), 30);
        assert!(quantile(&mut v, 0.0) < 0.0);
    }
}
