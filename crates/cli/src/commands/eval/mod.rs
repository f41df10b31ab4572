//! `countdown eval`: what plans cost in quality.

mod choice;
mod generate;
mod perplexity;

use crate::{
    args::{ComputeArgs, DeviceArgs, ModelArgs, SweepArgs, at_least, steppings},
    console::{Console, print},
    failure::Result,
    load::{self, form_name},
    plans::{CalibrationText, Planner},
    progress::Progress,
};
use clap::{ArgGroup, Args};
use countdown::{
    DownLayout, Packing, Session, SessionOptions, SparsityPlan,
    eval::{Accuracy, Stepping, Subject},
    kernels::DType,
    sparsity::Cut,
    tokenizer::Tokenizer,
};
use serde::Serialize;
use std::{iter, path::PathBuf, sync::Arc};

/// Measure perplexity, or accuracy on tasks, dense and under plans
///
/// Perplexity: the text is cut into chunks; the first half of each is a prompt, the second half is scored, as by
/// llama.cpp's perplexity tool. Choice: the candidates of a question are scored by their log-probability. Generate: the
/// model's own answer is compared with the right one. Under a plan whatever is scored is fed as generation feeds it.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("what").required(true).args(["perplexity", "choice", "generate"]))]
#[command(after_help = "Examples:
  countdown eval -m model.gguf --perplexity wiki.txt --chunks 20 --method cats,m-countdown --sparsity 0.5,0.7 --both --json
  countdown eval -m model.gguf --perplexity wiki.txt --plan plan.safetensors
  countdown eval -m model.gguf --choice arc_easy.jsonl.gz --limit 200 --method m-countdown --sparsity 0.5 --results arc.jsonl
  countdown eval -m model.gguf --generate gsm8k.jsonl --limit 50 --method m-countdown --sparsity 0.5,0.7")]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Text to score (- for standard input)
    #[arg(long, value_name = "FILE")]
    perplexity: Option<PathBuf>,
    /// Questions with candidates, as JSON lines (.gz too): rendered requests, or question (or context), choices, answer
    #[arg(long, value_name = "FILE")]
    choice: Option<PathBuf>,
    /// Prompts to answer, as JSON lines (.gz too): prompt, answer and, if wanted, pattern, stop, max_tokens; or rendered requests
    #[arg(long, value_name = "FILE")]
    generate: Option<PathBuf>,
    /// Tokens a chunk of --perplexity, or positions of the context for tasks (also: --ctx-size)
    /// [default: 512, or the model's own, but 4096 at most]
    #[arg(short = 'c', long, alias = "ctx-size", value_name = "N", value_parser = at_least(4))]
    ctx: Option<usize>,
    /// Chunks of --perplexity at most [default: the whole text]
    #[arg(long, value_name = "N", value_parser = at_least(1), conflicts_with_all = ["choice", "generate"])]
    chunks: Option<usize>,
    /// Documents of a task at most, from the first on [default: all]
    #[arg(long, value_name = "N", value_parser = at_least(1), conflicts_with = "perplexity")]
    limit: Option<usize>,
    /// Keep the result of every document of a task in this file; the same command goes on where it was ended
    #[arg(long, value_name = "FILE", conflicts_with = "perplexity")]
    results: Option<PathBuf>,
    /// How tokens are fed under a plan: one by one as in generation, or together with the same neurons skipped (quicker)
    /// [default: one; for --choice batched]
    #[arg(long, value_name = "HOW", value_parser = steppings(), conflicts_with = "generate")]
    stepping: Option<Stepping>,
    /// Print one JSON object a row
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sweep: SweepArgs,
}

pub(crate) fn run(console: &Console, args: &EvalArgs) -> Result<()> {
    match (&args.perplexity, &args.choice, &args.generate) {
        (Some(text), ..) => perplexity::run(console, args, text),
        (_, Some(task), _) => choice::run(console, args, task),
        (.., Some(task)) => generate::run(console, args, task),
        // The group of the three is required.
        _ => Ok(()),
    }
}

