//! The shapes of models: which tensors a model of a family has, and what its metadata says.

use crate::error::{Error, Result};
use crate::formats::gguf::{Array, Strings, TensorInfo, Value, file_type, fitting};
use crate::kernels::DType;

/// The families that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the variants are the families' own names
pub enum Arch {
    Llama,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
}

impl Arch {
    /// Every family.
    pub const ALL: [Arch; 6] = [
        Arch::Llama,
        Arch::Qwen2,
        Arch::Qwen3,
        Arch::Gemma2,
        Arch::Gemma3,
        Arch::Phi3,
    ];

    /// The name in GGUF metadata, for example `"llama"`.
    pub const fn name(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
            Arch::Gemma2 => "gemma2",
            Arch::Gemma3 => "gemma3",
            Arch::Phi3 => "phi3",
        }
    }

    /// The family of that name.
    pub fn from_name(name: &str) -> Option<Arch> {
        Arch::ALL.into_iter().find(|arch| arch.name() == name)
    }
}

/// The sizes of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Family.
    pub arch: Arch,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Neurons of an FFN.
    pub inter: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Positions, in tokens.
    pub context: usize,
    /// Base of the rotary embedding.
    pub rope_base: f32,
    /// Whether the head reads the embedding matrix instead of one of its own.
    pub tied: bool,
}

/// Bytes and the two special tokens behind them.
pub(super) const MIN_VOCAB: usize = 256 + 2;

