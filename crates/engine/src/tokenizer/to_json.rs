//! The vocabulary of a GGUF file as a `tokenizer.json`.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::{BLANK, Encoder, GgufVocab, Kind, Prefix, Spm, Tokenizer, Vocab};
use crate::Result;

impl GgufVocab<'_> {
    /// The `tokenizer.json` and the `tokenizer_config.json` that say the same.
    ///
    /// # Errors
    /// Those of [`Tokenizer::from_gguf`].
    pub(crate) fn to_json(&self, tokenizer: &Tokenizer) -> Result<(Json, Json)> {
        let vocab = &tokenizer.vocab;
        let (normalizer, pre_tokenizer, decoder, model) = match &tokenizer.encoder {
            Encoder::Spm(spm) => sentence_piece(vocab, spm),
            _ => self.byte_level(vocab)?,
        };
        let added: Vec<Json> = (0u32..)
            .zip(vocab.tokens())
            .filter(|(_, t)| matches!(t.kind, Kind::Control | Kind::UserDefined))
            .map(|(id, t)| {
                json!({
                    "id": id,
                    "content": t.text,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": t.kind == Kind::Control,
                })
            })
            .collect();
        let spelled = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
        let bos = spelled(tokenizer.bos).filter(|_| tokenizer.adds_bos);
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": bos.map(|text| bos_in_front(text, tokenizer.bos)),
            "decoder": decoder,
            "model": model,
        });
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": tokenizer.adds_bos,
            "bos_token": spelled(tokenizer.bos),
            "eos_token": spelled(tokenizer.eos),
            "unk_token": spelled(self.unknown),
            "clean_up_tokenization_spaces": false,
        });
        Ok((file, config))
    }

    /// Normalizer, pre-tokenizer, decoder and model of a byte-level vocabulary.
    fn byte_level(&self, vocab: &Vocab) -> Result<(Json, Json, Json, Json)> {
        let rule = self.split_rule()?;
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
        let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let mut steps: Vec<Json> = rule.patterns.iter().map(split).collect();
        steps.push(bytes.clone());
        let merges: Vec<Vec<&str>> = self
            .merges
            .iter()
            .map(|merge| merge.splitn(2, ' ').collect())
            .collect();
        let model = model(
            vocab,
            json!(merges),
            json!({"ignore_merges": rule.whole_words}),
        );
        let steps = json!({"type": "Sequence", "pretokenizers": steps});
        let normalizer = match rule.composes {
            true => json!({"type": "NFC"}),
            false => Json::Null,
        };
        Ok((normalizer, steps, bytes, model))
    }
}

/// Normalizer, pre-tokenizer, decoder and model of a SentencePiece vocabulary.
fn sentence_piece(vocab: &Vocab, spm: &Spm) -> (Json, Json, Json, Json) {
    let blank = BLANK.to_string();
    let escape = json!({"type": "Replace", "pattern": {"String": " "}, "content": blank});
    let unescape = json!({"type": "Replace", "pattern": {"String": blank}, "content": " "});
    let mut decoder = vec![
        unescape,
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let normalizer = match spm.prefix {
        Prefix::Nothing => escape,
        Prefix::Blank => {
            decoder.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": blank}, escape]})
        }
    };
    let unknown = (0u32..)
        .zip(vocab.tokens())
        .find(|(_, t)| &*t.text == "<unk>")
        .map(|(_, t)| &*t.text);
    let own = json!({"byte_fallback": true, "fuse_unk": true, "unk_token": unknown});
    let model = model(vocab, json!(merges(vocab, spm)), own);
    let decoder = json!({"type": "Sequence", "decoders": decoder});
    (normalizer, Json::Null, decoder, model)
}

/// A BPE model of all tokens that have a text, with what is its `own` on top of the usual.
fn model(vocab: &Vocab, merges: Json, own: Json) -> Json {
    let padding = |id: u32, text: &str, kind| kind == Kind::Unused && text == format!("[PAD{id}]");
    let tokens: Map<String, Json> = (0u32..)
        .zip(vocab.tokens())
        .filter(|(id, t)| !t.text.is_empty() && !padding(*id, &t.text, t.kind))
        .map(|(id, t)| (t.text.to_string(), id.into()))
        .collect();
    let mut model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": false,
        "vocab": tokens,
        "merges": merges,
    });
    if let (Json::Object(model), Json::Object(own)) = (&mut model, own) {
        model.extend(own);
    }
    model
}

/// Every way to make a token of two others, in the order in which scores merge them.
fn merges<'v>(vocab: &'v Vocab, spm: &Spm) -> Vec<[&'v str; 2]> {
    let mergeable: HashMap<&str, u32> = (0u32..)
        .zip(vocab.tokens())
        .filter(|(_, t)| matches!(t.kind, Kind::Normal | Kind::UserDefined))
        .map(|(id, t)| (&*t.text, id))
        .collect();
    let mut found: Vec<(f32, u32, u32, [&str; 2])> = Vec::new();
    for (text, id) in &mergeable {
        for (cut, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(cut);
            if let (Some(&l), Some(&r)) = (mergeable.get(left), mergeable.get(right)) {
                found.push((spm.score(*id), l, r, [left, right]));
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    found.into_iter().map(|(.., pair)| pair).collect()
}

/// The post-processor that puts BOS in front.
fn bos_in_front(text: &str, id: Option<u32>) -> Json {
    let bos = |kind| json!({"SpecialToken": {"id": text, "type_id": kind}});
    let sequence = |name, kind| json!({"Sequence": {"id": name, "type_id": kind}});
    json!({
        "type": "TemplateProcessing",
        "single": [bos(0), sequence("A", 0)],
        "pair": [bos(0), sequence("A", 0), bos(1), sequence("B", 1)],
        "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]}},
    })
}
