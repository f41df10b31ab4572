//! Scores of neurons: how much a token needs each.

use super::{
    host::sized,
    labels::{Labels, Target, top},
    machine::{Machine, Packed},
};
use crate::error::Result;
use countdown_kernels::{MatRef, cpu::Team};

/// Tokens to score at a time: enough for products to be quick, few enough for their scores to take little memory.
pub(super) const BATCH: usize = 128;

/// Scores one layer's neurons by a target.
pub(crate) struct Scorer<'a> {
    target: Target,
    /// Neurons kept a token.
    needed: usize,
    /// Norms of the rows of `down`, `[inter]`.
    norms: &'a [f32],
    /// Products of the transposed down projection, `[inter, hidden]`, for the target that takes them.
    down: Option<Packed<'a>>,
    /// `[tokens, inter]`, of the last tokens scored.
    scores: Vec<f32>,
    /// Coefficients of the neurons left out, 0 for others: `[tokens, inter]`.
    left_out: Vec<f32>,
    /// What they add to the output: `[tokens, hidden]`.
    residual: Vec<f32>,
    team: Team,
}

impl<'a> Scorer<'a> {
    /// A scorer for `needed` neurons a token of the layer with this transposed down projection, `[inter, hidden]`, the norms
    /// of whose rows are given.
    ///
    /// # Errors
    /// [`crate::Error::Machine`] where threads, kernels or a card's memory are missing.
    pub(crate) fn new(
        target: Target,
        needed: usize,
        norms: &'a [f32],
        down: MatRef<'a>,
        machine: &Machine,
    ) -> Result<Scorer<'a>> {
        let down = (target == Target::Output).then(|| machine.packed(down, BATCH));
        Ok(Scorer {
            target,
            needed,
            norms,
            down: down.transpose()?,
            scores: Vec::new(),
            left_out: Vec::new(),
            residual: Vec::new(),
            team: crate::session::team(machine.threads)?,
        })
    }

    /// Numbers that scoring by a target keeps in memory.
    pub(super) fn floats(target: Target, hidden: usize, inter: usize) -> usize {
        BATCH
            * match target {
                Target::Output => 2 * inter + hidden,
                Target::Magnitude | Target::Weighted | Target::Gate => inter,
            }
    }

    /// Labels the neurons that some tokens need.
    ///
    /// # Errors
    /// As [`Scorer::scores`].
    ///
    /// # Panics
    /// As [`Scorer::scores`].
    pub(super) fn label(&mut self, gate: &[f32], up: &[f32], labels: &mut Labels) -> Result<()> {
        self.scores(gate, up)?;
        labels.push_top(&mut self.team, &self.scores, self.needed);
        Ok(())
    }

    /// The scores of some tokens, `[tokens, inter]`, from `gate`, which is act(W_gate x), and `up`, of the same shape.
    ///
    /// # Errors
    /// [`crate::Error::Machine`] where a card fails.
    ///
    /// # Panics
    /// If `gate` and `up` are no whole number of tokens.
    pub(crate) fn scores(&mut self, gate: &[f32], up: &[f32]) -> Result<&[f32]> {
        let inter = self.norms.len();
        assert!(gate.len() == up.len() && gate.len().is_multiple_of(inter));
        sized(&mut self.scores, gate.len());
        let (target, norms) = (self.target, self.norms);
        self.team.split(&mut self.scores, inter, |at, out| {
            let rows = gate[at..].chunks_exact(inter);
            let rows = rows.zip(up[at..].chunks_exact(inter));
            for (out, (gate, up)) in out.chunks_exact_mut(inter).zip(rows) {
                let factors = gate.iter().zip(up).zip(norms);
                for (out, ((g, u), n)) in out.iter_mut().zip(factors) {
                    *out = match target {
                        Target::Magnitude => (g * u).abs(),
                        Target::Weighted | Target::Output => (g * u).abs() * n,
                        Target::Gate => g.abs(),
                    };
                }
            }
        });
        if let Some(mut down) = self.down.take() {
            self.refine(gate, up, &mut down)?;
            self.down = Some(down);
        }
        Ok(&self.scores)
    }

    /// From scores of neurons alone to scores given what else is left out.
    ///
    /// Neurons are judged all at once, each as if the others stayed as they are, and then many change. Where there are more
    /// neurons than dimensions, they undo the same residual several times over, and a full step can lose more than it
    /// gains, as in Jacobi's iteration. So it is a half: the mean of what a neuron's choice is found to gain, and of what
    /// it gains by itself.
    fn refine(&mut self, gate: &[f32], up: &[f32], down: &mut Packed<'_>) -> Result<()> {
        let (inter, hidden) = (down.rows(), down.cols());
        self.left_out.clear();
        self.left_out
            .extend(gate.iter().zip(up).map(|(g, u)| g * u));
        let (needed, scores) = (self.needed, &self.scores);
        self.team.split(&mut self.left_out, inter, |at, left_out| {
            let mut order = Vec::new();
            let rows = left_out.chunks_exact_mut(inter);
            for (left_out, scores) in rows.zip(scores[at..].chunks_exact(inter)) {
                top(scores, needed, &mut order, |i| left_out[i] = 0.0);
            }
        });
        let residual = sized(&mut self.residual, gate.len() / inter * hidden);
        down.times(&self.left_out, residual)?;
        down.times_transposed(residual, &mut self.scores)?;
        let factors = gate.iter().zip(up).zip(self.norms.iter().cycle());
        let out = self.scores.iter_mut().zip(&self.left_out);
        for ((out, left_out), ((g, u), n)) in out.zip(factors) {
            let kept = *left_out == 0.0;
            let alone = (g * u * n).powi(2) * if kept { 1.0 } else { -1.0 };
            *out = 0.5 * (growth(g * u, *out, alone) + alone);
        }
        Ok(())
    }
}

