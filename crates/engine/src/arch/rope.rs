//! Rotary position embedding as numbers. What the rules of scaling make of frequencies is computed here, once, so that nothing else
//! knows them by name.

mod export;

use super::Params;
use crate::error::Result;
pub(crate) use export::{to_gguf, to_hugging_face};

/// Rotary position embedding: element i of a head and element i + pairs are rotated by position * frequency\[i\].
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians a position, one for each pair of elements; elements of a head beyond the pairs are not rotated.
    pub frequencies: Vec<f32>,
    /// What replaces them in long contexts.
    pub long: Option<LongRope>,
    /// Factor on sines and cosines.
    pub magnitude: f32,
}

/// Frequencies for contexts beyond the one a model was first trained for.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// The longest context, in positions, that is not long.
    pub beyond: usize,
    /// As [`Rope::frequencies`].
    pub frequencies: Vec<f32>,
}

impl Rope {
    /// The frequencies for a context of so many positions. The room of the session decides, not how much of it is filled: what is in
    /// a cache cannot be rotated otherwise later on. The original frameworks look at the text instead, and agree with
    /// this for every text that is either longer than [`LongRope::beyond`] or in a session that is not.
    pub fn frequencies(&self, context: usize) -> &[f32] {
        match &self.long {
            Some(long) if context > long.beyond => &long.frequencies,
            _ => &self.frequencies,
        }
    }
}

/// Which of the ropes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Of layers that see the whole context.
    Global,
    /// Of layers with a window; it is not scaled, but for models that say so.
    Local,
}

impl Scope {
    /// Objects of config.json that may hold the rope's parameters, the likeliest first.
    fn places(self) -> &'static [&'static str] {
        match self {
            Scope::Global => &[
                "rope_parameters/full_attention",
                "rope_parameters",
                "rope_scaling",
            ],
            Scope::Local => &["rope_parameters/sliding_attention"],
        }
    }

    /// Where the base is if not there: in config.json, and in GGUF metadata.
    pub(super) fn base(self) -> (&'static str, &'static str) {
        match self {
            Scope::Global => ("rope_theta", "rope.freq_base"),
            Scope::Local => ("rope_local_base_freq", "rope.freq_base_swa"),
        }
    }
}

/// GGUF tensors that divide the frequencies, `[pairs]`: always, in contexts that are not long, in long ones.
pub(crate) const GGUF_DIVISORS: [&str; 3] = [
    "rope_freqs.weight",
    "rope_factors_short.weight",
    "rope_factors_long.weight",
];

/// Where the parameters of a rope are.
struct Keys<'p, 'a> {
    params: &'p Params<'a>,
    scope: Scope,
    /// The object of config.json.
    place: Option<&'static str>,
    default_base: f32,
    head_dim: usize,
}

/// Reads a rope of a model whose heads have `head_dim` elements. `default_base` is the base where the file does not say it.
pub(crate) fn read(
    params: &Params,
    scope: Scope,
    head_dim: usize,
    default_base: f32,
) -> Result<Rope> {
    let keys = Keys::of(params, scope, head_dim, default_base);
    let kind = keys.kind()?;
    let unscaled = keys.unscaled()?;
    let rope = |frequencies: Vec<f64>, magnitude: f64| Rope {
        frequencies: rounded(frequencies),
        long: None,
        magnitude: magnitude as f32,
    };
    if params.is_gguf()
        && scope == Scope::Global
        && let Some(rope) = keys.divided_by_tensors(&unscaled)?
    {
        return Ok(rope);
    }
    match kind.as_str() {
        // Dynamic scaling begins where the context that the model was trained for ends; no session goes there.
        "default" | "none" | "dynamic" => Ok(rope(unscaled, 1.0)),
        "linear" => {
            let factor = keys.number("factor", "factor")?;
            let scaled = unscaled.iter().map(|f| f / factor);
            Ok(rope(scaled.collect(), 1.0))
        }
        "llama3" => Ok(rope(keys.llama3(&unscaled)?, 1.0)),
        "yarn" if !keys.has("long_factor") => {
            let (frequencies, magnitude) = keys.yarn(&unscaled)?;
            Ok(rope(frequencies, magnitude))
        }
        kind @ ("longrope" | "su") if params.is_gguf() => {
            let [_, short, long] = GGUF_DIVISORS;
            Err(params.malformed(format!(
                "rope scaling \"{kind}\" without the tensors {short} and {long}"
            )))
        }
        "longrope" | "su" | "yarn" => keys.long_rope(&unscaled),
        other => Err(params.unsupported(format!("rope scaling \"{other}\""))),
    }
}

/// The base of a rope.
pub(crate) fn base(params: &Params, scope: Scope, default: f32) -> Result<f32> {
    let base = Keys::of(params, scope, 0, default).base()?;
    Ok(base as f32)
}

