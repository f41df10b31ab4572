//! Text to tokens and back, from a `tokenizer.json` or from the vocabulary inside a GGUF file.
//!
//! A [`Tokenizer`] knows the raw bytes of every token, so text can be streamed out token by token without decoding
//! anything twice ([`TextStream`]). Special tokens are parsed only where the caller says so ([`Specials`]): text that came
//! from a user can spell `<|im_start|>` without becoming it.

use std::fmt;

mod gguf;
mod json;
mod splits;
mod spm;
mod stream;
#[cfg(test)]
mod tests;
mod to_gguf;
mod to_json;
mod vocab;

pub use gguf::GgufVocab;
pub use stream::TextStream;
pub(crate) use to_gguf::Description;

use crate::{Error, Result};
use spm::{BLANK, Prefix, Spm};
use tokenizers::{AddedVocabulary, Model, OffsetType, PreTokenizer};
use vocab::{Fragment, Kind, Token, Vocab};

/// Whether the spelling of a control token, such as `<|im_start|>`, stands for that token.
///
/// User-defined tokens (runs of blanks, mark-up) are text and are always found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// It is the token: for chat templates and prompts written for the model.
    Parse,
    /// It is ordinary text: for words of a user inside a template, and for corpora.
    AsText,
}

/// A model's tokenizer. Cheap to share between threads, dear to clone (it cannot be).
pub struct Tokenizer {
    vocab: Vocab,
    encoder: Encoder,
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
    end_of_generation: Vec<u32>,
}

/// How text becomes tokens.
enum Encoder {
    /// Byte-level BPE of a GGUF file: special tokens are cut out by [`Vocab::cut`].
    Bpe(Box<tokenizers::Tokenizer>),
    /// SentencePiece of a GGUF file, likewise.
    Spm(Spm),
    /// A `tokenizer.json`, with its own rules for added tokens; the second set of rules leaves control tokens as text.
    Json(Box<tokenizers::Tokenizer>, Box<AddedVocabulary>),
    /// One token a byte.
    Bytes,
}

/// Tokens that end an answer, by the names in use among open models; those that a vocabulary has as control tokens count.
const END_OF_GENERATION: [&str; 22] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<eos>",
    "</s>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "<|fim_pad|>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<reponame>",
    "<|file_sep|>",
];

impl Tokenizer {
    /// Raw bytes as tokens 0 to 255, for models of bytes and for tests; further ids, up to `vocab_size`, are empty.
    pub fn bytes(vocab_size: usize) -> Self {
        let token = |id: usize| match u8::try_from(id) {
            Ok(byte) => Token {
                text: format!("<0x{byte:02X}>").into(),
                bytes: [byte].into(),
                kind: Kind::Byte,
            },
            Err(_) => Token {
                text: "".into(),
                bytes: [].into(),
                kind: Kind::Unused,
            },
        };
        let tokens = (0..vocab_size).map(token).collect();
        Tokenizer {
            // 256 different spellings, and empty texts are not names.
            vocab: Vocab::new(tokens).unwrap_or_default(),
            encoder: Encoder::Bytes,
            bos: None,
            eos: None,
            adds_bos: false,
            end_of_generation: Vec::new(),
        }
    }

    /// The tokens of `text`, without BOS.
    ///
    /// Bytes for which a byte-level vocabulary has no token are dropped, as by the model's own tokenizer: small vocabularies
    /// lack some control characters and the lead bytes of rare planes.
    pub fn encode(&self, text: &str, specials: Specials) -> Result<Vec<u32>> {
        match &self.encoder {
            Encoder::Bpe(bpe) => self.encode_fragments(text, specials, |text, _, ids| {
                let encoding = bpe.encode_fast(text, false).map_err(|e| unencodable(&e))?;
                ids.extend_from_slice(encoding.get_ids());
                Ok(())
            }),
            Encoder::Spm(spm) => self.encode_fragments(text, specials, |text, starts, ids| {
                let prefix = if starts && spm.prefix == Prefix::Blank {
                    " "
                } else {
                    ""
                };
                let escaped =
                    format!("{prefix}{text}").replace(' ', BLANK.encode_utf8(&mut [0; 4]));
                spm.encode(&self.vocab, &escaped, ids).map_err(missing_byte)
            }),
            Encoder::Json(pipeline, literal) => {
                let added = if specials == Specials::Parse {
                    pipeline.get_added_vocabulary()
                } else {
                    &**literal
                };
                encode_json(pipeline, added, text).map_err(|e| unencodable(&e))
            }
            Encoder::Bytes => text
                .bytes()
                .map(|byte| {
                    let id = u32::from(byte);
                    self.vocab
                        .get(id)
                        .map(|_| id)
                        .ok_or_else(|| missing_byte(byte))
                })
                .collect(),
        }
    }

