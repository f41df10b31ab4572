//! Names of tensors. GGUF uses one set for all families; Hugging Face names differ in the norms only.

/// A tensor of a layer, by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    AttnNorm,
    Query,
    Key,
    Value,
    QueryBias,
    KeyBias,
    ValueBias,
    QueryNorm,
    KeyNorm,
    AttnOutput,
    PostAttnNorm,
    FfnNorm,
    Gate,
    Up,
    Down,
    PostFfnNorm,
}

/// Outside the layers: (GGUF, Hugging Face).
pub(crate) const EMBEDDING: (&str, &str) = ("token_embd.weight", "model.embed_tokens.weight");
pub(crate) const OUTPUT_NORM: (&str, &str) = ("output_norm.weight", "model.norm.weight");
pub(crate) const HEAD: (&str, &str) = ("output.weight", "lm_head.weight");

impl Role {
    /// All of them, in the order in which a layer uses them.
    pub(crate) const ALL: [Role; 16] = [
        Role::AttnNorm,
        Role::Query,
        Role::Key,
        Role::Value,
        Role::QueryBias,
        Role::KeyBias,
        Role::ValueBias,
        Role::QueryNorm,
        Role::KeyNorm,
        Role::AttnOutput,
        Role::PostAttnNorm,
        Role::FfnNorm,
        Role::Gate,
        Role::Up,
        Role::Down,
        Role::PostFfnNorm,
    ];

    /// Whether only some families have it.
    pub(crate) fn is_extra(self) -> bool {
        use Role::*;
        matches!(
            self,
            QueryBias | KeyBias | ValueBias | QueryNorm | KeyNorm | PostAttnNorm | PostFfnNorm
        )
    }

    /// Whether it holds the weights of a norm.
    pub(crate) fn is_norm(self) -> bool {
        use Role::*;
        matches!(
            self,
            AttnNorm | QueryNorm | KeyNorm | PostAttnNorm | FfnNorm | PostFfnNorm
        )
    }

    /// Whether its rows are those of queries or keys, which rope turns.
    pub(crate) fn is_turned(self) -> bool {
        use Role::*;
        matches!(self, Query | Key | QueryBias | KeyBias)
    }

    pub(crate) fn gguf(self, layer: usize) -> String {
        let stem = match self {
            Role::AttnNorm => "attn_norm.weight",
            Role::Query => "attn_q.weight",
            Role::Key => "attn_k.weight",
            Role::Value => "attn_v.weight",
            Role::QueryBias => "attn_q.bias",
            Role::KeyBias => "attn_k.bias",
            Role::ValueBias => "attn_v.bias",
            Role::QueryNorm => "attn_q_norm.weight",
            Role::KeyNorm => "attn_k_norm.weight",
            Role::AttnOutput => "attn_output.weight",
            Role::PostAttnNorm => "post_attention_norm.weight",
            Role::FfnNorm => "ffn_norm.weight",
            Role::Gate => "ffn_gate.weight",
            Role::Up => "ffn_up.weight",
            Role::Down => "ffn_down.weight",
            Role::PostFfnNorm => "post_ffw_norm.weight",
        };
        format!("blk.{layer}.{stem}")
    }

    /// `special` is the family's own name for this role, if it has one.
    pub(crate) fn hugging_face(self, layer: usize, special: Option<&str>) -> String {
        let stem = special.unwrap_or(match self {
            Role::AttnNorm => "input_layernorm.weight",
            Role::Query => "self_attn.q_proj.weight",
            Role::Key => "self_attn.k_proj.weight",
            Role::Value => "self_attn.v_proj.weight",
            Role::QueryBias => "self_attn.q_proj.bias",
            Role::KeyBias => "self_attn.k_proj.bias",
            Role::ValueBias => "self_attn.v_proj.bias",
            Role::QueryNorm => "self_attn.q_norm.weight",
            Role::KeyNorm => "self_attn.k_norm.weight",
            Role::AttnOutput => "self_attn.o_proj.weight",
            Role::PostAttnNorm => "post_attention_norm.weight",
            Role::FfnNorm => "post_attention_layernorm.weight",
            Role::Gate => "mlp.gate_proj.weight",
            Role::Up => "mlp.up_proj.weight",
            Role::Down => "mlp.down_proj.weight",
            Role::PostFfnNorm => "post_feedforward_layernorm.weight",
        });
        format!("model.layers.{layer}.{stem}")
    }
}
