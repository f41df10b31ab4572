//! The kernels of training against their definition in double precision. Without a card that runs them, tests say so and check nothing.

mod on_card;

use countdown_kernels::{
    cpu::Act,
    cuda::{
        Cuda,
        train::{Labelled, ProductLoss, Step, TrainKernels, Transposed},
    },
};
use on_card::{Noise, U, card};

/// Sizes that are no multiple of a block's threads, nor of a word of labels, nor of a run of tokens.
const TOKENS: usize = 131;
const INTER: usize = 301;

/// Kernels, and noise for their operands.
fn ready() -> Option<(Cuda, TrainKernels, Noise)> {
    let cuda = card()?;
    let kernels = TrainKernels::new(&cuda).unwrap();
    Some((cuda, kernels, Noise(7)))
}

fn close(got: f32, expected: f64, allowed: f64, what: &str) {
    let off = (f64::from(got) - expected).abs();
    assert!(
        off <= allowed,
        "{what}: {got} for {expected}, {off} > {allowed}"
    );
}

/// Words of labels `[TOKENS, INTER]`, and each bit.
fn labels() -> (Vec<u32>, impl Fn(usize, usize) -> bool) {
    let is_needed = |t: usize, i: usize| (t * 7 + i * i) % 10 < 3;
    let mut words = Vec::new();
    for t in 0..TOKENS {
        let mut row = vec![0u32; INTER.div_ceil(32)];
        let needed = (0..INTER).filter(|&i| is_needed(t, i));
        needed.for_each(|i| row[i / 32] |= 1 << (i % 32));
        words.extend(row);
    }
    (words, is_needed)
}

/// Loss of a logit with a label, and the slope.
fn cross_entropy(z: f64, y: bool) -> (f64, f64) {
    let y = f64::from(u8::from(y));
    (
        z.max(0.0) - y * z + (-z.abs()).exp().ln_1p(),
        1.0 / (1.0 + (-z).exp()) - y,
    )
}

fn act(act: Act, x: f64) -> f64 {
    match act {
        Act::Silu => x / (1.0 + (-x).exp()),
        Act::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        }
    }
}

#[test]
fn products_multiply_parts_that_lie_either_way() {
    let Some((cuda, kernels, mut noise)) = ready() else {
        return;
    };
    let [n, k, m] = [5, 67, 9];
    let (x, w) = (noise.many(3 + n * k, 1.0), noise.many(2 + k * m, 1.0));
    let (dx, dw) = (cuda.upload(&x).unwrap(), cuda.upload(&w).unwrap());
    for transposed in [Transposed::Neither, Transposed::Left, Transposed::Right] {
        let mut out = cuda.upload(&vec![7.0; n * m + 4]).unwrap();
        kernels
            .multiply(
                &cuda,
                transposed,
                ((&dx, 3), (&dw, 2)),
                [n, k, m],
                (&mut out, 1),
            )
            .unwrap();
        let out = cuda.download(&out).unwrap();
        assert!(
            out[0] == 7.0 && out[n * m + 1..] == [7.0; 3],
            "beside the product"
        );
        for i in 0..n * m {
            let (row, col) = (i / m, i % m);
            let term = |j: usize| {
                let x = match transposed {
                    Transposed::Left => x[3 + j * n + row],
                    _ => x[3 + row * k + j],
                };
                let w = match transposed {
                    Transposed::Right => w[2 + col * k + j],
                    _ => w[2 + j * m + col],
                };
                f64::from(x) * f64::from(w)
            };
            let exact: f64 = (0..k).map(term).sum();
            let absolute: f64 = (0..k).map(|j| term(j).abs()).sum();
            close(out[1 + i], exact, (k + 1) as f64 * U * absolute, "product");
        }
    }
}

