//! D-CountDown (arXiv 2505.17701): neurons are dropped where the coefficient itself is small.
//! The exact coefficients need all of gate and up, so the exact rule is the upper bound of quality, not of speed.

use super::{
    Signal,
    method::{Constants, Method},
};

pub(super) const METHOD: Method = Method {
    name: "d-countdown",
    summary: "keeps neurons by |act(W_gate x) * W_up x|, known exactly (ideal only)",
    signal: Some(Signal::Product),
    constants: Constants::None,
    practical: Err(
        "needs a predictor of the coefficients, which this version cannot train; ask for --ideal",
    ),
};
