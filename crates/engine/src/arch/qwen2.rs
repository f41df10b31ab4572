//! Qwen2 and Qwen2.5: Llama with biases on q, k and v.

use super::{Export, Family, NormWeights, Role, RopeRows};

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    hf_types: &["qwen2"],
    extras: &[Role::QueryBias, Role::KeyBias, Role::ValueBias],
    refine: |p, _| p.refuse_if("use_sliding_window", "sliding windows in this family"),
    gguf_permutes_rope: RopeRows::HalfSplit,
    hf_norms: NormWeights::Plain,
    hf_name: |_| None,
    export: Export {
        hf_class: "Qwen2ForCausalLM",
        keys: &[],
        hf_config: |_, _| {},
    },
};
