//! Text out of tokens.

use super::*;

#[test]
fn a_stream_hands_out_whole_characters() {
    let tokenizer = Tokenizer::bytes(300);
    let mut stream = tokenizer.stream();
    let mut pushed = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|&b| stream.push(b.into()))
            .collect::<Vec<_>>()
    };
    assert_eq!(pushed("é😀".as_bytes()), ["", "é", "", "", "", "😀"]);
    // A byte that can start nothing, a start that is not continued, a character of too many bytes.
    assert_eq!(pushed(&[0xff, b'a']), ["\u{fffd}", "a"]);
    assert_eq!(pushed(&[0xe4, 0xbd, b'b']), ["", "", "\u{fffd}b"]);
    assert_eq!(
        pushed(&[0xed, 0xa0, 0x80]),
        ["", "\u{fffd}\u{fffd}", "\u{fffd}"]
    );
    assert_eq!(pushed(&[0xf0, 0x9f]), ["", ""]);
    assert_eq!(stream.flush(), "\u{fffd}");
    assert_eq!(stream.flush(), "");
    // Ids without bytes, inside and outside the vocabulary, show nothing.
    assert_eq!(
        (stream.push(299), stream.push(9999)),
        (String::new(), String::new())
    );
}

#[test]
fn control_tokens_show_nothing_and_end_a_torn_character() {
    let file = File::gpt2();
    let tokenizer = file.load("qwen2", |_| {}).unwrap();
    let [end, torn] = [file.id("<|im_end|>"), file.id(&spelt(&[0xf0]))];
    let mut stream = tokenizer.stream();
    assert_eq!(stream.push(torn), "");
    assert_eq!(stream.push(end), "\u{fffd}");
    assert_eq!(stream.push(end), "");
    assert_eq!(tokenizer.token_bytes(end), b"<|im_end|>");
}

#[test]
fn bytes_are_tokens() {
    let tokenizer = Tokenizer::bytes(256);
    assert_eq!(plain(&tokenizer, "aé"), [0x61, 0xc3, 0xa9]);
    assert_eq!(
        (
            tokenizer.vocab_size(),
            tokenizer.bos(),
            tokenizer.adds_bos()
        ),
        (256, None, false)
    );
    assert!(Tokenizer::bytes(64).encode("a", Specials::AsText).is_err());
}
