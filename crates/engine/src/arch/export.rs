//! What a family's files say of its shape: [`Family::config`] the other way round, for either format.

use super::{
    Act, Biases, Config, Family, Params, Role,
    rope::{self, RopeParams, Scope},
};
use crate::{
    error::Result,
    formats::{Checkpoint, Tensor, gguf::Value},
    kernels::DType,
};
use serde_json::{Map, Value as Json, json};

/// What it takes to write files of a family, beside the keys that all families have.
#[derive(Clone, Copy)]
pub(crate) struct Export {
    /// The class that Hugging Face's config.json names.
    pub(crate) hf_class: &'static str,
    /// The architecture that GGUF files name, where it is not the first that the family goes by.
    pub(crate) gguf_type: Option<&'static str>,
    /// Further hyper-parameters.
    pub(crate) keys: &'static [Key],
    /// What else config.json says and GGUF leaves to the family.
    pub(crate) hf_config: fn(&Config, &mut Map<String, Json>),
}

/// A hyper-parameter under its names in config.json and in GGUF (without the architecture's prefix); "" where the format leaves it
/// to the family. Where there is none, config.json says `null` and GGUF nothing.
pub(crate) enum Key {
    Size(&'static str, &'static str, fn(&Config) -> Option<usize>),
    Number(&'static str, &'static str, fn(&Config) -> Option<f32>),
}

impl Key {
    /// The window of the layers that have one.
    pub(crate) const WINDOW: Key =
        Key::Size("sliding_window", "attention.sliding_window", Config::window);
    /// Soft caps on scores and on logits.
    pub(crate) const SOFT_CAPS: [Key; 2] = [
        Key::Number("attn_logit_softcapping", "attn_logit_softcapping", |c| {
            c.attention_soft_cap
        }),
        Key::Number("final_logit_softcapping", "final_logit_softcapping", |c| {
            c.logit_soft_cap
        }),
    ];

    fn gguf(&self, c: &Config) -> Option<(&'static str, Value)> {
        let (key, value) = match *self {
            Key::Size(_, gguf, of) => (gguf, of(c).map(size)),
            Key::Number(_, gguf, of) => (gguf, of(c).map(Value::F32)),
        };
        value.filter(|_| !key.is_empty()).map(|v| (key, v))
    }

    fn hf(&self, c: &Config) -> Option<(String, Json)> {
        let (key, value) = match *self {
            Key::Size(hf, _, of) => (hf, of(c).map(Json::from)),
            Key::Number(hf, _, of) => (hf, of(c).map(number)),
        };
        (!key.is_empty()).then(|| (key.to_owned(), value.unwrap_or(Json::Null)))
    }
}

/// What all families have, as far as either format says it in so many words.
const COMMON: [Key; 10] = [
    Key::Size("max_position_embeddings", "context_length", |c| {
        Some(c.context)
    }),
    Key::Size("hidden_size", "embedding_length", |c| Some(c.hidden)),
    Key::Size("num_hidden_layers", "block_count", |c| Some(c.layers.len())),
    Key::Size("intermediate_size", "feed_forward_length", |c| {
        c.layers.first().map(|l| l.inter)
    }),
    Key::Size("num_attention_heads", "attention.head_count", |c| {
        Some(c.heads)
    }),
    Key::Size("num_key_value_heads", "attention.head_count_kv", |c| {
        Some(c.kv_heads)
    }),
    Key::Size("head_dim", "attention.key_length", |c| Some(c.head_dim)),
    Key::Size("", "attention.value_length", |c| Some(c.head_dim)),
    Key::Size("vocab_size", "vocab_size", |c| Some(c.vocab)),
    Key::Number("rms_norm_eps", "attention.layer_norm_rms_epsilon", |c| {
        Some(c.norm_eps)
    }),
];

/// A size as GGUF files have it.
pub(super) fn size(n: usize) -> Value {
    Value::U32(n as u32)
}

/// A number as JSON, in the fewest digits that give the same `f32` again.
pub(crate) fn number(x: f32) -> Json {
    x.to_string().parse::<f64>().map_or(Json::Null, Json::from)
}

impl Config {
    /// The window of the layers that have one.
    pub(super) fn window(&self) -> Option<usize> {
        self.layers.iter().find_map(|l| l.window)
    }

