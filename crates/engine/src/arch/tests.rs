//! Metadata of many kinds: what is read from it, and what is refused by name.

use super::*;
use crate::formats::Metadata;
use serde_json::{Value as Json, json};
use std::path::PathBuf;

/// A folder whose config.json is `config` on top of a small Llama's, with an embedding and as many tensors as layers.
fn checkpoint(config: Json) -> (tempfile::TempDir, Checkpoint) {
    let mut all = json!({
        "model_type": "llama", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 6, "intermediate_size": 32,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    });
    let object = all.as_object_mut().unwrap();
    object.extend(config.as_object().unwrap().clone());
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), all.to_string()).unwrap();
    let data = vec![0; 8 * 16 * 4];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![8, 16], &data);
    let name = |i| match i {
        0 => names::EMBEDDING.1.to_owned(),
        i => format!("tensor.{i}"),
    };
    let tensors = (0..6).map(|i| (name(i), view.as_ref().unwrap()));
    let path = folder.path().join("model.safetensors");
    safetensors::serialize_to_file(tensors, None, &path).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}

fn config(json: Json) -> Result<Config> {
    let (_folder, checkpoint) = checkpoint(json);
    Family::of(&checkpoint)?.config(&checkpoint)
}

fn rope(json: Json) -> Arc<Rope> {
    config(json).unwrap().layers[0].rope.clone().unwrap()
}

/// Frequencies within a few eps, f64 rounded to f32 on the way.
fn assert_close(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((f64::from(*got) / want - 1.0).abs() < 1e-6, "{got} {want}");
    }
}

#[test]
fn ropes_are_scaled_as_their_rules_say() {
    let plain = [1.0, 0.1, 0.01, 0.001];
    let base = json!({"rope_theta": 1e4});
    assert_close(&rope(base).frequencies, &plain);
    let linear =
        rope(json!({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}}));
    assert_close(&linear.frequencies, &plain.map(|f| f / 4.0));

    // Over the original context of 400 pi the waves turn 200, 20, 2 and 0.2 times.
    let original = 400.0 * std::f64::consts::PI;
    let llama3 = rope(json!({"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": original.round() as usize,
    }}));
    let turns = original.round() * 0.01 / (2.0 * std::f64::consts::PI);
    let kept = (turns - 1.0) / 3.0;
    let between = 0.01 * ((1.0 - kept) / 8.0 + kept);
    assert_close(&llama3.frequencies, &[1.0, 0.1, between, 0.001 / 8.0]);
    assert_eq!(llama3.magnitude, 1.0);

    let yarn = rope(json!({"rope_theta": 1e4, "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048, "beta_fast": 32, "beta_slow": 1,
    }}));
    // The first pair turns more than 32 times over the original context, the last less than once.
    assert_close(&yarn.frequencies[..1], &plain[..1]);
    assert_close(&yarn.frequencies[3..], &[0.001 / 4.0]);
    assert!((yarn.magnitude - (0.1 * 4f32.ln() + 1.0)).abs() < 1e-6);
    let stretched = config(json!({"rope_scaling": {
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096,
    }}));
    assert_eq!(stretched.unwrap().context, 16_384);

    let long = rope(json!({
        "model_type": "phi3", "rope_theta": 1e4, "original_max_position_embeddings": 1024, "partial_rotary_factor": 0.5,
        "rope_scaling": {"type": "su", "short_factor": [1.0, 2.0], "long_factor": [2.0, 5.0]},
    }));
    assert_close(long.frequencies(1024), &[1.0, 0.01 / 2.0]);
    assert_close(long.frequencies(1025), &[0.5, 0.01 / 5.0]);
    let magnitude = (1.0 + 4f32.ln() / 1024f32.ln()).sqrt();
    assert!((long.magnitude - magnitude).abs() < 1e-6);
}

