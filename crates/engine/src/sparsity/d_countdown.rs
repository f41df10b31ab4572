//! D-CountDown (arXiv 2505.17701): neurons are dropped where the coefficient itself is small.
//! The exact coefficients need all of gate and up, so a predictor estimates them; then rows of all three matrices are skipped.

use super::{
    Signal,
    method::{Cut, Method, Practical},
};

pub(super) const METHOD: Method = Method {
    name: "d-countdown",
    summary: "keeps neurons by a prediction of |act(W_gate x) * W_up x|; skips rows of gate, up and down",
    signal: Some(Signal::Product),
    cuts: &[Cut::Layer, Cut::Neuron],
    practical: Practical::Predicted,
};
