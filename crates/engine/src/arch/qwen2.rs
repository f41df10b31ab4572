//! Qwen2 and Qwen2.5: Llama with biases on q, k and v; the upper layers may have a window.

use super::{Biases, Config, Export, Family, Params, USUAL};
use crate::error::Result;
use serde_json::{Map, Value as Json};

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    models: "Qwen2, Qwen2.5",
    gguf_types: &["qwen2"],
    hf_types: &["qwen2"],
    biases: Biases::QueryKeyValue,
    refine,
    export: Export {
        hf_class: "Qwen2ForCausalLM",
        hf_config: no_window,
        ..USUAL.export
    },
    ..USUAL
};

/// Config.json names a window whether or not it is used.
pub(super) fn refine(p: &Params, c: &mut Config) -> Result<()> {
    let window = if p.is_on("use_sliding_window", "") {
        p.window()?
    } else {
        None
    };
    let first = p.opt_size("max_window_layers", "")?.unwrap_or(0);
    p.set_windows(c, window, |i| i >= first)
}

/// GGUF files of the family hold no windows.
pub(super) fn no_window(_: &Config, config: &mut Map<String, Json>) {
    config.insert("use_sliding_window".into(), false.into());
}
