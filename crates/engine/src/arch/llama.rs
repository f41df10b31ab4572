//! Llama 1 to 3.3 and the models that differ from them in sizes only (SmolLM2, Granite Code).

use super::{Family, RopeRows, USUAL};

pub(super) const FAMILY: Family = Family {
    name: "llama",
    models: "Llama 1 to 3.3, SmolLM2, Granite Code",
    gguf_types: &["llama"],
    hf_types: &["llama"],
    gguf_permutes_rope: RopeRows::Interleaved,
    refine: |p, c| {
        // Mistral's GGUF files go by this name, too.
        let window = p.window()?;
        p.set_windows(c, window, |_| p.is_gguf())
    },
    ..USUAL
};
