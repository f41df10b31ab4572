//! The registry: a method is a value that says what calibration must fit.

use super::{Signal, cats, d_countdown, dense, m_countdown};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Every method, in the order of help texts and tables.
pub const METHODS: &[&Method] = &[
    &dense::METHOD,
    &cats::METHOD,
    &m_countdown::METHOD,
    &d_countdown::METHOD,
];

/// How to decide which neurons a token needs.
#[derive(Debug)]
pub struct Method {
    /// Its name on the command line and in plans.
    pub name: &'static str,
    /// One line for help texts.
    pub summary: &'static str,
    /// What decides; `None` keeps everything.
    pub signal: Option<Signal>,
    /// The neuron constants it uses with [`Cut::Neuron`].
    pub constants: Constants,
    /// Whether fixed thresholds work, or why not.
    pub practical: std::result::Result<(), &'static str>,
}

/// The constants that a method's scores have under [`Cut::Neuron`]: the norm of the neuron's down row times the root mean
/// square of the factor that the signal leaves out (method 3d of the project's notes on calibration).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Constants {
    /// Scores stay as they are.
    None,
    /// One constant a neuron.
    OneForBothSigns,
    /// Two constants a neuron, over the tokens where the signal is positive and where it is negative.
    OneForEachSign,
}

/// What a threshold is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cut {
    /// The signal itself, one threshold for all neurons of a layer, as in the papers.
    Layer,
    /// The signal times the neuron's constants.
    Neuron,
}

/// How the cut is placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// By thresholds fixed beforehand.
    Practical,
    /// By each token's own k-th value: the upper bound of quality, without speed.
    Ideal,
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
}

/// The names of all methods.
pub fn names() -> Vec<&'static str> {
    METHODS.iter().map(|m| m.name).collect()
}
