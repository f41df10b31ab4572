//! Qwen2 and Qwen2.5: Llama with biases on q, k and v; the upper layers may have a window.

use super::{Biases, Config, Family, Params, USUAL};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    models: "Qwen2, Qwen2.5",
    gguf_types: &["qwen2"],
    hf_types: &["qwen2"],
    biases: Biases::QueryKeyValue,
    refine,
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
