//! Gemma 3 (text): Gemma 2 with norms on each head of q and k instead of soft caps, and five windowed layers to one global, each
//! kind with its own rope.

use super::{
    Config, Export, Family, GELU_TANH, Key, NormWeights, Params, Role, USUAL, gemma, gemma2,
    rope::{RopeParams, Scope},
};
use crate::error::Result;
use std::sync::Arc;

pub(super) const FAMILY: Family = Family {
    name: "gemma3",
    models: "Gemma 3 (text)",
    gguf_types: &["gemma3"],
    hf_types: &["gemma3_text"],
    norms: &[
        Role::AttnNorm,
        Role::QueryNorm,
        Role::KeyNorm,
        Role::PostAttnNorm,
        Role::FfnNorm,
        Role::PostFfnNorm,
    ],
    act: GELU_TANH,
    rope_base: 1e6,
    local_rope_base: Some(LOCAL_ROPE_BASE),
    refine,
    hf_norms: NormWeights::MinusOne,
    hf_name: gemma2::sandwich_name,
    export: Export {
        hf_class: "Gemma3ForCausalLM",
        keys: &KEYS,
        hf_config: gemma2::hf_config,
        ..USUAL.export
    },
    ..USUAL
};

/// Every sixth layer is global unless the file says otherwise.
const PATTERN: usize = 6;
/// Most GGUF files do not hold the rope base of the windowed layers.
const LOCAL_ROPE_BASE: f32 = 10_000.0;
/// See Gemma 2's.
const LAYERS_27B: usize = 62;

fn refine(p: &Params, c: &mut Config) -> Result<()> {
    gemma::refine(p, c)?;
    c.attention_scale = gemma2::attention_scale(p, c, LAYERS_27B)?;
    let cap = |key| p.opt_number(key, key);
    c.attention_soft_cap = cap("attn_logit_softcapping")?;
    c.logit_soft_cap = cap("final_logit_softcapping")?;
    let window = p.size("sliding_window", "attention.sliding_window")?;
    let pattern = p
        .opt_size("sliding_window_pattern", "attention.sliding_window_pattern")?
        .unwrap_or(PATTERN);
    p.set_windows(c, Some(window), |i| !(i + 1).is_multiple_of(pattern))?;
    let local = RopeParams::new(p, Scope::Local, c.head_dim, LOCAL_ROPE_BASE);
    let local = Arc::new(local.rope()?);
    for layer in c.layers.iter_mut().filter(|l| l.window.is_some()) {
        layer.rope = Some(local.clone());
    }
    Ok(())
}

const KEYS: [Key; 4] = {
    let [scores, logits] = Key::SOFT_CAPS;
    [Key::WINDOW, PATTERN_KEY, scores, logits]
};

/// The number of the first global layer, counted from one, is how often there is one.
const PATTERN_KEY: Key = Key::Size(
    "sliding_window_pattern",
    "attention.sliding_window_pattern",
    |c| {
        let first = c.layers.iter().position(|l| l.window.is_none());
        Some(first.map_or(PATTERN, |i| i + 1))
    },
);
