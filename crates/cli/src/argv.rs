//! llama.cpp's long flags with a single dash (`-sys`, `-st`), which the parser of the command line does not know.

use std::ffi::OsString;

/// What is typed, and what it stands for.
const SINGLE_DASH: [(&str, &str); 4] = [
    ("-sys", "--system-prompt"),
    ("-st", "--single-turn"),
    ("-co", "--color"),
    ("-ctk", "--cache-type"),
];

/// Flags whose value is free text: what follows them is never a flag.
const TEXT: [&str; 6] = [
    "-p",
    "--prompt",
    "-r",
    "--reverse-prompt",
    "-sys",
    "--system-prompt",
];

/// The arguments with single-dash long flags spelled out.
pub(crate) fn spelled_out(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut after_text_flag = false;
    let mut spell = |argument: OsString| {
        let is_text = std::mem::take(&mut after_text_flag);
        let Some(typed) = argument.to_str().filter(|_| !is_text) else {
            return argument;
        };
        after_text_flag = TEXT.contains(&typed);
        let (flag, value) = match typed.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (typed, None),
        };
        match (SINGLE_DASH.iter().find(|(short, _)| *short == flag), value) {
            (Some((_, long)), Some(value)) => format!("{long}={value}").into(),
            (Some((_, long)), None) => (*long).into(),
            (None, _) => argument,
        }
    };
    arguments.into_iter().map(&mut spell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(line: &str) -> String {
        let arguments = spelled_out(line.split(' ').map(OsString::from));
        let words: Vec<&str> = arguments.iter().filter_map(|a| a.to_str()).collect();
        words.join(" ")
    }

    #[test]
    fn single_dash_flags_are_spelled_out_but_text_is_left_alone() {
        assert_eq!(
            spelled("chat -sys hello -st -co=off -ctk f16"),
            "chat --system-prompt hello --single-turn --color=off --cache-type f16"
        );
        assert_eq!(spelled("run -p -st -st"), "run -p -st --single-turn");
        assert_eq!(spelled("run -t 4 -s"), "run -t 4 -s");
    }
}
