//! Tokenizers of GGUF files (`tokenizer.ggml.*`): byte-level BPE (`gpt2`) and SentencePiece (`llama`).
//!
//! The file names its splitting rule (`tokenizer.ggml.pre`) instead of describing it; `splits.rs` says what the names mean.

use std::path::Path;

use tokenizers::{
    models::bpe::{BPE, Vocab as BpeVocab},
    normalizers::NFC,
};

use super::{
    BLANK, END_OF_GENERATION, Encoder, Kind, Prefix, Spm, Token, Tokenizer, Vocab, byte_level,
    byte_of, end_of_generation, splits::SplitRule,
};
use crate::{Error, Result};

/// What a GGUF file says about its vocabulary. Lists run over all tokens in order of their ids.
#[derive(Debug, Clone)]
pub struct GgufVocab<'a> {
    /// The file, for error messages.
    pub path: &'a Path,
    /// `general.name`.
    pub name: Option<&'a str>,
    /// `tokenizer.ggml.model`: `gpt2` or `llama`.
    pub model: &'a str,
    /// `tokenizer.ggml.pre`: the splitting rule of a `gpt2` vocabulary.
    pub pre: Option<&'a str>,
    /// `tokenizer.ggml.tokens`.
    pub tokens: Vec<&'a str>,
    /// `tokenizer.ggml.scores`: higher merges first. Needed by `llama`.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Empty: all normal.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: `left right`, the most frequent first. Needed by `gpt2`.
    pub merges: Vec<&'a str>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`.
    pub eom: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unknown: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`; where the file is silent, its kind of vocabulary decides.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`; where the file is silent: yes for `llama`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.ggml.remove_extra_whitespaces`; where the file is silent: no.
    pub remove_extra_whitespaces: Option<bool>,
    /// Whether there is a `tokenizer.ggml.precompiled_charsmap`: a table of characters to replace.
    pub has_charsmap: bool,
}

impl Tokenizer {
    /// The tokenizer that a GGUF file describes.
    pub fn from_gguf(file: GgufVocab<'_>) -> Result<Self> {
        match file.model {
            "gpt2" => byte_level_bpe(&file),
            "llama" => sentence_piece(&file),
            "t5" => Err(file.unsupported(
                "its tokenizer is a unigram model (`t5` in tokenizer.ggml.model)".into(),
                "use a safetensors folder with a tokenizer.json",
            )),
            other => Err(file.unsupported(
                format!("its tokenizer is of the kind `{other}` (tokenizer.ggml.model); known are `gpt2` and `llama`"),
                "use a file with one of these, or a safetensors folder with a tokenizer.json",
            )),
        }
    }
}

fn byte_level_bpe(file: &GgufVocab<'_>) -> Result<Tokenizer> {
    let rule = file.split_rule()?;
    let vocab = file.vocab(|text| byte_level(text).unwrap_or_else(|| text.as_bytes().to_vec()))?;
    // Control tokens stay out, and merges with them, so that no merge and no whole word can ever spell one.
    let mergeable: BpeVocab = (0u32..)
        .zip(&file.tokens)
        .filter(|&(id, text)| !text.is_empty() && vocab.kind(id) != Some(Kind::Control))
        .map(|(id, text)| ((*text).to_owned(), id))
        .collect();
    let control = |text: &str| vocab.id(text).and_then(|id| vocab.kind(id)) == Some(Kind::Control);
    let mut merges = Vec::with_capacity(file.merges.len());
    for (i, merge) in file.merges.iter().enumerate() {
        let (left, right) = merge.split_once(' ').ok_or_else(|| {
            file.malformed(format!(
                "merge {i}, {merge:?}, is not two tokens with a blank between"
            ))
        })?;
        if ![left, right, &format!("{left}{right}")]
            .into_iter()
            .any(control)
        {
            merges.push((left.to_owned(), right.to_owned()));
        }
    }
    let broken = |e: tokenizers::Error| {
        file.malformed(format!(
            "its vocabulary and merges do not fit together: {e}"
        ))
    };
    let bpe = BPE::builder()
        .vocab_and_merges(mergeable, merges)
        .ignore_merges(rule.whole_words)
        .build()
        .map_err(broken)?;
    let mut pipeline = tokenizers::Tokenizer::new(bpe);
    pipeline.with_normalizer(rule.composes.then_some(NFC));
    pipeline.with_pre_tokenizer(Some(rule.pre_tokenizer().map_err(broken)?));
    let adds_bos = file.add_bos.unwrap_or(rule.adds_bos);
    file.finish(vocab, Encoder::Bpe(Box::new(pipeline)), adds_bos)
}

fn sentence_piece(file: &GgufVocab<'_>) -> Result<Tokenizer> {
    if file.scores.len() != file.tokens.len() {
        return Err(file.malformed(format!(
            "{} tokens but {} scores",
            file.tokens.len(),
            file.scores.len()
        )));
    }
    let remedy = "use a safetensors folder with a tokenizer.json";
    if file.remove_extra_whitespaces == Some(true) {
        let cause = "its tokenizer drops blanks (tokenizer.ggml.remove_extra_whitespaces)";
        return Err(file.unsupported(cause.into(), remedy));
    }
    if file.has_charsmap {
        let cause = "its tokenizer replaces characters (tokenizer.ggml.precompiled_charsmap)";
        return Err(file.unsupported(cause.into(), remedy));
    }
    let vocab = file.vocab(|text| text.replace(BLANK, " ").into_bytes())?;
    let prefix = if file.add_space_prefix.unwrap_or(true) {
        Prefix::Blank
    } else {
        Prefix::Nothing
    };
    let unknown = file.unknown.or_else(|| vocab.id("<unk>"));
    let spm = Spm::new(&vocab, file.scores.clone(), prefix, unknown);
    file.finish(vocab, Encoder::Spm(spm), file.add_bos.unwrap_or(true))
}

impl GgufVocab<'_> {
    /// The token table; `spell` gives the bytes of a normal token.
    fn vocab(&self, spell: impl Fn(&str) -> Vec<u8>) -> Result<Vocab> {
        if !self.token_types.is_empty() && self.token_types.len() != self.tokens.len() {
            let (tokens, types) = (self.tokens.len(), self.token_types.len());
            return Err(self.malformed(format!("{tokens} tokens but {types} token types")));
        }
        for (key, id) in [
            ("bos", self.bos),
            ("eos", self.eos),
            ("eot", self.eot),
            ("eom", self.eom),
            ("unknown", self.unknown),
        ] {
            if let Some(id) = id.filter(|&id| id as usize >= self.tokens.len()) {
                let size = self.tokens.len();
                return Err(self.malformed(format!(
                    "tokenizer.ggml.{key}_token_id is {id}, but there are {size} tokens"
                )));
            }
        }
        let mut tokens = Vec::with_capacity(self.tokens.len());
        for (id, text) in (0u32..).zip(&self.tokens) {
            let kind = self.kind(id, text)?;
            let bytes = match kind {
                Kind::Normal => spell(text),
                Kind::Control | Kind::UserDefined => text.as_bytes().to_vec(),
                Kind::Byte => vec![byte_of(text).ok_or_else(|| {
                    self.malformed(format!(
                        "token {id}, {text:?}, is marked as a byte but not spelt <0xNN>"
                    ))
                })?],
                Kind::Unused => Vec::new(),
            };
            tokens.push(Token {
                text: (*text).into(),
                bytes: bytes.into(),
                kind,
            });
        }
        Vocab::new(tokens).map_err(|(a, b)| {
            self.malformed(format!(
                "tokens {a} and {b} are both {:?}",
                self.tokens[b as usize]
            ))
        })
    }

    fn kind(&self, id: u32, text: &str) -> Result<Kind> {
        let kind = match self.token_types.get(id as usize).unwrap_or(&1) {
            1 => Kind::Normal,
            2 | 3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            other => {
                return Err(self.malformed(format!(
                    "token {id}, {text:?}, has the unknown type {other}"
                )));
            }
        };
        // Some converters wrote turn markers as text; `</s>` really is mark-up in some vocabularies.
        let named = [self.bos, self.eos, self.eot, self.eom].contains(&Some(id));
        let marker = END_OF_GENERATION.contains(&text) && text != "</s>";
        Ok(if named || marker { Kind::Control } else { kind })
    }

    pub(super) fn split_rule(&self) -> Result<&'static SplitRule> {
        let known = SplitRule::names();
        let remedy = "convert the model again with a current converter, or use a safetensors folder with a tokenizer.json";
        let pre = self.pre.ok_or_else(|| {
            let cause =
                format!("it names no splitting rule (tokenizer.ggml.pre); known are {known}");
            self.unsupported(cause, remedy)
        })?;
        SplitRule::named(pre).ok_or_else(|| {
            let cause = format!(
                "its splitting rule `{pre}` (tokenizer.ggml.pre) is unknown; known are {known}"
            );
            self.unsupported(cause, remedy)
        })
    }

    fn finish(&self, mut vocab: Vocab, encoder: Encoder, adds_bos: bool) -> Result<Tokenizer> {
        let sentence_piece = matches!(encoder, Encoder::Spm(_));
        let or_named =
            |id: Option<u32>, name: &str| id.or_else(|| vocab.id(name).filter(|_| sentence_piece));
        let bos = or_named(self.bos, "<s>");
        let eos = or_named(self.eos, "</s>");
        if adds_bos && bos.is_none() {
            return Err(self.malformed("it wants a BOS token in front of prompts but names none (tokenizer.ggml.bos_token_id)".into()));
        }
        let end_of_generation =
            end_of_generation(&vocab, [eos, self.eot, self.eom].into_iter().flatten());
        // Phi-3 swallows the blanks after its turn markers; the file format cannot say so.
        let name = self.name.unwrap_or_default().to_lowercase();
        if name.contains("phi-3") || name.contains("phi3") {
            vocab.swallow_blanks_after_markers();
        }
        Ok(Tokenizer {
            vocab,
            encoder,
            bos,
            eos,
            adds_bos,
            end_of_generation,
        })
    }

    fn malformed(&self, cause: String) -> Error {
        Error::Malformed {
            path: self.path.to_owned(),
            cause,
        }
    }

    fn unsupported(&self, cause: String, remedy: &str) -> Error {
        Error::Unsupported {
            path: self.path.to_owned(),
            cause,
            remedy: remedy.into(),
        }
    }
}