#[test]
fn windows_and_ropes_go_to_the_layers_that_have_them() {
    let windows = |json| -> Vec<Option<usize>> {
        let config = config(json).unwrap();
        config.layers.iter().map(|l| l.window).collect()
    };
    let (all, none) = (vec![Some(9); 6], vec![None; 6]);
    assert_eq!(
        windows(json!({"model_type": "mistral", "sliding_window": 9})),
        all
    );
    assert_eq!(
        windows(json!({"model_type": "mistral", "sliding_window": null})),
        none
    );
    assert_eq!(
        windows(json!({"model_type": "phi3", "sliding_window": 9})),
        all
    );
    let qwen = json!({"model_type": "qwen2", "sliding_window": 9, "use_sliding_window": false});
    assert_eq!(windows(qwen), none);
    let upper = json!({"model_type": "qwen3", "sliding_window": 9, "use_sliding_window": true, "max_window_layers": 4});
    assert_eq!(windows(upper), [None, None, None, None, Some(9), Some(9)]);
    let gemma2 = json!({"model_type": "gemma2", "sliding_window": 9});
    assert_eq!(
        windows(gemma2),
        [Some(9), None, Some(9), None, Some(9), None]
    );
    let mut listed = vec!["full_attention"; 6];
    listed[1] = "sliding_attention";
    let listed = json!({"model_type": "gemma2", "sliding_window": 9, "layer_types": listed});
    assert_eq!(windows(listed), [None, Some(9), None, None, None, None]);

    let gemma3 = config(json!({
        "model_type": "gemma3_text", "sliding_window": 9, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }));
    let gemma3 = gemma3.unwrap();
    let last = |layer: usize| gemma3.layers[layer].rope.as_ref().unwrap().frequencies[3];
    assert_eq!(gemma3.layers[5].window, None);
    assert!((last(5) / (1e6f32.powf(-0.75) / 8.0) - 1.0).abs() < 1e-5);
    assert_eq!(gemma3.layers[4].window, Some(9));
    assert!((last(4) / 1e-3 - 1.0).abs() < 1e-5);

    let smollm3 = config(json!({"model_type": "smollm3"})).unwrap();
    let has_rope: Vec<bool> = smollm3.layers.iter().map(|l| l.rope.is_some()).collect();
    assert_eq!(has_rope, [true, true, true, false, true, true]);
    let smollm3 = config(json!({"model_type": "smollm3", "no_rope_layers": [0, 1, 1, 1, 1, 1]}));
    assert_eq!(smollm3.unwrap().layers[0].rope, None);
}

