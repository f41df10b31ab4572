//! OLMo 2: norms after attention and the FFN rather than before them, and norms on q and k over all heads together.

use super::{Export, Family, QkNorm, Role, USUAL};

pub(super) const FAMILY: Family = Family {
    name: "olmo2",
    models: "OLMo 2",
    gguf_types: &["olmo2"],
    hf_types: &["olmo2"],
    norms: &[
        Role::QueryNorm,
        Role::KeyNorm,
        Role::PostAttnNorm,
        Role::PostFfnNorm,
    ],
    qk_norm: QkNorm::Token,
    refine: |p, _| match p.window()? {
        None => Ok(()),
        Some(_) => Err(p.unsupported("sliding windows in this family".into())),
    },
    hf_name: |role| match role {
        Role::PostAttnNorm => Some("post_attention_layernorm.weight"),
        _ => None,
    },
    export: Export {
        hf_class: "Olmo2ForCausalLM",
        ..USUAL.export
    },
    ..USUAL
};
