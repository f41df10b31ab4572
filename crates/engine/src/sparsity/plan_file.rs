//! The plan's file: safetensors with a JSON header. See docs/plan-format.md.

use super::{
    Form, Keep, NeuronWeights, Outer, Predictor, Provenance, Rule, Score, Signal, SparsityPlan,
    check_sparsity, predictor::Rest,
};
use crate::{
    error::{Error, Result},
    files,
    model::{Linear, Matrix},
};
use countdown_kernels::{Bytes, DType, quant};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

/// The version written and the only one read.
pub(super) const VERSION: u32 = 2;
/// The header's key for the provenance, as JSON.
const HEADER: &str = "countdown_plan";

/// The part of a plan that is not a tensor.
#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(flatten)]
    provenance: Provenance,
    signal: SignalName,
    /// Storage type and columns of every packed matrix, by its tensor's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    matrices: BTreeMap<String, Packed>,
}

#[derive(Serialize, Deserialize)]
struct Packed {
    dtype: String,
    cols: usize,
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

/// A tensor to be written: name, type, shape, bytes.
type Tensor<'a> = (String, Dtype, Vec<usize>, Cow<'a, [u8]>);

/// Tensors to be written, and what the header must say of them.
#[derive(Default)]
struct Tensors<'a> {
    list: Vec<Tensor<'a>>,
    matrices: BTreeMap<String, Packed>,
}

impl<'a> Tensors<'a> {
    fn vector(&mut self, name: String, values: &'a [f32]) {
        let bytes = Cow::Borrowed(bytemuck::cast_slice(values));
        self.list
            .push((name, Dtype::F32, vec![values.len()], bytes));
    }

    fn matrix(&mut self, name: String, m: &'a Matrix) {
        let view = m.view();
        let bytes = quant::blocks_of(view);
        let shape = vec![m.rows(), bytes.len() / m.rows().max(1)];
        let packed = Packed {
            dtype: m.dtype().name().into(),
            cols: m.cols(),
        };
        self.matrices.insert(name.clone(), packed);
        self.list.push((name, Dtype::U8, shape, bytes));
    }

    fn linear(&mut self, name: &str, l: &'a Linear) {
        self.matrix(name.into(), &l.weight);
        if let Some(bias) = &l.bias {
            self.vector(format!("{name}.bias"), bias);
        }
    }

    fn predictor(&mut self, layer: usize, p: &'a Predictor) {
        let name = |part: &str| format!("layers.{layer}.predictor.{part}");
        if let Some(inner) = &p.inner {
            self.matrix(name("inner"), inner);
        }
        if let Some(rest) = &p.rest {
            self.matrix(name("rest.gate"), &rest.gate);
            self.matrix(name("rest.up"), &rest.up);
        }
        match &p.outer {
            Outer::Logits(l) => self.linear(&name("logits"), l),
            Outer::Gate(l) => self.linear(&name("gate"), l),
            Outer::Product { gate, up } => {
                self.linear(&name("gate"), gate);
                self.linear(&name("up"), up);
            }
        }
    }
}

impl SparsityPlan {
    /// Writes the plan beside `path` and renames it when complete.
    ///
    /// # Errors
    /// [`Error::Write`]; what stood at `path` is untouched then.
    pub fn save(&self, path: &Path) -> Result<()> {
        // Of an ideal rule the number to drop is what must be kept; it is exact in f32 for every size that loads.
        let keep: Vec<f32> = self
            .rules
            .iter()
            .map(|r| match r.keep {
                Keep::Above(tau) => tau,
                Keep::AllBut { drop } => drop as f32,
            })
            .collect();
        let mut tensors = Tensors::default();
        tensors.vector("keep".into(), &keep);
        for (i, rule) in self.rules.iter().enumerate() {
            if let Some(w) = rule.score.weights() {
                tensors.vector(format!("layers.{i}.positive"), &w.positive);
                tensors.vector(format!("layers.{i}.negative"), &w.negative);
            }
            if let Some(p) = &rule.predictor {
                tensors.predictor(i, p);
            }
        }
        let header = Header {
            provenance: self.provenance.clone(),
            signal: self.rules.first().map_or(Signal::Up, |r| r.signal).into(),
            matrices: tensors.matrices,
        };
        let unwritable = |e: &dyn std::fmt::Display| Error::Plan {
            cause: format!("cannot be encoded: {e}"),
            remedy: "report this with the command that led here".into(),
        };
        let header = serde_json::to_string(&header).map_err(|e| unwritable(&e))?;
        let views = tensors
            .list
            .iter()
            .map(|(name, dtype, shape, bytes)| {
                TensorView::new(*dtype, shape.clone(), bytes).map(|v| (name.clone(), v))
            })
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|e| unwritable(&e))?;
        let bytes =
            safetensors::serialize(views, Some(HashMap::from([(HEADER.to_owned(), header)])))
                .map_err(|e| unwritable(&e))?;
        files::atomic_write(path, |out| std::io::Write::write_all(out, &bytes))
    }

    /// Reads a plan. Predictors stay in the file, which is mapped.
    ///
    /// # Errors
    /// [`Error::Read`], or [`Error::Plan`] naming what is wrong with the file.
    pub fn load(path: &Path) -> Result<SparsityPlan> {
        let bytes = Bytes::map(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Reader::new(path, &bytes)?.plan()
    }
}

fn broken(path: &Path, cause: impl std::fmt::Display) -> Error {
    Error::Plan {
        cause: format!("{}: {cause}", path.display()),
        remedy: "make it again with `countdown calibrate` or `countdown train`".into(),
    }
}

struct Reader<'a> {
    path: &'a Path,
    bytes: &'a Bytes,
    tensors: SafeTensors<'a>,
    header: Header,
}

