//! Comparing distributions over a vocabulary, row by row on several threads. A row is compared by one thread, so results do
//! not depend on how many there are.

use countdown_kernels::cpu::Kernels;

/// Rows of logits, `[n, vocab]`, with what later rows are compared with.
pub(super) struct Reference<'a> {
    logits: &'a [f32],
    vocab: usize,
    rows: Vec<Row>,
}

/// What is known of one row.
#[derive(Clone, Copy)]
struct Row {
    log_sum: f64,
    best: usize,
}

/// One row beside the reference's.
pub(super) struct Compared {
    /// The target's log-probability, in nats.
    pub(super) log_p: f64,
    /// KL divergence from the reference, in nats.
    pub(super) kl: f64,
    /// Whether both have the same most likely token.
    pub(super) same: bool,
}

impl<'a> Reference<'a> {
    pub(super) fn new(
        kernels: &'static Kernels,
        threads: usize,
        logits: &'a [f32],
        vocab: usize,
    ) -> Self {
        let rows = map(threads, logits.len() / vocab, |j| {
            Row::of(kernels, &logits[j * vocab..][..vocab])
        });
        Reference {
            logits,
            vocab,
            rows,
        }
    }

    /// The log-probability of token `target` at row `j`, in nats.
    pub(super) fn log_p(&self, j: usize, target: u32) -> f64 {
        let logit = self.logits[j * self.vocab + target as usize];
        f64::from(logit) - self.rows[j].log_sum
    }

    /// Compares the rows of `logits` with those from row `first` on; `targets` holds a token for each.
    pub(super) fn compare(
        &self,
        kernels: &'static Kernels,
        threads: usize,
        first: usize,
        logits: &[f32],
        targets: &[u32],
    ) -> Vec<Compared> {
        map(threads, targets.len(), |j| {
            let q = &logits[j * self.vocab..][..self.vocab];
            let p = &self.logits[(first + j) * self.vocab..][..self.vocab];
            let (dense, row) = (self.rows[first + j], Row::of(kernels, q));
            Compared {
                log_p: f64::from(q[targets[j] as usize]) - row.log_sum,
                kl: kernels.kl_divergence(p, q, [dense.log_sum, row.log_sum]),
                same: dense.best == row.best,
            }
        })
    }
}

impl Row {
    fn of(kernels: &Kernels, logits: &[f32]) -> Row {
        Row {
            log_sum: kernels.log_sum_exp(logits),
            best: argmax(logits),
        }
    }
}

/// The index of the largest value, the first of equals.
pub(super) fn argmax<T: PartialOrd>(x: &[T]) -> usize {
    let mut best = 0;
    for (i, v) in x.iter().enumerate() {
        if *v > x[best] {
            best = i;
        }
    }
    best
}

/// `f` of every number below `n`, in order, computed on several threads.
fn map<T: Send>(threads: usize, n: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let share = n.div_ceil(threads.max(1)).max(1);
    let part = |from: usize| (from..(from + share).min(n)).map(&f).collect::<Vec<T>>();
    let mut parts = Vec::new();
    std::thread::scope(|scope| {
        let part = &part;
        let others: Vec<_> = (share..n)
            .step_by(share)
            .map(|from| scope.spawn(move || part(from)))
            .collect();
        parts = part(0);
        for other in others {
            match other.join() {
                Ok(more) => parts.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_known_distributions() {
        let k = Kernels::best();
        let p = [1.0f32.ln(), 3.0f32.ln(), 7.0, 1.0];
        let q = [2.0f32.ln() + 50.0, 2.0f32.ln() + 50.0];
        let reference = Reference::new(k, 1, &p, 2);
        assert!((reference.log_p(0, 1) - 0.75f64.ln()).abs() < 1e-6);
        let compared = &reference.compare(k, 1, 0, &q, &[0])[0];
        assert!((compared.log_p - 0.5f64.ln()).abs() < 1e-5);
        let expected = 0.25 * (0.5f64).ln() + 0.75 * (1.5f64).ln();
        assert!((compared.kl - expected).abs() < 1e-5 && !compared.same);
        let itself = &reference.compare(k, 1, 1, &p[2..], &[0])[0];
        assert!(itself.kl == 0.0 && itself.same);
        assert_eq!(argmax(&[1.0, 4.0, 4.0]), 1);
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let (k, vocab) = (Kernels::best(), 100);
        let noise = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 100.0;
        let p: Vec<f32> = (0..7 * vocab).map(noise).collect();
        let q: Vec<f32> = (0..7 * vocab).map(|i| noise(i + 5)).collect();
        let with = |threads| -> Vec<(u64, u64, bool)> {
            let reference = Reference::new(k, threads, &p, vocab);
            let rows = reference.compare(k, threads, 0, &q, &[3; 7]);
            let bits = |c: &Compared| (c.log_p.to_bits(), c.kl.to_bits(), c.same);
            rows.iter().map(bits).collect()
        };
        let one = with(1);
        assert_eq!(one.len(), 7);
        for threads in [2, 3, 7, 20] {
            assert_eq!(with(threads), one, "{threads} threads");
        }
    }
}
