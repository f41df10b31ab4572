//! Mistral: Llama with a window in all layers, or in those that config.json lists (Ministral).

use super::{Family, RopeRows, USUAL};

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
    ..USUAL
};
