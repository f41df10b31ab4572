//! Labels: which neurons a token needs, one bit each.

use super::elementwise::WORD;
use countdown_kernels::cpu::Team;

/// What makes a neuron important to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// |s_i|, the size of the coefficient.
    Magnitude,
    /// |s_i| times the norm of the neuron's column of down: what the neuron adds to the output.
    Weighted,
    /// What the error of the output grows by without the neuron, given the others that are left out: the largest |s_i| times
    /// norms are kept, and one step goes from there.
    Output,
    /// |act(g_i)|, as in DejaVu.
    Gate,
}

/// Every target by its name.
pub const TARGETS: [Target; 4] = [
    Target::Magnitude,
    Target::Weighted,
    Target::Output,
    Target::Gate,
];

impl Target {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Target::Magnitude => "magnitude",
            Target::Weighted => "weighted",
            Target::Output => "output",
            Target::Gate => "gate",
        }
    }

    /// Whether it counts the norms of down's columns, so that a plan's scores should as well.
    pub(super) fn counts_norms(self) -> bool {
        matches!(self, Target::Weighted | Target::Output)
    }
}

/// Bits `[tokens, inter]`, each token's beginning at a word.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Labels {
    inter: usize,
    words: Vec<u32>,
    /// How often each neuron is labelled.
    counts: Vec<u32>,
}

impl Labels {
    /// No tokens yet, of `inter` neurons each.
    pub(crate) fn new(inter: usize) -> Labels {
        Labels {
            inter,
            words: Vec::new(),
            counts: vec![0; inter],
        }
    }

    /// Labels the `k` largest scores of each token. Of scores equal to the last one that is labelled, the first neurons' are.
    ///
    /// # Panics
    /// If scores are no whole number of tokens, or there are fewer than `k` neurons.
    pub(crate) fn push_top(&mut self, team: &mut Team, scores: &[f32], k: usize) {
        let inter = self.inter;
        assert!(
            scores.len().is_multiple_of(inter) && k <= inter,
            "labels: scores"
        );
        let (start, words) = (self.words.len(), self.words_per_token());
        self.words.resize(start + scores.len() / inter * words, 0);
        let new = &mut self.words[start..];
        team.split(new, words, |at, new| {
            let mut order = Vec::new();
            let scores = scores[at / words * inter..].chunks_exact(inter);
            for (new, scores) in new.chunks_exact_mut(words).zip(scores) {
                top(scores, k, &mut order, |i| new[i / WORD] |= 1 << (i % WORD));
            }
        });
        for row in new.chunks_exact(words) {
            for (word, counts) in row.iter().zip(self.counts.chunks_mut(WORD)) {
                for (i, count) in counts.iter_mut().enumerate() {
                    *count += word >> i & 1;
                }
            }
        }
    }

    /// Words a token.
    pub(crate) fn words_per_token(&self) -> usize {
        self.inter.div_ceil(WORD)
    }
    /// Tokens labelled.
    pub(crate) fn tokens(&self) -> usize {
        self.words.len() / self.words_per_token()
    }
    /// A token's bits; bit `i % 32` of word `i / 32` is neuron `i`.
    pub(crate) fn row(&self, token: usize) -> &[u32] {
        let n = self.words_per_token();
        &self.words[token * n..(token + 1) * n]
    }
    /// Whether the token needs the neuron.
    pub(crate) fn get(&self, token: usize, neuron: usize) -> bool {
        bit(self.row(token), neuron)
    }
    /// How many tokens need each neuron, `[inter]`.
    pub(crate) fn counts(&self) -> &[u32] {
        &self.counts
    }
    /// The share of tokens that need each neuron, drawn towards the mean as by one more token: `[inter]`, never 0 or 1
    /// unless all are.
    pub(crate) fn frequencies(&self) -> Vec<f32> {
        let tokens = self.tokens() as f32;
        let all: u64 = self.counts.iter().map(|c| u64::from(*c)).sum();
        let mean = all as f32 / (tokens * self.inter as f32).max(1.0);
        let share = |&c: &u32| (c as f32 + mean) / (tokens + 1.0);
        self.counts.iter().map(share).collect()
    }
}

/// Shows `each` the neurons with the `k` largest scores, in their order; of scores equal to the last one's, the first neurons'.
/// `order` is memory to work in.
pub(super) fn top(scores: &[f32], k: usize, order: &mut Vec<f32>, mut each: impl FnMut(usize)) {
    if k == 0 {
        return;
    }
    order.clear();
    order.extend_from_slice(scores);
    let nth = scores.len() - k;
    let (_, &mut cut, above) = order.select_nth_unstable_by(nth, f32::total_cmp);
    // Above the cut all are taken; at the cut as many as are left.
    let mut at_cut = k - above.iter().filter(|s| **s > cut).count();
    for (i, &s) in scores.iter().enumerate() {
        let tie = s == cut && at_cut > 0;
        at_cut -= usize::from(tie);
        if s > cut || tie {
            each(i);
        }
    }
}

/// Neuron `i`'s bit of a token's words.
#[inline]
pub(super) fn bit(words: &[u32], i: usize) -> bool {
    words[i / WORD] >> (i % WORD) & 1 == 1
}

/// How many of `inter` neurons a token needs at a target sparsity: floor(inter * (1 - sparsity)), at least 1.
pub(super) fn needed(inter: usize, sparsity: f64) -> usize {
    ((inter as f64 * (1.0 - sparsity)) as usize).clamp(1, inter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_labelled_and_ties_go_to_the_first() {
        let mut labels = Labels::new(40);
        let mut scores = vec![0.0; 40];
        scores[3] = 1.0;
        scores[39] = 2.0;
        let mut team = Team::new(1).unwrap();
        labels.push_top(&mut team, &scores, 3);
        let on: Vec<usize> = (0..40).filter(|&i| labels.get(0, i)).collect();
        assert_eq!(on, [0, 3, 39]);
        labels.push_top(&mut team, &[1.0; 40], 2);
        assert!(labels.get(1, 0) && labels.get(1, 1) && !labels.get(1, 2));
        assert_eq!(labels.tokens(), 2);
        let f = labels.frequencies();
        assert!(f[0] > f[3] && f[3] > f[5] && f[5] > 0.0);
    }

    #[test]
    fn as_many_as_the_target_leaves() {
        assert_eq!(needed(4864, 0.7), 1459);
        assert_eq!(needed(10, 0.99), 1);
        assert_eq!(needed(10, 0.0), 10);
    }
}
