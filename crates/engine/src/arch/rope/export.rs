//! What files say of the rope of layers that see the whole context: [`RopeParams::rope`] the other way round, for either format.

use super::{GGUF_DIVISORS, Rope, RopeParams, Scope, grown, llama3, rounded};
use crate::{
    arch::{Params, export::size, number},
    error::Result,
    formats::gguf::Value,
};
use serde_json::{Map, Value as Json, json};

/// How far numbers may be apart that were rounded to f32 three times (a divisor, and what comes of it on either side), relatively.
const ROUNDING: f32 = 1.0 / (1 << 22) as f32;

/// What Llama 3.1 to 3.3 do. A GGUF file holds what came of it, by which it is known again.
const LLAMA3_LOW: f64 = 1.0;
const LLAMA3_HIGH: f64 = 4.0;
const LLAMA3_CONTEXT: usize = 8192;

fn are_close(a: &[f32], b: &[f32]) -> bool {
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= ROUNDING * b.abs();
    a.len() == b.len() && a.iter().zip(b).all(close)
}

impl Rope {
    /// Whether it differs from another one by no more than rounding.
    pub(in crate::arch) fn is_close(&self, other: &Rope) -> bool {
        let long = match (&self.long, &other.long) {
            (None, None) => true,
            (Some(a), Some(b)) => a.beyond == b.beyond && are_close(&a.frequencies, &b.frequencies),
            _ => false,
        };
        long && are_close(&self.frequencies, &other.frequencies)
            && are_close(&[self.magnitude], &[other.magnitude])
    }
}