fn rounded(frequencies: Vec<f64>) -> Vec<f32> {
    frequencies.into_iter().map(|f| f as f32).collect()
}

fn divided(frequencies: &[f64], divisors: &[f32]) -> Vec<f32> {
    let pairs = frequencies.iter().zip(divisors);
    rounded(pairs.map(|(f, d)| f / f64::from(*d)).collect())
}

/// A rope by divisors for short contexts and for those that are longer than `beyond`.
fn by_divisors(unscaled: &[f64], [short, long]: [&[f32]; 2], beyond: f64, magnitude: f32) -> Rope {
    let long = (long != short).then(|| LongRope {
        beyond: beyond as usize,
        frequencies: divided(unscaled, long),
    });
    Rope {
        frequencies: divided(unscaled, short),
        long,
        magnitude,
    }
}

/// Llama 3.1's rule: waves that the original `context` holds less than `low` times are stretched by `factor`, those that it holds
/// more than `high` times are not, and those in between partly.
fn llama3(unscaled: &[f64], factor: f64, [low, high]: [f64; 2], context: f64) -> Vec<f64> {
    let scaled = unscaled.iter().map(|f| {
        let waves = context * f / (2.0 * std::f64::consts::PI);
        let kept = ((waves - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 - kept) * f / factor + kept * f
    });
    scaled.collect()
}

/// YaRN's magnitude for a context that grew `factor` times.
fn grown(by: f64, factor: f64) -> f64 {
    if factor > 1.0 {
        0.1 * by * factor.ln() + 1.0
    } else {
        1.0
    }
}

impl<'p, 'a> Keys<'p, 'a> {
    fn of(
        params: &'p Params<'a>,
        scope: Scope,
        head_dim: usize,
        default_base: f32,
    ) -> Keys<'p, 'a> {
        let mut places = scope.places().iter();
        Keys {
            params,
            scope,
            place: places.find(|p| params.has(p)).copied(),
            default_base,
            head_dim,
        }
    }
}

impl Keys<'_, '_> {
    fn path(&self, key: &str) -> String {
        match self.place {
            Some(place) => format!("{place}/{key}"),
            None => String::new(),
        }
    }

    fn has(&self, key: &str) -> bool {
        self.params.has(&self.path(key))
    }

    /// A parameter of the scaling, positive.
    fn opt(&self, hf: &str, gguf: &str) -> Result<Option<f64>> {
        let gguf = match (self.scope, gguf) {
            (Scope::Global, key) if !key.is_empty() => format!("rope.scaling.{key}"),
            _ => String::new(),
        };
        let found = self.params.opt_number(&self.path(hf), &gguf)?;
        Ok(found.map(f64::from))
    }

    fn number(&self, hf: &str, gguf: &str) -> Result<f64> {
        self.opt(hf, gguf)?.ok_or_else(|| {
            let missing = format!("rope scaling without {hf}");
            self.params.malformed(missing)
        })
    }

    fn kind(&self) -> Result<String> {
        let hf = ["rope_type", "type"].map(|k| self.path(k));
        let mut names = hf.iter().filter_map(|path| self.params.text(path, ""));
        if let Some(name) = names.next() {
            return name.map(str::to_owned);
        }
        match self.params.text("", "rope.scaling.type") {
            Some(name) if self.scope == Scope::Global => name.map(str::to_owned),
            _ => Ok("default".into()),
        }
    }

    fn base(&self) -> Result<f64> {
        let (hf, gguf) = self.scope.base();
        let base = match self.params.opt_number(&self.path("rope_theta"), gguf)? {
            Some(base) => base,
            None => self.params.opt_number(hf, "")?.unwrap_or(self.default_base),
        };
        Ok(f64::from(base))
    }

    /// Elements of a head that are rotated.
    fn dims(&self) -> Result<usize> {
        let p = self.params;
        let share = match p.opt_number(&self.path("partial_rotary_factor"), "")? {
            Some(share) => Some(share),
            None => p.opt_number("partial_rotary_factor", "")?,
        };
        let dims = match (p.opt_size("", "rope.dimension_count")?, share) {
            (Some(dims), _) => dims,
            (None, Some(share)) => (self.head_dim as f64 * f64::from(share)) as usize,
            (None, None) => self.head_dim,
        };
        if dims.is_multiple_of(2) && (2..=self.head_dim).contains(&dims) {
            Ok(dims)
        } else {
            let head = self.head_dim;
            Err(p.unsupported(format!("rope over {dims} of {head} elements of a head")))
        }
    }

    /// base^(-2i / dims).
    fn unscaled(&self) -> Result<Vec<f64>> {
        let (base, dims) = (self.base()?, self.dims()?);
        let frequency = |i: usize| base.powf(-((2 * i) as f64) / dims as f64);
        Ok((0..dims / 2).map(frequency).collect())
    }

    /// Positions of the context that was trained first.
    fn original_context(&self) -> Result<f64> {
        const KEY: &str = "original_max_position_embeddings";
        let p = self.params;
        let found = match p.opt_size(KEY, "rope.scaling.original_context_length")? {
            Some(n) => Some(n),
            None => p.opt_size(&self.path(KEY), "")?,
        };
        match found {
            Some(n) => Ok(n as f64),
            None => Ok(self.context()? as f64),
        }
    }

    fn context(&self) -> Result<usize> {
        self.params
            .size("max_position_embeddings", "context_length")
    }

    fn llama3(&self, unscaled: &[f64]) -> Result<Vec<f64>> {
        let factor = self.number("factor", "")?;
        let low = self.number("low_freq_factor", "")?;
        let high = self.number("high_freq_factor", "")?;
        let context = self.original_context()?;
        Ok(llama3(unscaled, factor, [low, high], context))
    }

    /// How many times the original context YaRN is for.
    fn yarn_factor(&self) -> Result<f64> {
        match self.opt("factor", "factor")? {
            Some(factor) => Ok(factor),
            None => Ok(self.context()? as f64 / self.original_context()?),
        }
    }

    /// YaRN (Peng et al., 2023): as above, with a ramp over the pairs' numbers; and the magnitude that goes with it.
    fn yarn(&self, unscaled: &[f64]) -> Result<(Vec<f64>, f64)> {
        let context = self.original_context()?;
        let factor = self.yarn_factor()?;
        let grown = |by: f64| grown(by, factor);
        let magnitude = if self.params.is_gguf() {
            let all = self.opt("", "yarn_log_multiplier")?;
            let times = self.opt("", "attn_factor")?.unwrap_or(1.0);
            times * grown(1.0) / all.map_or(1.0, grown)
        } else {
            let both = (self.opt("mscale", "")?, self.opt("mscale_all_dim", "")?);
            match (self.opt("attention_factor", "")?, both) {
                (Some(magnitude), _) => magnitude,
                (None, (Some(one), Some(all))) => grown(one) / grown(all),
                (None, _) => grown(1.0),
            }
        };
        let dims = (2 * unscaled.len()) as f64;
        let base = self.base()?;
        // The pair, in elements, that turns so often over the original context.
        let pair = |turns: f64| {
            dims * (context / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * base.ln())
        };
        let fast = self.opt("beta_fast", "yarn_beta_fast")?.unwrap_or(32.0);
        let slow = self.opt("beta_slow", "yarn_beta_slow")?.unwrap_or(1.0);
        let (mut low, mut high) = (pair(fast), pair(slow));
        if !self.params.is_off(&self.path("truncate")) {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        let scaled = unscaled.iter().enumerate().map(|(i, f)| {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            ramp * f / factor + (1.0 - ramp) * f
        });
        Ok((scaled.collect(), magnitude))
    }

    /// LongRoPE (Ding et al., 2024): a divisor for each frequency, others in long contexts.
    fn long_rope(&self, unscaled: &[f64]) -> Result<Rope> {
        let list = |key| self.params.numbers(&self.path(key), unscaled.len());
        let (short, long) = (list("short_factor")?, list("long_factor")?);
        let beyond = self.original_context()?;
        let magnitude = match self.opt("attention_factor", "")? {
            Some(magnitude) => magnitude,
            None => self.long_magnitude(self.opt("factor", "")?, beyond)?,
        };
        let magnitude = magnitude as f32;
        Ok(by_divisors(unscaled, [&short, &long], beyond, magnitude))
    }

    /// LongRoPE's magnitude where a file does not say it.
    fn long_magnitude(&self, factor: Option<f64>, beyond: f64) -> Result<f64> {
        let factor = match factor {
            Some(factor) => factor,
            None => self.context()? as f64 / beyond,
        };
        Ok((1.0 + factor.max(1.0).ln() / beyond.ln()).sqrt())
    }

    /// What a GGUF file says by tensors, which need no rule.
    fn divided_by_tensors(&self, unscaled: &[f64]) -> Result<Option<Rope>> {
        let read = |name| self.params.divisors(name, unscaled.len());
        let [always, short, long] = GGUF_DIVISORS.map(read);
        let magnitude = self.opt("", "attn_factor")?.unwrap_or(1.0) as f32;
        Ok(match (always?, short?, long?) {
            (None, None, None) => None,
            (Some(always), None, None) => Some(Rope {
                frequencies: divided(unscaled, &always),
                long: None,
                magnitude,
            }),
            (None, Some(short), Some(long)) => {
                let beyond = self.original_context()?;
                Some(by_divisors(unscaled, [&short, &long], beyond, magnitude))
            }
            _ => {
                let [always, short, long] = GGUF_DIVISORS;
                return Err(self.params.malformed(format!(
                    "has some of the tensors {always}, {short} and {long} that do not go together"
                )));
            }
        })
    }
}
