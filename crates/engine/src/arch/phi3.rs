//! Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: Llama with fused projections; LongRoPE over a part of the head, and a window, where
//! metadata says so.

use super::{Config, Export, Family, Key, Projections, USUAL};

pub(super) const FAMILY: Family = Family {
    name: "phi3",
    models: "Phi-3, Phi-3.5, Phi-4, Phi-4-mini",
    gguf_types: &["phi3"],
    hf_types: &["phi3"],
    projections: Projections::Fused,
    refine: |p, c| {
        let window = p.window()?;
        p.set_windows(c, window, |_| true)
    },
    export: Export {
        hf_class: "Phi3ForCausalLM",
        keys: &[
            Key::Size("sliding_window", "", Config::window),
            // Zero is how readers tell Phi-4 from the others.
            Key::Size("", "attention.sliding_window", |c| {
                Some(c.window().unwrap_or(0))
            }),
        ],
        ..USUAL.export
    },
    ..USUAL
};
