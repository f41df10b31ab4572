//! The table of what is supported, from what the golden tests compare.

use crate::bench::{Result, output};
use clap::Args;
use countdown_report::table::Table;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Run the golden tests and write what they compared into a table
///
/// Prints the table: a row for each family and format, with the largest difference from the original framework's logits as a share of
/// the largest logit.
#[derive(Args)]
#[command(after_help = "Example:\n  cargo xtask support --write docs/support.md")]
pub(crate) struct SupportArgs {
    /// Put a page with the table into this file
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

const HEAD: &str = "# Support

Written by `cargo xtask support --write docs/support.md`; do not edit.

Each row is tiny random models of the family, loaded from a file of the format and compared with logits of Hugging Face transformers (float32, eager attention)
at every position of a text that crosses windows and original contexts, for prompts and step by step (`crates/engine/tests/golden.rs`, fixtures by
`tools/golden.py`). The error is the largest difference, as a share of the largest logit. GGUF files are made by the `gguf` package alone. Logits for Q8_0 are those of the
dequantised weights; there steps round activations to 8 bits, and transposed down projections are quantised once more, which is what the error shows.

";

/// What a line of the tests says.
struct Line {
    family: [String; 4],
    format: &'static str,
    is_prompt: bool,
    share: f64,
}

pub(crate) fn run(args: &SupportArgs) -> Result<()> {
    let tests = [
        "test",
        "--quiet",
        "--package",
        "countdown",
        "--test",
        "golden",
        "--",
        "--nocapture",
        "--test-threads",
        "1",
    ];
    let said = output(Path::new("cargo"), tests)?;
    let lines = said.lines().filter_map(|l| l.split_once("golden\t"));
    let lines: Vec<Line> = lines.map(|(_, l)| line(l)).collect::<Result<_>>()?;
    let table = table(&lines).markdown();
    print!("{table}");
    if let Some(file) = &args.write {
        let page = format!("{HEAD}{table}");
        fs::write(file, page).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    Ok(())
}

fn line(text: &str) -> Result<Line> {
    let fields: Vec<&str> = text.split('\t').collect();
    let &[name, models, hf, gguf, file, phase, share] = &fields[..] else {
        return Err(format!(
            "golden tests print another line than expected: {text}"
        ));
    };
    let format = match file {
        "" => "safetensors",
        "f16.gguf" => "GGUF F16",
        "q8_0.gguf" => "GGUF Q8_0",
        other => return Err(format!("golden tests compare an unknown format: {other}")),
    };
    Ok(Line {
        family: [name, models, hf, gguf].map(str::to_owned),
        format,
        is_prompt: phase == "Prompt",
        share: share.parse().map_err(|e| format!("{share}: {e}"))?,
    })
}

/// A row for each family and format, in the order of the lines.
fn table(lines: &[Line]) -> Table {
    let header = [
        "family",
        "models",
        "`model_type`",
        "`general.architecture`",
        "format",
        "error in prompts",
        "error in steps",
    ];
    let mut table = Table::new(&header);
    let mut seen: Vec<(&[String; 4], &str)> = Vec::new();
    for l in lines {
        let of = (&l.family, l.format);
        if seen.contains(&of) {
            continue;
        }
        seen.push(of);
        let worst = |is_prompt| {
            let same = lines
                .iter()
                .filter(|m| (&m.family, m.format) == of && m.is_prompt == is_prompt);
            same.map(|m| m.share).fold(f64::NAN, f64::max)
        };
        let share = |x: f64| format!("{x:.1e}");
        let cells = l.family.iter().cloned();
        let others = [l.format.to_owned(), share(worst(true)), share(worst(false))];
        table.row(cells.chain(others));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_the_worst_of_its_lines() {
        let lines = [
            "a\tA 1\ta\tga\t\tPrompt\t1e-7",
            "a\tA 1\ta\tga\t\tDecode\t3e-7",
            "a\tA 1\ta\tga\t\tDecode\t2e-7",
        ];
        let lines: Vec<Line> = lines.iter().map(|l| line(l).unwrap()).collect();
        let text = table(&lines).markdown();
        assert_eq!(text.lines().count(), 3, "{text}");
        let last = text.lines().last().unwrap();
        assert!(
            ["A 1", "safetensors", "1.0e-7", "3.0e-7"]
                .iter()
                .all(|part| last.contains(part)),
            "{last}"
        );
        assert!(line("a\tb").is_err());
    }
}
