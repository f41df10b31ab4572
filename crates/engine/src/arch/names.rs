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
    /// Rows of query, of key, then of value in one matrix.
    QueryKeyValue,
    QueryNorm,
    KeyNorm,
    AttnOutput,
    AttnOutputBias,
    PostAttnNorm,
    FfnNorm,
    Gate,
    Up,
    Down,
    /// Rows of gate, then of up in one matrix.
    GateUp,
    GateBias,
    UpBias,
    DownBias,
    PostFfnNorm,
}

/// Outside the layers: (GGUF, Hugging Face).
pub(crate) const EMBEDDING: (&str, &str) = ("token_embd.weight", "model.embed_tokens.weight");
pub(crate) const OUTPUT_NORM: (&str, &str) = ("output_norm.weight", "model.norm.weight");
pub(crate) const HEAD: (&str, &str) = ("output.weight", "lm_head.weight");

/// Whether a tensor only repeats what the metadata says: rope frequencies that old checkpoints carry along.
pub(crate) fn is_derived(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || name.ends_with("attn_rot_embd.weight")
}

impl Role {
    /// All of them, in the order in which a layer uses them.
    pub(crate) const ALL: [Role; 22] = [
        Role::AttnNorm,
        Role::Query,
        Role::Key,
        Role::Value,
        Role::QueryBias,
        Role::KeyBias,
        Role::ValueBias,
        Role::QueryKeyValue,
        Role::QueryNorm,
        Role::KeyNorm,
        Role::AttnOutput,
        Role::AttnOutputBias,
        Role::PostAttnNorm,
        Role::FfnNorm,
        Role::Gate,
        Role::Up,
        Role::Down,
        Role::GateUp,
        Role::GateBias,
        Role::UpBias,
        Role::DownBias,
        Role::PostFfnNorm,
    ];

    pub(crate) const ATTENTION_BIASES: [Role; 4] = [
        Role::QueryBias,
        Role::KeyBias,
        Role::ValueBias,
        Role::AttnOutputBias,
    ];
    pub(crate) const FFN_BIASES: [Role; 3] = [Role::GateBias, Role::UpBias, Role::DownBias];

    /// Whether it is a bias, which models of a family may have or not.
    pub(crate) fn is_bias(self) -> bool {
        Role::ATTENTION_BIASES.contains(&self) || Role::FFN_BIASES.contains(&self)
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
            Role::QueryKeyValue => "attn_qkv.weight",
            Role::QueryNorm => "attn_q_norm.weight",
            Role::KeyNorm => "attn_k_norm.weight",
            Role::AttnOutput => "attn_output.weight",
            Role::AttnOutputBias => "attn_output.bias",
            Role::PostAttnNorm => "post_attention_norm.weight",
            Role::FfnNorm => "ffn_norm.weight",
            Role::Gate => "ffn_gate.weight",
            // Both halves go by the name of one.
            Role::Up | Role::GateUp => "ffn_up.weight",
            Role::Down => "ffn_down.weight",
            Role::GateBias => "ffn_gate.bias",
            Role::UpBias => "ffn_up.bias",
            Role::DownBias => "ffn_down.bias",
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
            Role::QueryKeyValue => "self_attn.qkv_proj.weight",
            Role::QueryNorm => "self_attn.q_norm.weight",
            Role::KeyNorm => "self_attn.k_norm.weight",
            Role::AttnOutput => "self_attn.o_proj.weight",
            Role::AttnOutputBias => "self_attn.o_proj.bias",
            Role::PostAttnNorm => "post_attention_norm.weight",
            Role::FfnNorm => "post_attention_layernorm.weight",
            Role::Gate => "mlp.gate_proj.weight",
            Role::Up => "mlp.up_proj.weight",
            Role::Down => "mlp.down_proj.weight",
            Role::GateUp => "mlp.gate_up_proj.weight",
            Role::GateBias => "mlp.gate_proj.bias",
            Role::UpBias => "mlp.up_proj.bias",
            Role::DownBias => "mlp.down_proj.bias",
            Role::PostFfnNorm => "post_feedforward_layernorm.weight",
        });
        format!("model.layers.{layer}.{stem}")
    }
}
