//! One way to read hyper-parameters, whichever file they come from.

use super::{Config, names};
use crate::{
    error::{Error, Result},
    formats::{Checkpoint, Metadata, gguf},
};
use serde_json::Value as Json;
use std::path::Path;

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

    pub(crate) fn path(&self) -> &Path {
        &self.checkpoint.path
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

    pub(crate) fn malformed(&self, cause: String) -> Error {
        Error::Malformed {
            path: self.checkpoint.path.clone(),
            cause,
        }
    }

    /// The value in config.json, `null` included.
    fn entry(&self, path: &str) -> Option<&'a Json> {
        match &self.checkpoint.metadata {
            Metadata::HuggingFace(m) if !path.is_empty() => m.config.pointer(&format!("/{path}")),
            _ => None,
        }
    }

    fn json(&self, path: &str) -> Option<&'a Json> {
        self.entry(path).filter(|v| !v.is_null())
    }

    fn gguf_key(&self, gguf: &str) -> String {
        format!("{}.{gguf}", self.architecture)
    }

    fn gguf_value(&self, gguf: &str) -> Option<&'a gguf::Value> {
        match &self.checkpoint.metadata {
            Metadata::Gguf(m) if !gguf.is_empty() => m.get(&self.gguf_key(gguf)),
            _ => None,
        }
    }

    /// The name a message should use for a parameter.
    fn label(&self, hf: &str, gguf: &str) -> String {
        if self.is_gguf() {
            self.gguf_key(gguf)
        } else {
            hf.to_owned()
        }
    }

    /// Whether config.json has it, and not as `null`.
    pub(crate) fn has(&self, hf: &str) -> bool {
        self.json(hf).is_some()
    }

    /// Whether a feature is asked for: there is such a parameter, neither `null`, `false` nor zero.
    pub(crate) fn is_on(&self, hf: &str, gguf: &str) -> bool {
        let in_json = self.json(hf).is_some_and(|v| {
            let is_zero = v.as_f64().is_some_and(|n| n == 0.0);
            !is_zero && *v != Json::Bool(false)
        });
        let in_gguf = self.gguf_value(gguf).is_some_and(|v| match *v {
            gguf::Value::Bool(on) => on,
            gguf::Value::F32(x) => x != 0.0,
            gguf::Value::U32(n) => n != 0,
            gguf::Value::I32(n) => n != 0,
            gguf::Value::U64(n) => n != 0,
            _ => true,
        });
        in_json || in_gguf
    }

    /// Whether config.json says `false` to it.
    pub(crate) fn is_off(&self, hf: &str) -> bool {
        self.json(hf) == Some(&Json::Bool(false))
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

    /// A number that files leave out where it is `default`, and that config.json switches off by `null`.
    pub(crate) fn number_or_null(&self, hf: &str, gguf: &str, default: f32) -> Result<Option<f32>> {
        match self.entry(hf) {
            Some(Json::Null) => Ok(None),
            _ => Ok(Some(self.opt_number(hf, gguf)?.unwrap_or(default))),
        }
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

    /// A string, if there is one by that name.
    pub(crate) fn text(&self, hf: &str, gguf: &str) -> Option<Result<&'a str>> {
        let found = match (self.json(hf), self.gguf_value(gguf)) {
            (Some(json), _) => json.as_str(),
            (None, Some(gguf::Value::String(text))) => Some(text.as_str()),
            (None, Some(_)) => None,
            (None, None) => return None,
        };
        Some(found.ok_or_else(|| self.malformed(format!("{} is no string", self.label(hf, gguf)))))
    }

    /// A list of so many positive numbers in config.json.
    pub(crate) fn numbers(&self, hf: &str, len: usize) -> Result<Vec<f32>> {
        let list = self.json(hf).and_then(Json::as_array);
        let numbers: Option<Vec<f32>> = list.and_then(|list| {
            let number = |v: &Json| v.as_f64().map(|x| x as f32);
            list.iter().map(number).collect()
        });
        self.positive(numbers, len, hf)
    }

    /// A vector of so many positive numbers that a tensor holds, if there is one.
    pub(crate) fn divisors(&self, tensor: &str, len: usize) -> Result<Option<Vec<f32>>> {
        let Some(t) = self.checkpoint.tensor(tensor) else {
            return Ok(None);
        };
        // The length is checked before anything is unpacked.
        let numbers = (t.shape == [len]).then(|| t.to_f32());
        self.positive(numbers, len, tensor).map(Some)
    }

    fn positive(&self, numbers: Option<Vec<f32>>, len: usize, name: &str) -> Result<Vec<f32>> {
        let is_sound = |n: &Vec<f32>| n.len() == len && n.iter().all(|x| x.is_finite() && *x > 0.0);
        numbers
            .filter(is_sound)
            .ok_or_else(|| self.malformed(format!("{name} does not list {len} positive numbers")))
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

    /// The sliding window, in positions, if there is one; GGUF files write zero for none.
    pub(crate) fn window(&self) -> Result<Option<usize>> {
        let (hf, gguf) = ("sliding_window", "attention.sliding_window");
        if self.is_on(hf, gguf) {
            self.opt_size(hf, gguf)
        } else {
            Ok(None)
        }
    }

    /// Gives a window to the layers that config.json lists as windowed, or, where it has no list, to those that `by_default` picks.
    pub(crate) fn set_windows(
        &self,
        c: &mut Config,
        window: Option<usize>,
        by_default: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let types = self.layer_types(c.layers.len())?;
        for (i, layer) in c.layers.iter_mut().enumerate() {
            let is_windowed = match types.as_ref().map(|t| t[i]) {
                Some("sliding_attention") => true,
                Some("full_attention") => false,
                Some(other) => {
                    return Err(self.unsupported(format!("a layer with \"{other}\"")));
                }
                None => by_default(i),
            };
            layer.window = window.filter(|_| is_windowed);
        }
        Ok(())
    }

    /// Which kind of attention each layer has, where config.json lists it.
    fn layer_types(&self, layers: usize) -> Result<Option<Vec<&'a str>>> {
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

    /// A yes or no (1 or 0) a layer, where config.json lists it.
    pub(crate) fn layer_flags(&self, hf: &str, layers: usize) -> Result<Option<Vec<bool>>> {
        let Some(list) = self.json(hf) else {
            return Ok(None);
        };
        let flag = |v: &Json| v.as_bool().or_else(|| Some(v.as_u64()? != 0));
        let flags: Option<Vec<bool>> = list
            .as_array()
            .and_then(|list| list.iter().map(flag).collect());
        match flags {
            // Lists may be longer than the model.
            Some(f) if f.len() >= layers => Ok(Some(f)),
            _ => Err(self.malformed(format!("{hf} does not list {layers} layers"))),
        }
    }

    /// Refuses a feature that config.json switches on.
    pub(crate) fn refuse_if(&self, hf: &str, what: &str) -> Result<()> {
        match self.json(hf) {
            Some(v) if self.is_on(hf, "") => {
                Err(self.unsupported(format!("{what} ({hf} = {v}) not supported")))
            }
            _ => Ok(()),
        }
    }

    /// Checks that config.json asks for an activation by one of these names, if it names one.
    pub(crate) fn expect_activation(&self, names: &[&str]) -> Result<()> {
        let asked = self
            .json("hidden_activation")
            .or_else(|| self.json("hidden_act"))
            .and_then(Json::as_str);
        match asked {
            Some(a) if !names.contains(&a) => {
                Err(self.unsupported(format!("activation \"{a}\" in this family")))
            }
            _ => Ok(()),
        }
    }
}
