//! `countdown compare`: all methods on one model and one text, as one report.

mod bytes;
mod candidates;
mod page;
mod phases;
mod plots;
mod results;
mod table;

use crate::{
    args::{ComputeArgs, DeviceArgs, ModelArgs, at_least, steppings},
    console::{Console, print},
    failure::{Failure, Result},
    load,
    plans::{CalibrationText, Planner},
    table as tables,
};
use bytes::Bytes;
use candidates::{FieldArgs, candidates};
use clap::Args;
use countdown::{DownLayout, Session, SessionOptions, eval::Stepping, kernels::DType};
use phases::{Comparison, Task};
use results::{About, Results, Settings, TextAbout};
use std::path::{Path, PathBuf};

/// Compare all methods on one model and one text, and write a report
///
/// Perplexity, agreement with dense, bytes, speed, and where the methods choose other neurons than the exact choice, as
/// results.json and one page, index.html. What a folder holds of the same model, texts and settings is not measured again: a run
/// that was interrupted goes on, and methods, sparsities and plans can be added.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  countdown compare -m model.gguf --text wiki.txt -o report
  countdown compare -m model.gguf --text wiki.txt --choice arc_easy.jsonl.gz --limit 200 -o report
  countdown compare -m model.gguf --text wiki.txt --plan trained-0.7.safetensors -o report
  countdown compare -m model.gguf --text wiki.txt --method cats,m-countdown --sparsity 0.5,0.7 --steps 0 -o report")]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Text to score, none that plans or predictors were fitted on
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Questions with candidates to be answered, too; see `countdown eval --choice`
    #[arg(long, value_name = "FILE")]
    choice: Option<PathBuf>,
    /// Questions at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = at_least(1), requires = "choice")]
    limit: usize,
    /// Folder of the report; made if it is not there
    #[arg(short, long, value_name = "FOLDER")]
    output: PathBuf,
    /// Tokens a chunk; the second half of each is scored
    #[arg(short = 'c', long, alias = "ctx-size", value_name = "N", default_value_t = 512, value_parser = at_least(4))]
    ctx: usize,
    /// Chunks at most
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least(1))]
    chunks: usize,
    /// How scored tokens are fed under a plan
    #[arg(long, value_name = "HOW", default_value = "batched", value_parser = steppings())]
    stepping: Stepping,
    /// Steps timed a run; 0 leaves speed out
    #[arg(long, value_name = "N", default_value_t = 64)]
    steps: usize,
    /// Tokens in the context before the steps
    #[arg(short = 'd', long, value_name = "N", default_value_t = 128)]
    depth: usize,
    /// Timed runs of each plan, in turns with dense
    #[arg(short, long, value_name = "N", default_value_t = 3, value_parser = at_least(1))]
    repetitions: usize,
    #[command(flatten)]
    field: FieldArgs,
}

/// Texts shorter than this say nothing about choices.
const LEAST_TOKENS: usize = 64;
/// The type of keys and values.
const CACHE: DType = DType::F16;

pub(crate) fn run(console: &Console, args: &CompareArgs) -> Result<()> {
    let text = load::text_file(&args.text)?;
    let calibration = CalibrationText::open(args.field.calibration.as_deref())?;
    if text == calibration.text() {
        return Err(Failure::input(
            "the text to score is the one that plans are fitted on",
            "give --text or --calibration another text",
        ));
    }
    let task = args.choice.as_deref().map(Task::open).transpose()?;
    let checkpoint = args.model.model.open(console)?;
    let tokenizer = load::tokenizer(console, &checkpoint)?;
    let tokens = load::text_tokens(&tokenizer, &text)?;
    check_length(args, &tokens)?;
    let threads = args.compute.threads();
    let open = |layout| load::model(console, &checkpoint, layout, threads);
    let (stored, model) = (open(DownLayout::Stored)?, open(DownLayout::Transposed)?);
    let positions = args.steps + args.depth;
    if args.steps > 0 && positions > model.config.context {
        return Err(Failure::input(
            format!(
                "{} steps after {} tokens are beyond the {} positions the model was trained for",
                args.steps, args.depth, model.config.context
            ),
            "use fewer --steps or less --depth",
        ));
    }
    let planner = Planner {
        console,
        model: &model,
        tokenizer: &tokenizer,
        threads,
        device: DeviceArgs::CPU,
    };
    let candidates = candidates(&args.field, &planner)?;
    let hash = |text: &str| blake3::hash(text.as_bytes()).to_hex().to_string();
    let settings = Settings {
        model: model.fingerprint.clone(),
        text: hash(&text),
        calibration: hash(calibration.text()),
        ctx: args.ctx,
        chunks: args.chunks,
        stepping: format!("{:?}", args.stepping).to_lowercase(),
        fit: args.field.fit.fit(),
    };
    let name = |path: &Path| {
        let name = path.file_name().unwrap_or(path.as_os_str());
        name.to_string_lossy().into_owned()
    };
    let about = About {
        model: format!(
            "{} {}",
            model.config.family,
            tables::parameters(model.parameters())
        ),
        model_file: args.model.model.name(),
        weights: load::weight_types(&stored).join("+"),
        text: TextAbout {
            name: name(&args.text),
            tokens: tokens.len(),
        },
        calibration: TextAbout {
            name: name(Path::new(calibration.name())),
            tokens: load::text_tokens(&tokenizer, calibration.text())?.len(),
        },
    };
    let results = Results::resume(&args.output, settings, about)?;
    let options = SessionOptions {
        context: Some(args.ctx),
        threads: Some(threads),
        batch: args.compute.batch_size,
        cache_dtype: CACHE,
        ..SessionOptions::default()
    };
    let session = Session::new(model.clone(), &options)?;
    load::announce_with(
        console,
        &session,
        CACHE,
        &format!("dense and {} plans", candidates.len()),
    );
    let mut comparison = Comparison {
        console,
        args,
        bytes: Bytes::of(&stored, &model),
        stored,
        planner,
        calibration,
        tokens,
        task,
        session,
        candidates,
        results,
    };
    comparison.run()?;
    console.note(format_args!(
        "the report is {}",
        args.output.join(page::FILE).display()
    ));
    print(table::markdown(&comparison.results.rows))
}

/// Refuses a text that is too short for one chunk or for comparing choices: before plans are fitted, not after.
fn check_length(args: &CompareArgs, tokens: &[u32]) -> Result<()> {
    let least = args.ctx.max(LEAST_TOKENS);
    if tokens.len() >= least {
        return Ok(());
    }
    Err(Failure::input(
        format!(
            "{} has {} tokens, at least {least} are needed",
            args.text.display(),
            tokens.len()
        ),
        "give a longer text, or a smaller --ctx",
    ))
}