/// By how much the square of the residual, which is what the neurons left out add to the output, is larger without a neuron
/// than with it, given the others. `s` is its coefficient, `along` the product of its column of down with the residual as it
/// is, `alone` the square of what it adds by itself, negative where it is part of the residual already.
fn growth(s: f32, along: f32, alone: f32) -> f32 {
    2.0 * s * along + alone
}

#[cfg(test)]
mod tests {
    use super::*;
    use countdown_kernels::DType;
    use rand_chacha::{
        ChaCha8Rng,
        rand_core::{RngCore, SeedableRng},
    };

    /// Numbers with a normal distribution, nearly.
    fn normal(seed: u64, n: usize) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut uniform = || random.next_u32() as f32 / 2f32.powi(32);
        (0..n)
            .map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0)
            .collect()
    }

    /// A transposed down projection, and the norms of its rows.
    struct Layer {
        down: Vec<f32>,
        hidden: usize,
        norms: Vec<f32>,
    }

    impl Layer {
        fn new(inter: usize, hidden: usize) -> Layer {
            let down = normal(1, inter * hidden);
            let norm = |row: &[f32]| row.iter().map(|w| w * w).sum::<f32>().sqrt();
            Layer {
                norms: down.chunks_exact(hidden).map(norm).collect(),
                down,
                hidden,
            }
        }

        fn scorer(&self, target: Target, needed: usize) -> Scorer<'_> {
            let bytes = bytemuck::cast_slice(&self.down);
            let down = MatRef::new(DType::F32, self.norms.len(), self.hidden, bytes).unwrap();
            Scorer::new(target, needed, &self.norms, down, &Machine::host(1)).unwrap()
        }

        /// The square of what the output loses.
        fn lost(&self, s: &[f32], kept: impl Fn(usize) -> bool) -> f64 {
            let mut sum = vec![0.0; self.hidden];
            for (i, row) in self.down.chunks_exact(self.hidden).enumerate() {
                if !kept(i) {
                    for (sum, w) in sum.iter_mut().zip(row) {
                        *sum += f64::from(s[i]) * f64::from(*w);
                    }
                }
            }
            sum.iter().map(|x| x * x).sum()
        }
    }

    /// Coefficients' factors of some tokens, `[tokens, inter]` each.
    fn factors(tokens: usize, inter: usize) -> [Vec<f32>; 2] {
        [2, 3].map(|seed| normal(seed, tokens * inter))
    }

    #[test]
    fn targets_score_what_they_say() {
        let (gate, up) = ([2.0, -0.5], [-1.0, 3.0]);
        let layer = Layer {
            down: vec![1.0, 10.0],
            hidden: 1,
            norms: vec![1.0, 10.0],
        };
        for (target, scores) in [
            (Target::Magnitude, [2.0, 1.5]),
            (Target::Weighted, [2.0, 15.0]),
            (Target::Gate, [2.0, 0.5]),
        ] {
            assert_eq!(layer.scorer(target, 1).scores(&gate, &up).unwrap(), scores);
        }
    }

    #[test]
    fn output_scores_are_what_every_choice_gains_by_brute_force() {
        let (tokens, inter, hidden, needed) = (7, 13, 5, 4);
        let layer = Layer::new(inter, hidden);
        let [gate, up] = factors(tokens, inter);
        let mut scorer = layer.scorer(Target::Output, needed);
        let scores = scorer.scores(&gate, &up).unwrap();
        for t in 0..tokens {
            let row = t * inter..(t + 1) * inter;
            let factors = gate[row.clone()].iter().zip(&up[row.clone()]);
            let s: Vec<f32> = factors.map(|(g, u)| g * u).collect();
            let alone = |i: usize| f64::from(s[i] * layer.norms[i]).powi(2);
            let mut order: Vec<usize> = (0..inter).collect();
            order.sort_by(|a, b| alone(*b).total_cmp(&alone(*a)));
            let kept = |i: usize| order[..needed].contains(&i);
            for (i, score) in scores[row].iter().enumerate() {
                let without = layer.lost(&s, |j| kept(j) && j != i);
                let with = layer.lost(&s, |j| kept(j) || j == i);
                let half = if kept(i) { alone(i) } else { -alone(i) };
                let expected = ((without - with) + half) / 2.0;
                assert!(
                    (f64::from(*score) - expected).abs() < 1e-4 * (1.0 + expected.abs()),
                    "token {t}, neuron {i}: {score} for {expected}"
                );
            }
        }
    }

    #[test]
    fn labels_by_output_lose_less_of_the_output_than_those_of_neurons_alone() {
        let tokens = 60;
        for (inter, hidden) in [(96, 96), (96, 36), (192, 36)] {
            let layer = Layer::new(inter, hidden);
            let [gate, up] = factors(tokens, inter);
            for sparsity in [0.5, 0.7, 0.9] {
                let needed = super::super::labels::needed(inter, sparsity);
                let lost = [Target::Weighted, Target::Output].map(|target| {
                    let mut scorer = layer.scorer(target, needed);
                    let scores = scorer.scores(&gate, &up).unwrap();
                    let mut labels = Labels::new(inter);
                    labels.push_top(&mut Team::new(1).unwrap(), scores, needed);
                    let token = |t: usize| {
                        let row = t * inter..(t + 1) * inter;
                        let factors = gate[row.clone()].iter().zip(&up[row]);
                        let s: Vec<f32> = factors.map(|(g, u)| g * u).collect();
                        layer.lost(&s, |i| labels.get(t, i))
                    };
                    (0..tokens).map(token).sum::<f64>()
                });
                assert!(
                    lost[1] < 0.99 * lost[0],
                    "{inter} neurons, {hidden} dimensions, {sparsity}: {lost:?}"
                );
            }
        }
    }
}
