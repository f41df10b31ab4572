//! The registry: a method is a value that says what calibration must fit.

use super::{Signal, cats, d_countdown, dejavu, dense, m_countdown, s_countdown};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Every method, in the order of help texts and tables.
pub const METHODS: &[&Method] = &[
    &dense::METHOD,
    &cats::METHOD,
    &m_countdown::METHOD,
    &d_countdown::METHOD,
    &s_countdown::METHOD,
    &dejavu::METHOD,
];

/// The method that predictors are for where none is named.
pub const PREDICTED: &Method = &d_countdown::METHOD;

/// How to decide which neurons a token needs.
#[derive(Debug, PartialEq)]
pub struct Method {
    /// Its name on the command line and in plans.
    pub name: &'static str,
    /// One line for help texts.
    pub summary: &'static str,
    /// What decides; `None` keeps everything.
    pub signal: Option<Signal>,
    /// How signals can be compared, the best last; none for dense.
    pub cuts: &'static [Cut],
    /// How practical plans know the signal.
    pub practical: Practical,
}

/// How a practical plan knows the signal. Ideal plans compute it, or take a predictor's where one is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Practical {
    /// It computes it for every neuron: the signal is one of the FFN's own products.
    Computed,
    /// It predicts it: to know it exactly is to compute what was to be skipped.
    Predicted,
}

impl Practical {
    /// The methods whose practical plans know the signal so, in the order of [`METHODS`]; dense has no signal.
    pub fn methods(self) -> impl Iterator<Item = &'static Method> {
        let sparse = METHODS.iter().copied().filter(|m| !m.is_dense());
        sparse.filter(move |m| m.practical == self)
    }
}

/// What a threshold is compared with. The constants of a neuron are the norm of its down row times the root mean square of
/// the factor that the signal leaves out (nothing, for the coefficients themselves).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cut {
    /// The signal itself, one threshold for all neurons of a layer, as in the papers.
    Layer,
    /// The signal times the neuron's constant.
    Neuron,
    /// The signal times the neuron's constant for its sign: one over tokens where it is positive, one where it is negative.
    Signed,
}

/// Every cut by its name.
pub const CUTS: [(&str, Cut); 3] = [
    ("layer", Cut::Layer),
    ("neuron", Cut::Neuron),
    ("signed", Cut::Signed),
];

/// How the cut is placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// By thresholds fixed beforehand.
    Practical,
    /// By each token's own k-th value: the upper bound of quality, without speed.
    Ideal,
}

impl Cut {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Cut::Layer => "layer",
            Cut::Neuron => "neuron",
            Cut::Signed => "signed",
        }
    }
}

impl Method {
    /// The method of that name.
    ///
    /// # Errors
    /// [`Error::Input`] listing the names.
    pub fn by_name(name: &str) -> Result<&'static Method> {
        METHODS
            .iter()
            .find(|m| m.name == name)
            .copied()
            .ok_or_else(|| Error::Input {
                cause: format!("there is no method \"{name}\""),
                remedy: format!("use one of {}", names().join(", ")),
            })
    }

    /// Whether it keeps everything.
    pub fn is_dense(&self) -> bool {
        self.signal.is_none()
    }

    /// Whether what decides are the coefficients themselves: known exactly, they make the exact choice.
    pub fn decides_by_coefficients(&self) -> bool {
        self.signal == Some(Signal::Product)
    }

    /// The cut asked for where the method has it, otherwise its best.
    pub fn cut(&self, asked: Option<Cut>) -> Cut {
        let best = self.cuts.last().copied().unwrap_or(Cut::Layer);
        asked.filter(|c| self.cuts.contains(c)).unwrap_or(best)
    }
}

/// The names of all methods.
pub fn names() -> Vec<&'static str> {
    METHODS.iter().map(|m| m.name).collect()
}
