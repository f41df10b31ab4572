//! Mistral: Llama with a window in all layers, or in those that config.json lists (Ministral).

use super::{Export, Family, Key, RopeRows, USUAL};

pub(super) const FAMILY: Family = Family {
    name: "mistral",
    models: "Mistral 7B, Ministral 8B, Mistral Small",
    gguf_types: &["mistral3"],
    hf_types: &["mistral", "ministral"],
    gguf_permutes_rope: RopeRows::Interleaved,
    refine: |p, c| {
        let window = p.window()?;
        p.set_windows(c, window, |_| true)
    },
    export: Export {
        hf_class: "MistralForCausalLM",
        gguf_type: Some("llama"),
        keys: &[Key::WINDOW],
        ..USUAL.export
    },
    ..USUAL
};
