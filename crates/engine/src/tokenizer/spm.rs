//! SentencePiece's BPE: of all neighbours whose concatenation is a token, the best-scored pair merges first.
//!
//! Kudo & Richardson, "SentencePiece" (EMNLP 2018). Symbols are slices of the text, so a candidate pair is looked up as the
//! slice that spans both: no merge table is built, and pairs of equal score merge from the left as in the original.

use std::{cmp::Ordering, collections::BinaryHeap};

use super::vocab::{Kind, Vocab};

/// U+2581, which stands for a blank inside tokens.
pub(super) const BLANK: char = '\u{2581}';

/// Whether a text that follows a special token, or nothing, is given a leading blank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    Blank,
    Nothing,
}

/// Scores and byte tokens of a SentencePiece vocabulary.
#[derive(Debug)]
pub(super) struct Spm {
    pub(super) prefix: Prefix,
    scores: Vec<f32>,
    /// Per byte value, the token of that byte, or of what stands for it.
    bytes: Box<[Option<u32>; 256]>,
}

/// A run of the text that is one token so far; its neighbours form a doubly linked list.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// Equal to `start` once merged into the symbol before it.
    end: usize,
    previous: usize,
    next: usize,
}

const NONE: usize = usize::MAX;

struct Merge {
    score: f32,
    left: usize,
    right: usize,
    /// Where the merged token ends: a merge is stale once its symbols have grown.
    end: usize,
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Merge {}

impl Spm {
    /// `scores` has one number per token of `vocab`; `unknown` stands for bytes without a token.
    pub(super) fn new(
        vocab: &Vocab,
        scores: Vec<f32>,
        prefix: Prefix,
        unknown: Option<u32>,
    ) -> Self {
        let mut bytes = Box::new([unknown; 256]);
        for id in 0..vocab.len() as u32 {
            if let Some(token) = vocab.get(id).filter(|token| token.kind == Kind::Byte)
                && let [byte] = *token.bytes
            {
                bytes[usize::from(byte)] = Some(id);
            }
        }
        Spm {
            prefix,
            scores,
            bytes,
        }
    }

    /// The score of a token: higher merges first.
    pub(super) fn score(&self, id: u32) -> f32 {
        self.scores[id as usize]
    }

    /// Appends the tokens of `text`, in which blanks are already [`BLANK`]; or the byte that has no token.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, ids: &mut Vec<u32>) -> Result<(), u8> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol {
                start,
                end: start + c.len_utf8(),
                previous: i.checked_sub(1).unwrap_or(NONE),
                next: i + 1,
            })
            .collect();
        let Some(last) = symbols.last_mut() else {
            return Ok(());
        };
        last.next = NONE;

        let candidate = |symbols: &[Symbol], left: usize, right: usize| {
            let end = symbols[right].end;
            let id = mergeable(vocab, &text[symbols[left].start..end])?;
            let score = self.scores[id as usize];
            Some(Merge {
                score,
                left,
                right,
                end,
            })
        };
        let mut merges: BinaryHeap<Merge> = (1..symbols.len())
            .filter_map(|right| candidate(&symbols, right - 1, right))
            .collect();
        while let Some(Merge {
            left, right, end, ..
        }) = merges.pop()
        {
            let (kept, gone) = (symbols[left], symbols[right]);
            let whole = kept.start < kept.end && gone.start < gone.end;
            if !whole || kept.end != gone.start || gone.end != end {
                continue;
            }
            symbols[left].end = end;
            symbols[left].next = gone.next;
            symbols[right].end = gone.start;
            if gone.next != NONE {
                symbols[gone.next].previous = left;
                merges.extend(candidate(&symbols, left, gone.next));
            }
            if kept.previous != NONE {
                merges.extend(candidate(&symbols, kept.previous, left));
            }
        }

        let mut at = 0;
        while at != NONE {
            let symbol = symbols[at];
            let piece = &text[symbol.start..symbol.end];
            match mergeable(vocab, piece) {
                Some(id) => ids.push(id),
                None => {
                    for byte in piece.bytes() {
                        ids.push(self.bytes[usize::from(byte)].ok_or(byte)?);
                    }
                }
            }
            at = symbol.next;
        }
        Ok(())
    }
}

/// The token that `text` is, if merging may lead to it: never to a control token.
fn mergeable(vocab: &Vocab, text: &str) -> Option<u32> {
    vocab
        .id(text)
        .filter(|&id| matches!(vocab.kind(id), Some(Kind::Normal | Kind::UserDefined)))
}
