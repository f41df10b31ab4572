//! What a model computes, as numbers.

use super::{Act, Rope};
use std::sync::Arc;

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
    /// Scores s become `cap * tanh(s / cap)` before the softmax.
    pub attention_soft_cap: Option<f32>,
    /// Factor on embeddings.
    pub embedding_scale: f32,
    /// Factor on what attention and the FFN add to the residual stream.
    pub residual_scale: f32,
    /// Factor on logits.
    pub logit_scale: f32,
    /// Logits x, scaled, become `cap * tanh(x / cap)`.
    pub logit_soft_cap: Option<f32>,
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
    /// Rotary position embedding; without it the layer does not know positions.
    pub rope: Option<Arc<Rope>>,
    /// Attention sees this many positions, the own one included; all of them if `None`.
    pub window: Option<usize>,
}
