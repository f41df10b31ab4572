//! Comparing two distributions over a vocabulary.

/// Log-probabilities from logits, in place: x - log(sum(exp(x))).
pub(super) fn log_softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = x
        .chunks(256)
        .map(|c| f64::from(c.iter().map(|v| (v - max).exp()).sum::<f32>()))
        .sum();
    let shift = max + sum.ln() as f32;
    x.iter_mut().for_each(|v| *v -= shift);
}

/// KL(p || q) in nats, from log-probabilities.
pub(super) fn kl(p: &[f32], q: &[f32]) -> f64 {
    let terms = |(p, q): (&[f32], &[f32])| -> f64 {
        let sum: f32 = p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum();
        f64::from(sum)
    };
    p.chunks(256).zip(q.chunks(256)).map(terms).sum()
}

/// The index of the largest value, the first of equals.
pub(super) fn argmax(x: &[f32]) -> usize {
    let mut best = 0;
    for (i, v) in x.iter().enumerate() {
        if *v > x[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_known_distributions() {
        let mut p = vec![1.0f32.ln(), 3.0f32.ln()];
        let mut q = vec![2.0f32.ln() + 50.0, 2.0f32.ln() + 50.0];
        log_softmax(&mut p);
        log_softmax(&mut q);
        assert!((p[1].exp() - 0.75).abs() < 1e-6 && (q[0].exp() - 0.5).abs() < 1e-5);
        let expected = 0.25 * (0.5f64).ln() + 0.75 * (1.5f64).ln();
        assert!((kl(&p, &q) - expected).abs() < 1e-5);
        assert_eq!(kl(&p, &p), 0.0);
        assert_eq!(argmax(&[1.0, 4.0, 4.0]), 1);
    }
}
