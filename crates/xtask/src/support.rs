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

Each row is tiny random models of the family, loaded from files of the format and compared with logits of Hugging Face transformers (float32, eager attention)
at every position of a text that crosses windows and original contexts, for prompts and step by step (`crates/engine/tests/golden.rs`, fixtures by
`tools/golden.py`). Errors are the largest differences, as shares of the largest logit; dense steps read the down projection as it is stored, sparse ones transposed. GGUF files are made by the `gguf`
package alone. Logits for Q8_0 are those of the dequantised weights; there steps round activations to 8 bits, and the transposed down projection is quantised once more: that is what the errors show.
GGUF files of Mistral mostly go by `llama`, and are then read as such, with the window that they name.

";

/// The ways in which the tests compare, and their columns.
const WAYS: [(&str, &str); 4] = [
    ("Prompt Stored", "prompts"),
    ("Decode Stored", "steps"),
    ("Prompt Transposed", "prompts, down transposed"),
    ("Decode Transposed", "steps, down transposed"),
];

/// What a line of the tests says.
struct Line {
    family: [String; 4],
    format: &'static str,
    /// Prompt or step, and how the down projection lies.
    way: usize,
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
    let &[name, models, hf, gguf, file, way, share] = &fields[..] else {
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
    let way = WAYS.iter().position(|(of, _)| *of == way);
    let way = way.ok_or_else(|| format!("golden tests compare in an unknown way: {text}"))?;
    Ok(Line {
        family: [name, models, hf, gguf].map(str::to_owned),
        format,
        way,
        share: share.parse().map_err(|e| format!("{share}: {e}"))?,
    })
}

/// A row for each family and format, in the order of the lines.
fn table(lines: &[Line]) -> Table {
    let of = [
        "family",
        "models",
        "`model_type`",
        "`general.architecture`",
        "format",
    ];
    let mut table = Table::new(&[&of[..], &WAYS.map(|(_, column)| column)].concat());
    let mut seen: Vec<(&[String; 4], &str)> = Vec::new();
    for l in lines {
        let of = (&l.family, l.format);
        if seen.contains(&of) {
            continue;
        }
        seen.push(of);
        let worst = |way| {
            let same = lines
                .iter()
                .filter(|m| (&m.family, m.format) == of && m.way == way);
            let worst = same.map(|m| m.share).fold(f64::NAN, f64::max);
            format!("{worst:.1e}")
        };
        let cells = l.family.iter().cloned().chain([l.format.to_owned()]);
        let others = (0..WAYS.len()).map(worst);
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
            "a\tA 1\ta\tga\t\tPrompt Stored\t1e-7",
            "a\tA 1\ta\tga\t\tDecode Transposed\t3e-7",
            "a\tA 1\ta\tga\t\tDecode Transposed\t2e-7",
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
