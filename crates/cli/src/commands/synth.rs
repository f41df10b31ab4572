//! `countdown synth`: a random model of any shape, to measure speed without a download.

use crate::{
    args::{self, at_least},
    console::{Console, json, print},
    failure::{Failure, Result},
    load,
    progress::Progress,
    table::{self, Table},
};
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use countdown::{
    formats::gguf,
    kernels::DType,
    synth::{self, Arch, Shape},
};
use std::path::{Path, PathBuf};

/// Write a model with random weights of a known or given shape
///
/// Speed depends on shapes and types, not on what a model knows. Its text is noise.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  countdown synth --list
  countdown synth llama-3.2-1b --type Q4_0 -o synth1b-q4_0.gguf
  countdown synth llama-3.1-8b --layers 4 --type Q8_0 -o four-layers.gguf
  countdown synth --hidden 1024 --inter 4096 --layers 8 --heads 16 --type F16 -o own.gguf")]
pub(crate) struct SynthArgs {
    /// Name of a known shape (--list shows them); flags below change it
    shape: Option<String>,
    /// List the known shapes
    #[arg(long, exclusive = true)]
    list: bool,
    /// Storage type of matrices
    #[arg(long = "type", value_name = "TYPE", default_value = "Q4_K", value_parser = args::dtypes(gguf::dtypes()))]
    dtype: DType,
    /// GGUF file to write
    #[arg(short, long, value_name = "FILE", required_unless_present = "list")]
    output: Option<PathBuf>,
    /// Same seed, same weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sizes: SizeArgs,
}

/// Sizes of a shape.
#[derive(Args, Debug)]
#[command(next_help_heading = "Shape")]
struct SizeArgs {
    /// Family [default: llama]
    #[arg(long, value_name = "NAME", value_parser = families())]
    arch: Option<Arch>,
    /// Width of the residual stream
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    hidden: Option<usize>,
    /// Neurons of an FFN
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    inter: Option<usize>,
    /// Layers
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    layers: Option<usize>,
    /// Query heads
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    heads: Option<usize>,
    /// Key and value heads [default: as many as heads]
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    kv_heads: Option<usize>,
    /// Width of a head [default: hidden / heads]
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    head_dim: Option<usize>,
    /// Tokens in the vocabulary [default: 32000]
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    vocab: Option<usize>,
    /// Positions [default: 4096]
    #[arg(long, value_name = "N", value_parser = at_least(1))]
    context: Option<usize>,
}

pub(crate) fn run(console: &Console, args: &SynthArgs) -> Result<()> {
    let Some(output) = args.output.as_deref().filter(|_| !args.list) else {
        return list();
    };
    let shape = shape(args)?;
    load::check_writable(output)?;
    let summary = {
        let bar = Progress::bar(console, "writing");
        synth::write(output, &shape, args.dtype, args.seed, &mut |done, all| {
            bar.update(done as usize, all as usize);
            Ok(())
        })?
    };
    if !summary.fallbacks.is_empty() {
        let (name, dtype) = &summary.fallbacks[0];
        console.note(format_args!(
            "{} matrices have rows that are no whole blocks of {}; {name} and its like are stored as {dtype}",
            summary.fallbacks.len(),
            args.dtype
        ));
    }
    print(if args.json {
        let object = serde_json::json!({
            "file": output,
            "parameters": summary.parameters,
            "bytes": summary.bytes,
            "type": args.dtype.name(),
        });
        json(&object)? + "\n"
    } else {
        line(output, &summary)
    })
}

fn line(output: &Path, summary: &synth::Summary) -> String {
    format!(
        "{}: {} parameters, {}\n",
        output.display(),
        table::parameters(summary.parameters),
        table::bytes(summary.bytes as f64)
    )
}

fn list() -> Result<()> {
    let mut table = Table::new(&[
        "shape",
        "family",
        "hidden",
        "inter",
        "layers",
        "heads",
        "kv",
        "head",
        "vocab",
        "parameters",
    ]);
    for name in Shape::names() {
        let s = Shape::named(name)?;
        let sizes = [
            s.hidden, s.inter, s.layers, s.heads, s.kv_heads, s.head_dim, s.vocab,
        ];
        let mut row = vec![name.to_owned(), s.arch.name().to_owned()];
        row.extend(sizes.map(|n| n.to_string()));
        row.push(table::parameters(s.parameters()?));
        table.row(row);
    }
    print(table.columns())
}

/// The named shape with the sizes given, or one of the sizes alone.
fn shape(args: &SynthArgs) -> Result<Shape> {
    let s = &args.sizes;
    let base = match &args.shape {
        Some(name) => Shape::named(name)?,
        None => {
            let (Some(hidden), Some(inter), Some(layers), Some(heads)) =
                (s.hidden, s.inter, s.layers, s.heads)
            else {
                return Err(Failure::input(
                    "a shape needs a name, or --hidden, --inter, --layers and --heads",
                    "see `countdown synth --list` for names",
                ));
            };
            Shape {
                arch: Arch::Llama,
                hidden,
                inter,
                layers,
                heads,
                kv_heads: heads,
                head_dim: hidden / heads,
                vocab: 32_000,
                context: 4096,
                rope_base: 1e4,
                tied: true,
            }
        }
    };
    Ok(Shape {
        arch: s.arch.unwrap_or(base.arch),
        hidden: s.hidden.unwrap_or(base.hidden),
        inter: s.inter.unwrap_or(base.inter),
        layers: s.layers.unwrap_or(base.layers),
        heads: s.heads.unwrap_or(base.heads),
        kv_heads: s.kv_heads.unwrap_or(base.kv_heads),
        head_dim: s.head_dim.unwrap_or(base.head_dim),
        vocab: s.vocab.unwrap_or(base.vocab),
        context: s.context.unwrap_or(base.context),
        ..base
    })
}

fn families() -> impl TypedValueParser<Value = Arch> {
    PossibleValuesParser::new(Arch::ALL.map(Arch::name))
        .try_map(|name| Arch::from_name(&name).ok_or("there is no such family"))
}
