//! Gemma 1: tanh-GELU, norms that store their weight less one, scaled embeddings.

use super::{Act, Config, Export, Family, NormWeights, Params, USUAL};
use crate::error::Result;
use serde_json::{Map, Value as Json};

pub(super) const FAMILY: Family = Family {
    name: "gemma",
    models: "Gemma 1",
    gguf_types: &["gemma"],
    hf_types: &["gemma"],
    // Its first config.json said "gelu" where the authors' own code had the hyperbolic tangent.
    act: (Act::GeluTanh, &["gelu_pytorch_tanh", "gelu_tanh", "gelu"]),
    refine,
    hf_norms: NormWeights::MinusOne,
    export: Export {
        hf_class: "GemmaForCausalLM",
        hf_config: |_, config| say_activation(config),
        ..USUAL.export
    },
    ..USUAL
};

/// What all Gemmas share.
pub(super) fn refine(p: &Params, c: &mut Config) -> Result<()> {
    c.embedding_scale = (c.hidden as f32).sqrt();
    p.refuse_if("use_bidirectional_attention", "bidirectional attention")
}

/// Config.json has a name of its own for it.
pub(super) fn say_activation(config: &mut Map<String, Json>) {
    if let Some(act) = config.get("hidden_act").cloned() {
        config.insert("hidden_activation".into(), act);
    }
}
