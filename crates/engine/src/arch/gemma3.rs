//! Gemma 3 (text): norms around both blocks and on q and k, tanh-GELU, scaled embeddings,
//! five windowed layers to one global, each kind with its own rope base.

use super::{Act, Config, Export, Family, Key, NormWeights, Params, Role, Rope, RopeRows, number};
use crate::error::Result;
use serde_json::{Map, Value as Json};

pub(super) const FAMILY: Family = Family {
    name: "gemma3",
    hf_types: &["gemma3_text"],
    extras: &[
        Role::QueryNorm,
        Role::KeyNorm,
        Role::PostAttnNorm,
        Role::PostFfnNorm,
    ],
    refine,
    gguf_permutes_rope: RopeRows::HalfSplit,
    hf_norms: NormWeights::MinusOne,
    hf_name: |role| match role {
        Role::PostAttnNorm => Some("post_attention_layernorm.weight"),
        Role::FfnNorm => Some("pre_feedforward_layernorm.weight"),
        _ => None,
    },
    export: Export {
        hf_class: "Gemma3ForCausalLM",
        keys: &[Key::Size("sliding_window", "attention.sliding_window")],
        hf_config,
    },
};

/// Every sixth layer is global unless the file says otherwise.
const PATTERN: usize = 6;
/// GGUF files do not hold the rope base of the windowed layers.
const LOCAL_ROPE_BASE: f32 = 10_000.0;
/// The 27B model (62 layers) alone scales attention by hidden/heads rather than the head's width; GGUF files do not say so.
const LAYERS_27B: usize = 62;

fn refine(p: &Params, c: &mut Config) -> Result<()> {
    c.act = Act::GeluTanh;
    c.embedding_scale = (c.hidden as f32).sqrt();
    c.attention_scale = match p.opt_number("query_pre_attn_scalar", "")? {
        Some(scalar) => 1.0 / scalar.sqrt(),
        None if p.is_gguf() && c.layers.len() == LAYERS_27B => {
            1.0 / ((c.hidden / c.heads) as f32).sqrt()
        }
        None => c.attention_scale,
    };
    p.refuse_if("attn_logit_softcapping", "soft caps on attention")?;
    p.refuse_if("final_logit_softcapping", "soft caps on logits")?;
    p.refuse_if("use_bidirectional_attention", "bidirectional attention")?;
    let window = p.size("sliding_window", "attention.sliding_window")?;
    let pattern = p.opt_size("sliding_window_pattern", "")?.unwrap_or(PATTERN);
    let local = Rope {
        base: p
            .opt_number("rope_local_base_freq", "")?
            .or(p.opt_number("rope_parameters/sliding_attention/rope_theta", "")?)
            .unwrap_or(LOCAL_ROPE_BASE),
        scale: 1.0,
    };
    let types = p.layer_types(c.layers.len())?;
    for (i, layer) in c.layers.iter_mut().enumerate() {
        let windowed = match &types {
            Some(types) => types[i] == "sliding_attention",
            None => !(i + 1).is_multiple_of(pattern),
        };
        if windowed {
            layer.window = Some(window);
            layer.rope = local;
        }
    }
    Ok(())
}

fn hf_config(c: &Config, config: &mut Map<String, Json>) {
    let scalar = (1.0 / (c.attention_scale * c.attention_scale)).round();
    // An integer: the original framework takes no other number.
    config.insert("query_pre_attn_scalar".into(), (scalar as u64).into());
    config.insert("rope_local_base_freq".into(), number(LOCAL_ROPE_BASE));
    config.insert("sliding_window_pattern".into(), PATTERN.into());
    if let Some(act) = config.remove("hidden_act") {
        config.insert("hidden_activation".into(), act);
    }
}
