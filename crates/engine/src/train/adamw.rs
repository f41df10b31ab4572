//! AdamW: decoupled weight decay, linear warm-up, then inverse square root.

use super::arithmetic::AdamStep;
use countdown_kernels::cpu::Team;
use std::ops::Range;

/// What the optimiser is told.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct AdamW {
    /// The learning rate at the end of the warm-up.
    pub rate: f32,
    /// Decoupled weight decay.
    pub decay: f32,
    /// Steps over which the rate rises.
    pub warm_up: usize,
}

/// Decays of the moments, and what keeps the division from zero: the values of the original paper.
pub(super) const BETA1: f32 = 0.9;
pub(super) const BETA2: f32 = 0.999;
pub(super) const EPSILON: f32 = 1e-8;

/// The running moments of a vector of parameters.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Moments {
    /// Steps taken.
    pub steps: usize,
    /// Means of gradients.
    pub first: Vec<f32>,
    /// Means of their squares.
    pub second: Vec<f32>,
}

impl Moments {
    /// Nothing seen yet.
    pub(crate) fn new(parameters: usize) -> Moments {
        Moments {
            steps: 0,
            first: vec![0.0; parameters],
            second: vec![0.0; parameters],
        }
    }
}

/// Parameters that a thread updates at a time.
const PIECE: usize = 1 << 14;

struct Piece<'a> {
    start: usize,
    parameters: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl AdamW {
    /// Warm-up over a tenth of `steps` and the paper's decay of 0.01.
    pub(crate) fn new(rate: f32, steps: usize) -> AdamW {
        AdamW {
            rate,
            decay: 0.01,
            warm_up: steps.div_ceil(10),
        }
    }

    /// The learning rate of a step, counted from 1.
    pub(crate) fn rate_at(&self, step: usize) -> f32 {
        let (step, warm_up) = (step as f32, self.warm_up.max(1) as f32);
        self.rate * (step / warm_up).min((warm_up / step).sqrt())
    }

    /// What a step does, counted from 1.
    pub(crate) fn at(&self, step: usize) -> AdamStep {
        let scale = |beta: f32| (1.0 / (1.0 - f64::from(beta).powi(step as i32))) as f32;
        AdamStep {
            rate: self.rate_at(step),
            decay: self.decay,
            scales: [BETA1, BETA2].map(scale),
        }
    }
}

/// One step down the sum of `gradients`, for parameters and their moments. Only `decayed` parameters decay.
///
/// # Panics
/// If the lengths differ.
pub(super) fn step(
    team: &mut Team,
    step: AdamStep,
    [parameters, first, second]: [&mut Vec<f32>; 3],
    gradients: &[&Vec<f32>],
    decayed: Range<usize>,
) {
    let n = parameters.len();
    assert!(first.len() == n && second.len() == n && gradients.iter().all(|g| g.len() == n));
    let AdamStep {
        rate,
        decay,
        scales: [first_scale, second_scale],
    } = step;
    let mut pieces: Vec<Piece> = parameters
        .chunks_mut(PIECE)
        .zip(first.chunks_mut(PIECE))
        .zip(second.chunks_mut(PIECE))
        .enumerate()
        .map(|(i, ((parameters, first), second))| Piece {
            start: i * PIECE,
            parameters,
            first,
            second,
        })
        .collect();
    team.split(&mut pieces, 1, |_, pieces| {
        let mut sum = vec![0f32; PIECE];
        for p in pieces {
            let range = p.start..p.start + p.parameters.len();
            let sum = &mut sum[..range.len()];
            sum.fill(0.0);
            for g in gradients {
                let part = &g[range.clone()];
                sum.iter_mut().zip(part).for_each(|(s, g)| *s += g);
            }
            let factors = p.parameters.iter_mut().zip(&mut *p.first);
            for (((w, m), v), g) in factors.zip(&mut *p.second).zip(&*sum) {
                *m = BETA1 * *m + (1.0 - BETA1) * g;
                *v = BETA2 * *v + (1.0 - BETA2) * g * g;
                *w -= rate * (*m * first_scale) / ((*v * second_scale).sqrt() + EPSILON);
            }
            let from = decayed.start.clamp(range.start, range.end) - range.start;
            let to = decayed.end.clamp(range.start, range.end) - range.start;
            for w in &mut p.parameters[from..to.max(from)] {
                *w -= rate * decay * *w;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_linearly_and_falls_as_an_inverse_square_root() {
        let o = AdamW::new(1e-3, 1000);
        assert_eq!(o.warm_up, 100);
        for (step, rate) in [(1, 1e-5), (50, 5e-4), (100, 1e-3), (400, 5e-4)] {
            assert!((o.rate_at(step) - rate).abs() < 1e-9, "{step}");
        }
    }

    #[test]
    fn steps_are_those_of_the_definition_on_any_number_of_threads() {
        let n = 3 * PIECE + 5;
        let start: Vec<f32> = (0..n).map(|i| (i % 13) as f32 - 6.0).collect();
        let gradient = |step: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7 + step) % 11) as f32 - 5.0).collect()
        };
        let o = AdamW::new(0.1, 20);
        let run = |threads: usize| {
            let mut team = Team::new(threads).unwrap();
            let (mut w, mut moments) = (start.clone(), Moments::new(n));
            for step in 1..=3 {
                let half: Vec<f32> = gradient(step).iter().map(|g| 0.5 * g).collect();
                let state = [&mut w, &mut moments.first, &mut moments.second];
                super::step(&mut team, o.at(step), state, &[&half, &half], 10..n - 10);
            }
            w
        };
        let got = run(1);
        assert_eq!(got, run(3));
        for i in [0, 9, 10, PIECE, n - 11, n - 1] {
            let (mut w, mut m, mut v) = (f64::from(start[i]), 0.0, 0.0);
            for step in 1..=3 {
                let g = f64::from(gradient(step)[i]);
                m = 0.9 * m + 0.1 * g;
                v = 0.999 * v + 0.001 * g * g;
                let (b1, b2) = (
                    1.0 - 0.9f64.powi(step as i32),
                    1.0 - 0.999f64.powi(step as i32),
                );
                let rate = f64::from(o.rate_at(step));
                w -= rate * (m / b1) / ((v / b2).sqrt() + 1e-8);
                if (10..n - 10).contains(&i) {
                    w -= rate * 0.01 * w;
                }
            }
            assert!((f64::from(got[i]) - w).abs() < 1e-5, "{i}");
        }
    }
}
