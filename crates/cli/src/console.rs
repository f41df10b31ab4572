//! The two streams: answers and results on standard output, everything else on standard error.

use crate::failure::{Failure, Result};
use clap::ValueEnum;
use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

/// When to colour standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// What a command says beside its results.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    colored: Color,
    quiet: bool,
    verbose: u8,
}

/// Colours, as the terminal's own palette has them.
#[derive(Clone, Copy)]
pub(crate) enum Ink {
    Red,
    Green,
    Cyan,
}

impl Console {
    pub(crate) fn new(color: Color, quiet: bool, verbose: u8) -> Console {
        Console {
            colored: color,
            quiet,
            verbose,
        }
    }

    /// A line that informs; `--quiet` leaves it out.
    pub(crate) fn note(&self, line: impl Display) {
        if !self.quiet {
            say(line);
        }
    }

    /// A line only for those who want to know more.
    pub(crate) fn detail(&self, line: impl Display) {
        if self.verbose > 0 {
            say(line);
        }
    }

    /// Something that did not work but stops nothing.
    pub(crate) fn warn(&self, line: impl Display) {
        say(format_args!("{} {line}", self.ink(Ink::Red, "warning:")));
    }

    /// The mark that asks the user to type.
    pub(crate) fn invite(&self, mark: &str) {
        let mut err = io::stderr().lock();
        let _ = write!(err, "{}", self.ink(Ink::Green, mark)).and_then(|()| err.flush());
    }

    /// Why the command ended, and what can be done: one line each.
    pub(crate) fn error(&self, cause: &str, remedy: &str) {
        say(format_args!(
            "{} {}",
            self.ink(Ink::Red, "error:"),
            one_line(cause)
        ));
        say(format_args!(
            "  {} {}",
            self.ink(Ink::Cyan, "help:"),
            one_line(remedy)
        ));
    }

    /// Text for standard error, coloured where that is wanted.
    pub(crate) fn ink(&self, ink: Ink, text: &str) -> String {
        if !self.is_colored() {
            return text.to_owned();
        }
        let code = match ink {
            Ink::Red => 31,
            Ink::Green => 32,
            Ink::Cyan => 36,
        };
        format!("\x1b[1;{code}m{text}\x1b[0m")
    }

    /// Whether progress may be shown.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }

    fn is_colored(&self) -> bool {
        match self.colored {
            Color::On => true,
            Color::Off => false,
            Color::Auto => std::env::var_os("NO_COLOR").is_none() && io::stderr().is_terminal(),
        }
    }
}

/// Writes a line to standard error. Where that is closed there is nobody to tell.
fn say(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes text to standard output as it is, at once.
pub(crate) fn print(text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(Failure::output)
}

/// A value as one line of JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Failure::output(e.into()))
}

/// Names and messages come from files: a line break or an escape sequence in them must not break up the message.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split(['\n', '\r']).map(str::trim).collect();
    words
        .join(" ")
        .replace(|c: char| c.is_control(), "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_stays_on_its_line() {
        assert_eq!(one_line("a\n  b\x1b[2Jc"), "a b\u{fffd}[2Jc");
    }

    #[test]
    fn colours_are_there_only_when_wanted() {
        let ink = |color| Console::new(color, false, 0).ink(Ink::Red, "x");
        assert_eq!(ink(Color::Off), "x");
        assert_eq!(ink(Color::On), "\x1b[1;31mx\x1b[0m");
    }
}
