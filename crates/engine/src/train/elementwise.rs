//! The loss and its gradient, element by element, in loops that the compiler vectorises.

use countdown_kernels::cpu::{Act, exp};

/// Neurons to a word of labels.
pub(super) const WORD: usize = u32::BITS as usize;

/// ln x for positive normal numbers, to about two units in the last place.
///
/// x = 2^k m with m in [2/3, 4/3), and ln m = 2 artanh(s) for s = (m - 1) / (m + 1): five terms of its series.
#[inline(always)]
fn ln(x: f32) -> f32 {
    const TWO_THIRDS: u32 = 0x3f2a_aaab;
    let k = (x.to_bits().wrapping_sub(TWO_THIRDS) as i32) >> 23;
    let m = f32::from_bits(x.to_bits().wrapping_sub((k << 23) as u32));
    let s = (m - 1.0) / (m + 1.0);
    let q = s * s;
    let series = 1.0 + q * (1.0 / 3.0 + q * (0.2 + q * (1.0 / 7.0 + q * (1.0 / 9.0))));
    k as f32 * std::f32::consts::LN_2 + 2.0 * s * series
}

/// Cross-entropy of a logit with a label of 0 or 1, and its derivative by the logit.
#[inline(always)]
fn cross_entropy(logit: f32, label: f32) -> (f32, f32) {
    let e = exp(-logit.abs());
    let inverse = 1.0 / (1.0 + e);
    let p = if logit >= 0.0 { inverse } else { e * inverse };
    let loss = logit.max(0.0) - label * logit + ln(1.0 + e);
    (loss, p - label)
}

/// One bit a lane, so that reading labels is a mask and a comparison.
const LANE: [u32; WORD] = {
    let mut lane = [0; WORD];
    let mut i = 0;
    while i < WORD {
        lane[i] = 1 << i;
        i += 1;
    }
    lane
};

#[inline(always)]
fn label(word: u32, lane: usize) -> f32 {
    if word & LANE[lane] != 0 { 1.0 } else { 0.0 }
}

/// Turns one token's logits `[inter]`, the bias not yet added, into `scale` times the gradient by them; adds it to the bias's
/// gradient. Returns the loss summed over neurons. `labels` are words of [`WORD`] neurons.
pub(super) fn logit_loss(
    logits: &mut [f32],
    bias: &[f32],
    labels: &[u32],
    scale: f32,
    bias_grad: &mut [f32],
) -> f64 {
    let mut sums = [0f32; WORD];
    let words = logits.chunks_mut(WORD).zip(bias.chunks(WORD));
    for (((z, b), db), &word) in words.zip(bias_grad.chunks_mut(WORD)).zip(labels) {
        for (i, ((z, b), db)) in z.iter_mut().zip(b).zip(db).enumerate() {
            let (loss, d) = cross_entropy(*z + b, label(word, i));
            sums[i] += loss;
            *z = d * scale;
            *db += *z;
        }
    }
    sums.iter().map(|s| f64::from(*s)).sum()
}

/// act(x) and its derivative: both activations are x times the logistic function of an odd polynomial of x.
#[inline(always)]
fn act_and_slope(act: Act, x: f32) -> (f32, f32) {
    const C: f32 = 2.0 * 0.797_884_6;
    const CUBIC: f32 = 0.044_715;
    let (h, slope) = match act {
        Act::Silu => (x, 1.0),
        Act::GeluTanh => {
            let q = x * x;
            (C * x * (1.0 + CUBIC * q), C * (1.0 + 3.0 * CUBIC * q))
        }
    };
    let p = 1.0 / (1.0 + exp(-h));
    (x * p, p + x * p * (1.0 - p) * slope)
}

/// Turns gates into act(gate), and returns in `slopes` the derivative there.
pub(super) fn activate(act: Act, gate: &mut [f32], slopes: &mut [f32]) {
    for (g, d) in gate.iter_mut().zip(slopes) {
        (*g, *d) = act_and_slope(act, *g);
    }
}

/// Where a product's score turns into a logit: `sharpness * (ln(score^2 + floor) - level)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Squash {
    /// ln of the sharpness.
    pub(super) ln_sharpness: f32,
    /// ln of the squared score at logit 0.
    pub(super) level: f32,
    /// Keeps the logarithm and its slope bounded at a score of 0.
    pub(super) floor: f32,
}

