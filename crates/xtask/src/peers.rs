//! Speed beside llama.cpp: its `llama-bench` and our `countdown bench` in turns, on the same files.

use clap::Args;
use serde_json::Value as Json;
use std::{fmt::Write as _, fs, path::PathBuf, process::Command};

/// Measure dense speed beside llama.cpp, a round of each in turns
///
/// Both are told the same numbers of threads and tokens and do a run that does not count before the one that does. Prints a table of
/// medians; the ratio is the median of the rounds' ratios, since a noisy machine is noisy for both of a round.
#[derive(Args)]
#[command(
    after_help = "Example:\n  cargo build --release && cargo xtask peers --llama-bench ../llama.cpp/build/bin/llama-bench -m a-Q8_0.gguf,b-Q4_0.gguf --write README.md"
)]
pub(crate) struct PeersArgs {
    /// The llama-bench of a llama.cpp built for this machine
    #[arg(long, value_name = "PATH")]
    llama_bench: PathBuf,
    /// The countdown to measure
    #[arg(long, value_name = "PATH", default_value = "target/release/countdown")]
    countdown: PathBuf,
    /// GGUF files
    #[arg(
        short,
        long,
        value_name = "FILE,...",
        value_delimiter = ',',
        required = true
    )]
    model: Vec<PathBuf>,
    /// Threads
    #[arg(
        short,
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "1,2"
    )]
    threads: Vec<usize>,
    /// Length of the prompt; 0 for none
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512)]
    n_prompt: usize,
    /// Tokens generated; 0 for none
    #[arg(short = 'n', long, value_name = "N", default_value_t = 32)]
    n_gen: usize,
    /// Tokens in the context before the generated ones
    #[arg(short = 'd', long, value_name = "N", default_value_t = 64)]
    n_depth: usize,
    /// Rounds
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// Put the table into this file, between the lines `<!-- peers -->` and `<!-- /peers -->`
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

type Result<T> = std::result::Result<T, String>;

/// What is measured, and on what.
struct Case<'a> {
    model: &'a PathBuf,
    threads: usize,
    /// Its name, and the arguments that ask for it.
    test: (String, Vec<String>),
}

/// Tokens a second of a round.
#[derive(Clone, Copy)]
struct Round {
    llama: f64,
    countdown: f64,
}

