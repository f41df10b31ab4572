//! A `tokenizer.json` as the vocabulary of a GGUF file.
//!
//! GGUF names a splitting rule where the file describes one; so every rule it has a name for cuts a nasty text, and the one is
//! taken that cuts it into the same words.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use serde_json::Value as Json;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use super::{
    Encoder, GgufVocab, Kind, Specials, Tokenizer,
    splits::{SPLITS, SplitRule},
};
use crate::{Error, Result};

/// What tokenizers disagree about: contractions, capitals within words, digits, runs of blanks and marks, scripts, signs outside the basic plane.
const PROBE: &str = "Hello, World! I'm sure WE'LL don't THEY'Re\n\n\n  3.14159 1234567890 x=0x1F; \t\tfor(i=0;i<10;++i){a[i]+=b;}\r\n\
    naïve façade Ünïcödé — “quoted” … £5 €6 ½²\u{a0}нет да ёж Ωμέγα שלום مرحبا हिन्दी ภาษาไทย 你好，世界。日本語テスト 한국어 \
    🙂👍🏽👨‍👩‍👧 ##  a   b    c     \n \n  \n\t if x:\n        return    y\n---===*** http://a.b/c?d=e&f #tag @x $1,000.00 camelCaseWords 'twas O'Neil ''s s's\n";

/// What a `tokenizer.json` says of its model; the rest a [`Tokenizer`] knows.
pub(crate) struct Description {
    path: PathBuf,
    kind: String,
    byte_fallback: bool,
    ignore_merges: bool,
    composes: bool,
    unknown: Option<String>,
    /// As `left right`, whichever of its two ways the file writes them.
    merges: Vec<String>,
}

impl Description {
    /// Reads the content of the `tokenizer.json` at `path`.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is none.
    pub(crate) fn read(path: &Path, content: &[u8]) -> Result<Description> {
        let malformed = |cause: String| Error::Malformed {
            path: path.to_owned(),
            cause,
        };
        let json: Json =
            serde_json::from_slice(content).map_err(|e| malformed(format!("no JSON: {e}")))?;
        let model = &json["model"];
        let merge = |merge: &Json| match merge {
            Json::String(both) => Some(both.clone()),
            Json::Array(pair) => match &pair[..] {
                [Json::String(left), Json::String(right)] => Some(format!("{left} {right}")),
                _ => None,
            },
            _ => None,
        };
        let merges = model["merges"].as_array().map_or(&[][..], Vec::as_slice);
        Ok(Description {
            path: path.to_owned(),
            kind: model["type"].as_str().unwrap_or("unnamed").to_owned(),
            byte_fallback: model["byte_fallback"] == true,
            ignore_merges: model["ignore_merges"] == true,
            composes: composes(&json["normalizer"]),
            unknown: model["unk_token"].as_str().map(str::to_owned),
            merges: merges
                .iter()
                .map(merge)
                .collect::<Option<_>>()
                .ok_or_else(|| malformed("a merge that is not of two tokens".into()))?,
        })
    }

    fn inexpressible(&self, what: String) -> Error {
        Error::Unsupported {
            path: self.path.clone(),
            cause: format!("its tokenizer has {what}, which GGUF has no word for"),
            remedy: "keep the model in a folder of safetensors".into(),
        }
    }
}

