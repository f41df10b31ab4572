//! Dense: every neuron, every token. The baseline of all comparisons.

use super::method::{Method, Practical};

pub(super) const METHOD: Method = Method {
    name: "dense",
    summary: "every neuron; the baseline",
    signal: None,
    cuts: &[],
    practical: Practical::Computed,
};
