//! CATS (arXiv 2404.08763): neurons are dropped where the activated gate is small.
//! Reads the gate densely, and up and down for the neurons kept.

use super::{
    Signal,
    method::{Cut, Method, Practical},
};

pub(super) const METHOD: Method = Method {
    name: "cats",
    summary: "keeps neurons by |act(W_gate x)|; skips rows of up and down",
    signal: Some(Signal::Gate),
    cuts: &[Cut::Layer, Cut::Neuron, Cut::Signed],
    practical: Practical::Computed,
};
