//! Which type each tensor is stored in.

use super::Format;
use crate::{
    arch::Role,
    error::{Error, Result},
    formats::{Checkpoint, gguf},
    kernels::DType,
};

/// Matrices of several types: most in one, those that matter most to quality in a better one.
///
/// Which those are is llama.cpp's choice under the same name: the head (or the embedding where it is the head), and of the first
/// and the last eighth of the layers and of every third between them the value and the down projection. Scales are fitted
/// without an importance matrix.
#[derive(Debug, PartialEq, Eq)]
pub struct Mix {
    /// Its name, as the field has it.
    pub name: &'static str,
    base: DType,
    better: DType,
    /// For queries, keys and values in one matrix, whichever the layer.
    fused: DType,
    /// GGUF's number for it.
    file_type: u32,
}

/// All mixes.
pub const MIXES: [Mix; 2] = [
    Mix {
        name: "Q4_K_M",
        base: DType::Q4_K,
        better: DType::Q6_K,
        fused: DType::Q5_K,
        file_type: 15,
    },
    Mix {
        name: "Q5_K_M",
        base: DType::Q5_K,
        better: DType::Q6_K,
        fused: DType::Q6_K,
        file_type: 17,
    },
];

/// The types to store matrices in. Vectors (norms, biases) are F32 in GGUF files, and in folders the type of the matrices where
/// it holds them exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Those they have.
    AsStored,
    /// One for all.
    All(DType),
    /// Several.
    Mix(&'static Mix),
}

/// Where a matrix is in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The embedding of a model that has a head of its own.
    Embedding,
    /// The head, or the embedding that is one.
    Head,
    /// A layer, of so many.
    Layer(Role, usize, usize),
    /// Beside the layers: what a file says of ropes.
    Rope,
}

impl Weights {
    /// The choice of that name: a type's or a mix's.
    pub fn from_name(name: &str) -> Option<Weights> {
        let mix = MIXES.iter().find(|m| m.name.eq_ignore_ascii_case(name));
        let dtype = || DType::from_name(name).filter(|t| gguf::dtypes().any(|d| d == *t));
        mix.map(Weights::Mix).or_else(|| dtype().map(Weights::All))
    }

    /// The names of all choices.
    pub fn names() -> impl Iterator<Item = &'static str> {
        gguf::dtypes()
            .map(DType::name)
            .chain(MIXES.iter().map(|m| m.name))
    }

    /// The type for the matrix at `place`, which is stored as `stored`.
    pub(super) fn at(self, place: Place, stored: DType) -> DType {
        match (self, place) {
            (Weights::AsStored, _) => stored,
            (Weights::All(dtype), _) => dtype,
            (Weights::Mix(mix), Place::Head) => mix.better,
            (Weights::Mix(mix), Place::Layer(Role::QueryKeyValue, ..)) => mix.fused,
            (Weights::Mix(mix), Place::Layer(Role::Value | Role::Down, layer, layers))
                if matters(layer, layers) =>
            {
                mix.better
            }
            (Weights::Mix(mix), _) => mix.base,
        }
    }

    /// GGUF's number for a file of these weights; `stored` is the type of most.
    pub(super) fn file_type(self, stored: DType) -> Option<u32> {
        match self {
            Weights::AsStored => gguf::file_type(stored),
            Weights::All(dtype) => gguf::file_type(dtype),
            Weights::Mix(mix) => Some(mix.file_type),
        }
    }

    /// Refuses what the format cannot hold.
    pub(super) fn check(self, format: Format, checkpoint: &Checkpoint) -> Result<()> {
        if format == Format::Gguf {
            return Ok(());
        }
        let quantised = match self {
            Weights::AsStored => checkpoint
                .tensors()
                .map(|t| t.dtype)
                .find(|t| t.is_quantized()),
            Weights::All(dtype) => Some(dtype).filter(|t| t.is_quantized()),
            Weights::Mix(mix) => Some(mix.base),
        };
        match quantised {
            None => Ok(()),
            Some(dtype) => Err(Error::Input {
                cause: format!("a folder of safetensors cannot hold {dtype}"),
                remedy: "say --type F16, BF16 or F32, or name an output that ends in .gguf".into(),
            }),
        }
    }
}

/// Whether a layer's value and down projection are worth more bits.
fn matters(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}
