//! Vocabularies made here, against plain oracles of both algorithms. The vocabularies are learnt from a text as a whole, so
//! that tokens exist across every border at which a text must be split: a wrong split shows.

mod both_ways;
mod gguf;
mod json;
mod properties;
mod stream;

use std::{collections::HashMap, path::Path};

use super::*;

const TEXT: &str = "It's 12 345, we'll see: I'M here!!\n\n  He said: \"12 345 and 6789\"...\n\tdef f(x):\n        return x + 1\n\
    héllo wörld, héllo 你好世界 你好, 😀😀 👍🏽!!\r\n\r\n  we'll, we'll see 12 345;  12 345\n\n  def f(x):\n        return x * 2\n";

const SPECIALS: [(&str, i32); 5] = [
    ("<|im_start|>", 3),
    ("<|im_end|>", 3),
    ("<|im", 4),
    ("<|endoftext|>", 3),
    ("[PAD0]", 5),
];

/// GPT-2's spelling of bytes: printable Latin-1 as it is, the others in order from U+0100.
fn spelt(bytes: &[u8]) -> String {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others: Vec<u8> = (0..=255).filter(|&b| !printable(b)).collect();
    let other = |b: u8| others.iter().position(|&o| o == b).unwrap() as u32;
    bytes
        .iter()
        .map(|&b| {
            if printable(b) {
                char::from(b)
            } else {
                char::from_u32(256 + other(b)).unwrap()
            }
        })
        .collect()
}

/// The `count` most frequent neighbours, merged one after the other.
fn learn(mut symbols: Vec<String>, count: usize) -> Vec<(String, String)> {
    let mut merges = Vec::new();
    while merges.len() < count {
        let mut pairs: HashMap<(&str, &str), usize> = HashMap::new();
        symbols
            .windows(2)
            .for_each(|pair| *pairs.entry((&pair[0], &pair[1])).or_default() += 1);
        let Some((pair, _)) = pairs
            .into_iter()
            .max_by_key(|&(pair, n)| (n, std::cmp::Reverse(pair)))
        else {
            break;
        };
        let pair = (pair.0.to_owned(), pair.1.to_owned());
        symbols = merge(symbols, &pair);
        if !merges.contains(&pair) {
            merges.push(pair);
        }
    }
    merges
}

fn merge(symbols: Vec<String>, (left, right): &(String, String)) -> Vec<String> {
    let mut merged: Vec<String> = Vec::with_capacity(symbols.len());
    let mut symbols = symbols.into_iter().peekable();
    while let Some(mut symbol) = symbols.next() {
        if symbol == *left && symbols.next_if_eq(right).is_some() {
            symbol += right;
        }
        merged.push(symbol);
    }
    merged
}

fn characters(text: &str) -> Vec<String> {
    text.chars().map(String::from).collect()
}

/// What a GGUF file would hold.
struct File {
    model: &'static str,
    tokens: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i32>,
    merges: Vec<(String, String)>,
}

impl File {
    fn gpt2() -> Self {
        let merges = learn(characters(&spelt(TEXT.as_bytes())), 300);
        let bytes = (0..=255u8).map(|b| spelt(&[b]));
        let mut tokens: Vec<String> = bytes.collect();
        for (left, right) in &merges {
            let token = format!("{left}{right}");
            if !tokens.contains(&token) {
                tokens.push(token);
            }
        }
        let mut types = vec![1; tokens.len()];
        for (text, kind) in SPECIALS {
            tokens.push(text.into());
            types.push(kind);
        }
        File {
            model: "gpt2",
            scores: Vec::new(),
            tokens,
            types,
            merges,
        }
    }

