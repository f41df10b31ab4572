//! The plan: which tensor of the source becomes which of the output, and what happens to it on the way.

use super::{Format, Weights, weights::Place};
use crate::{
    arch::{Config, Family, NormWeights, Params, Role, RopeRows, is_tied, names, rope},
    error::{Error, Result},
    formats::{
        Checkpoint, Metadata, Tensor,
        gguf::{TensorInfo, fitting},
    },
    kernels::DType,
};
use std::collections::HashSet;

/// A tensor on its way.
pub(super) struct Piece {
    pub(super) source: Tensor,
    /// What is written.
    pub(super) info: TensorInfo,
    /// Bytes that are written.
    pub(super) bytes: usize,
    /// The type asked for, which its rows may not fit.
    pub(super) wanted: DType,
    /// The rows' orders in the source and in the output.
    pub(super) orders: [RopeRows; 2],
    /// Width of a head, which orders of rows are about.
    pub(super) head_dim: usize,
    /// Added to every element.
    pub(super) shift: f32,
}

impl Piece {
    /// Whether the output holds the very bytes of the source.
    pub(super) fn is_copied(&self) -> bool {
        let [from, to] = self.orders;
        self.source.dtype == self.info.dtype && self.shift == 0.0 && from == to
    }
}

/// Plans all tensors of a checkpoint.
///
/// # Errors
/// [`Error::Unsupported`] where one is missing or has no place in the family.
pub(super) fn plan(
    checkpoint: &Checkpoint,
    family: &Family,
    config: &Config,
    to: Format,
    weights: Weights,
) -> Result<Vec<Piece>> {
    let from = match checkpoint.metadata {
        Metadata::Gguf(_) => Format::Gguf,
        Metadata::HuggingFace(_) => Format::Folder,
    };
    let mut planner = Planner {
        checkpoint,
        params: Params::new(checkpoint)?,
        family,
        config,
        from,
        to,
        weights,
        pieces: Vec::new(),
    };
    planner.outside()?;
    for layer in 0..config.layers.len() {
        for role in family.roles() {
            planner.role(role, layer)?;
        }
    }
    planner.ropes()?;
    planner.refuse_leftovers()?;
    Ok(planner.pieces)
}

struct Planner<'a> {
    checkpoint: &'a Checkpoint,
    params: Params<'a>,
    family: &'a Family,
    config: &'a Config,
    from: Format,
    to: Format,
    weights: Weights,
    pieces: Vec<Piece>,
}

