//! Speed beside llama.cpp: its `llama-bench` and our `countdown bench` in turns, on the same files.

use crate::bench::{Result, median, number, rows, text};
use clap::Args;
use countdown_report::table::Table;
use std::{ffi::OsString, fs, path::PathBuf};

/// Measure dense speed beside llama.cpp, prompts and decoding, a round of each in turns
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
    /// Prompt lengths, in tokens; 0 for no prompt
    #[arg(
        short = 'p',
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "512"
    )]
    n_prompt: Vec<usize>,
    /// Tokens generated; 0 for none
    #[arg(
        short = 'n',
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "32"
    )]
    n_gen: Vec<usize>,
    /// Tokens in the context before the generated ones
    #[arg(
        short = 'd',
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "64"
    )]
    n_depth: Vec<usize>,
    /// Rounds
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// Put the table into this file, between the lines `<!-- peers -->` and `<!-- /peers -->`
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// What is measured, and on what.
struct Case<'a> {
    model: &'a PathBuf,
    threads: usize,
    test: Test,
}

/// What llama-bench calls a test: a prompt, or tokens generated after a context.
#[derive(Clone, Copy)]
struct Test {
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
}

impl Test {
    /// llama-bench's name of it.
    fn name(self) -> String {
        match self {
            Test { n_gen: 0, .. } => format!("pp{}", self.n_prompt),
            Test { n_depth: 0, .. } => format!("tg{}", self.n_gen),
            _ => format!("tg{} @ d{}", self.n_gen, self.n_depth),
        }
    }
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
        for &test in &tests {
            for &threads in &args.threads {
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
        for (case, done) in &mut cases {
            let name = case.test.name();
            let model = case.model.display();
            eprintln!(
                "round {} of {}: {model} {name}, {} threads",
                round + 1,
                args.rounds,
                case.threads
            );
            let asked = case.arguments();
            let llama = &rows(&args.llama_bench, &asked)?[0];
            let before = ["bench", "-q"].map(OsString::from);
            let countdown = &rows(&args.countdown, before.iter().chain(&asked))?[0];
            peer = format!(
                "llama.cpp {} on {}",
                text(llama, "build_commit"),
                text(llama, "cpu_info")
            );
            done.push(Round {
                llama: number(llama, "avg_ts")?,
                countdown: number(countdown, "avg_ts")?,
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

/// The tests asked for; prompts first, as llama-bench has them.
fn tests(args: &PeersArgs) -> Vec<Test> {
    let positive = |list: &[usize]| list.iter().copied().filter(|&n| n > 0).collect::<Vec<_>>();
    let prompt = |n_prompt| Test {
        n_prompt,
        n_gen: 0,
        n_depth: 0,
    };
    let mut tests: Vec<Test> = positive(&args.n_prompt).into_iter().map(prompt).collect();
    for n_gen in positive(&args.n_gen) {
        tests.extend(args.n_depth.iter().map(|&n_depth| Test {
            n_prompt: 0,
            n_gen,
            n_depth,
        }));
    }
    tests
}

impl Case<'_> {
    /// What asks either bench for one round of it, after one that does not count.
    fn arguments(&self) -> Vec<OsString> {
        let Test {
            n_prompt,
            n_gen,
            n_depth,
        } = self.test;
        let numbers = [
            ("-p", n_prompt),
            ("-n", n_gen),
            ("-d", n_depth),
            ("-t", self.threads),
            ("-r", 1),
        ];
        let mut all: Vec<OsString> = ["-o", "jsonl", "-m"].map(OsString::from).to_vec();
        all.push(self.model.into());
        for (flag, n) in numbers {
            all.extend([flag.into(), n.to_string().into()]);
        }
        all
    }
}

/// A row a model, a column a test and number of threads.
fn table(cases: &[(Case, Vec<Round>)], peer: &str) -> String {
    let first = cases.first().map(|(case, _)| case.model);
    let columns: Vec<_> = cases
        .iter()
        .filter(|(case, _)| Some(case.model) == first)
        .map(|(case, _)| format!("{}, -t {}", case.test.name(), case.threads))
        .collect();
    let header: Vec<&str> = std::iter::once("model")
        .chain(columns.iter().map(String::as_str))
        .collect();
    let mut table = Table::new(&header);
    for row in cases.chunks(columns.len().max(1)) {
        let model = row[0].0.model.file_stem().unwrap_or_default();
        let cell = |(_, rounds): &(Case, Vec<Round>)| {
            let of = |f: fn(&Round) -> f64| median(rounds.iter().map(f));
            let (llama, countdown) = (of(|r| r.llama), of(|r| r.countdown));
            let ratio = of(|r| r.countdown / r.llama);
            format!("**{ratio:.2}** ({countdown:.1} / {llama:.1})")
        };
        let name = model.display().to_string();
        table.row(std::iter::once(name).chain(row.iter().map(cell)));
    }
    let rounds = cases.first().map_or(0, |(_, rounds)| rounds.len());
    format!(
        "{}\nRatio (countdown / llama.cpp, tokens a second), medians of {rounds} rounds in turns; {peer}.\n",
        table.markdown()
    )
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
    fn prompts_come_first_and_every_test_has_llama_bench_s_name() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            peers: PeersArgs,
        }
        let names = |line: &str| {
            let line = format!("peers --llama-bench b -m m {line}");
            let line = <Line as clap::Parser>::try_parse_from(line.split(' ')).unwrap();
            let tests = tests(&line.peers).into_iter();
            tests.map(Test::name).collect::<Vec<_>>()
        };
        assert_eq!(names("-r 1"), ["pp512", "tg32 @ d64"]);
        assert_eq!(
            names("-p 16,0,8 -n 4 -d 0,9"),
            ["pp16", "pp8", "tg4", "tg4 @ d9"]
        );
        assert_eq!(names("-p 0 -n 4"), ["tg4 @ d64"]);
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
                let test = Test {
                    n_prompt: 8,
                    n_gen: 0,
                    n_depth: 0,
                };
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
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0].split_whitespace().collect::<String>(),
            "|model|pp8,-t1|pp8,-t2|"
        );
        assert_eq!(lines[2], format!("| some-Q8_0 | {cell} | {cell} |"));
        assert_eq!(lines[3], format!("| other     | {cell} | {cell} |"));
        assert!(text.ends_with("medians of 3 rounds in turns; peer.\n"));
    }
}
