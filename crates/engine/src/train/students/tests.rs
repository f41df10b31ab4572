use super::*;
use crate::train::labels::{Labels, needed};
use countdown_kernels::cpu::{Act, Team};

const HIDDEN: usize = 6;
const INTER: usize = 37;
const TOKENS: usize = 9;

/// Numbers between -1 and 1 in no particular order.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mix = |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 7).wrapping_mul(40_503);
    (0..n as u32)
        .map(|i| (mix(i) % 20_001) as f32 / 10_000.0 - 1.0)
        .collect()
}

fn labels() -> Vec<u32> {
    let mut labels = Labels::new(INTER);
    let (mut team, scores) = (Team::new(1).unwrap(), numbers(TOKENS * INTER, 5));
    labels.push_top(&mut team, &scores, needed(INTER, 0.7));
    (0..TOKENS).flat_map(|t| labels.row(t).to_vec()).collect()
}

/// The gradient of a student on the test's tokens and their labels, on the host; and the loss.
fn gradient(
    student: &dyn Gradient<Host>,
    parameters: &[f32],
    (x, labels): (&Vec<f32>, &Vec<u32>),
    scale: f32,
) -> (Vec<f32>, f64) {
    let shard = Shard {
        x,
        labelled: Labelled {
            labels,
            tokens: TOKENS,
            inter: INTER,
            scale,
        },
        constants: &student.constants().to_vec(),
    };
    let mut work = Work::new(Host::new(1).unwrap()).unwrap();
    let mut gradient = vec![f32::NAN; student.parameters()];
    let loss = student.gradient(&parameters.to_vec(), &shard, &mut work, &mut gradient);
    (gradient, loss.unwrap())
}

/// Holds the gradient against differences along each of its axes and along random directions.
fn check(student: &dyn Gradient<Host>, parameters: &[f32], only: Range<usize>) {
    let (x, labels) = (numbers(TOKENS * HIDDEN, 1), labels());
    let elements = (TOKENS * INTER) as f32;
    let of = |at: &[f32]| gradient(student, at, (&x, &labels), 1.0 / elements);
    let (gradient, _) = of(parameters);
    let loss = |at: &[f32]| of(at).1 / f64::from(elements);
    let largest = gradient.iter().fold(0f32, |m, g| m.max(g.abs()));
    assert!(largest > 1e-4, "the test's point is flat");
    for i in only {
        let h = 5e-3;
        let mut moved = parameters.to_vec();
        moved[i] += h;
        let above = loss(&moved);
        moved[i] = parameters[i] - h;
        let difference = (above - loss(&moved)) / (2.0 * f64::from(h));
        assert!(
            (difference - f64::from(gradient[i])).abs() < 0.01 * f64::from(largest),
            "parameter {i}: {} for {difference}",
            gradient[i]
        );
    }
}

#[test]
fn low_rank_gradients_are_finite_differences() {
    let student = LowRank {
        hidden: HIDDEN,
        inter: INTER,
        rank: 3,
    };
    let n = student.parameters();
    check(&student, &numbers(n, 2), 0..n);
}

#[test]
fn product_gradients_are_finite_differences() {
    for act in [Act::Silu, Act::GeluTanh] {
        let student = Product {
            hidden: HIDDEN,
            inter: INTER,
            rank: 3,
            act,
            weight: numbers(INTER, 8).iter().map(|w| w.abs() + 0.5).collect(),
            floor: 0.05,
        };
        let n = student.parameters();
        check(&student, &numbers(n, 2), 0..n);
    }
}

#[test]
fn ternary_gradients_are_those_of_the_rounded_weights() {
    // Of the biases by differences; of the weights against low rank with the same matrix, where A is the identity.
    let student = Ternary {
        hidden: HIDDEN,
        inter: INTER,
    };
    let parameters = numbers(student.parameters(), 2);
    let weights = HIDDEN * INTER;
    check(&student, &parameters, weights..student.parameters());

    let full = LowRank {
        hidden: HIDDEN,
        inter: INTER,
        rank: HIDDEN,
    };
    let mut same = vec![0.0; HIDDEN * HIDDEN];
    (0..HIDDEN).for_each(|i| same[i * HIDDEN + i] = 1.0);
    let (w, bias) = student.parts(&parameters);
    let mut rounded = Vec::new();
    Ternary::rounded(w, Ternary::scale(w), &mut rounded);
    let mut distinct: Vec<f32> = rounded.iter().map(|w| w.abs()).collect();
    distinct.sort_by(f32::total_cmp);
    distinct.dedup();
    assert_eq!(distinct, [0.0, Ternary::scale(w)]);
    same.extend(rounded);
    same.extend_from_slice(bias);

    let (x, labels) = (numbers(TOKENS * HIDDEN, 1), labels());
    let (gradient, _) = gradient(&student, &parameters, (&x, &labels), 1.0);
    let (expected, _) = self::gradient(&full, &same, (&x, &labels), 1.0);
    for (a, b) in gradient.iter().zip(&expected[HIDDEN * HIDDEN..]) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn the_products_score_is_the_ffns_own_at_full_rank() {
    let student = Product {
        hidden: HIDDEN,
        inter: INTER,
        rank: HIDDEN,
        act: Act::Silu,
        weight: vec![2.0; INTER],
        floor: 0.1,
    };
    let mut parameters = numbers(student.parameters(), 3);
    parameters[..HIDDEN * HIDDEN].fill(0.0);
    (0..HIDDEN).for_each(|i| parameters[i * HIDDEN + i] = 1.0);
    let x = numbers(2 * HIDDEN, 4);
    let mut out = vec![0.0; 2 * INTER];
    student.scores(&parameters, &x, &mut Host::new(1).unwrap(), &mut out);
    let at = student.parts(&parameters);
    for t in 0..2 {
        for i in 0..INTER {
            let dot = |w: &[f32]| -> f32 {
                (0..HIDDEN)
                    .map(|j| x[t * HIDDEN + j] * w[j * INTER + i])
                    .sum()
            };
            let g = dot(at.gate) + at.gate_bias[i];
            let s = g / (1.0 + (-g).exp()) * (dot(at.up) + at.up_bias[i]);
            assert!((out[t * INTER + i] - 2.0 * s.abs()).abs() < 1e-5);
        }
    }
}
