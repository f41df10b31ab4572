//! `tokenizer.json`, beside the GGUF file with the same vocabulary.

use serde_json::json;

use super::*;

/// A `tokenizer.json` with `file`'s byte-level vocabulary, BOS in front by its own post-processing.
fn json_of(file: &File) -> serde_json::Value {
    let vocab: serde_json::Map<_, _> = file
        .tokens
        .iter()
        .zip(&file.types)
        .enumerate()
        .filter(|(_, (_, kind))| **kind == 1)
        .map(|(id, (token, _))| (token.clone(), json!(id)))
        .collect();
    let added: Vec<_> = SPECIALS[..4]
        .iter()
        .map(|(text, kind)| {
            json!({ "id": file.id(text), "content": text, "special": *kind == 3, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false })
        })
        .collect();
    let bos = file.id("<|endoftext|>");
    json!({
        "version": "1.0", "truncation": { "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 },
        "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Digits", "individual_digits": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true } ] },
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<|endoftext|>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<|endoftext|>": { "id": "<|endoftext|>", "ids": [bos], "tokens": ["<|endoftext|>"] } } },
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab,
            "merges": file.merges.iter().map(|(left, right)| json!([left, right])).collect::<Vec<_>>() },
    })
}

fn from_json(json: &serde_json::Value, config: Option<serde_json::Value>) -> Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, json.to_string()).unwrap();
    Tokenizer::from_file(&path, config.as_ref())
}

#[test]
fn a_tokenizer_json_gives_the_same_tokens_as_the_gguf_file() {
    let file = File::gpt2();
    let gguf = file.load("smollm", |_| {}).unwrap();
    let json = from_json(&json_of(&file), None).unwrap();
    let texts = [
        TEXT,
        "",
        "<|im_start|>we'll see 12345<|im_end|>\n",
        "<|im_start|",
        "a\u{0}b  \n\n c",
    ];
    for text in texts {
        // As text, a control token hides the user-defined one that it starts with from a tokenizer.json.
        let both = [Specials::Parse, Specials::AsText];
        for &specials in &both[..if text.contains("<|im_start|>") { 1 } else { 2 }] {
            assert_eq!(
                json.encode(text, specials).unwrap(),
                gguf.encode(text, specials).unwrap(),
                "{text:?}"
            );
        }
    }
    for id in 0..json.vocab_size() as u32 {
        assert_eq!(
            json.token_bytes(id),
            gguf.token_bytes(id),
            "{:?}",
            json.token(id)
        );
        assert_eq!(json.is_special(id), gguf.is_special(id));
    }
    assert_eq!(json.end_of_generation(), gguf.end_of_generation());
    // BOS is what the file itself puts in front, or what the configuration says.
    let bos = file.id("<|endoftext|>");
    assert_eq!((json.bos(), json.adds_bos()), (Some(bos), true));
    assert_eq!(json.encode_prompt("we").unwrap()[0], bos);
    let config = json!({ "bos_token": { "content": "<|im_start|>" }, "eos_token": "e", "add_bos_token": false });
    let json = from_json(&json_of(&file), Some(config)).unwrap();
    assert_eq!(
        (json.bos(), json.adds_bos()),
        (Some(file.id("<|im_start|>")), false)
    );
    assert!(json.end_of_generation().contains(&file.id("e")));
    assert_eq!(json.eos(), Some(file.id("e")));
}

#[test]
fn a_sentence_piece_tokenizer_json_spells_blanks_and_bytes() {
    let mut json = json_of(&File::gpt2());
    let vocab = json!({ "<unk>": 0, "\u{2581}we": 1, "w": 2, "e": 3, "\u{2581}": 4, "\u{2581}w": 5, "<0xC3>": 6, "<0xA9>": 7 });
    json["model"]["vocab"] = vocab;
    json["model"]["merges"] = json!([["\u{2581}", "w"], ["\u{2581}w", "e"]]);
    json["model"]["byte_fallback"] = json!(true);
    json["added_tokens"] = json!([]);
    json["post_processor"] = json!(null);
    json["pre_tokenizer"] = json!(null);
    json["normalizer"] =
        json!({ "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" });
    json["decoder"] = json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " }, { "type": "ByteFallback" }, { "type": "Fuse" } ] });
    let tokenizer = from_json(&json, None).unwrap();
    assert_eq!(plain(&tokenizer, " weé"), [1, 6, 7]);
    assert_eq!(bytes_of(&tokenizer, &[1, 6, 7]), " weé".as_bytes());
    assert_eq!((tokenizer.bos(), tokenizer.adds_bos()), (None, false));
    for (decoder, words) in [
        (json!(null), "no decoder"),
        (
            json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }),
            "WordPiece",
        ),
    ] {
        json["decoder"] = decoder;
        let error = from_json(&json, None).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    json["model"]["vocab"]["far"] = json!(4_000_000_000u32);
    json["decoder"] = json!({ "type": "ByteFallback" });
    assert!(
        from_json(&json, None)
            .unwrap_err()
            .to_string()
            .contains("ids up to 4000000000")
    );
    assert!(matches!(
        from_json(&json!({ "model": 3 }), None),
        Err(Error::Malformed { .. })
    ));
    assert!(matches!(
        Tokenizer::from_file(Path::new("/nowhere/tokenizer.json"), None),
        Err(Error::Read { .. })
    ));
}