impl Tokenizer {
    /// This tokenizer, which a `tokenizer.json` describes, for a model with `rows` rows of embeddings.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming what GGUF has no word for.
    pub(crate) fn to_gguf<'a>(
        &'a self,
        description: &'a Description,
        rows: usize,
    ) -> Result<GgufVocab<'a>> {
        let d = description;
        if d.kind != "BPE" {
            return Err(d.inexpressible(format!("a model of the kind {}", d.kind)));
        }
        if self.vocab.len() > rows {
            let tokens = self.vocab.len();
            return Err(d.inexpressible(format!("{tokens} tokens for {rows} embeddings")));
        }
        let unknown = d.unknown.as_deref().and_then(|t| self.id(t));
        let ids = 0..rows as u32;
        let mut vocab = GgufVocab {
            path: &d.path,
            name: None,
            model: if d.byte_fallback { "llama" } else { "gpt2" },
            pre: None,
            tokens: ids.clone().map(|id| self.token(id).unwrap_or("")).collect(),
            scores: Vec::new(),
            token_types: ids.map(|id| self.type_number(id, unknown)).collect(),
            merges: Vec::new(),
            bos: self.bos,
            eos: self.eos,
            eot: None,
            eom: None,
            unknown,
            add_bos: Some(self.adds_bos),
            add_space_prefix: None,
            remove_extra_whitespaces: None,
            has_charsmap: false,
        };
        if d.byte_fallback {
            vocab.scores = scores(&vocab.tokens, &d.merges);
            for prefix in [true, false] {
                vocab.add_space_prefix = Some(prefix);
                if self.agrees(&vocab) {
                    return Ok(vocab);
                }
            }
            return Err(d.inexpressible("an order of merges".into()));
        }
        vocab.merges = d.merges.iter().map(String::as_str).collect();
        let words = self.words();
        let same_words = |rule: &&SplitRule| {
            let cutter = rule.pre_tokenizer().ok();
            rule.whole_words == d.ignore_merges
                && rule.composes == d.composes
                && cutter.and_then(|c| cut(&c)) == words
        };
        if let Some(rule) = SPLITS.iter().find(same_words) {
            vocab.pre = rule.names.first().copied();
            if self.agrees(&vocab) {
                return Ok(vocab);
            }
        }
        Err(d.inexpressible("a splitting rule".into()))
    }

    /// The words that a nasty text is cut into before anything is merged.
    fn words(&self) -> Option<Vec<String>> {
        match &self.encoder {
            Encoder::Json(pipeline, _) => cut(pipeline.get_pre_tokenizer()?),
            _ => None,
        }
    }

    /// Whether the vocabulary makes the same tokens of a nasty text, as plain text and with control tokens in it.
    fn agrees(&self, vocab: &GgufVocab<'_>) -> bool {
        Tokenizer::from_gguf(vocab.clone()).is_ok_and(|other| self.same_tokens(&other))
    }

    /// Whether another tokenizer makes the same tokens of a nasty text.
    pub(crate) fn same_tokens(&self, other: &Tokenizer) -> bool {
        let marks = self.end_of_generation.iter().chain(&self.bos);
        let marked: String = marks.filter_map(|&id| self.token(id)).collect();
        let text = format!("{PROBE}{}", &crate::CALIBRATION_TEXT[..4096]);
        let marked = format!("{marked}{text}{marked} x{marked}");
        [(&text, Specials::AsText), (&marked, Specials::Parse)]
            .into_iter()
            .all(|(text, specials)| {
                matches!((self.encode(text, specials), other.encode(text, specials)), (Ok(a), Ok(b)) if a == b)
            })
    }

    fn type_number(&self, id: u32, unknown: Option<u32>) -> i32 {
        match self.vocab.kind(id) {
            Some(Kind::Control) if Some(id) == unknown => 2,
            Some(Kind::Normal) => 1,
            Some(Kind::Control) => 3,
            Some(Kind::UserDefined) => 4,
            Some(Kind::Unused) | None => 5,
            Some(Kind::Byte) => 6,
        }
    }
}

/// Whether a normalizer is Unicode's NFC.
fn composes(normalizer: &Json) -> bool {
    normalizer["type"] == "NFC"
        || normalizer["normalizers"]
            .as_array()
            .is_some_and(|all| all.iter().any(composes))
}

fn cut(cutter: &impl PreTokenizer) -> Option<Vec<String>> {
    let mut text = PreTokenizedString::from(PROBE);
    cutter.pre_tokenize(&mut text).ok()?;
    let words = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
    Some(
        words
            .into_iter()
            .map(|(word, ..)| word.to_owned())
            .collect(),
    )
}

/// Scores that merge in the order of `merges`: the earlier a token can be made, the higher.
fn scores(tokens: &[&str], merges: &[String]) -> Vec<f32> {
    let mut rank: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (i, merge) in merges.iter().enumerate() {
        rank.entry(merge.replacen(' ', "", 1)).or_insert(i);
    }
    let rank_of = |token: &&str| rank.get(*token).copied().unwrap_or(merges.len());
    tokens.iter().map(|t| -(rank_of(t) as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nasty_text_tells_all_rules_apart() {
        for (i, a) in SPLITS.iter().enumerate() {
            for b in SPLITS[..i].iter().filter(|b| b.patterns != a.patterns) {
                let words = [a, b].map(|rule| cut(&rule.pre_tokenizer().unwrap()).unwrap());
                assert_ne!(words[0], words[1], "{:?} and {:?}", a.names, b.names);
            }
        }
    }
}