impl Planner<'_> {
    fn outside(&mut self) -> Result<()> {
        let pick = |format, (gguf, hf): (&'static str, &'static str)| match format {
            Format::Gguf => gguf,
            Format::Folder => hf,
        };
        let tied = is_tied(self.checkpoint);
        let embedding = if tied { Place::Head } else { Place::Embedding };
        for (name, place, is_norm) in [
            (names::EMBEDDING, embedding, false),
            (names::OUTPUT_NORM, embedding, true),
            (names::HEAD, Place::Head, false),
        ] {
            if name == names::HEAD && tied {
                continue;
            }
            match self.checkpoint.tensor(pick(self.from, name)) {
                Some(source) => {
                    let shift = if is_norm { self.norm_shift() } else { 0.0 };
                    let target = pick(self.to, name).to_owned();
                    self.add(source, target, place, shift, RopeRows::HalfSplit)?;
                }
                None => return Err(self.missing(pick(self.from, name))),
            }
        }
        Ok(())
    }

    fn role(&mut self, role: Role, layer: usize) -> Result<()> {
        let name = |format| match format {
            Format::Gguf => role.gguf(layer),
            Format::Folder => role.hugging_face(layer, (self.family.hf_name)(role)),
        };
        let Some(source) = self.checkpoint.tensor(&name(self.from)) else {
            let is_optional = role.is_bias() && !self.family.biases.require(role, &self.params);
            return match is_optional {
                true => Ok(()),
                false => Err(self.missing(&name(self.from))),
            };
        };
        let shift = if role.is_norm() {
            self.norm_shift()
        } else {
            0.0
        };
        let order = if role.is_turned() {
            self.family.gguf_permutes_rope
        } else {
            RopeRows::HalfSplit
        };
        let place = Place::Layer(role, layer, self.config.layers.len());
        self.add(source, name(self.to), place, shift, order)
    }

    /// What GGUF files say of ropes by tensors, and folders by numbers.
    fn ropes(&mut self) -> Result<()> {
        let tensors = match (self.from, self.to) {
            (_, Format::Folder) => return Ok(()),
            (Format::Folder, Format::Gguf) => {
                self.family.gguf_tensors(self.checkpoint, self.config)?
            }
            (Format::Gguf, Format::Gguf) => rope::GGUF_DIVISORS
                .iter()
                .filter_map(|name| self.checkpoint.tensor(name).cloned())
                .collect(),
        };
        for tensor in tensors {
            let name = tensor.name.clone();
            self.add(&tensor, name, Place::Rope, 0.0, RopeRows::HalfSplit)?;
        }
        Ok(())
    }

    /// What norms of the output hold more than those of the source.
    fn norm_shift(&self) -> f32 {
        match (self.family.hf_norms, self.from, self.to) {
            (NormWeights::MinusOne, Format::Folder, Format::Gguf) => 1.0,
            (NormWeights::MinusOne, Format::Gguf, Format::Folder) => -1.0,
            _ => 0.0,
        }
    }

    fn add(
        &mut self,
        source: &Tensor,
        name: String,
        place: Place,
        shift: f32,
        gguf_order: RopeRows,
    ) -> Result<()> {
        if source.shape.len() > 2 || source.shape.is_empty() {
            return Err(self.unsupported(format!(
                "tensor {} has shape {:?}, neither a vector nor a matrix",
                source.name, source.shape
            )));
        }
        if source.shape.len() == 1 && source.dtype.is_quantized() {
            return Err(self.unsupported(format!(
                "tensor {} is a vector stored as {}",
                source.name, source.dtype
            )));
        }
        let order = |format| match format {
            Format::Gguf => gguf_order,
            Format::Folder => RopeRows::HalfSplit,
        };
        let wanted = match (source.shape.len(), self.to) {
            (1, Format::Gguf) => DType::F32,
            (1, Format::Folder) => self.vector_type(source, shift),
            _ => self.weights.at(place, source.dtype),
        };
        let cols = source.shape.last().copied().unwrap_or(1);
        let info = TensorInfo {
            name,
            dtype: fitting(wanted, cols),
            shape: source.shape.clone(),
        };
        let bytes = info.bytes().map_err(|e| self.unsupported(e.to_string()))?;
        self.pieces.push(Piece {
            source: source.clone(),
            info,
            bytes,
            wanted,
            orders: [order(self.from), order(self.to)],
            head_dim: self.config.head_dim,
            shift,
        });
        Ok(())
    }

    /// The type of the matrices where it holds every element, else F32.
    fn vector_type(&self, source: &Tensor, shift: f32) -> DType {
        let dtype = match self.weights {
            Weights::All(dtype) => dtype,
            _ => self.pieces.first().map_or(source.dtype, |p| p.info.dtype),
        };
        let exact = |x: f32| match dtype {
            DType::F16 => half::f16::from_f32(x).to_f32() == x,
            DType::BF16 => half::bf16::from_f32(x).to_f32() == x,
            _ => true,
        };
        match source.to_f32().iter().all(|w| exact(w + shift)) {
            true => dtype,
            false => DType::F32,
        }
    }

    fn refuse_leftovers(&self) -> Result<()> {
        let used: HashSet<&str> = self.pieces.iter().map(|p| p.source.name.as_str()).collect();
        // Checkpoints of some trainers hold a tied head twice.
        let derived = |name: &str| {
            names::is_derived(name)
                || name == names::HEAD.1
                || self.from == Format::Gguf && rope::GGUF_DIVISORS.contains(&name)
        };
        let left = self
            .checkpoint
            .tensors()
            .find(|t| !used.contains(t.name.as_str()) && !derived(&t.name));
        match left {
            None => Ok(()),
            Some(t) => Err(self.unsupported(format!(
                "tensor {} has no place in the {} family",
                t.name, self.family.name
            ))),
        }
    }

    fn missing(&self, name: &str) -> Error {
        self.unsupported(format!("tensor {name} is missing"))
    }

    fn unsupported(&self, cause: String) -> Error {
        self.family.unfit(self.checkpoint, cause)
    }
}
