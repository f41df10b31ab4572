//! What a GGUF file says, honestly and not.

use super::*;

#[test]
fn each_rule_splits_as_its_model_does() {
    let file = File::gpt2();
    // (rule, pieces of a text)
    let cases: &[(&str, &[&str])] = &[
        (
            "gpt-2",
            &[
                "It", "'s", " 12", " 345", ",", " we", "'ll", " see", "!!", "\n\n ", " He",
            ],
        ),
        ("gpt-2", &["I", "'", "M", " 12345", "  "]),
        (
            "smollm",
            &[
                "It", "'s", " ", "1", "2", " ", "3", "4", "5", ",", " we", "'ll", "!!", "\n\n ",
                " He",
            ],
        ),
        (
            "qwen2",
            &[
                "It", "'s", " ", "1", "2", " ", "3", "4", "5", ",", " we", "'ll", "!!\n\n", " ",
                " He",
            ],
        ),
        (
            "qwen2",
            &[
                "I", "'M", " ", " here", "...\n", "\tdef", " f", "(x", "):\n", "       ",
                " return", "  ",
            ],
        ),
        (
            "llama-bpe",
            &[
                "I", "'M", " ", "123", "456", "7", ",", "\r\n\r\n", " ", " we", "'ll",
            ],
        ),
        (
            "default",
            &[
                "It", "'", "s", " ", "123", "45", ",", " we", "'", "ll", " see", "!!", "\n\n ",
                " He",
            ],
        ),
        // A combining mark is part of the word for the newer rule only. (There is no composed t with an acute.)
        ("qwen2", &["ht", "\u{301}", "llo", " 你好", "😀"]),
        ("qwen35", &["ht\u{301}llo", " 你好", "😀"]),
        // Capitals begin a word; contractions belong to it, or not.
        (
            "tekken",
            &[
                "camel",
                "Case",
                " HTTPServer",
                "'s",
                " ",
                "1",
                "2",
                "!!/\n",
                " É",
                "COLEn",
            ],
        ),
        (
            "gpt-4o",
            &[
                "camel",
                "Case",
                " HTTPServer's",
                " ",
                "123",
                "4",
                "!!/\n",
                " we'LL",
            ],
        ),
    ];
    for (pre, pieces) in cases {
        let tokenizer = file.load(pre, |_| {}).unwrap();
        // Whole words that are tokens skip the merges; the learnt merges lead to every token, so there is no difference here.
        let text = pieces.concat();
        let ids = plain(&tokenizer, &text);
        assert_eq!(
            bytes_of(&tokenizer, &ids),
            text.as_bytes(),
            "{pre}: {text:?}"
        );
        assert_eq!(
            ids,
            file.bpe(pieces),
            "{pre}: {text:?} became {:?}",
            ids.iter()
                .map(|&id| tokenizer.token(id))
                .collect::<Vec<_>>()
        );
    }
}

#[test]
fn qwen2_composes_characters() {
    let file = File::gpt2();
    let (composed, decomposed) = ("h\u{e9}llo", "he\u{301}llo");
    let qwen2 = file.load("qwen2", |_| {}).unwrap();
    assert_eq!(plain(&qwen2, decomposed), plain(&qwen2, composed));
    let other = file.load("smollm", |_| {}).unwrap();
    assert_eq!(
        bytes_of(&other, &plain(&other, decomposed)),
        decomposed.as_bytes()
    );
}

#[test]
fn a_merge_to_a_control_token_is_left_out() {
    let mut file = File::gpt2();
    file.merges.push(("<".into(), "s".into()));
    file.tokens.push("<s".into());
    file.types.push(3);
    let tokenizer = file.load("smollm", |_| {}).unwrap();
    assert_eq!(plain(&tokenizer, "<s"), [file.id("<"), file.id("s")]);
}

#[test]
fn whole_words_skip_the_merges_where_the_rule_says_so() {
    let mut file = File::gpt2();
    // A token that no merge leads to.
    file.tokens.push("zebra".into());
    file.types.push(1);
    let zebra = file.id("zebra");
    assert_eq!(
        plain(&file.load("llama-bpe", |_| {}).unwrap(), "zebra"),
        [zebra]
    );
    assert_eq!(
        plain(&file.load("dbrx", |_| {}).unwrap(), "zebra"),
        file.bpe(&["zebra"])
    );
}

#[test]
fn special_tokens_are_parsed_only_on_request() {
    for (file, pre) in [(File::gpt2(), "qwen2"), (File::llama(), "default")] {
        let tokenizer = file
            .load(pre, |vocab| vocab.add_space_prefix = Some(false))
            .unwrap();
        let [start, end, marker] =
            ["<|im_start|>", "<|im_end|>", "<|im"].map(|text| tokenizer.id(text).unwrap());
        let text = "<|im_start|>see<|im_end|>";
        let see = plain(&tokenizer, "see");
        let parsed = tokenizer.encode(text, Specials::Parse).unwrap();
        assert_eq!(parsed, [&[start], &see[..], &[end]].concat(), "{pre}");
        let literal = plain(&tokenizer, text);
        assert!(!literal.contains(&start) && !literal.contains(&end));
        // User-defined tokens are text: found in both, the longer control token first.
        assert_eq!(literal[0], marker);
        assert_eq!(bytes_of(&tokenizer, &literal), text.as_bytes());
        assert!(tokenizer.is_special(start) && !tokenizer.is_special(marker));
        // Padding is never read.
        assert!(
            !tokenizer
                .encode("[PAD0]", Specials::Parse)
                .unwrap()
                .contains(&tokenizer.id("[PAD0]").unwrap())
        );
    }
}

