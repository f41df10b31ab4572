//! Llama and the models that differ from it in sizes only (SmolLM2).

use super::{Export, Family, NormWeights, RopeRows};

pub(super) const FAMILY: Family = Family {
    name: "llama",
    hf_types: &["llama"],
    extras: &[],
    refine: |_, _| Ok(()),
    gguf_permutes_rope: RopeRows::Interleaved,
    hf_norms: NormWeights::Plain,
    hf_name: |_| None,
    export: Export {
        hf_class: "LlamaForCausalLM",
        keys: &[],
        hf_config: |_, _| {},
    },
};
