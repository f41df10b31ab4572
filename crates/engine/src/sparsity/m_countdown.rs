//! M-CountDown (arXiv 2505.17701): neurons are dropped where the up projection is small.
//! Reads up densely, and gate and down for the neurons kept. What a neuron's gate does differs between positive and
//! negative up values, hence a constant for each sign.

use super::{
    Signal,
    method::{Cut, Method, Practical},
};

pub(super) const METHOD: Method = Method {
    name: "m-countdown",
    summary: "keeps neurons by |W_up x|; skips rows of gate and down",
    signal: Some(Signal::Up),
    cuts: &[Cut::Layer, Cut::Neuron, Cut::Signed],
    practical: Practical::Computed,
};