/// A rope in a GGUF file: keys without the architecture's prefix, and tensors.
pub(crate) struct Said {
    pub(crate) pairs: Vec<(&'static str, Value)>,
    pub(crate) tensors: Vec<(&'static str, Vec<f32>)>,
}

/// The rope of a folder as a GGUF file says it.
pub(crate) fn to_gguf(params: &Params, head_dim: usize, default_base: f32) -> Result<Said> {
    let keys = RopeParams::new(params, Scope::Global, head_dim, default_base);
    let unscaled = keys.unscaled()?;
    let float = |x: f64| Value::F32(x as f32);
    let kind = |name: &str| ("rope.scaling.type", Value::String(name.into()));
    let mut said = Said {
        pairs: vec![
            ("rope.dimension_count", size(2 * unscaled.len())),
            ("rope.freq_base", float(keys.base()?)),
        ],
        tensors: Vec::new(),
    };
    let original = |said: &mut Said| -> Result<()> {
        let context = keys.original_context()? as usize;
        said.pairs
            .push(("rope.scaling.original_context_length", size(context)));
        Ok(())
    };
    match keys.kind()?.as_str() {
        "linear" => {
            let factor = keys.number("factor", "factor")?;
            said.pairs
                .extend([kind("linear"), ("rope.scaling.factor", float(factor))]);
        }
        "llama3" => {
            let scaled = keys.llama3(&unscaled)?;
            let divisors = unscaled.iter().zip(scaled).map(|(f, s)| f / s);
            said.tensors = vec![(GGUF_DIVISORS[0], rounded(divisors.collect()))];
        }
        "yarn" if !keys.has("long_factor") => {
            let factor = keys.yarn_factor()?;
            said.pairs
                .extend([kind("yarn"), ("rope.scaling.factor", float(factor))]);
            original(&mut said)?;
            for (hf, gguf) in [
                ("beta_fast", "rope.scaling.yarn_beta_fast"),
                ("beta_slow", "rope.scaling.yarn_beta_slow"),
            ] {
                let beta = keys.opt(hf, "")?;
                said.pairs.extend(beta.map(|b| (gguf, float(b))));
            }
            let (_, magnitude) = keys.yarn(&unscaled)?;
            // GGUF names what there is beside the usual magnitude.
            let beside = magnitude / grown(1.0, factor);
            if !are_close(&[beside as f32], &[1.0]) {
                said.pairs.push(("rope.scaling.attn_factor", float(beside)));
            }
        }
        "longrope" | "su" | "yarn" => {
            let rope = keys.long_rope(&unscaled)?;
            said.pairs.extend([
                kind("longrope"),
                ("rope.scaling.attn_factor", Value::F32(rope.magnitude)),
            ]);
            original(&mut said)?;
            let [_, short, long] = GGUF_DIVISORS;
            let list = |key| params.numbers(&keys.path(key), unscaled.len());
            said.tensors = vec![(short, list("short_factor")?), (long, list("long_factor")?)];
        }
        // `rope` has refused all others.
        _ => {}
    }
    Ok(said)
}

/// The rope of a GGUF file as entries of config.json.
pub(crate) fn to_hugging_face(
    params: &Params,
    head_dim: usize,
    default_base: f32,
) -> Result<Map<String, Json>> {
    let keys = RopeParams::new(params, Scope::Global, head_dim, default_base);
    let rope = keys.rope()?;
    let unscaled = keys.unscaled()?;
    let mut config = Map::new();
    let mut say = |key: &str, value: Json| config.insert(key.to_owned(), value);
    say("rope_theta", number(keys.base()? as f32));
    if 2 * unscaled.len() < head_dim {
        say(
            "partial_rotary_factor",
            number(share(2 * unscaled.len(), head_dim)),
        );
    }
    let list = |divisors: &[f32]| divisors.iter().copied().map(number).collect::<Json>();
    let [always, short, long] = GGUF_DIVISORS;
    let divisors = |name| params.divisors(name, unscaled.len());
    let scaling = match (divisors(always)?, divisors(short)?, divisors(long)?) {
        (Some(always), ..) => match known_llama3(&rope, &unscaled, &always) {
            Some(scaling) => scaling,
            // Divisors of any kind, for short contexts and for long ones alike.
            None => {
                say("original_max_position_embeddings", keys.context()?.into());
                json!({
                    "type": "longrope",
                    "short_factor": list(&always),
                    "long_factor": list(&always),
                    "attention_factor": number(rope.magnitude),
                })
            }
        },
        (None, Some(short), Some(long)) => {
            let original = keys.original_context()?;
            say(
                "original_max_position_embeddings",
                (original as usize).into(),
            );
            let mut scaling = json!({
                "type": "longrope",
                "short_factor": list(&short),
                "long_factor": list(&long),
            });
            let usual = keys.long_magnitude(None, original)? as f32;
            if !are_close(&[rope.magnitude], &[usual]) {
                scaling["attention_factor"] = number(rope.magnitude);
            }
            scaling
        }
        _ => by_rule(&keys, &rope)?,
    };
    say("rope_scaling", scaling);
    Ok(config)
}

/// Scaling by a rule that GGUF has a name for.
fn by_rule(keys: &RopeParams<'_, '_>, rope: &Rope) -> Result<Json> {
    let float = |x: f64| number(x as f32);
    Ok(match keys.kind()?.as_str() {
        "linear" => {
            json!({"rope_type": "linear", "factor": float(keys.number("factor", "factor")?)})
        }
        "yarn" => {
            let factor = keys.yarn_factor()?;
            let mut scaling = json!({
                "rope_type": "yarn",
                "factor": float(factor),
                "original_max_position_embeddings": keys.original_context()? as usize,
            });
            for (hf, gguf) in [
                ("beta_fast", "yarn_beta_fast"),
                ("beta_slow", "yarn_beta_slow"),
            ] {
                if let Some(beta) = keys.opt("", gguf)? {
                    scaling[hf] = float(beta);
                }
            }
            if !are_close(&[rope.magnitude], &[grown(1.0, factor) as f32]) {
                scaling["attention_factor"] = number(rope.magnitude);
            }
            scaling
        }
        // `rope` has refused all others.
        _ => Json::Null,
    })
}

/// Llama 3's scaling, if it is what these divisors came from.
fn known_llama3(rope: &Rope, unscaled: &[f64], divisors: &[f32]) -> Option<Json> {
    // Those of the longest waves, which are stretched in full.
    let factor = divisors.iter().copied().fold(1.0, f32::max);
    let ends = [LLAMA3_LOW, LLAMA3_HIGH];
    let scaled = llama3(unscaled, f64::from(factor), ends, LLAMA3_CONTEXT as f64);
    let is_it = rope.magnitude == 1.0 && are_close(&rope.frequencies, &rounded(scaled));
    is_it.then(|| {
        json!({
            "rope_type": "llama3",
            "factor": number(factor),
            "low_freq_factor": LLAMA3_LOW,
            "high_freq_factor": LLAMA3_HIGH,
            "original_max_position_embeddings": LLAMA3_CONTEXT,
        })
    })
}

/// The share of a head that `dims` of its elements are, not too small for the product to be cut to `dims` again.
fn share(dims: usize, head_dim: usize) -> f32 {
    let share = dims as f32 / head_dim as f32;
    if (f64::from(share) * head_dim as f64) < dims as f64 {
        share.next_up()
    } else {
        share
    }
}