    /// Cuts `text` at special tokens; `encode(text, starts, ids)` does the rest, where `starts` says that the fragment
    /// comes first or after a special token.
    fn encode_fragments(
        &self,
        text: &str,
        specials: Specials,
        encode: impl Fn(&str, bool, &mut Vec<u32>) -> Result<()>,
    ) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut starts = true;
        for fragment in self.vocab.cut(text, specials) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => encode(text, starts, &mut ids)?,
            }
            starts = matches!(fragment, Fragment::Token(_));
        }
        Ok(ids)
    }

    /// The tokens of a whole prompt, special tokens parsed: with BOS in front where the model wants one, never doubled.
    ///
    /// EOS is never added, also where a file asks for it (`add_eos_token`): a prompt is there to be continued.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, Specials::Parse)?;
        if let Some(bos) = self
            .bos
            .filter(|&bos| self.adds_bos && ids.first() != Some(&bos))
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The beginning-of-sequence token, if there is one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-sequence token, if the model names one: what chat templates call `eos_token`.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether prompts start with [`Tokenizer::bos`].
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// The tokens that end an answer, ascending: EOS, end of turn and their like, as far as the vocabulary has them.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    /// Adds tokens that end an answer, such as those of a `generation_config.json`. Ids outside the vocabulary are an error.
    pub fn add_end_of_generation(&mut self, ids: &[u32]) -> Result<()> {
        for &id in ids {
            if self.vocab.get(id).is_none() {
                return Err(Error::Input {
                    cause: format!(
                        "end-of-generation token {id} is outside the vocabulary of {}",
                        self.vocab.len()
                    ),
                    remedy: format!("give an id below {}", self.vocab.len()),
                });
            }
            if let Err(at) = self.end_of_generation.binary_search(&id) {
                self.end_of_generation.insert(at, id);
            }
        }
        Ok(())
    }

    /// The bytes that a token stands for: often part of a character, a control token's spelling, nothing for padding and for
    /// ids outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocab.get(id).map_or(&[], |token| &token.bytes)
    }

    /// Number of ids, unused ones included.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// A token as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`).
    pub fn token(&self, id: u32) -> Option<&str> {
        self.vocab.get(id).map(|token| &*token.text)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.vocab.id(token)
    }

    /// Whether `id` is a control token: BOS, EOS, a turn marker, unknown.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocab.kind(id) == Some(Kind::Control)
    }

    /// Starts turning tokens into text.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab.len())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("adds_bos", &self.adds_bos)
            .field("end_of_generation", &self.end_of_generation)
            .finish_non_exhaustive()
    }
}

/// The steps of a `tokenizer.json` with `added` in the place of its own added tokens.
fn encode_json(
    pipeline: &tokenizers::Tokenizer,
    added: &AddedVocabulary,
    text: &str,
) -> Result<Vec<u32>, tokenizers::Error> {
    let mut pieces = added.extract_and_normalize(pipeline.get_normalizer(), text);
    if let Some(pre_tokenizer) = pipeline.get_pre_tokenizer() {
        pre_tokenizer.pre_tokenize(&mut pieces)?;
    }
    pieces.tokenize(|piece| pipeline.get_model().tokenize(piece.get()))?;
    Ok(pieces
        .into_encoding(None, 0, OffsetType::None)?
        .get_ids()
        .to_vec())
}

/// The known end-of-generation tokens among the control tokens of `vocab`, and `named` ones; ascending.
fn end_of_generation(vocab: &Vocab, named: impl IntoIterator<Item = u32>) -> Vec<u32> {
    let known = END_OF_GENERATION.iter().filter_map(|name| vocab.id(name));
    let mut ids: Vec<u32> = known
        .filter(|&id| vocab.kind(id) == Some(Kind::Control))
        .chain(named)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The byte that `<0xNN>` spells.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && digits.bytes().all(|d| d.is_ascii_hexdigit()))
        .then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The bytes of a byte-level token: GPT-2 writes every byte as one printable character.
///
/// `None` where the text has any other character: then it stands for itself.
fn byte_level(text: &str) -> Option<Vec<u8>> {
    text.chars().map(byte_of_char).collect()
}

/// GPT-2's table: printable Latin-1 stands for itself; the other 68 bytes, in order, are U+0100 and up.
fn byte_of_char(c: char) -> Option<u8> {
    const PRINTABLE_GAPS: [(u32, u32); 3] = [(0x00, 0x21), (0x7f, 0xa1), (0xad, 0xae)];
    let mut code = u32::from(c);
    if code < 0x100 {
        let gap = PRINTABLE_GAPS
            .iter()
            .any(|&(from, to)| (from..to).contains(&code));
        return if gap { None } else { u8::try_from(code).ok() };
    }
    code -= 0x100;
    for (from, to) in PRINTABLE_GAPS {
        if code < to - from {
            return u8::try_from(from + code).ok();
        }
        code -= to - from;
    }
    None
}

fn unencodable(cause: &tokenizers::Error) -> Error {
    Error::Input {
        cause: format!("the text cannot be tokenized: {cause}"),
        remedy: "leave out unusual characters".into(),
    }
}

fn missing_byte(byte: u8) -> Error {
    Error::Input {
        cause: format!("the vocabulary has no token for the byte 0x{byte:02X}"),
        remedy: "leave that character out, or use a model with a complete vocabulary".into(),
    }
}
