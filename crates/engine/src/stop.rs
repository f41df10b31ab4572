//! Stop texts in streamed text, wherever the borders of its pieces fall.

/// Finds the first of some texts in a stream, holding back only what may become one.
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// Matches any of `stops`; empty ones never match.
    pub fn new(stops: &[String]) -> StopMatcher {
        StopMatcher {
            stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(),
            held: String::new(),
        }
    }

    /// Takes more text. Returns what is certain not to belong to a stop text, and whether one was found; after that,
    /// nothing more should be pushed.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|s| self.held.find(s)).min();
        if let Some(at) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        // The longest end of the text that begins a stop text stays.
        let stay = self
            .held
            .char_indices()
            .map(|(at, _)| at)
            .find(|&at| self.stops.iter().any(|s| s.starts_with(&self.held[at..])))
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(stay);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when the stream ends.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut m = StopMatcher::new(&stops);
        let mut out = String::new();
        for p in pieces {
            let (text, hit) = m.push(p);
            out.push_str(&text);
            if hit {
                return (out, true);
            }
        }
        out.push_str(&m.flush());
        (out, false)
    }

    #[test]
    fn a_stop_text_is_found_across_pieces_and_is_not_shown() {
        assert_eq!(run(&["END"], &["abE", "N", "Dcd"]), ("ab".into(), true));
        assert_eq!(run(&["END"], &["abE", "N"]), ("abEN".into(), false));
        assert_eq!(run(&["aab"], &["aa", "aab"]), ("aa".into(), true));
    }

    #[test]
    fn the_earliest_of_several_wins_and_only_a_prefix_is_held_back() {
        assert_eq!(run(&["xyz", "b"], &["abxyz"]), ("a".into(), true));
        let mut m = StopMatcher::new(&["\n\nUser:".into()]);
        assert_eq!(m.push("hi\nthere"), ("hi\nthere".into(), false));
        assert_eq!(m.push("ü\n"), ("ü".into(), false));
        assert_eq!(m.push("é"), ("\né".into(), false));
    }

    #[test]
    fn empty_stop_texts_never_match() {
        assert_eq!(run(&[""], &["a", "b"]), ("ab".into(), false));
    }
}
