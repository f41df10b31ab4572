//! What is refused by name, before any weight is looked at: models that compute something else than the families here.

use super::Params;
use crate::error::{Error, Result};

/// Why a model is refused, the keys that give it away (config.json, then GGUF metadata) and the architectures known for it.
struct Reason {
    what: &'static str,
    instead: &'static str,
    hf_keys: &'static [&'static str],
    gguf_keys: &'static [&'static str],
    architectures: &'static [&'static str],
}

const REASONS: &[Reason] = &[
    Reason {
        what: "a multimodal model (vision or audio beside text)",
        instead: "use a text model, or a GGUF file of this one: it holds the language model alone",
        hf_keys: &["vision_config", "audio_config", "text_config"],
        gguf_keys: &[],
        architectures: &[
            "clip",
            "gemma3",
            "gemma3n",
            "gemma3n_text",
            "idefics3",
            "internvl",
            "internvl_chat",
            "llava",
            "llava_next",
            "mistral3",
            "mllama",
            "paligemma",
            "phi3_v",
            "phi4_multimodal",
            "phi4mm",
            "pixtral",
            "qwen2_5_vl",
            "qwen2_vl",
            "qwen2vl",
            "qwen3_vl",
            "qwen3vl",
            "smolvlm",
        ],
    },
    Reason {
        what: "a model with multi-head latent attention (MLA)",
        instead: "use a model with grouped-query attention",
        hf_keys: &["kv_lora_rank"],
        gguf_keys: &["attention.kv_lora_rank"],
        architectures: &["deepseek2", "deepseek_v2", "deepseek_v3", "minicpm3", "plm"],
    },
    Reason {
        what: "a mixture of experts",
        instead: "use a dense model of the family",
        hf_keys: &[
            "num_experts",
            "num_local_experts",
            "n_routed_experts",
            "moe_num_experts",
        ],
        gguf_keys: &["expert_count"],
        architectures: &[
            "dbrx",
            "deepseek",
            "gpt-oss",
            "gpt_oss",
            "granitemoe",
            "granitemoehybrid",
            "granitemoeshared",
            "llama4",
            "llama4_text",
            "mixtral",
            "olmoe",
            "phimoe",
            "qwen2_moe",
            "qwen2moe",
            "qwen3_moe",
            "qwen3moe",
            "qwen3vlmoe",
        ],
    },
    Reason {
        what: "a model whose attention is linear or a state space",
        instead: "use a transformer whose layers attend to all positions or to a window of them",
        hf_keys: &[],
        gguf_keys: &["ssm.state_size"],
        architectures: &[
            "falcon-h1",
            "falcon_h1",
            "jamba",
            "lfm2",
            "mamba",
            "mamba2",
            "nemotron_h",
            "qwen3_next",
            "qwen3next",
            "rwkv6",
            "rwkv7",
        ],
    },
    Reason {
        what: "a model that scales its queries by their position",
        instead: "use a model that does without",
        hf_keys: &["rope_parameters/llama_4_scaling_beta"],
        gguf_keys: &["attention.temperature_scale"],
        architectures: &[],
    },
];

/// Refuses a checkpoint whose metadata gives away that no family here computes it. `is_known` says that a family goes by this
/// architecture in this format.
///
/// # Errors
/// [`Error::Unsupported`] naming the architecture or key and the reason.
pub(super) fn check(p: &Params, is_known: bool) -> Result<()> {
    for r in REASONS {
        let key = r
            .hf_keys
            .iter()
            .find(|k| p.is_on(k, ""))
            .or_else(|| r.gguf_keys.iter().find(|k| p.is_on("", k)));
        let is_listed = !is_known && r.architectures.contains(&p.architecture());
        let because = match key {
            Some(key) => format!(" ({key})"),
            None if is_listed => String::new(),
            None => continue,
        };
        return Err(Error::Unsupported {
            path: p.path().to_path_buf(),
            cause: format!("\"{}\" is {}{because}", p.architecture(), r.what),
            remedy: r.instead.into(),
        });
    }
    Ok(())
}