#[test]
fn logits_become_slopes_and_losses_add_up() {
    let Some((cuda, kernels, mut noise)) = ready() else {
        return;
    };
    let (logits, bias) = (noise.many(TOKENS * INTER, 6.0), noise.many(INTER, 2.0));
    let (words, is_needed) = labels();
    let scale = 0.25;
    let mut device = cuda.upload(&logits).unwrap();
    let mut gradient = cuda.upload(&vec![7.0; INTER + 5]).unwrap();
    let to = Labelled {
        tokens: TOKENS,
        inter: INTER,
        labels: &cuda.upload(&words).unwrap(),
        scale,
    };
    let bias_on_card = cuda.upload(&bias).unwrap();
    let loss = kernels
        .logit_loss(
            &cuda,
            &mut device,
            (&bias_on_card, 0),
            to,
            (&mut gradient, 2),
        )
        .unwrap();
    let (slopes, gradient) = (
        cuda.download(&device).unwrap(),
        cuda.download(&gradient).unwrap(),
    );
    let (mut all, mut by_bias) = (0.0, vec![(0.0, 0.0); INTER]);
    for (place, slope) in slopes.iter().enumerate() {
        let (t, i) = (place / INTER, place % INTER);
        let z = f64::from(logits[place]) + f64::from(bias[i]);
        let (loss, exact) = cross_entropy(z, is_needed(t, i));
        all += loss;
        let exact = f64::from(scale) * exact;
        // z is rounded, exp and what follows it a few times more.
        close(*slope, exact, 16.0 * U * f64::from(scale), "slope");
        by_bias[i].0 += exact;
        by_bias[i].1 += exact.abs();
    }
    let allowed = (TOKENS + 16) as f64 * U * all;
    assert!((loss - all).abs() <= allowed, "{loss} for {all}");
    for (i, (exact, absolute)) in by_bias.into_iter().enumerate() {
        let allowed = (TOKENS + 16) as f64 * U * (absolute + f64::from(scale));
        close(gradient[2 + i], exact, allowed, "slope by the bias");
    }
    assert!(gradient[..2] == [7.0; 2] && gradient[2 + INTER..] == [7.0; 3]);
}

#[test]
fn slopes_of_products_are_differences_of_their_loss() {
    let Some((cuda, kernels, mut noise)) = ready() else {
        return;
    };
    let n = TOKENS * INTER;
    let [gate, up] = [(); 2].map(|()| noise.many(n, 3.0));
    let mut parameters = noise.many(2 * INTER + 2, 1.0);
    parameters[2 * INTER..].copy_from_slice(&[0.3, -0.7]);
    let weight: Vec<f32> = noise.many(INTER, 0.5).iter().map(|w| w + 1.0).collect();
    let (words, is_needed) = labels();
    let floor = 0.05;
    for function in [Act::Silu, Act::GeluTanh] {
        // Of one neuron of one token, in double precision.
        let loss = |place: usize, g: f64, u: f64, p: [f64; 4]| {
            let (t, i) = (place / INTER, place % INTER);
            let s = f64::from(weight[i]) * act(function, g + p[0]) * (u + p[1]);
            let above = (s * s + floor).ln() - p[3];
            cross_entropy(p[2].exp() * above, is_needed(t, i)).0
        };
        let at =
            |i: usize| [i, INTER + i, 2 * INTER, 2 * INTER + 1].map(|j| f64::from(parameters[j]));
        let mut on_card = [&gate, &up].map(|v| cuda.upload(v).unwrap());
        let mut gradient = cuda.zeros(parameters.len()).unwrap();
        let to = Labelled {
            tokens: TOKENS,
            inter: INTER,
            labels: &cuda.upload(&words).unwrap(),
            scale: 1.0,
        };
        let whole = cuda.upload(&parameters).unwrap();
        let [g, u] = &mut on_card;
        let operands = ProductLoss {
            gate: g,
            up: u,
            gate_bias: (&whole, 0),
            up_bias: (&whole, INTER),
            squash: (&whole, 2 * INTER),
            weight: &cuda.upload(&weight).unwrap(),
            floor: floor as f32,
            act: function,
        };
        let places = [0, INTER, 2 * INTER];
        let sum = kernels
            .product_loss(&cuda, operands, to, &mut gradient, places)
            .unwrap();
        let slopes = on_card.map(|v| cuda.download(&v).unwrap());
        let gradient = cuda.download(&gradient).unwrap();
        let mut exact = vec![0.0; parameters.len()];
        let mut all = 0.0;
        // Differences of doubles: their own error is far below what a float's slope may be off.
        let h = 1e-5;
        for place in 0..n {
            let i = place % INTER;
            let (g, u, p) = (f64::from(gate[place]), f64::from(up[place]), at(i));
            all += loss(place, g, u, p);
            let by = |dg: f64, du: f64, dp: [f64; 4]| {
                let plus = std::array::from_fn(|j| p[j] + dp[j]);
                let minus = std::array::from_fn(|j| p[j] - dp[j]);
                (loss(place, g + dg, u + du, plus) - loss(place, g - dg, u - du, minus)) / (2.0 * h)
            };
            let none = [0.0; 4];
            let [by_gate, by_up] = [by(h, 0.0, none), by(0.0, h, none)];
            // The slope is a product of some ten factors, of which the logarithm's is up to 1 / sqrt(floor).
            let allowed = 2e-5 * (1.0 + by_gate.abs().max(by_up.abs()));
            close(slopes[0][place], by_gate, allowed, "slope by gate");
            close(slopes[1][place], by_up, allowed, "slope by up");
            exact[i] += by_gate;
            exact[INTER + i] += by_up;
            exact[2 * INTER] += by(0.0, 0.0, [0.0, 0.0, h, 0.0]);
            exact[2 * INTER + 1] += by(0.0, 0.0, [0.0, 0.0, 0.0, h]);
        }
        assert!((sum - all).abs() <= 1e-5 * all, "{sum} for {all}");
        for (j, (got, exact)) in gradient.iter().zip(&exact).enumerate() {
            let terms = if j < 2 * INTER { TOKENS } else { n } as f64;
            close(
                *got,
                *exact,
                2e-5 * terms.sqrt() * (1.0 + exact.abs()),
                "gradient",
            );
        }
    }
}

