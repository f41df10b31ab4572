//! Architectures as data: a [`Config`] with one [`LayerSpec`] a layer, and per family one small file that
//! says how its metadata and tensors are named. No family's name occurs outside this folder.

mod export;
mod gemma3;
mod llama;
pub(crate) mod names;
mod params;
mod qwen2;

use crate::{
    error::{Error, Result},
    formats::{Checkpoint, Metadata},
};
pub use countdown_kernels::cpu::Act;
pub(crate) use export::{Export, Key, number};
pub(crate) use names::Role;
pub(crate) use params::Params;

/// All families, in the order of the help text.
pub const FAMILIES: &[&Family] = &[&llama::FAMILY, &qwen2::FAMILY, &gemma3::FAMILY];

/// One family of models: how to recognise it and how to read it.
pub struct Family {
    /// The name the field uses; also GGUF's `general.architecture`.
    pub name: &'static str,
    /// `model_type` values of Hugging Face's config.json.
    pub hf_types: &'static [&'static str],
    /// Layer tensors beside the ones every family has.
    pub(crate) extras: &'static [Role],
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

/// The shape and the constants of a model; all sizes in elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The family's name.
    pub family: &'static str,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Tokens in the vocabulary (rows of the embedding).
    pub vocab: usize,
    /// Positions the model was trained for.
    pub context: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Factor on q.k before the softmax.
    pub attention_scale: f32,
    /// Factor on embeddings.
    pub embedding_scale: f32,
    /// Added to the mean square in RMS norms.
    pub norm_eps: f32,
    /// The activation of the gated FFN.
    pub act: Act,
    /// One entry a layer.
    pub layers: Vec<LayerSpec>,
}

/// What may differ from layer to layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// Neurons of the FFN.
    pub inter: usize,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Attention sees this many positions, the own one included; all of them if `None`.
    pub window: Option<usize>,
}

/// Rotary position embedding over the whole head, pairs (i, i + head_dim/2):
/// angle = position * base^(-2i/head_dim) / scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric row of frequencies.
    pub base: f32,
    /// Positions are divided by this (linear scaling); 1 for none.
    pub scale: f32,
}

impl Family {
    /// The family of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the architecture and the supported ones.
    pub fn of(checkpoint: &Checkpoint) -> Result<&'static Family> {
        let params = Params::new(checkpoint)?;
        let name = params.architecture();
        let found = FAMILIES.iter().find(|f| {
            if params.is_gguf() {
                f.name == name
            } else {
                f.hf_types.contains(&name)
            }
        });
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
        let inter = p.size("intermediate_size", "feed_forward_length")?;
        let layers = p.size("num_hidden_layers", "block_count")?;
        let mut config = Config {
            family: self.name,
            hidden,
            vocab: p.vocab()?,
            context: p.size("max_position_embeddings", "context_length")?,
            heads,
            kv_heads,
            head_dim,
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            embedding_scale: 1.0,
            norm_eps: p.number("rms_norm_eps", "attention.layer_norm_rms_epsilon")?,
            act: Act::Silu,
            layers: vec![
                LayerSpec {
                    inter,
                    rope: p.rope()?,
                    window: None,
                };
                layers
            ],
        };
        (self.refine)(&p, &mut config)?;
        p.expect_activation(config.act)?;
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
