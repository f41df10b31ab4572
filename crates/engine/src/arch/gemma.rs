//! Gemma 1: tanh-GELU, norms that store their weight less one, scaled embeddings.

use super::{Act, Config, Family, NormWeights, Params, USUAL};
use crate::error::Result;

pub(super) const FAMILY: Family = Family {
    name: "gemma",
    models: "Gemma 1",
    gguf_types: &["gemma"],
    hf_types: &["gemma"],
    // Its first config.json said "gelu" where the authors' own code had the hyperbolic tangent.
    act: (Act::GeluTanh, &["gelu_pytorch_tanh", "gelu_tanh", "gelu"]),
    refine,
    hf_norms: NormWeights::MinusOne,
    ..USUAL
};

/// What all Gemmas share.
pub(super) fn refine(p: &Params, c: &mut Config) -> Result<()> {
    c.embedding_scale = (c.hidden as f32).sqrt();
    p.refuse_if("use_bidirectional_attention", "bidirectional attention")
}