/// One token's part of the product's loss: gate and up `[inter]` with their biases.
pub(super) struct ProductRow<'a> {
    pub(super) gate: &'a mut [f32],
    pub(super) up: &'a mut [f32],
    pub(super) gate_bias: &'a [f32],
    pub(super) up_bias: &'a [f32],
    /// Factor of each neuron's score.
    pub(super) weight: &'a [f32],
    pub(super) labels: &'a [u32],
    pub(super) gate_bias_grad: &'a mut [f32],
    pub(super) up_bias_grad: &'a mut [f32],
}

/// Turns `row.gate` and `row.up` into `scale` times the gradients by them, and adds them to the biases' gradients.
/// Returns the loss summed over neurons, and its derivatives by the level and by ln sharpness, times `scale`.
pub(super) fn product_loss(act: Act, row: ProductRow<'_>, squash: Squash, scale: f32) -> [f64; 3] {
    let sharpness = squash.ln_sharpness.exp();
    let (mut losses, mut levels, mut sharp) = ([0f32; WORD], [0f32; WORD], [0f32; WORD]);
    let chunks = row
        .gate
        .chunks_mut(WORD)
        .zip(row.up.chunks_mut(WORD))
        .zip(row.gate_bias.chunks(WORD).zip(row.up_bias.chunks(WORD)))
        .zip(row.weight.chunks(WORD).zip(row.labels))
        .zip(
            row.gate_bias_grad
                .chunks_mut(WORD)
                .zip(row.up_bias_grad.chunks_mut(WORD)),
        );
    for ((((gate, up), (gate_bias, up_bias)), (weight, &word)), (dgb, dub)) in chunks {
        for i in 0..gate.len() {
            let (a, slope) = act_and_slope(act, gate[i] + gate_bias[i]);
            let u = up[i] + up_bias[i];
            let w = weight[i] * weight[i];
            let s = a * u;
            let square = w * s * s + squash.floor;
            let above = ln(square) - squash.level;
            let (loss, d) = cross_entropy(sharpness * above, label(word, i));
            losses[i] += loss;
            let d = d * scale * sharpness;
            levels[i] -= d;
            sharp[i] += d * above;
            let ds = d * 2.0 * w * s / square;
            gate[i] = ds * u * slope;
            up[i] = ds * a;
            dgb[i] += gate[i];
            dub[i] += up[i];
        }
    }
    [losses, levels, sharp].map(|v| v.iter().map(|x| f64::from(*x)).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_close_to_the_exact_one() {
        for i in -3000..3000 {
            let x = (i as f32 * 0.01).exp();
            let exact = f64::from(x).ln();
            assert!(
                (f64::from(ln(x)) - exact).abs() <= 3e-7 * exact.abs().max(1.0),
                "{x}"
            );
        }
    }

    #[test]
    fn cross_entropy_is_right_far_out_too() {
        for (z, y) in [
            (0.0, 1.0),
            (3.0, 0.0),
            (-3.0, 1.0),
            (80.0, 0.0),
            (-80.0, 0.0),
        ] {
            let exact =
                f64::from(z).max(0.0) - f64::from(y * z) + (-f64::from(z).abs()).exp().ln_1p();
            let (loss, d) = cross_entropy(z, y);
            assert!(
                (f64::from(loss) - exact).abs() < 1e-5 * exact.max(1.0),
                "{z} {y}"
            );
            assert!((d - (1.0 / (1.0 + (-z).exp()) - y)).abs() < 1e-6, "{z} {y}");
        }
    }

    #[test]
    fn slopes_are_finite_differences() {
        for act in [Act::Silu, Act::GeluTanh] {
            for i in -40..40 {
                let x = i as f32 * 0.1;
                let h = 1e-2;
                let difference =
                    (act_and_slope(act, x + h).0 - act_and_slope(act, x - h).0) / (2.0 * h);
                assert!(
                    (act_and_slope(act, x).1 - difference).abs() < 1e-3,
                    "{act:?} {x}"
                );
            }
        }
    }
}
