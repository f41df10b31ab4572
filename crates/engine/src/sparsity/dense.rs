//! Dense: every neuron, every token. The baseline of all comparisons.

use super::method::{Constants, Method};

pub(super) const METHOD: Method = Method {
    name: "dense",
    summary: "every neuron; the baseline",
    signal: None,
    constants: Constants::None,
    practical: Ok(()),
};
