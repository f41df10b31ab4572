//! Granite 3: Llama with constants on embeddings, scores, the residual stream and logits.

use super::{Config, Export, Family, Key, Params, RopeRows, USUAL};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "granite",
    models: "Granite 3",
    gguf_types: &["granite"],
    hf_types: &["granite"],
    refine,
    gguf_permutes_rope: RopeRows::Interleaved,
    export: Export {
        hf_class: "GraniteForCausalLM",
        keys: &KEYS,
        ..USUAL.export
    },
    ..USUAL
};

fn refine(p: &Params, c: &mut Config) -> Result<()> {
    let constant = |hf, gguf| p.opt_number(hf, gguf).map(|n| n.unwrap_or(1.0));
    c.embedding_scale = constant("embedding_multiplier", "embedding_scale")?;
    c.residual_scale = constant("residual_multiplier", "residual_scale")?;
    c.logit_scale = 1.0 / constant("logits_scaling", "logit_scale")?;
    c.attention_scale = match p.opt_number("attention_multiplier", "attention.scale")? {
        Some(scale) => scale,
        // Config.json's default is one; GGUF files without it mean the usual scale.
        None if p.is_gguf() => c.attention_scale,
        None => 1.0,
    };
    Ok(())
}

const KEYS: [Key; 4] = [
    Key::Number("embedding_multiplier", "embedding_scale", |c| {
        Some(c.embedding_scale)
    }),
    Key::Number("residual_multiplier", "residual_scale", |c| {
        Some(c.residual_scale)
    }),
    Key::Number("logits_scaling", "logit_scale", |c| {
        Some(1.0 / c.logit_scale)
    }),
    Key::Number("attention_multiplier", "attention.scale", |c| {
        Some(c.attention_scale)
    }),
];
