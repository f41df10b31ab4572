//! Architectures as data: a [`Config`] with one [`LayerSpec`] a layer, and per family one small file that
//! says how its metadata and tensors are named. No family's name occurs outside this folder.

mod config;
mod export;
mod gemma;
mod gemma2;
mod gemma3;
mod granite;
mod llama;
mod mistral;
pub(crate) mod names;
mod olmo2;
mod params;
mod phi3;
mod qwen2;
mod qwen3;
mod refused;
pub(crate) mod rope;
mod smollm3;
#[cfg(test)]
mod tests;

use crate::{
    error::{Error, Result},
    formats::{Checkpoint, Metadata},
};
pub use config::{Config, LayerSpec};
pub use countdown_kernels::cpu::Act;
pub(crate) use export::{Export, Key, number};
pub(crate) use names::Role;
pub(crate) use params::Params;
pub use rope::{LongRope, Rope};
use rope::{RopeParams, Scope};
use std::sync::Arc;

/// All families, in the order of the help text.
pub const FAMILIES: &[&Family] = &[
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &gemma::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &phi3::FAMILY,
    &smollm3::FAMILY,
    &olmo2::FAMILY,
    &granite::FAMILY,
];

/// One family of models: how to recognise it and how to read it.
#[derive(Clone, Copy)]
pub struct Family {
    /// The name the field uses.
    pub name: &'static str,
    /// The models people know it by.
    pub models: &'static str,
    /// `general.architecture` values of GGUF files.
    pub gguf_types: &'static [&'static str],
    /// `model_type` values of Hugging Face's config.json.
    pub hf_types: &'static [&'static str],
    /// The norms of a layer.
    pub(crate) norms: &'static [Role],
    /// What norms of q and k go over, where there are such.
    pub(crate) qk_norm: QkNorm,
    /// Which biases there must be. Others are taken where a file has them.
    pub(crate) biases: Biases,
    /// Whether projections of the same input share a matrix.
    pub(crate) projections: Projections,
    /// The activation of the gated FFN, and the names that config.json may give it.
    pub(crate) act: (Act, &'static [&'static str]),
    /// The base of the rope where a file does not say it.
    pub(crate) rope_base: f32,
    /// The same of the rope that only layers with a window have, in families where there is one.
    pub(crate) local_rope_base: Option<f32>,
    /// Reads what is particular to the family on top of what all share.
    pub(crate) refine: fn(&Params, &mut Config) -> Result<()>,
    /// Whether q and k rows of GGUF files are permuted for interleaved rope.
    pub(crate) gguf_permutes_rope: RopeRows,
    /// How norm weights of Hugging Face files are stored.
    pub(crate) hf_norms: NormWeights,
    /// Where the family's Hugging Face names differ from the common ones.
    pub(crate) hf_name: fn(Role) -> Option<&'static str>,
    /// What it takes to write files of the family.
    pub(crate) export: Export,
}

/// SiLU and its names.
const SILU: (Act, &[&str]) = (Act::Silu, &["silu", "swish"]);
/// GELU by the hyperbolic tangent and its names.
const GELU_TANH: (Act, &[&str]) = (Act::GeluTanh, &["gelu_pytorch_tanh", "gelu_tanh"]);

/// What most families are; each file says what it does differently.
const USUAL: Family = Family {
    name: "",
    models: "",
    gguf_types: &[],
    hf_types: &[],
    norms: &[Role::AttnNorm, Role::FfnNorm],
    qk_norm: QkNorm::Head,
    biases: Biases::AsConfigured,
    projections: Projections::Apart,
    act: SILU,
    // The original Llama's, which both formats leave out where it is meant.
    rope_base: 10_000.0,
    local_rope_base: None,
    refine: |_, _| Ok(()),
    gguf_permutes_rope: RopeRows::HalfSplit,
    hf_norms: NormWeights::Plain,
    hf_name: |_| None,
    export: Export {
        hf_class: "",
        gguf_type: None,
        keys: &[],
        hf_config: |_, _| {},
    },
};

/// The order of q and k rows in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RopeRows {
    /// Element i pairs with element i + dims/2 (the engine's own order).
    HalfSplit,
    /// Elements 2i and 2i + 1 are a pair.
    Interleaved,
}

impl RopeRows {
    /// The row of a file in this order that holds row `row` of the engine's; rows of heads `head_dim` wide.
    pub(crate) fn in_file(self, row: usize, head_dim: usize) -> usize {
        let (half, at) = (head_dim / 2, row % head_dim);
        match self {
            RopeRows::HalfSplit => row,
            RopeRows::Interleaved => row - at + 2 * (at % half) + at / half,
        }
    }

    /// The row of the engine's order that row `row` of a file in this order holds.
    pub(crate) fn in_engine(self, row: usize, head_dim: usize) -> usize {
        let (half, at) = (head_dim / 2, row % head_dim);
        match self {
            RopeRows::HalfSplit => row,
            RopeRows::Interleaved => row - at + at % 2 * half + at / 2,
        }
    }
}

/// What a stored norm weight means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NormWeights {
    /// The factor itself.
    Plain,
    /// The factor less one.
    MinusOne,
}

/// What the norms of q and k go over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QkNorm {
    /// Each head by itself.
    Head,
    /// All heads of a token together.
    Token,
}

/// The biases that a file must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Biases {
    /// Those that config.json asks for: `attention_bias` for q, k, v and attention's output, `mlp_bias` for the FFN.
    AsConfigured,
    /// Those of q, k and v.
    QueryKeyValue,
}

