//! Time per token against context, threads, hidden size and layers: a page with tables, and charts.

use crate::bench::{Result, median, number, output, rows, text};
use clap::Args;
use countdown_report::{
    chart::{Axis, Chart, Legend, Mark, Point, Scale, Series, Stroke, Style, document},
    table::Table,
};
use serde_json::Value as Json;
use std::{
    ffi::OsString,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// Measure how the time of a dense step grows with the context, the threads, the hidden size and the layers
///
/// Contexts are those of the model given; sizes and layers those of random models of Llama's proportions, which are made for it.
/// Rounds take every case in turn, and medians count. Writes README.md, scaling.svg and the benches' own lines, scaling.jsonl.
#[derive(Args)]
#[command(
    after_help = "Example:\n  cargo build --release && cargo xtask scaling -m model-Q4_0.gguf"
)]
pub(crate) struct ScalingArgs {
    /// Model for the contexts
    #[arg(short, long, value_name = "FILE")]
    model: PathBuf,
    /// The countdown to measure
    #[arg(long, value_name = "PATH", default_value = "target/release/countdown")]
    countdown: PathBuf,
    /// Contexts that the timed tokens are the last of, in tokens
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "128,512,1024,2048,4096,8192"
    )]
    context: Vec<usize>,
    /// Hidden sizes, multiples of 256
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "512,1024,2048,4096"
    )]
    hidden: Vec<usize>,
    /// Numbers of layers
    #[arg(
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "4,8,16,32"
    )]
    layers: Vec<usize>,
    /// Threads
    #[arg(
        short,
        long,
        value_name = "N,...",
        value_delimiter = ',',
        default_value = "1,2"
    )]
    threads: Vec<usize>,
    /// Tokens timed a round
    #[arg(short = 'n', long, value_name = "N", default_value_t = 16)]
    n_gen: usize,
    /// Rounds
    #[arg(short, long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Folder for the results
    #[arg(
        short,
        long,
        value_name = "DIR",
        default_value = "docs/results/scaling"
    )]
    output: PathBuf,
}

/// Storage type of random models.
const DTYPE: &str = "Q4_0";
/// Layers of those that differ in their hidden size.
const LAYERS: usize = 8;
/// Hidden size of those that differ in their layers.
const HIDDEN: usize = 1024;
/// The context of either.
const CONTEXT: usize = 128;

/// Cases that differ in one number.
struct Sweep {
    /// What the number is.
    axis: &'static str,
    /// How the charts spread it, and the time.
    scale: Scale,
    /// What all cases have in common, for people.
    what: String,
    cases: Vec<Case>,
}

/// A model at a context, and what was measured of it.
struct Case {
    /// The number that it differs in.
    x: usize,
    model: PathBuf,
    context: usize,
    /// By threads, in the order of the arguments.
    measured: Vec<Vec<Step>>,
}

/// A step on average over a round.
#[derive(Clone, Copy)]
struct Step {
    ms: f64,
    /// Attention's share of the time.
    attention: f64,
    /// Bytes read.
    bytes: f64,
}

pub(crate) fn run(args: &ScalingArgs) -> Result<()> {
    let least = args.context.iter().chain([&CONTEXT]).min();
    if least.is_some_and(|&least| least < args.n_gen) {
        return Err(format!(
            "{} timed tokens are more than a context holds",
            args.n_gen
        ));
    }
    let models = tempfile::tempdir().map_err(|e| format!("a folder for models: {e}"))?;
    let mut sweeps = sweeps(args, models.path())?;
    let mut lines = String::new();
    for round in 1..=args.rounds {
        for sweep in &mut sweeps {
            for case in &mut sweep.cases {
                eprintln!(
                    "round {round} of {}: {} {}",
                    args.rounds, sweep.axis, case.x
                );
                measure(args, case, &mut lines)?;
            }
        }
    }
    let write = |name: &str, content: &str| {
        let path = args.output.join(name);
        fs::write(&path, content).map_err(|e| format!("{}: {e}", path.display()))
    };
    fs::create_dir_all(&args.output).map_err(|e| format!("{}: {e}", args.output.display()))?;
    let page = page(args, &sweeps, &lines);
    print!("{page}");
    write("README.md", &page)?;
    write("scaling.svg", &svg(&args.threads, &sweeps))?;
    write("scaling.jsonl", &lines)
}

