use super::*;
use crate::train::{
    arithmetic::{Labelled, Work},
    host::Host,
    labels::Labels,
    machine::Machine,
    students::{Gradient, Shard},
};
use countdown_kernels::cpu::Act;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

const HIDDEN: usize = 16;
const INTER: usize = 40;
const TOKENS: usize = 600;

/// Roughly normal numbers.
fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = || random.next_u32() as f32 / u32::MAX as f32 - 0.5;
    (0..n)
        .map(|_| (0..12).map(|_| uniform()).sum::<f32>())
        .collect()
}

/// Labels that depend on three directions of the inputs.
struct Toy {
    x: Vec<f32>,
    needs: Vec<f32>,
    words: Vec<u32>,
    frequencies: Vec<f32>,
}

fn toy() -> Toy {
    let (x, a, b) = (
        normal(TOKENS * HIDDEN, 1),
        normal(3 * HIDDEN, 2),
        normal(3 * INTER, 3),
    );
    let mut products = Machine::host(1).products().unwrap();
    let (mut z, mut scores) = (vec![0.0; TOKENS * 3], vec![0.0; TOKENS * INTER]);
    let host = products.host();
    host.product_transposed(&x, &a, HIDDEN, &mut z);
    host.product(&z, &b, 3, &mut scores);
    let mut labels = Labels::new(INTER);
    labels.push_top(&mut host.team, &scores, 10);
    let needs = (0..TOKENS * INTER)
        .map(|i| f32::from(u8::from(labels.get(i / INTER, i % INTER))))
        .collect();
    Toy {
        x,
        needs,
        words: (0..TOKENS).flat_map(|t| labels.row(t).to_vec()).collect(),
        frequencies: labels.frequencies(),
    }
}

impl Toy {
    fn sample(&self) -> Sample<'_> {
        Sample {
            x: &self.x,
            needs: &self.needs,
            frequencies: &self.frequencies,
        }
    }
    fn loss(&self, student: &dyn Gradient<Host>, parameters: &[f32]) -> f64 {
        let shard = Shard {
            x: &self.x,
            labelled: Labelled {
                labels: &self.words,
                tokens: TOKENS,
                inter: INTER,
                scale: 1.0,
            },
            constants: &student.constants().to_vec(),
        };
        let mut gradient = vec![0.0; parameters.len()];
        let mut work = Work::new(Host::new(1).unwrap()).unwrap();
        let loss = student.gradient(&parameters.to_vec(), &shard, &mut work, &mut gradient);
        loss.unwrap() / (TOKENS * INTER) as f64
    }
    /// The loss of knowing frequencies alone.
    fn chance(&self) -> f64 {
        let entropy = |p: &f32| -f64::from(p * p.ln() + (1.0 - p) * (1.0 - p).ln());
        self.frequencies.iter().map(entropy).sum::<f64>() / INTER as f64
    }
}

#[test]
fn reduced_rank_regression_finds_the_directions_that_decide() {
    let toy = toy();
    let mut products = Machine::host(2).products().unwrap();
    let mut losses = Vec::new();
    for rank in [1, 3, 8] {
        let student = LowRank {
            hidden: HIDDEN,
            inter: INTER,
            rank,
        };
        let parameters = low_rank(&student, &toy.sample(), 1, &mut products).unwrap();
        losses.push(toy.loss(&student, &parameters));
    }
    assert!(
        losses[0] < 0.95 * toy.chance(),
        "{losses:?}, chance {}",
        toy.chance()
    );
    assert!(losses[1] < 0.8 * losses[0], "{losses:?}");
    // There is nothing to find beyond three.
    assert!((losses[2] / losses[1] - 1.0).abs() < 0.05, "{losses:?}");
}

#[test]
fn the_ternary_start_beats_frequencies_alone() {
    let toy = toy();
    let student = Ternary {
        hidden: HIDDEN,
        inter: INTER,
    };
    let mut products = Machine::host(1).products().unwrap();
    let parameters = ternary(&student, &toy.sample(), &mut products).unwrap();
    let loss = toy.loss(&student, &parameters);
    assert!(loss < 0.9 * toy.chance(), "{loss}, chance {}", toy.chance());
}

#[test]
fn a_product_of_full_rank_is_the_ffn_itself() {
    let toy = toy();
    let (gate, up) = (normal(INTER * HIDDEN, 5), normal(INTER * HIDDEN, 6));
    // Inputs as a model gives them: neither centred nor of one scale.
    let standard = Standard {
        mean: normal(HIDDEN, 7),
        factor: normal(HIDDEN, 8).iter().map(|f| f.abs() + 0.3).collect(),
    };
    let mut student = Product {
        hidden: HIDDEN,
        inter: INTER,
        rank: HIDDEN,
        act: Act::Silu,
        weight: vec![1.0; INTER],
        floor: 0.0,
    };
    let mut products = Machine::host(1).products().unwrap();
    let weights = GateAndUp {
        gate: &gate,
        up: &up,
    };
    let mut parameters = product(
        &mut student,
        &weights,
        &standard,
        &toy.sample(),
        0.7,
        1,
        &mut products,
    )
    .unwrap();
    assert!(student.floor > 0.0);
    // Raw inputs, and A folded so as to take them.
    let raw: Vec<f32> = (0..4 * HIDDEN)
        .map(|i| toy.x[i] / standard.factor[i % HIDDEN] + standard.mean[i % HIDDEN])
        .collect();
    let constant = standard.fold(&mut parameters[..HIDDEN * HIDDEN]);
    let at = student.parts(&parameters);
    for t in 0..4 {
        let x = &raw[t * HIDDEN..(t + 1) * HIDDEN];
        let dot = |w: &[f32]| -> f32 { w.iter().zip(x).map(|(w, x)| w * x).sum() };
        let z: Vec<f32> = (0..HIDDEN)
            .map(|r| dot(&at.a[r * HIDDEN..(r + 1) * HIDDEN]) + constant[r])
            .collect();
        for i in 0..INTER {
            let out = |b: &[f32], bias: &[f32]| -> f32 {
                (0..HIDDEN).map(|r| z[r] * b[r * INTER + i]).sum::<f32>() + bias[i]
            };
            let exact = dot(&gate[i * HIDDEN..(i + 1) * HIDDEN]);
            assert!((out(at.gate, at.gate_bias) - exact).abs() < 1e-3 * (1.0 + exact.abs()));
            let exact = dot(&up[i * HIDDEN..(i + 1) * HIDDEN]);
            assert!((out(at.up, at.up_bias) - exact).abs() < 1e-3 * (1.0 + exact.abs()));
        }
    }
}
