//! Gemma 2: Gemma with norms around both blocks, soft caps on scores and logits, and a window in every other layer.

use super::{Config, Export, Family, GELU_TANH, Key, NormWeights, Params, Role, USUAL, gemma};
use crate::error::Result;
use serde_json::{Map, Value as Json};

pub(super) const FAMILY: Family = Family {
    name: "gemma2",
    models: "Gemma 2",
    gguf_types: &["gemma2"],
    hf_types: &["gemma2"],
    norms: &[
        Role::AttnNorm,
        Role::PostAttnNorm,
        Role::FfnNorm,
        Role::PostFfnNorm,
    ],
    act: GELU_TANH,
    refine,
    hf_norms: NormWeights::MinusOne,
    hf_name: sandwich_name,
    export: Export {
        hf_class: "Gemma2ForCausalLM",
        keys: &KEYS,
        hf_config,
        ..USUAL.export
    },
    ..USUAL
};

/// The 27B model, which alone scales attention by hidden/heads rather than the head's width; GGUF files do not say so.
const LAYERS_27B: usize = 46;

fn refine(p: &Params, c: &mut Config) -> Result<()> {
    gemma::refine(p, c)?;
    c.attention_scale = attention_scale(p, c, LAYERS_27B)?;
    let cap = |key, default| p.number_or_null(key, key, default);
    c.attention_soft_cap = cap("attn_logit_softcapping", 50.0)?;
    c.logit_soft_cap = cap("final_logit_softcapping", 30.0)?;
    let window = p.window()?.unwrap_or(4096);
    p.set_windows(c, Some(window), |i| i.is_multiple_of(2))
}

/// By `query_pre_attn_scalar`, which GGUF files leave out.
pub(super) fn attention_scale(p: &Params, c: &Config, layers_27b: usize) -> Result<f32> {
    let divisor = match p.opt_number("query_pre_attn_scalar", "")? {
        Some(scalar) => scalar,
        None if c.layers.len() == layers_27b => (c.hidden / c.heads) as f32,
        None => c.head_dim as f32,
    };
    Ok(1.0 / divisor.sqrt())
}

/// The norm after attention goes by the name that elsewhere is the one before the FFN.
pub(super) fn sandwich_name(role: Role) -> Option<&'static str> {
    match role {
        Role::PostAttnNorm => Some("post_attention_layernorm.weight"),
        Role::FfnNorm => Some("pre_feedforward_layernorm.weight"),
        _ => None,
    }
}

const KEYS: [Key; 3] = {
    let [scores, logits] = Key::SOFT_CAPS;
    [Key::WINDOW, scores, logits]
};

/// What GGUF files leave to the family.
pub(super) fn hf_config(c: &Config, config: &mut Map<String, Json>) {
    gemma::say_activation(config);
    config.insert("layer_types".into(), c.layer_types());
    // An integer: the original framework takes no other number.
    let scalar = (1.0 / (c.attention_scale * c.attention_scale)).round();
    config.insert("query_pre_attn_scalar".into(), (scalar as u64).into());
}