#[test]
fn no_merge_ever_makes_a_control_token() {
    let mut file = File::llama();
    // "<s" is a token, so that "<s" + ">" would spell BOS.
    file.tokens.push("<s".into());
    file.types.push(1);
    file.scores.push(-1.0);
    let tokenizer = file.load("default", |_| {}).unwrap();
    let ids = plain(&tokenizer, "<s>");
    assert!(
        ids.contains(&file.id("<s")) && !ids.contains(&file.id("<s>")),
        "{ids:?}"
    );
    assert_eq!(
        tokenizer.encode("<s>", Specials::Parse).unwrap(),
        [file.id("<s>")]
    );
}

#[test]
fn sentence_piece_puts_a_blank_in_front_of_texts_and_after_special_tokens() {
    let file = File::llama();
    let tokenizer = file.load("default", |_| {}).unwrap();
    let eos = file.id("</s>");
    let expected = [
        file.sentence_piece(" we"),
        vec![eos],
        file.sentence_piece(" see"),
    ]
    .concat();
    assert_eq!(
        tokenizer.encode("we</s>see", Specials::Parse).unwrap(),
        expected
    );
    assert!(plain(&tokenizer, "").is_empty());
    let without = file
        .load("default", |vocab| vocab.add_space_prefix = Some(false))
        .unwrap();
    assert_eq!(plain(&without, "we"), file.sentence_piece("we"));
    // Line ends are cut out whole before anything merges.
    let lines = [
        file.sentence_piece("x:"),
        vec![file.id("\n\n")],
        file.sentence_piece("\n"),
    ]
    .concat();
    assert_eq!(plain(&without, "x:\n\n\n"), lines);
}

