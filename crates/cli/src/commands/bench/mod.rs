//! `countdown bench`: speed, dense and sparse in turns; rows as llama-bench writes them.

mod print;
mod rows;

use crate::{
    args::{DeviceArgs, ModelArgs, SweepArgs, at_least, threads},
    bandwidth::Probe,
    console::{self, Console, json},
    failure::{Failure, Result},
    load, machine,
    plans::{CalibrationText, Packed, Planner},
    progress::Progress,
};
use clap::{Args, ValueEnum};
use countdown::{
    Device, DownLayout, Session, SessionOptions,
    bench::{Load, Variant, bench, card_bandwidth},
    formats::Checkpoint,
    kernels::DType,
    session::physical_cores,
    tokenizer::Tokenizer,
};
use print::{csv, json_array, markdown};
use rows::{Row, name, rows_of};
use std::path::PathBuf;

/// Measure speed, dense and under plans, in turns
///
/// Every combination of threads and loads is one table: all variants run it in turns, so that a noisy machine is noisy
/// for all of them. Dense runs on the weights as stored, plans on transposed down projections; on a card all run on the same. Prompts are computed
/// densely whatever the plan. GB/s are the bytes that steps read over their time; the share is that of what plain
/// reading of memory reaches, with as many threads or on the card, measured just before.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  countdown bench -m model.gguf
  countdown bench -m model.gguf -t 1,2 -p 0 -n 64 --method dense,cats,m-countdown --sparsity 0.5,0.7,0.9
  countdown bench -m model.gguf -p 0 --method dense --plan plan.safetensors --profile
  countdown bench -m model.gguf -p 0 -n 0 --ffn 32 --device cuda --method dense,m-countdown --sparsity 0.5,0.7,0.9")]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Prompt lengths, in tokens; 0 for no prompt
    #[arg(short = 'p', long, value_name = "N,...", default_value = "512", value_delimiter = ',', value_parser = at_least(0))]
    n_prompt: Vec<usize>,
    /// Tokens generated; 0 for none
    #[arg(short = 'n', long, value_name = "N,...", default_value = "128", value_delimiter = ',', value_parser = at_least(0))]
    n_gen: Vec<usize>,
    /// Passes through the FFNs of all layers and nothing else, on what they see of the token behind the context; 0 for none
    #[arg(long, value_name = "N,...", default_value = "0", value_delimiter = ',', value_parser = at_least(0))]
    ffn: Vec<usize>,
    /// Tokens in the context before the generated ones
    #[arg(short = 'd', long, value_name = "N,...", default_value = "128", value_delimiter = ',', value_parser = at_least(0))]
    n_depth: Vec<usize>,
    /// Threads [default: the physical cores]
    #[arg(short, long, value_name = "N,...", value_delimiter = ',', value_parser = threads())]
    threads: Vec<usize>,
    /// Tokens of a prompt computed together
    #[arg(short, long, value_name = "N", default_value_t = SessionOptions::default().batch, value_parser = at_least(1))]
    batch_size: usize,
    /// Runs of each variant, after one that does not count
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = at_least(1))]
    repetitions: usize,
    /// Format of the results
    #[arg(short, long, value_name = "FORMAT", default_value = "md")]
    output: Format,
    /// Show where the time of a token goes
    #[arg(long)]
    profile: bool,
    /// Text whose tokens are fed; realised sparsity depends on it [default: the built-in one]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    sweep: SweepArgs,
}

/// Formats of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Markdown
    Md,
    /// Comma-separated values
    Csv,
    /// One JSON array
    Json,
    /// One JSON object a line, as soon as it is measured
    Jsonl,
}

