//! `countdown eval`: what plans cost in quality.

use crate::{
    args::{ComputeArgs, ModelArgs, SweepArgs, at_least},
    console::{Console, print},
    failure::Result,
    load::{self, form_name},
    plans::{CalibrationText, Planner},
    progress::Progress,
    table::Table,
};
use clap::{Args, ValueEnum};
use countdown::{
    DownLayout, Session, SessionOptions,
    eval::{PerplexityOptions, PerplexityRow, Stepping, perplexity},
    formats::Checkpoint,
    kernels::DType,
    sparsity::Cut,
};
use std::{path::PathBuf, sync::Arc};

/// Measure perplexity, dense and under plans
///
/// The text is cut into chunks; the first half of each is a prompt, the second half is scored, as by llama.cpp's
/// perplexity tool. Under a plan the second half is fed token by token.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  countdown eval -m model.gguf --perplexity wiki.txt
  countdown eval -m model.gguf --perplexity wiki.txt --chunks 20 --method cats,m-countdown --sparsity 0.5,0.7,0.9
  countdown eval -m model.gguf --perplexity wiki.txt --method m-countdown --sparsity 0.7 --cut layer,neuron --both --json
  countdown eval -m model.gguf --perplexity wiki.txt --plan plan.safetensors")]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Text to score (- for standard input)
    #[arg(long, value_name = "FILE")]
    perplexity: PathBuf,
    /// Tokens a chunk (also: --ctx-size)
    #[arg(short = 'c', long, alias = "ctx-size", value_name = "N", default_value_t = 512, value_parser = at_least(4))]
    ctx: usize,
    /// Chunks at most [default: the whole text]
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    chunks: Option<usize>,
    /// How tokens are fed under a plan: one by one as in generation, or together with the same neurons skipped (quicker)
    #[arg(long, value_name = "HOW", default_value = "one")]
    stepping: HowFed,
    /// Print one JSON object a row
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sweep: SweepArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum HowFed {
    One,
    Batched,
}

pub(crate) fn run(console: &Console, args: &EvalArgs) -> Result<()> {
    let wishes = args.sweep.wishes()?;
    let text = load::text_file(&args.perplexity)?;
    let checkpoint = Checkpoint::open(&args.model.model)?;
    let tokenizer = load::tokenizer(console, &checkpoint)?;
    let tokens = load::text_tokens(&tokenizer, &text)?;
    let threads = args.compute.threads();
    let layout = if wishes.is_empty() && args.sweep.plan.is_empty() {
        DownLayout::Stored
    } else {
        DownLayout::Transposed
    };
    let model = load::model(console, &checkpoint, layout, threads)?;
    let options = SessionOptions {
        context: Some(args.ctx),
        threads: Some(threads),
        batch: args.compute.batch_size,
        cache_dtype: DType::F16,
    };
    let mut session = Session::new(model.clone(), &options)?;
    let planner = Planner {
        console,
        model: &model,
        tokenizer: &tokenizer,
        threads,
    };
    let mut plans: Vec<Arc<_>> = Vec::new();
    for path in &args.sweep.plan {
        plans.push(planner.open(path)?);
    }
    if !wishes.is_empty() {
        let text = CalibrationText::open(args.sweep.calibration.as_deref())?;
        plans.extend(planner.cached_or_fitted(&wishes, &text)?);
    }
    load::announce_with(console, &session, options.cache_dtype, &load::count(&plans));
    let options = PerplexityOptions {
        ctx: args.ctx,
        chunks: args.chunks,
        stepping: match args.stepping {
            HowFed::One => Stepping::OneByOne,
            HowFed::Batched => Stepping::Batched,
        },
    };
    let rows = {
        let bar = Progress::bar(console, "scoring");
        let opening = load::opening(&tokenizer);
        perplexity(
            &mut session,
            &tokens,
            opening,
            &plans,
            &options,
            |d, all| {
                bar.update(d, all);
            },
        )?
    };
    print(if args.json {
        json(&rows)?
    } else {
        table(&rows)
    })
}

fn json(rows: &[PerplexityRow]) -> Result<String> {
    rows.iter()
        .map(|row| Ok(crate::console::json(row)? + "\n"))
        .collect()
}

fn table(rows: &[PerplexityRow]) -> String {
    let mut table = Table::new(&[
        "method",
        "cut",
        "form",
        "target",
        "realised",
        "tokens",
        "perplexity",
        "+-",
        "ratio",
        "KL",
        "top-1",
    ]);
    let dense = rows.first().map_or(1.0, |r| r.perplexity);
    for r in rows {
        table.row([
            r.label(),
            r.cut.map_or("-", Cut::name).into(),
            r.form.map_or("-", form_name).into(),
            format!("{:.2}", r.target),
            format!("{:.3}", r.realised),
            r.tokens.to_string(),
            format!("{:.4}", r.perplexity),
            format!("{:.4}", r.stderr),
            format!("{:.3}", r.perplexity / dense),
            format!("{:.4}", r.kl),
            format!("{:.3}", r.top1),
        ]);
    }
    table.markdown()
}
