//! Tokenizers of Hugging Face folders: `tokenizer.json`, with the defaults of `tokenizer_config.json`.

use std::path::Path;

use serde_json::Value;
use tokenizers::DecoderWrapper;

use super::{
    BLANK, Encoder, Kind, Token, Tokenizer, Vocab, byte_level, byte_of, end_of_generation,
};
use crate::{Error, Result};

/// How a token's text spells its bytes.
#[derive(Clone, Copy)]
enum Spelling {
    /// One printable character a byte (GPT-2).
    ByteLevel,
    /// U+2581 for a blank, `<0xNN>` for a byte (SentencePiece).
    SentencePiece,
}

impl Tokenizer {
    /// The tokenizer of a `tokenizer.json`; `config` is the folder's `tokenizer_config.json`, which names BOS and EOS.
    pub fn from_file(path: &Path, config: Option<&Value>) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        Tokenizer::from_json(path, &bytes, config)
    }

    /// The same from the content of the `tokenizer.json` at `path`.
    pub(crate) fn from_json(path: &Path, content: &[u8], config: Option<&Value>) -> Result<Self> {
        let malformed = |cause: String| Error::Malformed {
            path: path.to_owned(),
            cause,
        };
        let mut pipeline = tokenizers::Tokenizer::from_bytes(content)
            .map_err(|e| malformed(format!("not a tokenizer.json: {e}")))?;
        pipeline.with_padding(None);
        pipeline
            .with_truncation(None)
            .map_err(|e| malformed(e.to_string()))?;
        let spelling = spelling(pipeline.get_decoder(), path)?;
        let vocab = table(&pipeline, spelling).map_err(malformed)?;

        let named = |key: &str| {
            let token = config?.get(key)?;
            let name = token.as_str().or_else(|| token.get("content")?.as_str())?;
            vocab.id(name)
        };
        // What the file's own post-processing puts in front of nothing at all.
        let framed = pipeline
            .encode_fast("", true)
            .map_err(|e| malformed(e.to_string()))?;
        let first = framed
            .get_ids()
            .first()
            .copied()
            .filter(|&id| vocab.kind(id) == Some(Kind::Control));
        let bos = named("bos_token").or(first);
        let adds_bos = match config.and_then(|config| config.get("add_bos_token")?.as_bool()) {
            Some(adds) => adds && bos.is_some(),
            None => first.is_some() && first == bos,
        };
        let eos = named("eos_token");
        let end_of_generation = end_of_generation(&vocab, eos);
        let mut literal = pipeline.get_added_vocabulary().clone();
        literal.set_encode_special_tokens(true);
        let encoder = Encoder::Json(Box::new(pipeline), Box::new(literal));
        Ok(Tokenizer {
            vocab,
            encoder,
            bos,
            eos,
            adds_bos,
            end_of_generation,
        })
    }
}

fn table(pipeline: &tokenizers::Tokenizer, spelling: Spelling) -> Result<Vocab, String> {
    let ids = pipeline.get_vocab(true);
    let size = ids.values().max().map_or(0, |&id| id as usize + 1);
    // A file of a few bytes must not ask for a table of 2^32 rows.
    if size > 4 * ids.len() + 65_536 {
        return Err(format!("{} tokens, but ids up to {}", ids.len(), size - 1));
    }
    let added = pipeline.get_added_tokens_decoder();
    let unused = || Token {
        text: "".into(),
        bytes: [].into(),
        kind: Kind::Unused,
    };
    let mut tokens: Vec<Token> = std::iter::repeat_with(unused).take(size).collect();
    for (text, id) in ids {
        let byte = byte_of(&text).filter(|_| matches!(spelling, Spelling::SentencePiece));
        let (kind, bytes) = match (added.get(&id), byte) {
            (Some(token), _) if token.special => (Kind::Control, text.as_bytes().to_vec()),
            (Some(_), _) => (Kind::UserDefined, text.as_bytes().to_vec()),
            (None, Some(byte)) => (Kind::Byte, vec![byte]),
            (None, None) => (Kind::Normal, spell(spelling, &text)),
        };
        tokens[id as usize] = Token {
            text: text.into(),
            bytes: bytes.into(),
            kind,
        };
    }
    Vocab::new(tokens).map_err(|(a, b)| format!("tokens {a} and {b} have the same text"))
}

fn spell(spelling: Spelling, text: &str) -> Vec<u8> {
    match spelling {
        Spelling::ByteLevel => byte_level(text).unwrap_or_else(|| text.as_bytes().to_vec()),
        Spelling::SentencePiece => text.replace(BLANK, " ").into_bytes(),
    }
}

/// Reads the spelling off the file's decoder: steps that only join tokens or trim a whole text do not matter here.
fn spelling(decoder: Option<&DecoderWrapper>, path: &Path) -> Result<Spelling> {
    let unsupported = |cause: String| Error::Unsupported {
        path: path.to_owned(),
        cause,
        remedy: "use a model with a byte-level or SentencePiece tokenizer".into(),
    };
    let description =
        serde_json::to_value(decoder).map_err(|e| unsupported(format!("its decoder: {e}")))?;
    let steps = match description.get("decoders").and_then(Value::as_array) {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(&description),
    };
    let mut found = None;
    for step in steps {
        match step.get("type").and_then(Value::as_str) {
            Some("ByteLevel") => found = Some(Spelling::ByteLevel),
            Some("Metaspace" | "Replace" | "ByteFallback") => found = Some(Spelling::SentencePiece),
            Some("Fuse" | "Strip") => {}
            Some(other) => {
                return Err(unsupported(format!(
                    "its decoder has a step `{other}` that is not known here"
                )));
            }
            None => {
                return Err(unsupported(
                    "it names no decoder, so its tokens have no known bytes".into(),
                ));
            }
        }
    }
    found.ok_or_else(|| unsupported("its decoder does not say how tokens spell bytes".into()))
}