/// A model about to be measured.
struct Measured {
    session: Session,
    tokenizer: Tokenizer,
    plans: Vec<Arc<SparsityPlan>>,
}

impl Measured {
    /// Opens the model with a context of so many positions, or its own, and finds or fits the plans.
    fn open(console: &Console, args: &EvalArgs, context: Option<usize>) -> Result<Measured> {
        let wishes = args.sweep.wishes()?;
        let checkpoint = args.model.model.open(console)?;
        let tokenizer = load::tokenizer(console, &checkpoint)?;
        let threads = args.compute.threads();
        let layout = if wishes.is_empty() && args.sweep.plan.is_empty() {
            DownLayout::Stored
        } else {
            DownLayout::Transposed
        };
        let mut model = load::model(console, &checkpoint, layout, threads)?;
        let options = SessionOptions {
            context,
            threads: Some(threads),
            batch: args.compute.batch_size,
            cache_dtype: DType::F16,
            ..SessionOptions::default()
        };
        let planner = Planner {
            console,
            model: &model,
            tokenizer: &tokenizer,
            threads,
            device: args.device,
        };
        let mut plans = Vec::new();
        for path in &args.sweep.plan {
            plans.push(planner.open(path)?);
        }
        if !wishes.is_empty() {
            let text = CalibrationText::open(args.sweep.calibration.as_deref())?;
            plans.extend(planner.cached_or_fitted(&wishes, &text)?);
        }
        let session = match args.device.on_card(console, &model, &plans, &options)? {
            Some(session) => session,
            None => {
                // What suits them all, so that what is measured is what their steps run.
                let packing = Packing::of(plans.first().map(|p| &**p));
                let is_one = |p: &Arc<SparsityPlan>| Packing::of(Some(p)) == packing;
                if !plans.iter().all(is_one) {
                    console.detail(format_args!(
                        "these plans skip different matrices: the model stays as its file has it, which rounds differently from their steps"
                    ));
                } else if !plans.is_empty() {
                    let _spinner = Progress::spinner(console, "laying out weights");
                    let mut packed = Arc::unwrap_or_clone(model).packed(packing, threads)?;
                    for plan in &mut plans {
                        *plan = Arc::new(plan.packed(&mut packed, threads)?);
                    }
                    model = Arc::new(packed);
                }
                Session::new(model, &options)?
            }
        };
        load::announce_with(console, &session, options.cache_dtype, &load::count(&plans));
        Ok(Measured {
            session,
            tokenizer,
            plans,
        })
    }
}

/// A row of results.
#[derive(Serialize)]
struct Row<R> {
    #[serde(flatten)]
    result: R,
    /// The plan's file; `None` for dense and for plans that were fitted or cached.
    plan: Option<String>,
}

/// Prints rows, dense and then plans in their order, as JSON lines or as a table.
fn show<R: Serialize>(
    args: &EvalArgs,
    results: Vec<R>,
    table: impl Fn(&[Row<R>]) -> String,
) -> Result<()> {
    let files = iter::once(None).chain(args.sweep.plan_files());
    let rows = results.into_iter().zip(files);
    let rows: Vec<_> = rows.map(|(result, plan)| Row { result, plan }).collect();
    if !args.json {
        return print(table(&rows));
    }
    let lines: Result<String> = rows
        .iter()
        .map(|row| Ok(crate::console::json(row)? + "\n"))
        .collect();
    print(lines?)
}

/// The columns that name a row's plan.
const SUBJECT: [&str; 5] = ["method", "cut", "form", "target", "realised"];

fn subject_cells(s: &Subject, realised: f64, plan: Option<&str>) -> [String; 5] {
    [
        load::with_file(s.label(), plan),
        s.cut.map_or("-", Cut::name).into(),
        s.form.map_or("-", form_name).into(),
        format!("{:.2}", s.target),
        format!("{realised:.3}"),
    ]
}

/// A share and its standard error.
fn accuracy_cell(a: Accuracy) -> String {
    format!("{:.3} +- {:.3}", a.mean, a.stderr)
}
