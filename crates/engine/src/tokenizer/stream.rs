//! Text from tokens as they come: whole characters only.

use super::Tokenizer;

/// Turns a stream of tokens into text without ever handing out half a character. Control tokens show nothing.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    /// The start of a character whose end has not come yet: at most 3 bytes between calls.
    pending: Vec<u8>,
}

impl<'t> TextStream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Self {
        TextStream {
            tokenizer,
            pending: Vec::new(),
        }
    }

    /// The characters that `id` completes. Bytes that can belong to no character become U+FFFD.
    pub fn push(&mut self, id: u32) -> String {
        if self.tokenizer.is_special(id) {
            return self.flush();
        }
        self.pending
            .extend_from_slice(self.tokenizer.token_bytes(id));
        let mut text = String::new();
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            let at_end = done + invalid.len() == self.pending.len();
            if invalid.is_empty() || at_end && is_prefix(invalid) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            done += invalid.len();
        }
        self.pending.drain(..done);
        text
    }

    /// What is left at the end of the text: U+FFFD for a torn character, otherwise nothing.
    pub fn flush(&mut self) -> String {
        if self.pending.is_empty() {
            return String::new();
        }
        self.pending.clear();
        char::REPLACEMENT_CHARACTER.to_string()
    }
}

/// Whether more bytes could still make `bytes` a character.
fn is_prefix(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}
