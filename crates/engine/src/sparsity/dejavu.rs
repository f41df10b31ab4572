//! A baseline in the manner of Deja Vu (arXiv 2310.17157): a predictor of the activated gate decides.
//! Made for ReLU models, where the gate alone says what is zero; with SiLU or GELU it leaves out what up has to say.

use super::{
    Signal,
    method::{Cut, Method, Practical},
};

pub(super) const METHOD: Method = Method {
    name: "dejavu",
    summary: "keeps neurons by a prediction of |act(W_gate x)|; skips rows of gate, up and down",
    signal: Some(Signal::Gate),
    cuts: &[Cut::Layer],
    practical: Practical::Predicted,
};