/// A line of the table of known models, in the order of the fields of [`Shape`] but for the name.
struct Known(&'static str, Arch, [usize; 8], f32, bool);

#[rustfmt::skip]
const KNOWN: [Known; 15] = [
    // hidden, inter, layers, heads, kv heads, head size, vocabulary, context; rope base; tied
    Known("tiny",         Arch::Llama,  [ 256,    512,  2,  4, 2,  64,     512,     512], 1e4,   true),
    Known("smollm2-135m", Arch::Llama,  [ 576,   1536, 30,  9, 3,  64,  49_152,    8192], 1e5,   true),
    Known("llama-3.2-1b", Arch::Llama,  [2048,   8192, 16, 32, 8,  64, 128_256, 131_072], 5e5,   true),
    Known("llama-3.2-3b", Arch::Llama,  [3072,   8192, 28, 24, 8, 128, 128_256, 131_072], 5e5,   true),
    Known("llama-3.1-8b", Arch::Llama,  [4096, 14_336, 32, 32, 8, 128, 128_256, 131_072], 5e5,   false),
    Known("mistral-7b",   Arch::Llama,  [4096, 14_336, 32, 32, 8, 128,  32_768,  32_768], 1e6,   false),
    Known("qwen2.5-0.5b", Arch::Qwen2,  [ 896,   4864, 24, 14, 2,  64, 151_936,  32_768], 1e6,   true),
    Known("qwen2.5-1.5b", Arch::Qwen2,  [1536,   8960, 28, 12, 2, 128, 151_936,  32_768], 1e6,   true),
    Known("qwen2.5-7b",   Arch::Qwen2,  [3584, 18_944, 28, 28, 4, 128, 152_064,  32_768], 1e6,   false),
    Known("qwen2.5-14b",  Arch::Qwen2,  [5120, 13_824, 48, 40, 8, 128, 152_064,  32_768], 1e6,   false),
    Known("qwen3-8b",     Arch::Qwen3,  [4096, 12_288, 36, 32, 8, 128, 151_936,  40_960], 1e6,   false),
    Known("gemma-2-9b",   Arch::Gemma2, [3584, 14_336, 42, 16, 8, 256, 256_000,    8192], 1e4,   true),
    Known("gemma-3-270m", Arch::Gemma3, [ 640,   2048, 18,  4, 1, 256, 262_144,  32_768], 1e6,   true),
    Known("phi-3.5-mini", Arch::Phi3,   [3072,   8192, 32, 32, 32, 96,  32_064, 131_072], 1e4,   false),
    Known("phi-4",        Arch::Phi3,   [5120, 17_920, 40, 40, 10, 128, 100_352, 16_384], 2.5e5, false),
];

impl Shape {
    /// The names of the known models.
    pub fn names() -> impl Iterator<Item = &'static str> {
        KNOWN.iter().map(|known| known.0)
    }

    /// The shape of a known model, such as `llama-3.2-1b`.
    ///
    /// Shapes only: what a family computes beside its matrices, such as the frequency correction of
    /// Llama 3's long contexts, is left out.
    ///
    /// # Errors
    /// [`Error::Input`] for another name; the message lists all.
    pub fn named(name: &str) -> Result<Shape> {
        let Some(known) = KNOWN
            .iter()
            .find(|known| known.0.eq_ignore_ascii_case(name))
        else {
            let names: Vec<&str> = Shape::names().collect();
            return Err(Error::Input {
                cause: format!("no model shape is named {name:?}"),
                remedy: format!("give one of these: {}", names.join(", ")),
            });
        };
        let &Known(_, arch, sizes, rope_base, tied) = known;
        let [
            hidden,
            inter,
            layers,
            heads,
            kv_heads,
            head_dim,
            vocab,
            context,
        ] = sizes;
        Ok(Shape {
            arch,
            hidden,
            inter,
            layers,
            heads,
            kv_heads,
            head_dim,
            vocab,
            context,
            rope_base,
            tied,
        })
    }

    /// Weights in all, norms and biases included.
    ///
    /// # Errors
    /// [`Error::Input`] if no model can have this shape.
    pub fn parameters(&self) -> Result<u64> {
        let tensors = self.tensors(DType::F32)?;
        Ok(tensors
            .iter()
            .map(|t| t.shape.iter().product::<usize>() as u64)
            .sum())
    }

    /// Says what makes a shape impossible.
    fn check(&self) -> Result<()> {
        let input = |cause: String, remedy: String| Err(Error::Input { cause, remedy });
        // Far beyond any model, and small enough that no product of two overflows.
        const MAX: usize = 1 << 24;
        let sizes = [
            ("hidden", self.hidden, MAX),
            ("inter", self.inter, MAX),
            ("layers", self.layers, 1000),
            ("heads", self.heads, MAX),
            ("kv_heads", self.kv_heads, MAX),
            ("head_dim", self.head_dim, MAX),
            ("context", self.context, MAX),
        ];
        if let Some((name, size, max)) = sizes
            .into_iter()
            .find(|(_, size, max)| !(1..=*max).contains(size))
        {
            return input(format!("{name} is {size}"), format!("give 1 to {max}"));
        }
        if !(MIN_VOCAB..=MAX).contains(&self.vocab) {
            return input(
                format!("a vocabulary of {} tokens", self.vocab),
                format!(
                    "give {MIN_VOCAB} to {MAX}: every byte is a token, and there are two special ones"
                ),
            );
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return input(
                format!(
                    "{} heads cannot share {} kv_heads",
                    self.heads, self.kv_heads
                ),
                "give a number of heads that is a multiple of kv_heads".into(),
            );
        }
        if !self.head_dim.is_multiple_of(2) {
            return input(
                format!(
                    "head_dim is {}, which rotary embeddings cannot pair",
                    self.head_dim
                ),
                "give an even head_dim".into(),
            );
        }
        if !(self.rope_base.is_finite() && self.rope_base > 0.0) {
            return input(
                format!("rope_base is {}", self.rope_base),
                "give a positive number".into(),
            );
        }
        let arch = self.arch.name();
        if matches!(self.arch, Arch::Qwen2 | Arch::Phi3)
            && self.heads * self.head_dim != self.hidden
        {
            return input(
                format!(
                    "{arch} with {} heads of {} for a hidden size of {}",
                    self.heads, self.head_dim, self.hidden
                ),
                "give heads x head_dim = hidden".into(),
            );
        }
        if self.arch == Arch::Gemma2 && !self.tied {
            return input(
                format!("{arch} has no head of its own"),
                "make it tied".into(),
            );
        }
        Ok(())
    }

    /// Every tensor of the model, matrices in `dtype` or the nearest type that fits.
    pub(super) fn tensors(&self, dtype: DType) -> Result<Vec<TensorInfo>> {
        self.check()?;
        let (hidden, inter) = (self.hidden, self.inter);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = Vec::new();
        let mut matrix = |name: String, rows: usize, cols: usize| {
            let dtype = fitting(dtype, cols);
            tensors.push(TensorInfo {
                name,
                dtype,
                shape: vec![rows, cols],
            });
        };
        matrix("token_embd.weight".into(), self.vocab, hidden);
        if !self.tied {
            matrix("output.weight".into(), self.vocab, hidden);
        }
        for layer in 0..self.layers {
            let mut matrix =
                |part: &str, rows, cols| matrix(format!("blk.{layer}.{part}.weight"), rows, cols);
            if self.arch == Arch::Phi3 {
                matrix("attn_qkv", q + 2 * kv, hidden);
                matrix("ffn_up", 2 * inter, hidden);
            } else {
                matrix("attn_q", q, hidden);
                matrix("attn_k", kv, hidden);
                matrix("attn_v", kv, hidden);
                matrix("ffn_gate", inter, hidden);
                matrix("ffn_up", inter, hidden);
            }
            matrix("attn_output", hidden, q);
            matrix("ffn_down", hidden, inter);
        }
        let mut vector = |name: String, len: usize| {
            tensors.push(TensorInfo {
                name,
                dtype: DType::F32,
                shape: vec![len],
            });
        };
        vector("output_norm.weight".into(), hidden);
        let vectors: &[(&str, usize)] = match self.arch {
            Arch::Llama | Arch::Phi3 => &[],
            Arch::Qwen2 => &[("attn_q.bias", q), ("attn_k.bias", kv), ("attn_v.bias", kv)],
            Arch::Qwen3 => &[
                ("attn_q_norm.weight", self.head_dim),
                ("attn_k_norm.weight", self.head_dim),
            ],
            Arch::Gemma2 => &[
                ("post_attention_norm.weight", hidden),
                ("post_ffw_norm.weight", hidden),
            ],
            Arch::Gemma3 => &[
                ("attn_q_norm.weight", self.head_dim),
                ("attn_k_norm.weight", self.head_dim),
                ("post_attention_norm.weight", hidden),
                ("post_ffw_norm.weight", hidden),
            ],
        };
        for layer in 0..self.layers {
            vector(format!("blk.{layer}.attn_norm.weight"), hidden);
            vector(format!("blk.{layer}.ffn_norm.weight"), hidden);
            for (part, len) in vectors {
                vector(format!("blk.{layer}.{part}"), *len);
            }
        }
        Ok(tensors)
    }

    /// What a GGUF file of the model says about it.
    pub(super) fn metadata(&self, dtype: DType, seed: u64) -> Vec<(String, Value)> {
        let number = |n: usize| Value::U32(n as u32);
        let strings = |s: Strings| Value::Array(Array::String(s));
        // The name must not hold the family's: llama.cpp expects a certain vocabulary of a "phi3".
        let mut metadata = vec![
            (
                "general.architecture".into(),
                Value::String(self.arch.name().into()),
            ),
            (
                "general.name".into(),
                Value::String(format!("synthetic, seed {seed}")),
            ),
        ];
        metadata.extend(file_type(dtype).map(|n| ("general.file_type".into(), Value::U32(n))));
        metadata.push(("general.quantization_version".into(), Value::U32(2)));
        let own = [
            ("context_length", number(self.context)),
            ("embedding_length", number(self.hidden)),
            ("block_count", number(self.layers)),
            ("feed_forward_length", number(self.inter)),
            ("attention.head_count", number(self.heads)),
            ("attention.head_count_kv", number(self.kv_heads)),
            ("attention.key_length", number(self.head_dim)),
            ("attention.value_length", number(self.head_dim)),
            ("attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
            ("rope.dimension_count", number(self.head_dim)),
            ("rope.freq_base", Value::F32(self.rope_base)),
            ("vocab_size", number(self.vocab)),
        ];
        let family: &[(&str, Value)] = match self.arch {
            Arch::Llama | Arch::Qwen2 | Arch::Qwen3 | Arch::Phi3 => &[],
            Arch::Gemma2 => &[
                ("attention.sliding_window", Value::U32(4096)),
                ("attn_logit_softcapping", Value::F32(50.0)),
                ("final_logit_softcapping", Value::F32(30.0)),
            ],
            Arch::Gemma3 => &[("attention.sliding_window", Value::U32(512))],
        };
        for (key, value) in own.iter().chain(family) {
            metadata.push((format!("{}.{key}", self.arch.name()), value.clone()));
        }
        let (tokens, types) = vocabulary(self.vocab);
        metadata.extend([
            ("tokenizer.ggml.model".into(), Value::String("gpt2".into())),
            ("tokenizer.ggml.pre".into(), Value::String("gpt-2".into())),
            ("tokenizer.ggml.tokens".into(), strings(tokens)),
            (
                "tokenizer.ggml.token_type".into(),
                Value::Array(Array::I32(types)),
            ),
            ("tokenizer.ggml.merges".into(), strings(Strings::default())),
            ("tokenizer.ggml.bos_token_id".into(), Value::U32(256)),
            ("tokenizer.ggml.eos_token_id".into(), Value::U32(257)),
            ("tokenizer.ggml.add_bos_token".into(), Value::Bool(false)),
        ]);
        metadata
    }
}

/// One token for every byte, in the letters that GPT-2 writes bytes with, two special tokens, and
/// unused ones up to `size`; with GGUF's numbers for the types of tokens.
fn vocabulary(size: usize) -> (Strings, Vec<i32>) {
    const NORMAL: i32 = 1;
    const CONTROL: i32 = 3;
    const UNUSED: i32 = 5;
    let mut tokens = Strings::with_capacity(size, size * "<unused_00000>".len());
    let mut types = Vec::with_capacity(size);
    let mut add = |token: &str, kind: i32| {
        tokens.push(token);
        types.push(kind);
    };
    // Printable characters of Latin-1 stand for themselves, the other bytes for the letters from U+0100 on.
    let mut next = 0x100u32;
    for byte in 0..=255u8 {
        let letter = match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap_or_default()
            }
        };
        add(letter.encode_utf8(&mut [0; 4]), NORMAL);
    }
    add("<|begin|>", CONTROL);
    add("<|end|>", CONTROL);
    for i in 0..size.saturating_sub(MIN_VOCAB) {
        add(&format!("<unused_{i}>"), UNUSED);
    }
    (tokens, types)
}