/// All cases, their models made.
fn sweeps(args: &ScalingArgs, folder: &Path) -> Result<Vec<Sweep>> {
    let case = |x, model, context| Case {
        x,
        model,
        context,
        measured: vec![Vec::new(); args.threads.len()],
    };
    let random = |x, hidden, layers| {
        let model = random_model(&args.countdown, folder, hidden, layers)?;
        Ok(case(x, model, CONTEXT))
    };
    let contexts = args.context.iter().map(|&n| case(n, args.model.clone(), n));
    let hidden = args.hidden.iter().map(|&n| random(n, n, LAYERS));
    let layers = args.layers.iter().map(|&n| random(n, HIDDEN, n));
    Ok(vec![
        Sweep {
            axis: "context",
            scale: Scale::Linear,
            what: format!("`{}`", stem(&args.model)),
            cases: contexts.collect(),
        },
        Sweep {
            axis: "hidden size",
            scale: Scale::Log,
            what: format!("Random {DTYPE} models of {LAYERS} layers, context {CONTEXT}"),
            cases: hidden.collect::<Result<_>>()?,
        },
        Sweep {
            axis: "layers",
            scale: Scale::Linear,
            what: format!("Random {DTYPE} models of hidden size {HIDDEN}, context {CONTEXT}"),
            cases: layers.collect::<Result<_>>()?,
        },
    ])
}

/// Makes a model of that size in the proportions of Llama 3.2 1B: FFNs of four times the hidden size, heads of 64, four to a
/// head of keys and values.
fn random_model(countdown: &Path, folder: &Path, hidden: usize, layers: usize) -> Result<PathBuf> {
    let path = folder.join(format!("hidden{hidden}-layers{layers}.gguf"));
    if path.exists() {
        return Ok(path);
    }
    let sizes = [
        ("--hidden", hidden),
        ("--inter", 4 * hidden),
        ("--layers", layers),
        ("--heads", hidden / 64),
        ("--kv-heads", hidden / 256),
    ];
    let mut arguments: Vec<OsString> = ["-q", "synth", "--type", DTYPE, "-o"]
        .map(OsString::from)
        .to_vec();
    arguments.push(path.clone().into());
    for (flag, n) in sizes {
        arguments.extend([flag.into(), n.to_string().into()]);
    }
    output(countdown, arguments)?;
    Ok(path)
}

/// A round of a case, with all numbers of threads; its lines go behind `lines`.
fn measure(args: &ScalingArgs, case: &mut Case, lines: &mut String) -> Result<()> {
    let threads: Vec<String> = args.threads.iter().map(usize::to_string).collect();
    let mut arguments: Vec<OsString> = ["-q", "bench", "--profile", "-o", "jsonl", "-m"]
        .map(OsString::from)
        .to_vec();
    arguments.push(case.model.clone().into());
    let numbers = [
        ("-p", "0".into()),
        ("-n", args.n_gen.to_string()),
        ("-d", (case.context - args.n_gen).to_string()),
        ("-t", threads.join(",")),
        ("-r", "1".into()),
    ];
    for (flag, n) in numbers {
        arguments.extend([flag.into(), n.into()]);
    }
    let rows = rows(&args.countdown, arguments)?;
    if rows.len() != case.measured.len() {
        return Err(format!(
            "{} rows for {} numbers of threads",
            rows.len(),
            case.measured.len()
        ));
    }
    for (mut row, steps) in rows.into_iter().zip(&mut case.measured) {
        steps.push(step(&row)?);
        row["model_filename"] = stem(&case.model).into();
        // Writing to a string does not fail.
        let _ = writeln!(lines, "{row}");
    }
    Ok(())
}

fn step(row: &Json) -> Result<Step> {
    let parts = row["profile"].as_array().map_or(&[][..], Vec::as_slice);
    let sum = |key: &str, is: fn(&Json) -> bool| {
        let numbers = parts.iter().filter(|p| is(p)).map(|p| number(p, key));
        numbers.sum::<Result<f64>>()
    };
    Ok(Step {
        ms: 1e3 / number(row, "avg_ts")?,
        attention: sum("us", |p| p["part"] == "attention")? / sum("us", |_| true)?,
        bytes: sum("bytes", |_| true)?,
    })
}

fn stem(model: &Path) -> String {
    let stem = model.file_stem().unwrap_or_default();
    stem.display().to_string()
}

/// The median of a figure over rounds.
fn of(steps: &[Step], figure: impl Fn(&Step) -> f64) -> f64 {
    median(steps.iter().map(figure))
}

fn page(args: &ScalingArgs, sweeps: &[Sweep], lines: &str) -> String {
    let last: Json = lines
        .lines()
        .next_back()
        .and_then(|l| serde_json::from_str(l).ok())
        .unwrap_or_default();
    let mut page = format!(
        "# Scaling\n\n\
         Time of a dense step, in milliseconds a token: medians of {} rounds, every case in turn, of {} tokens each that are the last \
         of the context. Attention is its share of the time, GB/s the bytes read (weights and cache) over it.\n\
         countdown {} on {}; `cargo xtask scaling --help` says how, [the lines](scaling.jsonl) are the benches' own.\n\n\
         ![Time per token](scaling.svg)\n",
        args.rounds,
        args.n_gen,
        text(&last, "build_commit"),
        text(&last, "cpu_info"),
    );
    for sweep in sweeps.iter().filter(|s| !s.cases.is_empty()) {
        let table = table(&args.threads, sweep).markdown();
        // Writing to a string does not fail.
        let _ = write!(page, "\n{}:\n\n{table}", sweep.what);
    }
    page
}

