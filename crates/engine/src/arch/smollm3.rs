//! SmolLM3: Llama in which every fourth layer does not know positions (NoPE).

use super::{Config, Export, Family, Params, RopeRows, USUAL};
use crate::error::Result;
use serde_json::{Map, Value as Json};

pub(super) const FAMILY: Family = Family {
    name: "smollm3",
    models: "SmolLM3",
    gguf_types: &["smollm3"],
    hf_types: &["smollm3"],
    rope_base: 2e6,
    refine,
    gguf_permutes_rope: RopeRows::Interleaved,
    export: Export {
        hf_class: "SmolLM3ForCausalLM",
        hf_config,
        ..USUAL.export
    },
    ..USUAL
};

/// GGUF files do not say which layers.
const INTERVAL: usize = 4;

fn refine(p: &Params, c: &mut Config) -> Result<()> {
    let layers = c.layers.len();
    let interval = p
        .opt_size("no_rope_layer_interval", "")?
        .unwrap_or(INTERVAL);
    let has_rope = match p.layer_flags("no_rope_layers", layers)? {
        // The list says which layers have one, whatever its name.
        Some(flags) => flags,
        None => (1..=layers).map(|n| !n.is_multiple_of(interval)).collect(),
    };
    let window = if p.is_on("use_sliding_window", "") {
        p.window()?
    } else {
        None
    };
    p.set_windows(c, window, |i| !has_rope[i])?;
    for (layer, has_rope) in c.layers.iter_mut().zip(has_rope) {
        if !has_rope {
            layer.rope = None;
        }
    }
    Ok(())
}

fn hf_config(c: &Config, config: &mut Map<String, Json>) {
    let flags = c.layers.iter().map(|l| u8::from(l.rope.is_some()));
    config.insert("no_rope_layers".into(), flags.collect());
    config.insert("no_rope_layer_interval".into(), INTERVAL.into());
    config.insert("layer_types".into(), c.layer_types());
    config.insert("use_sliding_window".into(), false.into());
}
