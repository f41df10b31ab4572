//! `countdown convert`: a model in another format or type.

use crate::{
    args::{ModelArgs, threads},
    console::{Console, json, print},
    failure::{Failure, Result},
    load,
    progress::Progress,
    table,
};
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use countdown::{
    convert::{self, Existing, Request, Summary, Weights},
    session::physical_cores,
};
use std::path::{Path, PathBuf};

/// Write a model in another format or type
///
/// An output that ends in .gguf is a GGUF file; any other is a folder with config.json, tokenizer and safetensors files. Weights
/// stream through, so that a model need not fit into memory.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  countdown convert -m ./Qwen2.5-0.5B-Instruct -o qwen.gguf --type Q4_K_M
  countdown convert -m hf:ORG/NAME -o model.gguf --type Q8_0
  countdown convert -m model.gguf -o ./model --type BF16")]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// GGUF file or folder to write
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// Storage type of matrices [default: the one each has]
    #[arg(long = "type", value_name = "TYPE", ignore_case = true, value_parser = types())]
    weights: Option<Weights>,
    /// Replace what is there
    #[arg(long)]
    force: bool,
    /// Threads; the physical cores by default
    #[arg(short, long, value_name = "N", value_parser = threads())]
    threads: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(console: &Console, args: &ConvertArgs) -> Result<()> {
    if args
        .output
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("safetensors"))
    {
        return Err(Failure::input(
            format!("{} is one file of a folder", args.output.display()),
            "name the folder: config.json and the tokenizer go beside the weights",
        ));
    }
    if !args.output.is_dir() {
        load::check_writable(&args.output)?;
    }
    let checkpoint = args.model.model.open(console)?;
    let request = Request {
        output: &args.output,
        weights: args.weights.unwrap_or(Weights::AsStored),
        existing: match args.force {
            true => Existing::Replace,
            false => Existing::Refuse,
        },
        threads: args.threads.unwrap_or_else(physical_cores),
    };
    let summary = {
        let bar = Progress::bar(console, "converting");
        convert::convert(&checkpoint, &request, &mut |done, all| {
            bar.update(done as usize, all as usize);
            Ok(())
        })?
    };
    if let Some((name, dtype)) = summary.fallbacks.first() {
        console.note(format_args!(
            "{} matrices have rows that are no whole blocks of the type; {name} and its like are stored as {dtype}",
            summary.fallbacks.len(),
        ));
    }
    if summary.requantised {
        console.warn("the weights were quantised before: what that lost is not won back, start from 16 bits where you can");
    }
    for sentence in &summary.left_out {
        console.warn(sentence);
    }
    print(if args.json {
        json(&object(&args.output, &summary))? + "\n"
    } else {
        line(&args.output, &summary)
    })
}

fn line(output: &Path, summary: &Summary) -> String {
    let types: Vec<String> = summary
        .types
        .iter()
        .map(|(dtype, bytes)| format!("{dtype} {}", table::bytes(*bytes as f64)))
        .collect();
    format!(
        "{}: {} parameters, {} ({})\n",
        output.display(),
        table::parameters(summary.parameters),
        table::bytes(summary.bytes as f64),
        types.join(", ")
    )
}

fn object(output: &Path, summary: &Summary) -> serde_json::Value {
    let by_type = |list: &[(countdown::kernels::DType, u64)]| {
        let entry = |(dtype, bytes): &(countdown::kernels::DType, u64)| {
            (dtype.name().to_owned(), serde_json::Value::from(*bytes))
        };
        list.iter().map(entry).collect::<serde_json::Map<_, _>>()
    };
    serde_json::json!({
        "output": output,
        "parameters": summary.parameters,
        "bytes": summary.bytes,
        "bytes_by_type": by_type(&summary.types),
        "fallbacks": summary.fallbacks.len(),
        "requantised": summary.requantised,
        "left_out": summary.left_out,
    })
}

fn types() -> impl TypedValueParser<Value = Weights> {
    PossibleValuesParser::new(Weights::names())
        .try_map(|name| Weights::from_name(&name).ok_or("there is no such type"))
}
