//! What the names of splitting rules in GGUF files (`tokenizer.ggml.pre`) mean.
//!
//! The patterns are those of the models' own `tokenizer.json`. Where a converter wrote one name for models whose files
//! differ in more than that, the models of the families that run here decide.

use tokenizers::{
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
    tokenizer::SplitDelimiterBehavior,
};

/// A splitting rule: words never merge across its borders.
pub(super) struct SplitRule {
    pub(super) names: &'static [&'static str],
    /// Applied one after the other, each to the pieces that the one before left.
    pub(super) patterns: &'static [&'static str],
    /// Whether a whole word that is a token is taken as it is, whatever the merges say.
    pub(super) whole_words: bool,
    /// Whether BOS is added where the file does not say.
    pub(super) adds_bos: bool,
    /// Whether characters are composed first (Unicode's NFC), as the models' `tokenizer.json` asks; GGUF has no word for it.
    pub(super) composes: bool,
}

impl SplitRule {
    pub(super) fn named(name: &str) -> Option<&'static SplitRule> {
        SPLITS.iter().find(|rule| rule.names.contains(&name))
    }

    /// All known names, for messages.
    pub(super) fn names() -> String {
        let names = SPLITS.iter().flat_map(|rule| rule.names).copied();
        names.collect::<Vec<_>>().join(", ")
    }

    /// The steps that cut a text into words of byte-level letters.
    pub(super) fn pre_tokenizer(&self) -> Result<Sequence, tokenizers::Error> {
        let mut steps = Vec::with_capacity(self.patterns.len() + 1);
        for pattern in self.patterns {
            let pattern = SplitPattern::Regex((*pattern).into());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
            steps.push(PreTokenizerWrapper::Split(split));
        }
        let bytes = ByteLevel::new(false, false, false);
        steps.push(PreTokenizerWrapper::ByteLevel(bytes));
        Ok(Sequence::new(steps))
    }
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
// A word is capitals and then small letters: `camelCase` is two.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

pub(super) const SPLITS: [SplitRule; 11] = [
    SplitRule {
        names: &["qwen2"],
        patterns: &[QWEN2],
        whole_words: false,
        adds_bos: false,
        composes: true,
    },
    SplitRule {
        names: &["deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"],
        patterns: &[QWEN2],
        whole_words: false,
        adds_bos: false,
        composes: false,
    },
    SplitRule {
        names: &["qwen35"],
        patterns: &[QWEN35],
        whole_words: false,
        adds_bos: false,
        composes: false,
    },
    SplitRule {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        patterns: &[LLAMA3],
        whole_words: true,
        adds_bos: true,
        composes: false,
    },
    SplitRule {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe"],
        patterns: &[LLAMA3],
        whole_words: false,
        adds_bos: false,
        composes: false,
    },
    SplitRule {
        names: &["glm4"],
        patterns: &[LLAMA3],
        whole_words: true,
        adds_bos: false,
        composes: false,
    },
    SplitRule {
        names: &["tekken"],
        patterns: &[TEKKEN],
        whole_words: true,
        adds_bos: true,
        composes: false,
    },
    SplitRule {
        names: &["gpt-4o"],
        patterns: &[GPT4O],
        whole_words: false,
        adds_bos: false,
        composes: false,
    },
    SplitRule {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
        ],
        patterns: &[DIGIT, GPT2],
        whole_words: false,
        adds_bos: false,
        composes: false,
    },
    SplitRule {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "granite-docling"],
        patterns: &[GPT2],
        whole_words: false,
        adds_bos: false,
        composes: false,
    },
    SplitRule {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        whole_words: false,
        adds_bos: false,
        composes: false,
    },
];