    /// With another one's ropes wherever they differ by no more than rounding.
    pub(crate) fn up_to_rounding(mut self, other: &Config) -> Config {
        for (layer, other) in self.layers.iter_mut().zip(&other.layers) {
            if let (Some(a), Some(b)) = (&layer.rope, &other.rope)
                && a.is_close(b)
            {
                layer.rope = other.rope.clone();
            }
        }
        self
    }

    /// Which kind of attention each layer has, in config.json's words.
    pub(super) fn layer_types(&self) -> Json {
        let kind = |window: Option<usize>| match window {
            Some(_) => "sliding_attention",
            None => "full_attention",
        };
        self.layers.iter().map(|l| kind(l.window)).collect()
    }
}

impl Family {
    /// The architecture that GGUF files of this family name.
    pub(crate) fn gguf_type(&self) -> &'static str {
        self.export.gguf_type.unwrap_or(self.gguf_types[0])
    }

    /// The hyper-parameters of a folder of this family as GGUF metadata, keys with their prefix.
    ///
    /// # Errors
    /// Those of [`Family::config`].
    pub(crate) fn gguf_metadata(
        &self,
        folder: &Checkpoint,
        c: &Config,
    ) -> Result<Vec<(String, Value)>> {
        let p = Params::new(folder)?;
        let keys = COMMON.iter().chain(self.export.keys);
        let mut pairs: Vec<_> = keys.filter_map(|key| key.gguf(c)).collect();
        pairs.extend(rope::to_gguf(&p, c.head_dim, self.rope_base)?.pairs);
        if let Some(default) = self.local_rope_base {
            let base = RopeParams::new(&p, Scope::Local, c.head_dim, default).base()? as f32;
            pairs.push((Scope::Local.base().1, Value::F32(base)));
        }
        let prefix = self.gguf_type();
        let prefixed = |(key, value)| (format!("{prefix}.{key}"), value);
        Ok(pairs.into_iter().map(prefixed).collect())
    }

    /// The tensors in which GGUF files say what config.json says by numbers.
    ///
    /// # Errors
    /// Those of [`Family::config`].
    pub(crate) fn gguf_tensors(&self, folder: &Checkpoint, c: &Config) -> Result<Vec<Tensor>> {
        let p = Params::new(folder)?;
        let tensor = |(name, divisors): (&str, Vec<f32>)| Tensor {
            name: name.to_owned(),
            dtype: DType::F32,
            shape: vec![divisors.len()],
            data: bytemuck::cast_slice::<f32, u8>(&divisors).to_vec().into(),
        };
        let said = rope::to_gguf(&p, c.head_dim, self.rope_base)?;
        Ok(said.tensors.into_iter().map(tensor).collect())
    }

    /// The hyper-parameters of a GGUF file of this family as config.json.
    ///
    /// # Errors
    /// Those of [`Family::config`].
    pub(crate) fn hf_config(&self, file: &Checkpoint, c: &Config) -> Result<Map<String, Json>> {
        let p = Params::new(file)?;
        let act = match c.act {
            Act::Silu => "silu",
            Act::GeluTanh => "gelu_pytorch_tanh",
        };
        let mut config = Map::new();
        let mut say = |key: &str, value: Json| config.insert(key.to_owned(), value);
        say("architectures", json!([self.export.hf_class]));
        say("model_type", self.hf_types[0].into());
        say("hidden_act", act.into());
        // The version whose keys these are; without one, newer versions suspect the tokenizer.
        say("transformers_version", "4.57.0".into());
        if self.biases == Biases::AsConfigured {
            let has = |role: &Role| file.tensor(&role.gguf(0)).is_some();
            let any = |roles: &[Role]| Json::from(roles.iter().any(has));
            say("attention_bias", any(&Role::ATTENTION_BIASES));
            say("mlp_bias", any(&Role::FFN_BIASES));
        }
        if let Some(default) = self.local_rope_base {
            let base = RopeParams::new(&p, Scope::Local, c.head_dim, default).base()? as f32;
            say(Scope::Local.base().0, number(base));
        }
        config.extend(rope::to_hugging_face(&p, c.head_dim, self.rope_base)?);
        let keys = COMMON.iter().chain(self.export.keys);
        config.extend(keys.filter_map(|key| key.hf(c)));
        (self.export.hf_config)(c, &mut config);
        Ok(config)
    }
}