pub(crate) fn run(console: &Console, args: &BenchArgs) -> Result<()> {
    let wishes = args.sweep.wishes()?;
    let has_plans = !wishes.is_empty() || !args.sweep.plan.is_empty();
    let has_dense = args.sweep.method.iter().any(|m| m.is_dense()) || !has_plans;
    let loads = loads(args)?;
    let text = CalibrationText::open(args.file.as_deref())?;
    let checkpoint = args.model.model.open(console)?;
    let tokenizer = load::tokenizer(console, &checkpoint)?;
    let tokens = bench_tokens(&tokenizer, &text)?;
    let thread_counts = if args.threads.is_empty() {
        vec![physical_cores()]
    } else {
        args.threads.clone()
    };
    let most = thread_counts.iter().copied().max().unwrap_or(1);
    let open = |layout| load::model(console, &checkpoint, layout, most);
    let options = SessionOptions {
        context: loads.iter().map(|l| l.positions()).max(),
        batch: args.batch_size,
        cache_dtype: CACHE,
        ..SessionOptions::default()
    };
    let reads_weights = loads.iter().any(|l| !matches!(l, Load::Prompt(_)));
    let mut contest = Packed::default();
    let mut plans = Vec::new();
    let mut transposed = None;
    if has_plans {
        let model = open(DownLayout::Transposed)?;
        let planner = Planner {
            console,
            model: &model,
            tokenizer: &tokenizer,
            threads: most,
            device: args.device,
        };
        for path in &args.sweep.plan {
            plans.push(planner.open(path)?);
        }
        if !wishes.is_empty() {
            let text = CalibrationText::open(args.sweep.calibration.as_deref())?;
            plans.extend(planner.cached_or_fitted(&wishes, &text)?);
        }
        transposed = Some(model);
    }
    let any = match &transposed {
        Some(model) => model.clone(),
        None => open(DownLayout::Stored)?,
    };
    let mut run = Run {
        console,
        args,
        checkpoint: &checkpoint,
        tokens: &tokens,
        rows: Vec::new(),
    };
    if let Some(session) = args.device.on_card(console, &any, &plans, &options)? {
        if args.profile {
            return Err(Failure::input(
                "--profile times parts as the CPU issues them, which says nothing of a card",
                "leave it out, or use --device cpu",
            ));
        }
        load::announce_with(console, &session, CACHE, &load::count(&plans));
        let dense = has_dense.then_some(None).into_iter();
        let plans = plans.into_iter().map(Some);
        let variants = dense.chain(plans).map(|plan| Variant { session: 0, plan });
        contest.models.push(any);
        contest.variants = variants.collect();
        let readable = match session.runs_on() {
            Device::Cuda(card) if reads_weights => card_bandwidth(card, session.kernel_cache())?,
            _ => None,
        };
        let place = Place::Card(readable);
        run.all(&loads, &contest, &mut [session], place)?;
        return run.print();
    }
    if has_dense {
        contest.add_dense(&*open(DownLayout::Stored)?, most)?;
    }
    if let Some(model) = &transposed {
        contest.add_plans(model, &plans, most)?;
    }
    let probe = reads_weights.then(Probe::new);
    for (i, &threads) in thread_counts.iter().enumerate() {
        let mut sessions = contest.sessions(&SessionOptions {
            threads: Some(threads),
            ..options.clone()
        })?;
        if i == 0
            && let Some(session) = sessions.first()
        {
            load::announce_with(console, session, CACHE, &load::count(&plans));
        }
        let readable = probe.as_ref().map(|p| p.gb_s(threads)).transpose()?;
        let place = Place::Cpu { threads, readable };
        run.all(&loads, &contest, &mut sessions, place)?;
    }
    run.print()
}

/// What variants run on, and the GB/s that it reads where nothing else is done.
#[derive(Clone, Copy)]
enum Place {
    /// So many threads.
    Cpu {
        threads: usize,
        readable: Option<f64>,
    },
    Card(Option<f64>),
}

/// A benchmark under way.
struct Run<'a> {
    console: &'a Console,
    args: &'a BenchArgs,
    checkpoint: &'a Checkpoint,
    tokens: &'a [u32],
    rows: Vec<Row>,
}