#[test]
fn steps_of_the_optimiser_are_those_of_the_definition() {
    let Some((cuda, kernels, mut noise)) = ready() else {
        return;
    };
    let n = 1003;
    let [w, m, g] = [(); 3].map(|()| noise.many(n, 1.0));
    let v: Vec<f32> = noise.many(n, 0.5).iter().map(|x| x + 0.5).collect();
    let [mut dw, mut dm, mut dv, dg] = [&w, &m, &v, &g].map(|x| cuda.upload(x).unwrap());
    let step = Step {
        rate: 0.1,
        decay: 0.01,
        decayed: 10..n - 10,
        betas: [0.9, 0.999],
        scales: [1.5, 20.0],
        epsilon: 1e-8,
    };
    kernels
        .adamw(&cuda, &step, &mut dw, [&mut dm, &mut dv], &dg)
        .unwrap();
    let got = [&dw, &dm, &dv].map(|x| cuda.download(x).unwrap());
    for i in 0..n {
        let [w, m, v, g] = [w[i], m[i], v[i], g[i]].map(f64::from);
        let [b1, b2] = step.betas.map(f64::from);
        let m = b1 * m + (1.0 - b1) * g;
        let v = b2 * v + (1.0 - b2) * g * g;
        let mut w = w - f64::from(step.rate) * m * 1.5 / ((v * 20.0).sqrt() + 1e-8);
        if step.decayed.contains(&i) {
            w -= f64::from(step.rate) * f64::from(step.decay) * w;
        }
        close(got[1][i], m, 4.0 * U * 2.0, "first moment");
        close(got[2][i], v, 4.0 * U * 2.0, "second moment");
        // The root of a second moment near 0 is the least exact.
        close(got[0][i], w, 1e-5 * (1.0 + 1.0 / v.sqrt()), "parameter");
    }
}

#[test]
fn inputs_are_standardised_and_weights_rounded_to_three_values() {
    let Some((cuda, kernels, mut noise)) = ready() else {
        return;
    };
    let (rows, cols) = (7, 45);
    let (x, mean, factor) = (
        noise.many(rows * cols, 3.0),
        noise.many(cols, 1.0),
        noise.many(cols, 2.0),
    );
    let mut device = cuda.upload(&x).unwrap();
    let change = [&mean, &factor].map(|v| cuda.upload(v).unwrap());
    kernels
        .standardise(&cuda, &mut device, rows - 1, (&change[0], &change[1]))
        .unwrap();
    let got = cuda.download(&device).unwrap();
    for (i, (got, x)) in got.iter().zip(&x).enumerate() {
        let c = i % cols;
        let changed = (x - mean[c]) * factor[c];
        let expected = if i < (rows - 1) * cols { changed } else { *x };
        close(*got, f64::from(expected), 4.0 * U * 8.0, "standardised");
    }

    let weights = noise.many(3 + 5000, 1.0);
    let mut out = cuda.zeros(5000).unwrap();
    let on_card = cuda.upload(&weights).unwrap();
    kernels
        .ternary(&cuda, (&on_card, 3), 5000, &mut out)
        .unwrap();
    let got = cuda.download(&out).unwrap();
    let sum: f64 = weights[3..].iter().map(|w| f64::from(w.abs())).sum();
    let scale = sum / 5000.0;
    for (got, w) in got.iter().zip(&weights[3..]) {
        let near = (f64::from(w.abs()) - 0.5 * scale).abs() < 1e-6;
        let expected = match f64::from(w.abs()) > 0.5 * scale {
            true => scale.copysign(f64::from(*w)),
            false => 0.0,
        };
        if !near {
            close(*got, expected, 1e-5 * scale, "rounded weight");
        }
    }
}
