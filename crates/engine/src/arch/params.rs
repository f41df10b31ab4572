//! One way to read hyper-parameters, whichever file they come from.

use super::{Act, Rope, names};
use crate::{
    error::{Error, Result},
    formats::{Checkpoint, Metadata},
};
use serde_json::Value as Json;

/// Sizes from files are bounded by this before anything is multiplied.
const LARGEST_SIZE: u64 = 1 << 24;

/// Hyper-parameters of a checkpoint. Where a method takes two names, the first is a path into config.json
/// ("a/b" for nested objects), the second a GGUF key without the architecture's prefix; "" where the format has none.
pub(crate) struct Params<'a> {
    checkpoint: &'a Checkpoint,
    architecture: String,
}

impl<'a> Params<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint) -> Result<Params<'a>> {
        let architecture = match &checkpoint.metadata {
            Metadata::Gguf(m) => m.opt_str("general.architecture")?,
            Metadata::HuggingFace(m) => m.config.get("model_type").and_then(Json::as_str),
        };
        let architecture = architecture
            .ok_or_else(|| Error::Malformed {
                path: checkpoint.path.clone(),
                cause: "names no architecture (general.architecture or model_type)".into(),
            })?
            .to_owned();
        Ok(Params {
            checkpoint,
            architecture,
        })
    }

    pub(crate) fn architecture(&self) -> &str {
        &self.architecture
    }

    pub(crate) fn is_gguf(&self) -> bool {
        matches!(self.checkpoint.metadata, Metadata::Gguf(_))
    }

    pub(crate) fn unsupported(&self, cause: String) -> Error {
        Error::Unsupported {
            path: self.checkpoint.path.clone(),
            cause,
            remedy: "use a model that does without, or a newer version of countdown".into(),
        }
    }

    fn malformed(&self, cause: String) -> Error {
        Error::Malformed {
            path: self.checkpoint.path.clone(),
            cause,
        }
    }

    fn json(&self, path: &str) -> Option<&'a Json> {
        match &self.checkpoint.metadata {
            Metadata::HuggingFace(m) if !path.is_empty() => m
                .config
                .pointer(&format!("/{path}"))
                .filter(|v| !v.is_null()),
            _ => None,
        }
    }

    fn gguf_key(&self, gguf: &str) -> String {
        format!("{}.{gguf}", self.architecture)
    }

    /// The name a message should use for a parameter.
    fn label(&self, hf: &str, gguf: &str) -> String {
        if self.is_gguf() {
            self.gguf_key(gguf)
        } else {
            hf.to_owned()
        }
    }

    pub(crate) fn opt_number(&self, hf: &str, gguf: &str) -> Result<Option<f32>> {
        let value = match &self.checkpoint.metadata {
            Metadata::Gguf(_) if gguf.is_empty() => None,
            Metadata::Gguf(m) => m.opt_f32(&self.gguf_key(gguf))?,
            // What is no number becomes one that the check below refuses.
            Metadata::HuggingFace(_) => self.json(hf).map(|v| v.as_f64().unwrap_or(-1.0) as f32),
        };
        match value {
            Some(v) if !(v.is_finite() && v > 0.0) => {
                Err(self.malformed(format!("{} is no positive number", self.label(hf, gguf))))
            }
            value => Ok(value),
        }
    }

    pub(crate) fn number(&self, hf: &str, gguf: &str) -> Result<f32> {
        self.opt_number(hf, gguf)?
            .ok_or_else(|| self.malformed(format!("{} is missing", self.label(hf, gguf))))
    }

    pub(crate) fn opt_size(&self, hf: &str, gguf: &str) -> Result<Option<usize>> {
        let value = match &self.checkpoint.metadata {
            Metadata::Gguf(_) if gguf.is_empty() => None,
            Metadata::Gguf(m) => m.opt_u64(&self.gguf_key(gguf))?,
            Metadata::HuggingFace(_) => self.json(hf).map(|v| v.as_u64().unwrap_or(0)),
        };
        match value {
            Some(v) if !(1..=LARGEST_SIZE).contains(&v) => Err(self.malformed(format!(
                "{} is no size between 1 and {LARGEST_SIZE}",
                self.label(hf, gguf)
            ))),
            value => Ok(value.map(|v| v as usize)),
        }
    }

    pub(crate) fn size(&self, hf: &str, gguf: &str) -> Result<usize> {
        self.opt_size(hf, gguf)?
            .ok_or_else(|| self.malformed(format!("{} is missing", self.label(hf, gguf))))
    }

    /// The vocabulary is what the embedding table has rows for.
    pub(crate) fn vocab(&self) -> Result<usize> {
        let name = if self.is_gguf() {
            names::EMBEDDING.0
        } else {
            names::EMBEDDING.1
        };
        let shape = self.checkpoint.tensor(name).map(|t| t.shape.as_slice());
        match shape {
            Some(&[rows, _]) => Ok(rows),
            Some(shape) => {
                Err(self.malformed(format!("tensor {name} has shape {shape:?}, not a matrix")))
            }
            None => Err(self.unsupported(format!("tensor {name} is missing"))),
        }
    }

    /// The rope of layers without a rule of their own.
    pub(crate) fn rope(&self) -> Result<Rope> {
        let rope_parameters = ["rope_parameters/full_attention", "rope_parameters"];
        let mut base = self.opt_number("rope_theta", "rope.freq_base")?;
        for path in rope_parameters {
            base = base.or(self.opt_number(&format!("{path}/rope_theta"), "")?);
        }
        let mut kind = "default".to_owned();
        let mut scale = 1.0;
        if let Metadata::Gguf(m) = &self.checkpoint.metadata {
            if let Some(k) = m.opt_str(&self.gguf_key("rope.scaling.type"))? {
                kind = k.to_owned();
                scale = self.opt_number("", "rope.scaling.factor")?.unwrap_or(1.0);
            }
        } else {
            for path in ["rope_scaling", rope_parameters[0], rope_parameters[1]] {
                let named = ["rope_type", "type"]
                    .iter()
                    .find_map(|k| self.json(&format!("{path}/{k}")));
                if let Some(k) = named {
                    kind = k.as_str().unwrap_or("unreadable").to_owned();
                    scale = self
                        .opt_number(&format!("{path}/factor"), "")?
                        .unwrap_or(1.0);
                    break;
                }
            }
        }
        match kind.as_str() {
            "default" | "none" => scale = 1.0,
            "linear" => {}
            other => return Err(self.unsupported(format!("rope scaling \"{other}\""))),
        }
        Ok(Rope {
            // The original Llama's base, which both formats leave out where it is meant.
            base: base.unwrap_or(10_000.0),
            scale,
        })
    }

    /// Which kind of attention each layer has, where config.json lists it.
    pub(crate) fn layer_types(&self, layers: usize) -> Result<Option<Vec<&'a str>>> {
        let Some(list) = self.json("layer_types") else {
            return Ok(None);
        };
        let types: Option<Vec<&str>> = list
            .as_array()
            .map(|a| a.iter().map(|v| v.as_str().unwrap_or("")).collect());
        match types {
            Some(t) if t.len() == layers => Ok(Some(t)),
            _ => Err(self.malformed(format!("layer_types does not list {layers} layers"))),
        }
    }

    /// Refuses a feature that config.json switches on.
    pub(crate) fn refuse_if(&self, hf: &str, what: &str) -> Result<()> {
        match self.json(hf) {
            Some(v) if *v != Json::Bool(false) => {
                Err(self.unsupported(format!("{what} ({hf} = {v}) not supported")))
            }
            _ => Ok(()),
        }
    }

    /// Checks that config.json asks for the activation the family has.
    pub(crate) fn expect_activation(&self, act: Act) -> Result<()> {
        let asked = self
            .json("hidden_activation")
            .or_else(|| self.json("hidden_act"))
            .and_then(Json::as_str);
        let fits = match act {
            Act::Silu => ["silu", "swish"].as_slice(),
            Act::GeluTanh => ["gelu_pytorch_tanh", "gelu_tanh"].as_slice(),
        };
        match asked {
            Some(a) if !fits.contains(&a) => {
                Err(self.unsupported(format!("activation \"{a}\" in this family")))
            }
            _ => Ok(()),
        }
    }
}