impl Run<'_> {
    /// Measures all loads.
    fn all(
        &mut self,
        loads: &[Load],
        contest: &Packed,
        sessions: &mut [Session],
        place: Place,
    ) -> Result<()> {
        let (threads, readable) = match place {
            Place::Cpu { threads, readable } => (threads, readable),
            Place::Card(readable) => (0, readable),
        };
        for &load in loads {
            let variants = match load {
                Load::Prompt(_) => prompt_variants(contest),
                Load::Steps { .. } | Load::Ffns { .. } => contest.variants.clone(),
            };
            let started = machine::utc_now();
            let results = {
                let what = match place {
                    Place::Cpu { threads, .. } => format!("{}, {threads} threads", name(load)),
                    Place::Card(_) => name(load),
                };
                let bar = Progress::bar(self.console, &what);
                let (tokens, times) = (self.tokens, self.args.repetitions);
                bench(sessions, &variants, load, tokens, times, |d, all| {
                    bar.update(d, all);
                })?
            };
            let about = (self.args, self.checkpoint);
            let how = (threads, load);
            let mut new = rows_of(contest, about, how, &variants, &results);
            for row in &mut new {
                row.test_time.clone_from(&started);
                row.bandwidth_share = row.gb_s.zip(readable).map(|(gb_s, all)| gb_s / all);
                if let Place::Card(_) = place {
                    row.backends = "CUDA".into();
                    row.gpu_info = sessions[0].device();
                }
            }
            if self.args.output == Format::Jsonl {
                for row in &new {
                    console::print(json(row)? + "\n")?;
                }
            }
            self.rows.extend(new);
        }
        Ok(())
    }

    /// Prints the rows that are not printed yet.
    fn print(self) -> Result<()> {
        match self.args.output {
            Format::Jsonl => Ok(()),
            Format::Json => console::print(json_array(&self.rows)?),
            Format::Csv => console::print(csv(&self.rows)?),
            Format::Md => console::print(markdown(&self.rows)),
        }
    }
}

/// The cache's type.
const CACHE: DType = DType::F16;

/// The loads asked for; prompts first, as llama-bench has them.
fn loads(args: &BenchArgs) -> Result<Vec<Load>> {
    let positive = |list: &[usize]| list.iter().copied().filter(|&n| n > 0).collect::<Vec<_>>();
    let mut loads: Vec<Load> = positive(&args.n_prompt)
        .into_iter()
        .map(Load::Prompt)
        .collect();
    for tokens in positive(&args.n_gen) {
        let steps = |&depth: &usize| Load::Steps { tokens, depth };
        loads.extend(args.n_depth.iter().map(steps));
    }
    for passes in positive(&args.ffn) {
        let ffns = |&depth: &usize| Load::Ffns { passes, depth };
        loads.extend(args.n_depth.iter().map(ffns));
    }
    if loads.is_empty() {
        return Err(Failure::input(
            "there is nothing to measure: neither a prompt (-p) nor generated tokens (-n) nor FFNs (--ffn)",
            "give -p, -n or --ffn a number above 0",
        ));
    }
    Ok(loads)
}

fn bench_tokens(tokenizer: &Tokenizer, text: &CalibrationText) -> Result<Vec<u32>> {
    let mut tokens: Vec<u32> = load::opening(tokenizer).into_iter().collect();
    tokens.extend(load::text_tokens(tokenizer, text.text())?);
    Ok(tokens)
}

/// Prompts are dense whatever the plan, but for how down lies in memory; the packing of its rows does not matter to them.
fn prompt_variants(contest: &Packed) -> Vec<Variant> {
    let has_dense = contest.variants.first().is_some_and(|v| v.plan.is_none());
    let layouts = 1 + usize::from(has_dense);
    (0..contest.models.len().min(layouts))
        .map(|session| Variant {
            session,
            plan: None,
        })
        .collect()
}
