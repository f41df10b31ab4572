//! A GGUF vocabulary as `tokenizer.json`, and that one as a GGUF vocabulary again.

use super::*;
use crate::tokenizer::Description;

/// Both directions of what `vocab` says, under the rule that is expected to come out.
fn both_ways(vocab: &GgufVocab<'_>, pre: Option<&str>) {
    let original = Tokenizer::from_gguf(vocab.clone()).unwrap();
    let (file, config) = vocab.to_json(&original).unwrap();
    let (path, content) = (Path::new("tokenizer.json"), file.to_string().into_bytes());
    let json = Tokenizer::from_json(path, &content, Some(&config)).unwrap();
    assert!(
        original.same_tokens(&json),
        "{pre:?} {:?}",
        vocab.add_space_prefix
    );
    let facts = |t: &Tokenizer| {
        (
            t.bos(),
            t.eos(),
            t.adds_bos(),
            t.end_of_generation().to_vec(),
        )
    };
    assert_eq!(facts(&original), facts(&json));

    let description = Description::read(path, &content).unwrap();
    let again = json.to_gguf(&description, vocab.tokens.len()).unwrap();
    assert_eq!(again.pre, pre);
    assert_eq!(again.add_space_prefix, vocab.add_space_prefix);
    assert_eq!(again.tokens, vocab.tokens);
    // A tokenizer.json has no word for padding: it is a token that nothing leads to.
    let types = |v: &GgufVocab<'_>| {
        let padding = |t: &i32| if *t == 5 { 1 } else { *t };
        v.token_types.iter().map(padding).collect::<Vec<i32>>()
    };
    assert_eq!(types(&again), types(vocab));
    assert_eq!(again.merges, vocab.merges);
    let back = Tokenizer::from_gguf(again).unwrap();
    for text in [TEXT, " \u{2581} x", "<|im_start|> <|im_end|>\n\n\n", ""] {
        assert_eq!(
            plain(&original, text),
            plain(&back, text),
            "{pre:?}: {text:?}"
        );
        let parsed = |t: &Tokenizer| t.encode(text, Specials::Parse).unwrap();
        assert_eq!(parsed(&original), parsed(&back), "{pre:?}: {text:?}");
    }
}

#[test]
fn byte_level_vocabularies_keep_their_rule() {
    for pre in [
        "qwen2",
        "deepseek-r1-qwen",
        "llama-bpe",
        "smollm",
        "gpt-2",
        "dbrx",
        "tekken",
        "gpt-4o",
    ] {
        for add_bos in [true, false] {
            let check = |vocab: &mut GgufVocab<'_>| {
                vocab.add_bos = Some(add_bos);
                both_ways(vocab, Some(pre));
            };
            File::gpt2().load(pre, check).unwrap();
        }
    }
}

#[test]
fn sentence_piece_keeps_its_order_and_its_prefix() {
    for prefix in [true, false] {
        let check = |vocab: &mut GgufVocab<'_>| {
            vocab.pre = None;
            vocab.add_space_prefix = Some(prefix);
            vocab.add_bos = Some(true);
            both_ways(vocab, None);
        };
        File::llama().load("default", check).unwrap();
    }
}

#[test]
fn what_gguf_has_no_word_for_is_named() {
    let check = |vocab: &mut GgufVocab<'_>| {
        let original = Tokenizer::from_gguf(vocab.clone()).unwrap();
        let (mut file, config) = vocab.to_json(&original).unwrap();
        // Words of at most two letters: no rule of GGUF splits so.
        file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}{1,2}|\P{L}+".into();
        let (path, content) = (Path::new("tokenizer.json"), file.to_string().into_bytes());
        let json = Tokenizer::from_json(path, &content, Some(&config)).unwrap();
        let description = Description::read(path, &content).unwrap();
        let refused = |rows| json.to_gguf(&description, rows).unwrap_err().to_string();
        assert!(refused(vocab.tokens.len()).contains("a splitting rule"));
        assert!(refused(10).contains("for 10 embeddings"));
    };
    File::gpt2().load("qwen2", check).unwrap();
}
