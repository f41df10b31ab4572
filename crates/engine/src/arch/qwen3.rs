//! Qwen3: Qwen2 with norms on each head of q and k instead of biases.

use super::{Export, Family, Role, USUAL, qwen2};

pub(super) const FAMILY: Family = Family {
    name: "qwen3",
    models: "Qwen3",
    gguf_types: &["qwen3"],
    hf_types: &["qwen3"],
    norms: &[
        Role::AttnNorm,
        Role::QueryNorm,
        Role::KeyNorm,
        Role::FfnNorm,
    ],
    refine: qwen2::refine,
    export: Export {
        hf_class: "Qwen3ForCausalLM",
        hf_config: qwen2::no_window,
        ..USUAL.export
    },
    ..USUAL
};