#[test]
fn equal_scores_merge_from_the_left() {
    let tokens = ["<unk>", "<s>", "</s>", "a", "b", "aa", "ab", "aaa"]
        .map(String::from)
        .to_vec();
    let file = File {
        model: "llama",
        tokens,
        scores: vec![0.0, 0.0, 0.0, -9.0, -9.0, -1.0, -2.0, -3.0],
        types: vec![2, 3, 3, 1, 1, 1, 1, 1],
        merges: Vec::new(),
    };
    let tokenizer = file
        .load("default", |vocab| vocab.add_space_prefix = Some(false))
        .unwrap();
    let spell = |text: &str| {
        plain(&tokenizer, text)
            .iter()
            .map(|&id| tokenizer.token(id).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(spell("aaaaa"), ["aa", "aaa"]);
    assert_eq!(spell("aab"), ["aa", "b"]);
    // No token, no byte token: what the file calls unknown stands for each byte.
    assert_eq!(spell("aé"), ["a", "<unk>", "<unk>"]);
    let nothing = file
        .load("default", |vocab| {
            (vocab.tokens[0], vocab.unknown) = ("?", None)
        })
        .unwrap();
    assert!(matches!(
        nothing.encode("é", Specials::AsText),
        Err(Error::Input { .. })
    ));
}

#[test]
fn bos_stands_in_front_of_prompts_once() {
    let file = File::llama();
    let tokenizer = file.load("default", |_| {}).unwrap();
    let bos = tokenizer.bos().unwrap();
    assert!(tokenizer.adds_bos());
    for text in ["we", "<s>we"] {
        let ids = tokenizer.encode_prompt(text).unwrap();
        assert_eq!(
            (ids[0], ids.iter().filter(|&&id| id == bos).count()),
            (bos, 1),
            "{text}"
        );
    }
    assert_eq!(tokenizer.encode_prompt("").unwrap(), [bos]);
    let silent = file
        .load("default", |vocab| vocab.add_bos = Some(false))
        .unwrap();
    assert!(!silent.encode_prompt("we").unwrap().contains(&bos));
    // Where the file is silent, the splitting rule decides.
    let file = File::gpt2();
    assert!(file.load("llama-bpe", |_| {}).unwrap().adds_bos());
    assert!(!file.load("qwen2", |_| {}).unwrap().adds_bos());
    let error = file
        .load("llama-bpe", |vocab| vocab.bos = None)
        .unwrap_err();
    assert!(error.to_string().contains("BOS"), "{error}");
}

#[test]
fn tokens_that_end_an_answer() {
    let file = File::gpt2();
    let mut tokenizer = file.load("qwen2", |_| {}).unwrap();
    let ends = [file.id("<|im_end|>"), file.id("<|endoftext|>")];
    assert_eq!(tokenizer.end_of_generation(), ends);
    assert_eq!(tokenizer.eos(), Some(ends[0]));
    tokenizer.add_end_of_generation(&[7, ends[0]]).unwrap();
    assert_eq!(tokenizer.end_of_generation(), [7, ends[0], ends[1]]);
    let named = file
        .load("qwen2", |vocab| (vocab.eot, vocab.eom) = (Some(8), Some(9)))
        .unwrap();
    assert_eq!(named.end_of_generation()[..2], [8, 9]);
    let error = tokenizer.add_end_of_generation(&[u32::MAX]).unwrap_err();
    assert!(error.to_string().contains("4294967295"), "{error}");
    // Mark-up that looks like an end is text, unless the file names it.
    let mut file = File::gpt2();
    file.tokens.push("</s>".into());
    file.types.push(4);
    let markup = file.id("</s>");
    assert!(
        !file
            .load("qwen2", |vocab| vocab.eos = None)
            .unwrap()
            .end_of_generation()
            .contains(&markup)
    );
    assert!(
        file.load("qwen2", |_| {})
            .unwrap()
            .end_of_generation()
            .contains(&markup)
    );
}

#[test]
fn phi_3_swallows_blanks_after_turn_markers() {
    let file = File::llama();
    let marked = |tokenizer: &Tokenizer| {
        tokenizer
            .encode("<|im_start|> \n we<s> x", Specials::Parse)
            .unwrap()
    };
    let phi = file
        .load("default", |vocab| vocab.name = Some("Phi-3-mini"))
        .unwrap();
    let [start, bos] = [file.id("<|im_start|>"), file.id("<s>")];
    let expected = [
        vec![start],
        file.sentence_piece(" we"),
        vec![bos],
        file.sentence_piece("  x"),
    ]
    .concat();
    let other = file.load("default", |_| {}).unwrap();
    assert_eq!(bytes_of(&phi, &marked(&phi)), b"<|im_start|> we<s>  x");
    assert_eq!(marked(&phi)[..2], expected[..2]);
    assert_eq!(
        bytes_of(&other, &marked(&other)),
        b"<|im_start|>  \n we<s>  x"
    );
    // There `</s>` is mark-up, if the file does not call it EOS, and takes the blanks along, too.
    let mut file = File::llama();
    let (eos, end) = (file.id("</s>"), file.id("<|im_end|>"));
    file.types[eos as usize] = 4;
    let phi = file
        .load("default", |vocab| {
            (vocab.name, vocab.eos) = (Some("Phi-3-mini"), Some(end))
        })
        .unwrap();
    assert_eq!(bytes_of(&phi, &plain(&phi, "we</s>  see")), b" we</s> see");
}

#[test]
fn lies_of_a_file_are_named() {
    type Change = fn(&mut GgufVocab<'_>);
    let gpt2: &[(&str, Change)] = &[
        ("`nonsense`", |vocab| vocab.pre = Some("nonsense")),
        ("names no splitting rule", |vocab| vocab.pre = None),
        ("`bert`", |vocab| vocab.model = "bert"),
        ("token types", |vocab| vocab.token_types.truncate(3)),
        ("unknown type 9", |vocab| vocab.token_types[5] = 9),
        ("eos_token_id is 99999", |vocab| vocab.eos = Some(99_999)),
        ("are both", |vocab| vocab.tokens[1] = vocab.tokens[0]),
        ("not spelt <0xNN>", |vocab| vocab.token_types[1] = 6),
        ("is not two tokens", |vocab| vocab.merges[2] = "lonely"),
        ("do not fit together", |vocab| vocab.merges[2] = "no such"),
    ];
    for (words, change) in gpt2 {
        let error = File::gpt2().load("qwen2", *change).unwrap_err();
        assert!(
            error.to_string().contains(words) && error.to_string().contains("model.gguf"),
            "{words}: {error}"
        );
    }
    let unknown = File::gpt2()
        .load("nonsense", |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        unknown.contains("qwen2") && unknown.contains("smollm"),
        "{unknown}"
    );
    let error = File::llama()
        .load("default", |vocab| vocab.scores.truncate(9))
        .unwrap_err();
    assert!(error.to_string().contains("9 scores"), "{error}");
    let sentence_piece: &[(&str, Change)] = &[
        ("remove_extra_whitespaces", |vocab| {
            vocab.remove_extra_whitespaces = Some(true)
        }),
        ("precompiled_charsmap", |vocab| vocab.has_charsmap = true),
        ("unigram", |vocab| vocab.model = "t5"),
    ];
    for (words, change) in sentence_piece {
        let error = File::llama().load("default", *change).unwrap_err();
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
    // Nothing at all is a vocabulary, if a useless one.
    let nothing = File {
        model: "gpt2",
        tokens: vec![],
        scores: vec![],
        types: vec![],
        merges: vec![],
    };
    assert!(plain(&nothing.load("qwen2", |_| {}).unwrap(), "a").is_empty());
}
