//! What a family's files say of its shape: [`Family::config`] the other way round, for either format.

use super::{Act, Config, Family, Params};
use crate::{
    error::Result,
    formats::{Checkpoint, gguf::Value},
};
use serde_json::{Map, Value as Json, json};

/// What it takes to write files of a family, beside the keys that all families have.
pub(crate) struct Export {
    /// The class that Hugging Face's config.json names.
    pub(crate) hf_class: &'static str,
    /// Further hyper-parameters that both formats hold.
    pub(crate) keys: &'static [Key],
    /// What config.json says and GGUF leaves to the family.
    pub(crate) hf_config: fn(&Config, &mut Map<String, Json>),
}

/// A hyper-parameter under its names in config.json and in GGUF (without the architecture's prefix).
pub(crate) enum Key {
    Size(&'static str, &'static str),
    Number(&'static str, &'static str),
}

/// What all families have, as far as either format says it in so many words.
const COMMON: [Key; 7] = [
    Key::Size("max_position_embeddings", "context_length"),
    Key::Size("hidden_size", "embedding_length"),
    Key::Size("num_hidden_layers", "block_count"),
    Key::Size("intermediate_size", "feed_forward_length"),
    Key::Size("num_attention_heads", "attention.head_count"),
    Key::Size("num_key_value_heads", "attention.head_count_kv"),
    Key::Number("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
];

/// A number as JSON, in the fewest digits that give the same `f32` again.
pub(crate) fn number(x: f32) -> Json {
    x.to_string().parse::<f64>().map_or(Json::Null, Json::from)
}

impl Family {
    /// The hyper-parameters of a checkpoint of this family as GGUF metadata, keys with their prefix.
    ///
    /// # Errors
    /// Those of [`Family::config`].
    pub(crate) fn gguf_metadata(
        &self,
        checkpoint: &Checkpoint,
        c: &Config,
    ) -> Result<Vec<(String, Value)>> {
        let p = Params::new(checkpoint)?;
        let size = |n: usize| Value::U32(n as u32);
        let rope = p.rope()?;
        let mut pairs = vec![
            ("attention.key_length", size(c.head_dim)),
            ("attention.value_length", size(c.head_dim)),
            ("rope.dimension_count", size(c.head_dim)),
            ("rope.freq_base", Value::F32(rope.base)),
            ("vocab_size", size(c.vocab)),
        ];
        if rope.scale != 1.0 {
            pairs.push(("rope.scaling.type", Value::String("linear".into())));
            pairs.push(("rope.scaling.factor", Value::F32(rope.scale)));
        }
        for key in COMMON.iter().chain(self.export.keys) {
            let (gguf, value) = match *key {
                Key::Size(hf, gguf) => (gguf, p.opt_size(hf, gguf)?.map(size)),
                Key::Number(hf, gguf) => (gguf, p.opt_number(hf, gguf)?.map(Value::F32)),
            };
            pairs.extend(value.map(|v| (gguf, v)));
        }
        let prefixed = |(key, value)| (format!("{}.{key}", self.name), value);
        Ok(pairs.into_iter().map(prefixed).collect())
    }

    /// The hyper-parameters of a checkpoint of this family as config.json.
    ///
    /// # Errors
    /// Those of [`Family::config`].
    pub(crate) fn hf_config(
        &self,
        checkpoint: &Checkpoint,
        c: &Config,
    ) -> Result<Map<String, Json>> {
        let p = Params::new(checkpoint)?;
        let rope = p.rope()?;
        let act = match c.act {
            Act::Silu => "silu",
            Act::GeluTanh => "gelu_pytorch_tanh",
        };
        let scaling = match rope.scale {
            1.0 => Json::Null,
            scale => json!({"rope_type": "linear", "factor": number(scale)}),
        };
        let common = json!({
            "architectures": [self.export.hf_class],
            "model_type": self.hf_types[0],
            "head_dim": c.head_dim,
            "hidden_act": act,
            "rope_theta": number(rope.base),
            "rope_scaling": scaling,
            "vocab_size": c.vocab,
            // The version whose keys these are; without one, newer versions suspect the tokenizer.
            "transformers_version": "4.57.0",
        });
        let Json::Object(mut config) = common else {
            unreachable!("an object was written")
        };
        for key in COMMON.iter().chain(self.export.keys) {
            let (hf, value) = match *key {
                Key::Size(hf, gguf) => (hf, p.opt_size(hf, gguf)?.map(Json::from)),
                Key::Number(hf, gguf) => (hf, p.opt_number(hf, gguf)?.map(number)),
            };
            config.extend(value.map(|v| (hf.to_owned(), v)));
        }
        (self.export.hf_config)(c, &mut config);
        Ok(config)
    }
}
