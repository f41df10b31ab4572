//! Llama 1 to 3.3 and the models that differ from them in sizes only (SmolLM2, Granite Code).

use super::{Config, Export, Family, Key, RopeRows, USUAL};
use serde_json::{Map, Value as Json, json};

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
    export: Export {
        hf_class: "LlamaForCausalLM",
        keys: &[Key::WINDOW],
        hf_config: as_mistral,
        ..USUAL.export
    },
    ..USUAL
};

/// Of the two, config.json gives windows to Mistral alone.
fn as_mistral(c: &Config, config: &mut Map<String, Json>) {
    if c.window().is_some() {
        config.insert("model_type".into(), "mistral".into());
        config.insert("architectures".into(), json!(["MistralForCausalLM"]));
    }
}