    fn llama() -> Self {
        let escaped = TEXT.replace(' ', "\u{2581}");
        let merges = learn(characters(&escaped), 150);
        let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
        let mut types = vec![2, 3, 3];
        let mut scores = vec![0.0; 3];
        for byte in 0..=255 {
            tokens.push(format!("<0x{byte:02X}>"));
            types.push(6);
            scores.push(0.0);
        }
        // Runs of line ends are user-defined, as in Gemma.
        for (text, kind) in SPECIALS.into_iter().chain([("\n\n", 4), ("  ", 4)]) {
            tokens.push(text.into());
            types.push(kind);
            scores.push(-1000.0);
        }
        let learnt = merges
            .iter()
            .map(|(left, right)| format!("{left}{right}"))
            .chain(characters(&escaped));
        for token in learnt {
            // Emoji and Han characters stay without a token of their own: they are spelt in bytes.
            if !tokens.contains(&token) && !token.chars().any(|c| c > '\u{3000}') {
                scores.push(-(tokens.len() as f32));
                tokens.push(token);
                types.push(1);
            }
        }
        File {
            model: "llama",
            tokens,
            scores,
            types,
            merges: Vec::new(),
        }
    }

    /// `change` may spoil what the file says.
    fn load(&self, pre: &str, change: impl FnOnce(&mut GgufVocab<'_>)) -> Result<Tokenizer> {
        let merges: Vec<String> = self
            .merges
            .iter()
            .map(|(left, right)| format!("{left} {right}"))
            .collect();
        let id = |text: &str| {
            self.tokens
                .iter()
                .position(|token| token == text)
                .map(|at| at as u32)
        };
        let mut vocab = GgufVocab {
            path: Path::new("model.gguf"),
            name: None,
            model: self.model,
            pre: Some(pre),
            tokens: self.tokens.iter().map(String::as_str).collect(),
            scores: self.scores.clone(),
            token_types: self.types.clone(),
            merges: merges.iter().map(String::as_str).collect(),
            bos: id("<s>").or(id("<|endoftext|>")),
            eos: id("</s>").or(id("<|im_end|>")),
            eot: None,
            eom: None,
            unknown: id("<unk>"),
            add_bos: None,
            add_space_prefix: None,
            remove_extra_whitespaces: None,
            has_charsmap: false,
        };
        change(&mut vocab);
        Tokenizer::from_gguf(vocab)
    }

    fn id(&self, token: &str) -> u32 {
        self.tokens
            .iter()
            .position(|one| one == token)
            .unwrap_or_else(|| panic!("no token {token:?}")) as u32
    }

    /// Oracle of byte-level BPE: every merge, in order, wherever it applies in a piece.
    fn bpe(&self, pieces: &[&str]) -> Vec<u32> {
        let merged = |piece: &&str| {
            self.merges
                .iter()
                .fold(characters(&spelt(piece.as_bytes())), merge)
        };
        pieces
            .iter()
            .flat_map(merged)
            .map(|token| self.id(&token))
            .collect()
    }

    /// Oracle of SentencePiece: again and again the best-scored neighbours, of equals the leftmost.
    fn sentence_piece(&self, text: &str) -> Vec<u32> {
        let score = |token: &str| {
            let id = self.tokens.iter().position(|one| one == token)?;
            matches!(self.types[id], 1 | 4).then_some(self.scores[id])
        };
        let mut symbols = characters(&text.replace(' ', "\u{2581}"));
        loop {
            let mut best: Option<(f32, usize)> = None;
            for (at, pair) in symbols.windows(2).enumerate() {
                if let Some(score) =
                    score(&pair.concat()).filter(|&score| best.is_none_or(|(top, _)| score > top))
                {
                    best = Some((score, at));
                }
            }
            let Some((_, at)) = best else { break };
            let right = symbols.remove(at + 1);
            symbols[at] += &right;
        }
        let bytes = |symbol: &String| {
            symbol
                .bytes()
                .map(|b| self.id(&format!("<0x{b:02X}>")))
                .collect()
        };
        let ids = |symbol: &String| {
            if score(symbol).is_some() {
                vec![self.id(symbol)]
            } else {
                bytes(symbol)
            }
        };
        symbols.iter().flat_map(ids).collect()
    }
}

fn plain(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, Specials::AsText).unwrap()
}

fn bytes_of(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u8> {
    ids.iter()
        .flat_map(|&id| tokenizer.token_bytes(id))
        .copied()
        .collect()
}
