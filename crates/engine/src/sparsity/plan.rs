//! A plan: one rule a layer, and where they came from.

use super::{
    Cut, Form, Keep, Method, PredictorSet, Rule, Score, Signal, ideal_drop, plan_file::VERSION,
};
use crate::{
    arch::Config,
    calibrate::Fit,
    error::{Error, Result},
    model::{Model, ReadDensely},
};
use serde::{Deserialize, Serialize};

/// What a plan was made for and from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The plan format.
    pub version: u32,
    /// The weights it belongs to: see [`Model::fingerprint`].
    pub model: String,
    /// The model's family and sizes, for people.
    pub model_description: String,
    /// The method's name.
    pub method: String,
    /// What thresholds are compared with.
    pub cut: Cut,
    /// Fixed thresholds or each token's own.
    pub form: Form,
    /// What predicts the signal: the name of a [`PredictorSet`]; `None` where it is computed.
    pub predictor: Option<String>,
    /// The share of neurons to skip.
    pub target: f64,
    /// The shares to skip by layer, where they differ from the target.
    pub layer_targets: Option<Vec<f64>>,
    /// The share skipped on the part of the calibration text that thresholds were fitted on; `None` where nothing was fitted.
    pub realised: Option<f64>,
    /// How thresholds were fitted; `None` where nothing was.
    pub fit: Option<Fit>,
    /// BLAKE3 of the calibration tokens, and how many they were; `None` where nothing was fitted.
    pub calibration: Option<CalibrationText>,
    /// The countdown that made it.
    pub tool: String,
}

/// The tokens that constants and thresholds were fitted on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibrationText {
    /// BLAKE3 of the token numbers, little-endian u32; hexadecimal.
    pub hash: String,
    /// Tokens in all.
    pub tokens: usize,
}

impl CalibrationText {
    /// The identity of these tokens.
    pub fn of(tokens: &[u32]) -> CalibrationText {
        CalibrationText {
            hash: blake3::hash(bytemuck::cast_slice(tokens))
                .to_hex()
                .to_string(),
            tokens: tokens.len(),
        }
    }
}

/// Which neurons each layer needs, decided token by token.
#[derive(Clone, Debug, PartialEq)]
pub struct SparsityPlan {
    /// One rule a layer.
    pub rules: Vec<Rule>,
    /// Where they came from.
    pub provenance: Provenance,
}

/// Checks a target.
///
/// # Errors
/// [`Error::Input`] unless it lies in [0, 1).
pub fn check_sparsity(sparsity: f64) -> Result<()> {
    if (0.0..1.0).contains(&sparsity) {
        return Ok(());
    }
    Err(Error::Input {
        cause: format!("sparsity {sparsity} is not in [0, 1)"),
        remedy: "give the share of neurons to skip, for example 0.7".into(),
    })
}

impl SparsityPlan {
    /// The ideal plan that needs no calibration: scores are the signals themselves, exact.
    ///
    /// # Errors
    /// [`Error::Input`] for a target outside [0, 1).
    pub fn ideal(model: &Model, method: &Method, signal: Signal, sparsity: f64) -> Result<Self> {
        check_sparsity(sparsity)?;
        let rule = |inter| Rule {
            signal,
            predictor: None,
            score: Score::Magnitude,
            keep: Keep::AllBut {
                drop: ideal_drop(inter, sparsity),
            },
        };
        Ok(SparsityPlan {
            rules: model.config.layers.iter().map(|l| rule(l.inter)).collect(),
            provenance: Provenance::new(model, method, Cut::Layer, Form::Ideal, sparsity),
        })
    }

    /// What every step reads for all neurons of the FFNs.
    pub fn reads(&self) -> ReadDensely {
        let Some(first) = self.rules.first() else {
            return ReadDensely::All;
        };
        match self.predictors() {
            None => ReadDensely::of(first.signal),
            Some(set) => ReadDensely::Predictor {
                bytes: set.layers.iter().map(|p| p.bytes()).sum(),
                rest: set.layers.iter().map(|p| p.rest_bytes()).sum(),
            },
        }
    }

    /// The predictors of its rules, where all have one.
    pub fn predictors(&self) -> Option<PredictorSet> {
        Some(PredictorSet {
            name: self.provenance.predictor.clone()?,
            layers: self
                .rules
                .iter()
                .map(|r| r.predictor.clone())
                .collect::<Option<_>>()?,
        })
    }

    /// Refuses a plan made for other weights or other shapes.
    ///
    /// # Errors
    /// [`Error::Plan`] with both fingerprints or the layer that does not fit.
    pub fn check_fits(&self, model: &Model) -> Result<()> {
        let made_for = &self.provenance.model;
        if *made_for != model.fingerprint {
            return Err(Error::Plan {
                cause: format!(
                    "was made for model {made_for} ({}), but {} is {}",
                    self.provenance.model_description,
                    model.path.display(),
                    model.fingerprint
                ),
                remedy: "run `countdown calibrate` on this model, or give the model that the plan was made for".into(),
            });
        }
        self.check_shape(&model.config)
    }

    fn check_shape(&self, config: &Config) -> Result<()> {
        let bad = |cause: String| Error::Plan {
            cause,
            remedy: "run `countdown calibrate` again".into(),
        };
        if self.rules.len() != config.layers.len() {
            return Err(bad(format!(
                "has {} layers, the model {}",
                self.rules.len(),
                config.layers.len()
            )));
        }
        for (i, (rule, layer)) in self.rules.iter().zip(&config.layers).enumerate() {
            if let Keep::Above(tau) = rule.keep
                && tau.is_nan()
            {
                return Err(bad(format!("has no threshold for layer {i} (NaN)")));
            }
            if let Some(p) = &rule.predictor {
                p.check_shape(i, layer.inter, config.hidden)?;
            }
            let Some(w) = rule.score.weights() else {
                continue;
            };
            for v in [&w.positive, &w.negative] {
                if v.len() != layer.inter {
                    return Err(bad(format!(
                        "has {} neurons in layer {i}, the model {}",
                        v.len(),
                        layer.inter
                    )));
                }
                if !v.iter().all(|c| c.is_finite() && *c >= 0.0) {
                    return Err(bad(format!(
                        "has a constant in layer {i} that is negative or not finite"
                    )));
                }
            }
        }
        Ok(())
    }
}

impl Provenance {
    /// The provenance of a plan that nothing was fitted for.
    pub(crate) fn new(model: &Model, method: &Method, cut: Cut, form: Form, target: f64) -> Self {
        let c = &model.config;
        Provenance {
            version: VERSION,
            model: model.fingerprint.clone(),
            model_description: format!(
                "{}, {} layers, hidden {}, inter {}",
                c.family,
                c.layers.len(),
                c.hidden,
                c.layers.first().map_or(0, |l| l.inter)
            ),
            method: method.name.into(),
            cut,
            form,
            predictor: None,
            target,
            layer_targets: None,
            realised: None,
            fit: None,
            calibration: None,
            tool: format!("countdown {}", env!("CARGO_PKG_VERSION")),
        }
    }
}
