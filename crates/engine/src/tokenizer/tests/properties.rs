//! Properties of every text.

use proptest::prelude::*;

use super::*;

/// Texts of pieces that meet at interesting borders.
fn texts() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "we'll",
        " see",
        "12",
        " 345",
        "!!",
        "\n",
        "\n\n",
        "  ",
        "\t",
        "\r\n",
        "é",
        "e\u{301}",
        "你好",
        "😀",
        "<|im",
        "_start|>",
        "<|im_end|>",
        "</s>",
        "<0x41>",
        "\u{2581}",
        "\u{0}",
        "\u{a0}",
        "\u{10ffff}",
        "def f(x):",
        "...",
    ]);
    prop::collection::vec(
        prop_oneof![4 => pieces.prop_map(String::from), 1 => any::<char>().prop_map(String::from)],
        0..24,
    )
    .prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_text_comes_back(text in texts()) {
        let bpe = File::gpt2();
        for pre in ["megrez", "smollm", "llama-bpe", "tekken", "gpt-4o", "gpt-2", "default"] {
            let tokenizer = bpe.load(pre, |_| {}).unwrap();
            for specials in [Specials::Parse, Specials::AsText] {
                let ids = tokenizer.encode(&text, specials).unwrap();
                prop_assert_eq!(String::from_utf8(bytes_of(&tokenizer, &ids)).unwrap(), &*text, "{}", pre);
                prop_assert!(specials == Specials::Parse || !ids.iter().any(|&id| tokenizer.is_special(id)));
            }
        }
    }

    #[test]
    fn sentence_piece_merges_as_defined(text in texts()) {
        let file = File::llama();
        let tokenizer = file.load("default", |vocab| vocab.add_space_prefix = Some(false)).unwrap();
        let ids = plain(&tokenizer, &text);
        // A literal U+2581 reads as a blank: SentencePiece cannot tell them apart.
        prop_assert_eq!(String::from_utf8(bytes_of(&tokenizer, &ids)).unwrap(), text.replace('\u{2581}', " "));
        prop_assert!(!ids.iter().any(|&id| tokenizer.is_special(id)));
        // Without user-defined tokens in it, the text is one piece.
        if !["<|im", "\n\n", "  "].iter().any(|token| text.contains(token)) {
            prop_assert_eq!(ids, file.sentence_piece(&text));
        }
    }

    #[test]
    fn a_stream_of_any_bytes_is_their_lossy_text(bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0x80u8..0xc0, 0xe0u8..], 0..40)) {
        let tokenizer = Tokenizer::bytes(256);
        let mut stream = tokenizer.stream();
        let mut text: String = bytes.iter().map(|&byte| stream.push(byte.into())).collect();
        text += &stream.flush();
        prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
    }
}