impl Biases {
    pub(crate) fn require(self, role: Role, p: &Params) -> bool {
        let is_qkv = matches!(role, Role::QueryBias | Role::KeyBias | Role::ValueBias);
        match (self, role) {
            (Biases::QueryKeyValue, _) => is_qkv,
            (Biases::AsConfigured, Role::GateBias | Role::UpBias | Role::DownBias) => {
                p.is_on("mlp_bias", "")
            }
            (Biases::AsConfigured, _) => p.is_on("attention_bias", ""),
        }
    }
}

/// How projections of the same input are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Projections {
    /// Each in a matrix of its own.
    Apart,
    /// q, k and v in one, gate and up in another, below each other.
    Fused,
}

impl Family {
    /// The tensors that a layer may have, in the order in which it uses them.
    pub(crate) fn roles(&self) -> impl Iterator<Item = Role> {
        let is_fused = self.projections == Projections::Fused;
        Role::ALL.into_iter().filter(move |role| match role {
            Role::QueryKeyValue | Role::GateUp => is_fused,
            Role::Query | Role::Key | Role::Value | Role::Gate | Role::Up => !is_fused,
            _ => !role.is_norm() || self.norms.contains(role),
        })
    }

    /// The family of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the architecture and what is wrong with it, or the supported ones.
    pub fn of(checkpoint: &Checkpoint) -> Result<&'static Family> {
        let params = Params::new(checkpoint)?;
        let name = params.architecture();
        let found = FAMILIES.iter().find(|f| {
            let types = if params.is_gguf() {
                f.gguf_types
            } else {
                f.hf_types
            };
            types.contains(&name)
        });
        refused::check(&params, found.is_some())?;
        found.copied().ok_or_else(|| Error::Unsupported {
            path: checkpoint.path.clone(),
            cause: format!("architecture \"{name}\" is not supported"),
            remedy: format!(
                "use a model of one of the families {}",
                FAMILIES
                    .iter()
                    .map(|f| f.name)
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        })
    }

    /// That a checkpoint's tensors are not those of this family.
    pub(crate) fn unfit(&self, checkpoint: &Checkpoint, cause: String) -> Error {
        Error::Unsupported {
            path: checkpoint.path.clone(),
            cause,
            remedy: format!(
                "check that the file is complete and of the {} family it claims",
                self.name
            ),
        }
    }

    /// Reads the configuration of a checkpoint of this family.
    ///
    /// # Errors
    /// [`Error::Unsupported`] or [`Error::Malformed`] naming the key that is missing, of the wrong type or out of range.
    pub fn config(&self, checkpoint: &Checkpoint) -> Result<Config> {
        let p = Params::new(checkpoint)?;
        let hidden = p.size("hidden_size", "embedding_length")?;
        let heads = p.size("num_attention_heads", "attention.head_count")?;
        let kv_heads = p
            .opt_size("num_key_value_heads", "attention.head_count_kv")?
            .unwrap_or(heads);
        let head_dim = match p.opt_size("head_dim", "attention.key_length")? {
            Some(n) => n,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(p.unsupported(format!("{heads} heads do not divide hidden {hidden}")));
            }
        };
        if !heads.is_multiple_of(kv_heads) || !head_dim.is_multiple_of(2) {
            return Err(p.unsupported(format!(
                "{heads} heads over {kv_heads} key/value heads of width {head_dim}: not a grouped-query shape"
            )));
        }
        match p.opt_size("", "attention.value_length")? {
            Some(n) if n != head_dim => {
                return Err(p.unsupported(format!("keys of width {head_dim} and values of {n}")));
            }
            _ => {}
        }
        let inter = p.size("intermediate_size", "feed_forward_length")?;
        let layers = p.size("num_hidden_layers", "block_count")?;
        let tensors = checkpoint.tensors().len();
        if layers > tensors {
            return Err(p.malformed(format!("names {layers} layers and has {tensors} tensors")));
        }
        let rope_params = RopeParams::new(&p, Scope::Global, head_dim, self.rope_base);
        let rope = rope_params.rope()?;
        let is_partial = 2 * rope.frequencies.len() < head_dim;
        if p.is_gguf() && self.gguf_permutes_rope == RopeRows::Interleaved && is_partial {
            return Err(p.unsupported("rope over a part of the head in this family".into()));
        }
        let layer = LayerSpec {
            inter,
            rope: Some(Arc::new(rope)),
            window: None,
        };
        let mut config = Config {
            family: self.name,
            hidden,
            vocab: p.vocab()?,
            context: rope_params.longest_context()?,
            heads,
            kv_heads,
            head_dim,
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            attention_soft_cap: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_soft_cap: None,
            norm_eps: p.number("rms_norm_eps", "attention.layer_norm_rms_epsilon")?,
            act: self.act.0,
            layers: vec![layer; layers],
        };
        (self.refine)(&p, &mut config)?;
        p.expect_activation(self.act.1)?;
        Ok(config)
    }
}

/// Whether the head of a checkpoint is its embedding.
pub(crate) fn is_tied(checkpoint: &Checkpoint) -> bool {
    match &checkpoint.metadata {
        Metadata::Gguf(_) => checkpoint.tensor(names::HEAD.0).is_none(),
        Metadata::HuggingFace(m) => m
            .config
            .get("tie_word_embeddings")
            .and_then(serde_json::Value::as_bool)
            // The default of every family here whose config.json may leave it out (Gemma).
            .unwrap_or_else(|| checkpoint.tensor(names::HEAD.1).is_none()),
    }
}