impl<'a> Reader<'a> {
    fn new(path: &'a Path, bytes: &'a Bytes) -> Result<Self> {
        let no_plan = |e: safetensors::SafeTensorError| {
            broken(path, format_args!("is damaged or no plan ({e})"))
        };
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(no_plan)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(no_plan)?;
        let header = metadata
            .metadata()
            .as_ref()
            .and_then(|m| m.get(HEADER))
            .ok_or_else(|| broken(path, "is a safetensors file but no plan"))?;
        let version = serde_json::from_str::<serde_json::Value>(header)
            .ok()
            .and_then(|h| h.get("version").and_then(serde_json::Value::as_u64));
        if version != Some(u64::from(VERSION)) {
            let has = version.map_or("none".into(), |v| v.to_string());
            return Err(broken(
                path,
                format_args!("has version {has}, this countdown reads {VERSION}"),
            ));
        }
        let header: Header = serde_json::from_str(header)
            .map_err(|e| broken(path, format_args!("has a header that cannot be read ({e})")))?;
        check_sparsity(header.provenance.target)?;
        Ok(Reader {
            path,
            bytes,
            tensors,
            header,
        })
    }

    fn broken(&self, cause: impl std::fmt::Display) -> Error {
        broken(self.path, cause)
    }

    fn vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        match self.tensors.tensor(name) {
            Err(_) => Ok(None),
            Ok(t) if t.dtype() == Dtype::F32 => Ok(Some(
                t.data()
                    .chunks_exact(4)
                    .map(bytemuck::pod_read_unaligned)
                    .collect(),
            )),
            Ok(t) => Err(self.broken(format_args!("holds {name} as {:?}, not F32", t.dtype()))),
        }
    }

    fn matrix(&self, name: &str) -> Result<Option<Matrix>> {
        let Ok(t) = self.tensors.tensor(name) else {
            return Ok(None);
        };
        let packed = self.header.matrices.get(name);
        let packed =
            packed.ok_or_else(|| self.broken(format_args!("does not say what {name} is")))?;
        let dtype = DType::from_name(&packed.dtype)
            .ok_or_else(|| self.broken(format_args!("holds {name} in type {}", packed.dtype)))?;
        let rows = t.shape().first().copied().unwrap_or(0);
        // The tensor is a part of the mapped file, so its offset follows from the addresses.
        let start = t.data().as_ptr() as usize - self.bytes.as_ptr() as usize;
        let data = self.bytes.slice(start..start + t.data().len());
        Matrix::new(dtype, rows, packed.cols, data)
            .map(Some)
            .map_err(|e| self.broken(format_args!("{name}: {e}")))
    }

    fn linear(&self, name: &str) -> Result<Option<Linear>> {
        let Some(weight) = self.matrix(name)? else {
            return Ok(None);
        };
        Ok(Some(Linear {
            weight,
            bias: self.vector(&format!("{name}.bias"))?,
        }))
    }

    fn predictor(&self, layer: usize) -> Result<Option<Arc<Predictor>>> {
        let name = |part: &str| format!("layers.{layer}.predictor.{part}");
        let inner = self.matrix(&name("inner"))?;
        let parts = (
            self.linear(&name("logits"))?,
            self.linear(&name("gate"))?,
            self.linear(&name("up"))?,
        );
        let outer = match parts {
            (None, None, None) if inner.is_none() => return Ok(None),
            (Some(logits), None, None) => Outer::Logits(logits),
            (None, Some(gate), None) => Outer::Gate(gate),
            (None, Some(gate), Some(up)) => Outer::Product { gate, up },
            _ => {
                return Err(
                    self.broken(format_args!("holds half of the predictor of layer {layer}"))
                );
            }
        };
        let rest = match (
            self.matrix(&name("rest.gate"))?,
            self.matrix(&name("rest.up"))?,
        ) {
            (Some(gate), Some(up)) => Some(Rest { gate, up }),
            (None, None) => None,
            _ => return Err(self.broken(format_args!("holds half of the planes of layer {layer}"))),
        };
        Ok(Some(Arc::new(Predictor { inner, outer, rest })))
    }

    fn rule(&self, i: usize, keep: f32) -> Result<Rule> {
        let positive = self.vector(&format!("layers.{i}.positive"))?;
        let negative = self.vector(&format!("layers.{i}.negative"))?;
        let predictor = self.predictor(i)?;
        if predictor.is_some() != self.header.provenance.predictor.is_some() {
            return Err(self.broken(format_args!(
                "has a predictor in its header or in layer {i}, not in both"
            )));
        }
        let score = match (positive, negative) {
            (Some(positive), Some(negative)) => {
                Score::Weighted(NeuronWeights { positive, negative })
            }
            (None, None) if predictor.as_ref().is_some_and(|p| p.scores_by_value()) => Score::Value,
            (None, None) => Score::Magnitude,
            _ => return Err(self.broken(format_args!("holds half of the constants of layer {i}"))),
        };
        Ok(Rule {
            signal: self.header.signal.into(),
            predictor,
            score,
            keep: match self.header.provenance.form {
                Form::Practical => Keep::Above(keep),
                Form::Ideal => Keep::AllBut {
                    drop: keep as usize,
                },
            },
        })
    }

    fn plan(self) -> Result<SparsityPlan> {
        let keep = self.vector("keep")?;
        let keep = keep.ok_or_else(|| self.broken("holds no thresholds"))?;
        let rules = keep
            .iter()
            .enumerate()
            .map(|(i, &k)| self.rule(i, k))
            .collect::<Result<_>>()?;
        Ok(SparsityPlan {
            rules,
            provenance: self.header.provenance,
        })
    }
}
