//! S-CountDown: neurons are dropped where their share in the output is small, (s_i norm_i)^2 / 2 with the norm of the down row.
//! Squares and halves do not change an order, so the score is |s_i| norm_i. Known by a predictor, as D-CountDown's.

use super::{
    Signal,
    method::{Cut, Method, Practical},
};

pub(super) const METHOD: Method = Method {
    name: "s-countdown",
    summary: "keeps neurons by a prediction of what they add to the output; skips rows of gate, up and down",
    signal: Some(Signal::Product),
    cuts: &[Cut::Neuron],
    practical: Practical::Predicted,
};
