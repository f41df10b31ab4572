//! A plan: one rule a layer, and where they came from. Kept in one safetensors file with a JSON header.

use super::{Cut, Form, Keep, Method, NeuronWeights, Rule, Signal, ideal_drop};
use crate::{
    arch::Config,
    error::{Error, Result},
    files,
    model::Model,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, path::Path};

/// The version written and the only one read.
const VERSION: u32 = 1;
/// The header's key for the provenance, as JSON.
const HEADER: &str = "countdown_plan";
/// Plans are small: anything larger is not one.
const LARGEST_FILE: u64 = 1 << 30;

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
    /// The share of neurons to skip.
    pub target: f64,
    /// The share skipped on the part of the calibration text that thresholds were fitted on; `None` where nothing was fitted.
    pub realised: Option<f64>,
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

/// Which neurons each layer needs, decided token by token.
#[derive(Clone, Debug, PartialEq)]
pub struct SparsityPlan {
    /// One rule a layer.
    pub rules: Vec<Rule>,
    /// Where they came from.
    pub provenance: Provenance,
}

/// The part of a rule that is not a tensor.
#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(flatten)]
    provenance: Provenance,
    signal: SignalName,
}

#[derive(Serialize, Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum SignalName {
    Gate,
    Up,
    Product,
}

impl From<Signal> for SignalName {
    fn from(s: Signal) -> Self {
        match s {
            Signal::Gate => SignalName::Gate,
            Signal::Up => SignalName::Up,
            Signal::Product => SignalName::Product,
        }
    }
}

impl From<SignalName> for Signal {
    fn from(s: SignalName) -> Self {
        match s {
            SignalName::Gate => Signal::Gate,
            SignalName::Up => Signal::Up,
            SignalName::Product => Signal::Product,
        }
    }
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
    /// The ideal plan that needs no calibration: scores are the signals themselves.
    ///
    /// # Errors
    /// [`Error::Input`] for a target outside [0, 1).
    pub fn ideal(model: &Model, method: &Method, signal: Signal, sparsity: f64) -> Result<Self> {
        check_sparsity(sparsity)?;
        let rule = |inter| Rule {
            signal,
            weights: None,
            keep: Keep::AllBut {
                drop: ideal_drop(inter, sparsity),
            },
        };
        Ok(SparsityPlan {
            rules: model.config.layers.iter().map(|l| rule(l.inter)).collect(),
            provenance: Provenance::new(model, method, Cut::Layer, Form::Ideal, sparsity),
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
            let Some(w) = &rule.weights else { continue };
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

    /// Writes the plan beside `path` and renames it when complete.
    ///
    /// # Errors
    /// [`Error::Write`]; what stood at `path` is untouched then.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut names = Vec::new();
        let mut data: Vec<Vec<u8>> = Vec::new();
        let mut push = |name: String, values: &[f32]| {
            names.push((name, values.len()));
            data.push(bytemuck::cast_slice(values).to_vec());
        };
        // Of an ideal rule the number to drop is what must be kept; it is exact in f32 for every size that loads.
        let keep: Vec<f32> = self
            .rules
            .iter()
            .map(|r| match r.keep {
                Keep::Above(tau) => tau,
                Keep::AllBut { drop } => drop as f32,
            })
            .collect();
        push("keep".into(), &keep);
        for (i, rule) in self.rules.iter().enumerate() {
            if let Some(w) = &rule.weights {
                push(format!("layers.{i}.positive"), &w.positive);
                push(format!("layers.{i}.negative"), &w.negative);
            }
        }
        let header = Header {
            provenance: self.provenance.clone(),
            signal: self.rules.first().map_or(Signal::Up, |r| r.signal).into(),
        };
        let unwritable = |e: &dyn std::fmt::Display| Error::Plan {
            cause: format!("cannot be encoded: {e}"),
            remedy: "report this with the command that led here".into(),
        };
        let header = serde_json::to_string(&header).map_err(|e| unwritable(&e))?;
        let views = names
            .iter()
            .zip(&data)
            .map(|((name, len), bytes)| {
                TensorView::new(Dtype::F32, vec![*len], bytes).map(|v| (name.clone(), v))
            })
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|e| unwritable(&e))?;
        let bytes =
            safetensors::serialize(views, Some(HashMap::from([(HEADER.to_owned(), header)])))
                .map_err(|e| unwritable(&e))?;
        files::atomic_write(path, |out| std::io::Write::write_all(out, &bytes))
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// [`Error::Read`], or [`Error::Plan`] naming what is wrong with the file.
    pub fn load(path: &Path) -> Result<SparsityPlan> {
        let read = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let broken = |cause: String| Error::Plan {
            cause: format!("{}: {cause}", path.display()),
            remedy: "make it again with `countdown calibrate`".into(),
        };
        if std::fs::metadata(path).map_err(read)?.len() > LARGEST_FILE {
            return Err(broken("is too large for a plan".into()));
        }
        let bytes = std::fs::read(path).map_err(read)?;
        let no_plan =
            |e: safetensors::SafeTensorError| broken(format!("is damaged or no plan ({e})"));
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(no_plan)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(no_plan)?;
        let header = metadata
            .metadata()
            .as_ref()
            .and_then(|m| m.get(HEADER))
            .ok_or_else(|| broken("is a safetensors file but no plan".into()))?;
        let version = serde_json::from_str::<serde_json::Value>(header)
            .ok()
            .and_then(|h| h.get("version").and_then(serde_json::Value::as_u64));
        if version != Some(u64::from(VERSION)) {
            return Err(broken(format!(
                "has version {}, this countdown reads {VERSION}",
                version.map_or("none".into(), |v| v.to_string())
            )));
        }
        let header: Header = serde_json::from_str(header)
            .map_err(|e| broken(format!("has a header that cannot be read ({e})")))?;
        check_sparsity(header.provenance.target)?;
        let vector = |name: &str| -> Result<Option<Vec<f32>>> {
            match tensors.tensor(name) {
                Err(_) => Ok(None),
                Ok(t) if t.dtype() == Dtype::F32 => Ok(Some(
                    t.data()
                        .chunks_exact(4)
                        .map(bytemuck::pod_read_unaligned)
                        .collect(),
                )),
                Ok(t) => Err(broken(format!("holds {name} as {:?}, not F32", t.dtype()))),
            }
        };
        let keep = vector("keep")?.ok_or_else(|| broken("holds no thresholds".into()))?;
        let rules = keep
            .iter()
            .enumerate()
            .map(|(i, &k)| {
                let positive = vector(&format!("layers.{i}.positive"))?;
                let negative = vector(&format!("layers.{i}.negative"))?;
                let weights = match (positive, negative) {
                    (Some(positive), Some(negative)) => Some(NeuronWeights { positive, negative }),
                    (None, None) => None,
                    _ => return Err(broken(format!("holds half of the constants of layer {i}"))),
                };
                Ok(Rule {
                    signal: header.signal.into(),
                    weights,
                    keep: match header.provenance.form {
                        Form::Practical => Keep::Above(k),
                        Form::Ideal => Keep::AllBut { drop: k as usize },
                    },
                })
            })
            .collect::<Result<_>>()?;
        Ok(SparsityPlan {
            rules,
            provenance: header.provenance,
        })
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
            target,
            realised: None,
            calibration: None,
            tool: format!("countdown {}", env!("CARGO_PKG_VERSION")),
        }
    }
}
