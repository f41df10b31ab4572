//! What can be asked of calibration.

use crate::{
    error::{Error, Result},
    sparsity::{Cut, Form, Method, PREDICTED, Practical, PredictorSet, Signal, check_sparsity},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A plan to fit.
#[derive(Clone, Debug)]
pub struct PlanRequest {
    /// The method.
    pub method: &'static Method,
    /// What thresholds are compared with.
    pub cut: Cut,
    /// Fixed thresholds, or each token's own.
    pub form: Form,
    /// The share of neurons to skip, in [0, 1).
    pub sparsity: f64,
    /// What predicts the signal; `None` computes it.
    pub predictor: Option<Arc<PredictorSet>>,
    /// How thresholds are fitted.
    pub fit: Fit,
}

/// How thresholds are fitted. The default is what did best (docs/performance/quality.md has the table).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fit {
    /// From the scores of many tokens to one threshold.
    pub threshold: Threshold,
    /// What the layers see meanwhile.
    pub inputs: Inputs,
    /// Which layers skip how much.
    pub allocation: Allocation,
}

/// From the scores of many tokens to one threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Threshold {
    /// The target quantile of all tokens' scores together.
    #[default]
    Quantile,
    /// The mean of the tokens' own k-th scores, as in the paper.
    Mean,
}

/// What the layers see while thresholds are fitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Inputs {
    /// What they see in the dense model. All plans share one pass.
    #[default]
    Dense,
    /// What comes out of the layers below under their own thresholds. One pass and a half a plan.
    Sequential,
}

/// Which layers skip how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allocation {
    /// All the target.
    #[default]
    Uniform,
    /// More where it costs the model's output less, the target on average.
    Distortion,
}

/// What makes two requests' scores the same.
#[derive(Clone, Debug)]
pub(super) struct Scoring {
    pub(super) signal: Signal,
    pub(super) cut: Cut,
    pub(super) predictor: Option<Arc<PredictorSet>>,
}

impl Scoring {
    /// Whether scores are the values of logits.
    pub(super) fn by_value(&self) -> bool {
        let first = self.predictor.as_ref().and_then(|p| p.layers.first());
        first.is_some_and(|p| p.scores_by_value())
    }
}

impl PartialEq for Scoring {
    fn eq(&self, other: &Scoring) -> bool {
        let set = |s: &Scoring| s.predictor.as_ref().map(Arc::as_ptr);
        (self.signal, self.cut, set(self)) == (other.signal, other.cut, set(other))
    }
}

impl PlanRequest {
    pub(super) fn signal(&self) -> Result<Signal> {
        self.method.signal.ok_or_else(|| Error::Input {
            cause: format!("method {} has no plan", self.method.name),
            remedy: "leave the plan and the sparsity out".into(),
        })
    }

    pub(super) fn scoring(&self) -> Result<Scoring> {
        Ok(Scoring {
            signal: self.signal()?,
            cut: self.cut,
            predictor: self.predictor.clone(),
        })
    }

    /// Checks the target, the cut, and that a practical plan knows its signal.
    ///
    /// # Errors
    /// [`Error::Input`] saying what to ask for instead.
    pub fn check(&self) -> Result<()> {
        check_sparsity(self.sparsity)?;
        self.signal()?;
        let name = self.method.name;
        if !self.method.cuts.contains(&self.cut) {
            let cuts: Vec<_> = self.method.cuts.iter().map(|c| c.name()).collect();
            return Err(Error::Input {
                cause: format!("method {name} has no cut \"{}\"", self.cut.name()),
                remedy: format!("use {}", cuts.join(" or ")),
            });
        }
        if (self.fit.threshold, self.fit.allocation) == (Threshold::Mean, Allocation::Distortion) {
            return Err(Error::Input {
                cause: "mean thresholds need every layer's target before the text is read".into(),
                remedy: "use threshold quantile with allocation distortion".into(),
            });
        }
        match (self.form, self.method.practical, &self.predictor) {
            (Form::Practical, Practical::Predicted, None) => Err(Error::Input {
                cause: format!("method {name} needs a predictor"),
                remedy: "add --predictor copy3, or --ideal for the bound, or use --plan with a plan of `countdown train`".into(),
            }),
            (_, Practical::Computed, Some(set)) => Err(Error::Input {
                cause: format!("method {name} computes its signal, it has no use for predictor {}", set.name),
                remedy: format!("leave --predictor out, or use --method {}", PREDICTED.name),
            }),
            _ => Ok(()),
        }
    }

    /// Whether the plan follows from the model alone.
    pub fn needs_text(&self) -> bool {
        let has_partner = !self.method.decides_by_coefficients();
        self.form == Form::Practical || (self.cut != Cut::Layer && has_partner)
    }
}