pub(crate) fn run(args: &PeersArgs) -> Result<()> {
    let tests = tests(args);
    let mut cases: Vec<(Case, Vec<Round>)> = Vec::new();
    for model in &args.model {
        for test in &tests {
            for &threads in &args.threads {
                let test = test.clone();
                let case = Case {
                    model,
                    threads,
                    test,
                };
                cases.push((case, Vec::new()));
            }
        }
    }
    let mut peer = String::new();
    for round in 0..args.rounds {
        for (case, rounds) in &mut cases {
            let name = &case.test.0;
            let model = case.model.display();
            eprintln!(
                "round {} of {}: {model} {name}, {} threads",
                round + 1,
                args.rounds,
                case.threads
            );
            let llama = row(&args.llama_bench, &[], case)?;
            let countdown = row(&args.countdown, &["bench", "-q"], case)?;
            let build = |key| llama[key].as_str().unwrap_or("?").to_owned();
            peer = format!(
                "llama.cpp {} on {}",
                build("build_commit"),
                build("cpu_info")
            );
            rounds.push(Round {
                llama: speed(&llama)?,
                countdown: speed(&countdown)?,
            });
        }
    }
    let table = table(&cases, &peer);
    print!("{table}");
    if let Some(file) = &args.write {
        let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        let text = between(&text, &table)
            .ok_or_else(|| format!("{}: has no lines {BEGIN} and {END}", file.display()))?;
        fs::write(file, text).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    Ok(())
}

fn tests(args: &PeersArgs) -> Vec<(String, Vec<String>)> {
    let arguments = |p: usize, n: usize, d: usize| {
        let all = [
            "-p",
            &p.to_string(),
            "-n",
            &n.to_string(),
            "-d",
            &d.to_string(),
        ];
        all.map(str::to_owned).to_vec()
    };
    let (p, n, d) = (args.n_prompt, args.n_gen, args.n_depth);
    let mut tests = Vec::new();
    if n > 0 {
        tests.push((format!("tg{n} @ d{d}"), arguments(0, n, d)));
    }
    if p > 0 {
        tests.push((format!("pp{p}"), arguments(p, 0, 0)));
    }
    tests
}

/// The row of results that a bench prints.
fn row(program: &PathBuf, before: &[&str], case: &Case) -> Result<Json> {
    let name = program.display();
    let output = Command::new(program)
        .args(before)
        .args(&case.test.1)
        .args([
            "-r",
            "1",
            "-o",
            "jsonl",
            "-t",
            &case.threads.to_string(),
            "-m",
        ])
        .arg(case.model)
        .output()
        .map_err(|e| format!("{name}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let mut rows = said.lines().filter_map(|l| serde_json::from_str(l).ok());
    rows.next_back().ok_or_else(|| {
        let why = String::from_utf8_lossy(&output.stderr);
        format!(
            "{name} printed no results: {}",
            why.lines().last().unwrap_or_default()
        )
    })
}

fn speed(row: &Json) -> Result<f64> {
    let speed = row["avg_ts"].as_f64();
    speed.ok_or_else(|| format!("a row without a speed: {row}"))
}

/// A row a model, a column a test and number of threads.
fn table(cases: &[(Case, Vec<Round>)], peer: &str) -> String {
    let first = cases.first().map(|(case, _)| case.model);
    let columns: Vec<_> = cases
        .iter()
        .filter(|(case, _)| Some(case.model) == first)
        .map(|(case, _)| format!("{}, -t {}", case.test.0, case.threads))
        .collect();
    let mut text = format!("| model | {} |\n|---|", columns.join(" | "));
    text += &"--:|".repeat(columns.len());
    for row in cases.chunks(columns.len().max(1)) {
        let model = row[0].0.model.file_stem().unwrap_or_default().display();
        // Writing to a string does not fail.
        let _ = write!(text, "\n| {model} |");
        for (_, rounds) in row {
            let of = |f: fn(&Round) -> f64| median(rounds.iter().map(f).collect());
            let (llama, countdown) = (of(|r| r.llama), of(|r| r.countdown));
            let ratio = of(|r| r.countdown / r.llama);
            let _ = write!(text, " **{ratio:.2}** ({countdown:.1} / {llama:.1}) |");
        }
    }
    let rounds = cases.first().map_or(0, |(_, rounds)| rounds.len());
    let _ = writeln!(
        text,
        "\n\nRatio (countdown / llama.cpp, tokens a second), medians of {rounds} rounds in turns; {peer}."
    );
    text
}

/// The middle one, or the mean of the two in the middle.
fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    match of.len() {
        0 => f64::NAN,
        n => (of[(n - 1) / 2] + of[n / 2]) / 2.0,
    }
}

const BEGIN: &str = "<!-- peers -->\n";
const END: &str = "<!-- /peers -->\n";

/// The text with what lies between the marks replaced.
fn between(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let text = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(
            between(&text, "new\n").unwrap(),
            format!("a\n{BEGIN}new\n{END}b\n")
        );
        assert!(between("a\n", "new\n").is_none());
    }

    #[test]
    fn a_table_has_a_row_a_case_and_says_what_it_was_measured_with() {
        let models = ["x/some-Q8_0.gguf", "other.gguf"].map(PathBuf::from);
        let round = |llama, countdown| Round { llama, countdown };
        let mut cases = Vec::new();
        for model in &models {
            for threads in [1, 2] {
                let test = ("pp8".into(), Vec::new());
                let rounds = vec![round(10.0, 12.0), round(8.0, 16.0), round(9.0, 9.0)];
                let case = Case {
                    model,
                    threads,
                    test,
                };
                cases.push((case, rounds));
            }
        }
        let text = table(&cases, "peer");
        let cell = "**1.20** (12.0 / 9.0)";
        assert!(
            text.starts_with("| model | pp8, -t 1 | pp8, -t 2 |\n|---|--:|--:|\n"),
            "{text}"
        );
        assert!(
            text.contains(&format!(
                "\n| some-Q8_0 | {cell} | {cell} |\n| other | {cell} | {cell} |\n"
            )),
            "{text}"
        );
        assert!(text.ends_with("medians of 3 rounds in turns; peer.\n"));
    }
}