/// A row a case; the columns of each number of threads side by side.
fn table(threads: &[usize], sweep: &Sweep) -> Table {
    let mut header = vec![sweep.axis.to_owned(), "MB a token".into()];
    for (i, t) in threads.iter().enumerate() {
        header.push(format!("ms, -t {t}"));
        if i > 0 {
            header.push("speed-up".into());
        }
        header.extend(["GB/s", "attention"].map(str::to_owned));
    }
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = Table::new(&header);
    for case in &sweep.cases {
        let first = &case.measured[0];
        let mut row = vec![
            case.x.to_string(),
            format!("{:.1}", of(first, |s| s.bytes) / 1e6),
        ];
        for (i, steps) in case.measured.iter().enumerate() {
            row.push(format!("{:.2}", of(steps, |s| s.ms)));
            if i > 0 {
                // Of the same round: a noisy machine is noisy for both.
                let ratios = first.iter().zip(steps).map(|(one, more)| one.ms / more.ms);
                row.push(format!("{:.2}", median(ratios)));
            }
            row.push(format!("{:.1}", of(steps, |s| s.bytes / s.ms / 1e6)));
            row.push(format!("{:.1} %", of(steps, |s| s.attention) * 100.0));
        }
        table.row(row);
    }
    table
}

/// A chart a sweep, and one of attention's share.
fn svg(threads: &[usize], sweeps: &[Sweep]) -> String {
    let chart = |sweep: &Sweep, title: String, y: Axis, figure: fn(&Step) -> f64| {
        let series = threads.iter().enumerate().map(|(i, t)| {
            let name = format!("{t} thread{}", if *t == 1 { "" } else { "s" });
            let point = |case: &Case| {
                let value = of(&case.measured[i], figure);
                Point {
                    x: case.x as f64,
                    y: value,
                    note: format!("{name}, {} {}: {value:.2}", sweep.axis, case.x),
                }
            };
            Series {
                points: sweep.cases.iter().map(point).collect(),
                name: name.clone(),
                style: Style {
                    colour: i + 1,
                    stroke: Stroke::Solid,
                    mark: Mark::Disc,
                },
            }
        });
        Chart {
            title,
            x: Axis::new(sweep.axis, sweep.scale),
            y: Axis {
                limits: (matches!(y.scale, Scale::Linear).then_some(0.0), None),
                ..y
            },
            series: series.collect(),
            size: (440.0, 290.0),
            legend: Legend::Below,
        }
    };
    let mut charts = Vec::new();
    for sweep in sweeps.iter().filter(|s| !s.cases.is_empty()) {
        let title = format!("Time per token against {}", sweep.axis);
        let time = Axis::new("ms", sweep.scale);
        charts.push(chart(sweep, title, time, |s| s.ms));
        if sweep.axis == "context" {
            let share = Axis::new("% of the time", Scale::Linear);
            charts.push(chart(sweep, "Attention's share".into(), share, |s| {
                s.attention * 100.0
            }));
        }
    }
    document("Time per token", &charts, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep() -> Sweep {
        let steps = |ms: [f64; 3]| {
            ms.map(|ms| Step {
                ms,
                attention: 0.25,
                bytes: 8e6,
            })
            .to_vec()
        };
        let case = |x, one, two| Case {
            x,
            model: PathBuf::new(),
            context: CONTEXT,
            measured: vec![steps(one), steps(two)],
        };
        Sweep {
            axis: "layers",
            scale: Scale::Linear,
            what: String::new(),
            cases: vec![
                case(4, [4.0, 5.0, 9.0], [2.0, 4.0, 3.0]),
                case(8, [8.0, 8.0, 8.0], [5.0, 5.0, 5.0]),
            ],
        }
    }

    #[test]
    fn a_row_has_medians_and_the_speed_up_of_rounds() {
        let text = table(&[1, 2], &sweep()).markdown();
        let cells: Vec<&str> = text.lines().nth(2).unwrap().split('|').collect();
        let cells: Vec<&str> = cells.iter().map(|c| c.trim()).collect();
        let expected = [
            "4", "8.0", "5.00", "1.6", "25.0 %", "3.00", "2.00", "2.7", "25.0 %",
        ];
        assert_eq!(cells[1..cells.len() - 1], expected);
    }

    #[test]
    fn a_step_is_read_from_a_row() {
        let row = serde_json::json!({ "avg_ts": 50.0, "profile": [
            { "part": "attention", "us": 5.0, "bytes": 1.0 },
            { "part": "ffn", "us": 15.0, "bytes": 2.0 },
        ]});
        let step = step(&row).unwrap();
        assert_eq!((step.ms, step.attention, step.bytes), (20.0, 0.25, 3.0));
        assert!(super::step(&serde_json::json!({})).is_err());
    }

    #[test]
    fn every_sweep_is_drawn() {
        let svg = svg(&[1, 2], &[sweep()]);
        assert!(svg.contains("Time per token against layers") && !svg.contains("NaN"));
        assert_eq!(svg.matches("<polyline").count(), 2);
    }
}