#[test]
fn constants_are_read_and_null_switches_soft_caps_off() {
    let gemma2 = |json: Json| {
        let mut all = json!({"model_type": "gemma2"});
        all.as_object_mut()
            .unwrap()
            .extend(json.as_object().unwrap().clone());
        let c = config(all).unwrap();
        (c.attention_soft_cap, c.logit_soft_cap, c.attention_scale)
    };
    let usual = 1.0 / 8f32.sqrt();
    assert_eq!(gemma2(json!({})), (Some(50.0), Some(30.0), usual));
    let said = json!({"attn_logit_softcapping": null, "final_logit_softcapping": 7.5, "query_pre_attn_scalar": 4});
    assert_eq!(gemma2(said), (None, Some(7.5), 0.5));

    let granite = config(json!({
        "model_type": "granite", "embedding_multiplier": 12.0, "attention_multiplier": 0.25, "residual_multiplier": 0.5,
        "logits_scaling": 8.0,
    }));
    let c = granite.unwrap();
    let constants = [
        c.embedding_scale,
        c.attention_scale,
        c.residual_scale,
        c.logit_scale,
    ];
    assert_eq!(constants, [12.0, 0.25, 0.5, 0.125]);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (json, parts) in [
        (
            json!({"model_type": "mixtral"}),
            ["mixtral", "mixture of experts"],
        ),
        (
            json!({"model_type": "qwen3_moe"}),
            ["qwen3_moe", "mixture of experts"],
        ),
        (
            json!({"num_local_experts": 8}),
            ["num_local_experts", "mixture of experts"],
        ),
        (json!({"model_type": "gemma3"}), ["gemma3", "multimodal"]),
        (
            json!({"vision_config": {"hidden_size": 3}}),
            ["vision_config", "multimodal"],
        ),
        (json!({"model_type": "deepseek_v3"}), ["deepseek_v3", "MLA"]),
        (json!({"kv_lora_rank": 512}), ["kv_lora_rank", "MLA"]),
        (json!({"model_type": "mamba"}), ["mamba", "state space"]),
        (
            json!({"model_type": "gpt_neox"}),
            ["gpt_neox", "not supported"],
        ),
        (json!({"hidden_act": "gelu"}), ["gelu", "activation"]),
        (json!({"head_dim": 7}), ["7", "grouped-query"]),
        (json!({"num_hidden_layers": 7}), ["7 layers", "6 tensors"]),
        (
            json!({"rope_scaling": {"rope_type": "cubic", "factor": 2.0}}),
            ["cubic", "rope scaling"],
        ),
        (
            json!({"rope_scaling": {"rope_type": "linear"}}),
            ["factor", "rope scaling"],
        ),
        (
            json!({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}),
            ["short_factor", "4"],
        ),
        (
            json!({"rope_scaling": {"rope_type": 3}}),
            ["rope_type", "string"],
        ),
        (json!({"partial_rotary_factor": 0.4}), ["3 of 8", "rope"]),
        (
            json!({"model_type": "olmo2", "sliding_window": 16}),
            ["olmo2", "sliding windows"],
        ),
        (
            json!({"layer_types": vec!["chunked_attention"; 6]}),
            ["chunked_attention", "layer"],
        ),
        (
            json!({"layer_types": ["full_attention"]}),
            ["layer_types", "6 layers"],
        ),
        (
            json!({"model_type": "gemma", "use_bidirectional_attention": true}),
            ["bidirectional", "not supported"],
        ),
    ] {
        let (_folder, checkpoint) = checkpoint(json.clone());
        let error = match Family::of(&checkpoint) {
            Ok(family) => family.config(&checkpoint).unwrap_err(),
            Err(error) => error,
        };
        let said = format!("{error} {}", error.remedy());
        for part in parts {
            // The family's name is in the file's metadata, not in every message.
            assert!(said.contains(part) || part == "olmo2", "{json}: {said}");
        }
    }
    // Whatever is unknown, the message lists what is known.
    let (_folder, checkpoint) = checkpoint(json!({"model_type": "gpt_neox"}));
    let remedy = Family::of(&checkpoint).err().unwrap().remedy();
    assert!(FAMILIES.iter().all(|f| remedy.contains(f.name)), "{remedy}");
}

#[test]
fn experts_in_gguf_metadata_are_refused() {
    use crate::formats::gguf::{Metadata as GgufMetadata, Value};
    let (_folder, mut checkpoint) = checkpoint(json!({}));
    let mut values = std::collections::BTreeMap::new();
    values.insert("general.architecture".into(), Value::String("llama".into()));
    for (count, is_refused) in [(0, false), (8, true)] {
        values.insert("llama.expert_count".into(), Value::U32(count));
        let metadata = GgufMetadata::new(&PathBuf::from("m.gguf"), values.clone());
        checkpoint.metadata = Metadata::Gguf(metadata);
        assert_eq!(Family::of(&checkpoint).is_err(), is_refused);
    }
}

#[test]
fn no_two_families_go_by_the_same_name() {
    for types in [
        FAMILIES
            .iter()
            .flat_map(|f| f.gguf_types)
            .collect::<Vec<_>>(),
        FAMILIES.iter().flat_map(|f| f.hf_types).collect(),
    ] {
        let distinct: std::collections::HashSet<_> = types.iter().collect();
        assert_eq!(distinct.len(), types.len());
    }
}
