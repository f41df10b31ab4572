//! The token table: text, bytes and kind of every id, and the tokens that are cut out of a text before anything else.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use super::Specials;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A piece of text.
    Normal,
    /// Steers the model (end of turn, BOS, unknown): never comes out of plain text, shows nothing.
    Control,
    /// A piece of text that no other token may merge with (runs of blanks, mark-up): always cut out whole.
    UserDefined,
    /// One raw byte, spelt `<0xNN>`.
    Byte,
    /// Pads the table: neither read nor written.
    Unused,
}

/// One row of the table.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) text: Box<str>,
    pub(super) bytes: Box<[u8]>,
    pub(super) kind: Kind,
}

/// A text cut at special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

#[derive(Debug, Default)]
pub(super) struct Vocab {
    tokens: Vec<Token>,
    ids: HashMap<Box<str>, u32>,
    /// Per first byte, the byte lengths of the tokens that are cut out of texts, longest first.
    cut_lengths: HashMap<u8, Vec<usize>>,
    /// Tokens that take the blanks after them along.
    swallowing: HashSet<u32>,
}

impl Vocab {
    /// A table of `tokens` in order of their ids; or the ids of two tokens with the same text.
    pub(super) fn new(tokens: Vec<Token>) -> Result<Self, (u32, u32)> {
        let mut ids = HashMap::with_capacity(tokens.len());
        let mut cut_lengths: HashMap<u8, Vec<usize>> = HashMap::new();
        for (id, token) in (0u32..).zip(&tokens) {
            let Some(&first) = token.text.as_bytes().first() else {
                continue;
            };
            if let Some(earlier) = ids.insert(token.text.clone(), id) {
                return Err((earlier, id));
            }
            if matches!(token.kind, Kind::Control | Kind::UserDefined) {
                let lengths = cut_lengths.entry(first).or_default();
                if let Err(at) = lengths.binary_search_by(|length| token.text.len().cmp(length)) {
                    lengths.insert(at, token.text.len());
                }
            }
        }
        Ok(Vocab {
            tokens,
            ids,
            cut_lengths,
            swallowing: HashSet::new(),
        })
    }

    /// Lets control tokens take the blanks after them along, all but those that frame a document; and `</s>`, which is
    /// mark-up there.
    pub(super) fn swallow_blanks_after_markers(&mut self) {
        let frame = ["<unk>", "<s>", "<|endoftext|>"];
        let marker = |token: &Token| token.kind == Kind::Control && !frame.contains(&&*token.text);
        self.swallowing = (0u32..)
            .zip(&self.tokens)
            .filter(|(_, token)| marker(token) || &*token.text == "</s>")
            .map(|(id, _)| id)
            .collect();
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// All rows, in order of their ids.
    pub(super) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    pub(super) fn get(&self, id: u32) -> Option<&Token> {
        self.tokens.get(id as usize)
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    pub(super) fn kind(&self, id: u32) -> Option<Kind> {
        self.get(id).map(|token| token.kind)
    }

    /// `text` cut at its user-defined tokens and, where `specials` says so, its control tokens: leftmost first, then longest.
    pub(super) fn cut<'t>(&self, text: &'t str, specials: Specials) -> Vec<Fragment<'t>> {
        let mut fragments = Vec::new();
        let mut rest = 0;
        let mut at = 0;
        while at < text.len() {
            match self.special_at(text, at, specials) {
                Some((id, found)) => {
                    if rest < at {
                        fragments.push(Fragment::Text(&text[rest..at]));
                    }
                    fragments.push(Fragment::Token(id));
                    at = found.end;
                    if self.swallowing.contains(&id) {
                        let blanks = |c: char| c.is_ascii_whitespace() || c == '\u{b}';
                        at = text.len() - text[at..].trim_start_matches(blanks).len();
                    }
                    rest = at;
                }
                None => at += 1,
            }
        }
        if rest < text.len() {
            fragments.push(Fragment::Text(&text[rest..]));
        }
        fragments
    }

    fn special_at(&self, text: &str, at: usize, specials: Specials) -> Option<(u32, Range<usize>)> {
        let lengths = self.cut_lengths.get(&text.as_bytes()[at])?;
        lengths.iter().find_map(|length| {
            let found = at..at + length;
            let id = self.id(text.get(found.clone())?)?;
            let cut = match self.tokens[id as usize].kind {
                Kind::UserDefined => true,
                Kind::Control => specials == Specials::Parse,
                _ => false,
            };
            cut.then_some((id, found))
        })
    }
}
