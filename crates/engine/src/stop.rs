//! Stop strings in streamed text, across the borders of tokens.

use std::ops::ControlFlow;

use crate::{Error, Result};

/// Watches a stream of text for stop strings and holds back only what could still become one.
///
/// The stop string that ends first counts, the longest of those that end together: how the text is cut into pieces makes no
/// difference to what comes out.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// The longest end of the text so far that is the start of a stop string.
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// A matcher for `stops`, none of which may be empty.
    pub fn new(stops: Vec<String>) -> Result<Self> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::Input {
                cause: "a stop string is empty".into(),
                remedy: "leave it out, or give at least one character".into(),
            });
        }
        Ok(StopMatcher {
            stops,
            held: String::new(),
            stopped: false,
        })
    }

    /// Takes the next piece of text and hands out what is safe to show. `Break` carries the last text: a stop string came,
    /// which is not part of it, and whatever is pushed afterwards is dropped.
    pub fn push(&mut self, text: &str) -> ControlFlow<String, String> {
        if self.stopped {
            return ControlFlow::Break(String::new());
        }
        let mut text = std::mem::take(&mut self.held) + text;
        let found = self
            .stops
            .iter()
            .filter_map(|stop| text.find(stop).map(|start| (start + stop.len(), start)));
        if let Some((_, start)) = found.min() {
            self.stopped = true;
            text.truncate(start);
            return ControlFlow::Break(text);
        }
        let safe = text.len() - self.unfinished(&text);
        self.held = text.split_off(safe);
        ControlFlow::Continue(text)
    }

    /// What was held back, at the end of the text.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of `text` that are the start of a stop string, at most all but one of its bytes.
    fn unfinished(&self, text: &str) -> usize {
        let of = |stop: &String| {
            let ends = stop.char_indices().map(|(end, _)| end).rev();
            ends.take_while(|&end| end > 0)
                .find(|&end| text.ends_with(&stop[..end]))
                .unwrap_or(0)
        };
        self.stops.iter().map(of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything that comes out of `pieces`, and whether a stop string came.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut matcher =
            StopMatcher::new(stops.iter().map(|stop| stop.to_string()).collect()).unwrap();
        let mut out = String::new();
        for piece in pieces {
            match matcher.push(piece) {
                ControlFlow::Continue(text) => out += &text,
                ControlFlow::Break(text) => return (out + &text, true),
            }
        }
        out += &matcher.flush();
        (out, false)
    }

    #[test]
    fn a_stop_string_across_pieces_ends_the_text_before_it() {
        assert_eq!(
            run(&["\nUser:"], &["Hi", " there\n", "Us", "er", ": and"]),
            ("Hi there".into(), true)
        );
    }

    #[test]
    fn a_false_start_comes_out_whole() {
        assert_eq!(
            run(&["</end>"], &["a </", "en", "d", "ing"]),
            ("a </ending".into(), false)
        );
        assert_eq!(
            run(&["aab"], &["a", "a", "a", "a", "b", "x"]),
            ("aa".into(), true)
        );
        assert_eq!(run(&["END"], &["the EN"]), ("the EN".into(), false));
    }

    #[test]
    fn only_a_possible_start_is_held_back() {
        let mut matcher = StopMatcher::new(vec!["###".into(), "né".into()]).unwrap();
        assert_eq!(
            matcher.push("text #"),
            ControlFlow::Continue("text ".into())
        );
        assert_eq!(matcher.push("# 1 n"), ControlFlow::Continue("## 1 ".into()));
        assert_eq!(matcher.push("o"), ControlFlow::Continue("no".into()));
        assert_eq!(matcher.push("né"), ControlFlow::Break("".into()));
        assert_eq!(matcher.push("more"), ControlFlow::Break("".into()));
        assert_eq!(matcher.flush(), "");
    }

    #[test]
    fn the_stop_string_that_ends_first_counts() {
        assert_eq!(run(&["bcb", "abc"], &["xabcb"]), ("x".into(), true));
        assert_eq!(run(&["c", "abc"], &["xabc"]), ("x".into(), true));
        assert_eq!(run(&["abcd", "b"], &["xabcd"]), ("xa".into(), true));
    }

    #[test]
    fn an_empty_stop_string_is_refused_and_none_is_fine() {
        assert!(matches!(
            StopMatcher::new(vec!["a".into(), String::new()]),
            Err(Error::Input { .. })
        ));
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), false));
    }

    proptest! {
        #[test]
        fn the_cut_into_pieces_makes_no_difference(
            text in "[ab\u{e9}]{0,24}",
            stops in prop::collection::vec("[ab\u{e9}]{1,4}", 0..4),
            cuts in prop::collection::vec(1usize..5, 24),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let chars: Vec<char> = text.chars().collect();
            let mut pieces = Vec::new();
            let mut rest = &chars[..];
            for cut in cuts {
                let (piece, tail) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece.iter().collect::<String>());
                rest = tail;
            }
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let (out, hit) = run(&stops, &pieces);
            prop_assert_eq!((&out, hit), (&run(&stops, &[&text]).0, stops.iter().any(|stop| text.contains(stop))));
            prop_assert!(text.starts_with(&out) && (hit || out == text));
        }
    }
}
