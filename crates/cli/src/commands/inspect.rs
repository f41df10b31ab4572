//! `countdown inspect`: what a model or a plan holds, and what sparsity could save.

use crate::{
    console::{self, Console, print},
    failure::Result,
    load::{self, ModelSource, form_name},
    table::{self, Table},
};
use clap::Args;
use countdown::{
    DownLayout, Model, SparsityPlan,
    formats::{Checkpoint, Metadata},
    kernels::cpu::Act,
    model::{Matrix, ReadDensely, StepBytes},
    sparsity::{Cut, Keep, METHODS, PREDICTORS, Practical},
};
use serde_json::{Value as Json, json};
use std::{fmt::Write, io::Read, path::Path};

/// Show what a model or a plan holds, and what sparsity could save
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  countdown inspect model.gguf
  countdown inspect model.gguf --tensors
  countdown inspect plan.safetensors
  countdown inspect ./SmolLM2-135M-Instruct --json")]
pub(crate) struct InspectArgs {
    /// GGUF file, folder with config.json and safetensors files, hf:ORG/NAME (with @REVISION and :FILE where needed), or plan
    #[arg(value_name = "MODEL")]
    path: ModelSource,
    /// List the tensors, too
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Targets of the table of savings.
const TARGETS: [f64; 3] = [0.5, 0.7, 0.9];

pub(crate) fn run(console: &Console, args: &InspectArgs) -> Result<()> {
    let path = args.path.path(console)?;
    if is_plan(&path) {
        let plan = SparsityPlan::load(&path)?;
        return print(if args.json {
            console::json(&plan_json(&plan))? + "\n"
        } else {
            plan_text(&plan)
        });
    }
    let checkpoint = Checkpoint::open(&path)?;
    let model = load::model(console, &checkpoint, DownLayout::Stored, 1)?;
    print(if args.json {
        let mut object = model_json(&checkpoint, &model);
        if args.tensors {
            object["tensors"] = tensors_json(&checkpoint);
        }
        console::json(&object)? + "\n"
    } else {
        let mut text = model_text(&checkpoint, &model);
        if args.tensors {
            text = text + "\n" + &tensors_table(&checkpoint).columns();
        }
        text
    })
}

/// Whether a path is a plan: a safetensors file that says so, or one that stands beside no model's config.json.
fn is_plan(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(1 << 16).read_to_end(&mut start));
    let says_so = || start.windows(14).any(|w| w == b"countdown_plan");
    let alone = || {
        path.extension().is_some_and(|e| e == "safetensors")
            && !path.with_file_name("config.json").exists()
    };
    path.is_file() && read.is_ok() && !start.starts_with(b"GGUF") && (says_so() || alone())
}

/// A part of the model: its name, its matrices, and the bytes of it that a dense step reads.
struct Part {
    name: &'static str,
    types: String,
    parameters: u64,
    bytes: usize,
}

fn parts(model: &Model) -> Vec<Part> {
    let StepBytes {
        attention,
        gate,
        up,
        down,
        head,
    } = model.bytes_per_token();
    let layers = || model.layers.iter();
    let part = |name, bytes, matrices: Vec<&Matrix>| {
        let mut types: Vec<&str> = matrices.iter().map(|m| m.dtype().name()).collect();
        types.sort_unstable();
        types.dedup();
        Part {
            name,
            types: types.join("+"),
            parameters: matrices.iter().map(|m| (m.rows() * m.cols()) as u64).sum(),
            bytes,
        }
    };
    let projections = layers()
        .flat_map(|l| [&l.query, &l.key, &l.value, &l.attn_output])
        .map(|l| &l.weight)
        .collect();
    vec![
        part("attention", attention, projections),
        part("gate", gate, layers().map(|l| &l.ffn.gate).collect()),
        part("up", up, layers().map(|l| &l.ffn.up).collect()),
        part(
            "down",
            down,
            layers().map(|l| l.ffn.down.matrix()).collect(),
        ),
        part("head", head, vec![&model.head]),
    ]
}

/// What a method would read at a target.
struct Saving {
    method: String,
    sparsity: f64,
    bytes: f64,
    ratio: f64,
}

fn savings(model: &Model) -> Vec<Saving> {
    let dense = model.bytes_per_token().total() as f64;
    let sparse = model.bytes_per_token_transposed();
    let mut ways: Vec<(String, ReadDensely)> = Vec::new();
    for m in METHODS {
        let Some(signal) = m.signal else { continue };
        if m.practical == Practical::Computed {
            ways.push((m.name.into(), ReadDensely::of(signal)));
            continue;
        }
        for kind in PREDICTORS {
            // Of methods that differ in their cut alone, which all read the same, the one that has the paper's stands for all.
            if m.decides_by_coefficients()
                && m.cuts.contains(&Cut::Layer)
                && let Some(bytes) = kind.copy_bytes(model, signal)
            {
                let name = format!("{} by {}", m.name, kind.name());
                ways.push((name, ReadDensely::Predictor { bytes, rest: None }));
            }
        }
    }
    let saving = |(method, reads): &(String, ReadDensely), sparsity: f64| {
        let bytes = sparse.at(*reads, 1.0 - sparsity);
        Saving {
            method: method.clone(),
            sparsity,
            bytes,
            ratio: dense / bytes,
        }
    };
    ways.iter()
        .flat_map(|way| TARGETS.map(|s| saving(way, s)))
        .collect()
}

fn format_name(checkpoint: &Checkpoint) -> &'static str {
    match checkpoint.metadata {
        Metadata::Gguf(_) => "GGUF",
        Metadata::HuggingFace(_) => "Hugging Face",
    }
}

fn act_name(act: Act) -> &'static str {
    match act {
        Act::Silu => "SiLU",
        Act::GeluTanh => "GELU (tanh)",
    }
}

/// The smallest and largest of the layers' FFNs.
fn inter(model: &Model) -> (usize, usize) {
    let sizes = || model.config.layers.iter().map(|l| l.inter);
    (sizes().min().unwrap_or(0), sizes().max().unwrap_or(0))
}

fn model_text(checkpoint: &Checkpoint, model: &Model) -> String {
    let c = &model.config;
    let windows = c.layers.iter().filter(|l| l.window.is_some()).count();
    let inter = match inter(model) {
        (low, high) if low == high => low.to_string(),
        (low, high) => format!("{low} to {high}"),
    };
    let lines = [
        ("model", checkpoint.path.display().to_string()),
        (
            "format",
            format!(
                "{}, {} tensors, {}",
                format_name(checkpoint),
                checkpoint.tensors().len(),
                table::bytes(checkpoint.bytes() as f64)
            ),
        ),
        ("family", c.family.to_owned()),
        (
            "parameters",
            format!(
                "{} ({})",
                table::parameters(model.parameters()),
                model.parameters()
            ),
        ),
        ("fingerprint", model.fingerprint.clone()),
        ("layers", c.layers.len().to_string()),
        ("hidden", c.hidden.to_string()),
        ("inter", inter),
        (
            "heads",
            format!(
                "{} of {}, {} for keys and values",
                c.heads, c.head_dim, c.kv_heads
            ),
        ),
        ("activation", act_name(c.act).to_owned()),
        ("vocabulary", c.vocab.to_string()),
        (
            "context",
            match windows {
                0 => c.context.to_string(),
                n => format!("{}, {n} layers with a sliding window", c.context),
            },
        ),
        (
            "embedding",
            format!(
                "{}, {} the head",
                model.embedding.dtype(),
                if model.is_tied {
                    "shared with"
                } else {
                    "apart from"
                }
            ),
        ),
    ];
    let mut text = String::new();
    for (name, value) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<14}{value}");
    }
    let total = model.bytes_per_token().total() as f64;
    let mut read = Table::new(&["read per token", "type", "parameters", "bytes", "share"]);
    for p in parts(model) {
        read.row([
            p.name.into(),
            p.types,
            table::parameters(p.parameters),
            table::bytes(p.bytes as f64),
            format!("{:.1} %", 100.0 * p.bytes as f64 / total),
        ]);
    }
    read.row([
        "all".into(),
        String::new(),
        String::new(),
        table::bytes(total),
        "100.0 %".into(),
    ]);
    let mut sparse = Table::new(&["with", "sparsity", "bytes", "of dense", "ceiling"]);
    for s in savings(model) {
        sparse.row([
            s.method,
            s.sparsity.to_string(),
            table::bytes(s.bytes),
            format!("{:.1} %", 100.0 / s.ratio),
            format!("{:.2} x", s.ratio),
        ]);
    }
    format!(
        "{text}\n{}\n{}\nThe ceiling is how much faster decoding could be if reading weights were all it does; keys, values and\n\
         arithmetic come on top. Sparse steps read down transposed, as Q8_0 where it is quantised.\n",
        read.columns(),
        sparse.columns()
    )
}

fn model_json(checkpoint: &Checkpoint, model: &Model) -> Json {
    let c = &model.config;
    let parts: Vec<Json> = parts(model)
        .iter()
        .map(|p| json!({"part": p.name, "types": p.types, "parameters": p.parameters, "bytes_per_token": p.bytes}))
        .collect();
    let savings: Vec<Json> = savings(model)
        .iter()
        .map(|s| json!({"method": s.method, "sparsity": s.sparsity, "bytes_per_token": s.bytes, "ceiling": s.ratio}))
        .collect();
    let inter: Vec<usize> = c.layers.iter().map(|l| l.inter).collect();
    json!({
        "kind": "model",
        "path": checkpoint.path,
        "format": format_name(checkpoint),
        "family": c.family,
        "fingerprint": model.fingerprint,
        "parameters": model.parameters(),
        "bytes": checkpoint.bytes(),
        "layers": c.layers.len(),
        "hidden": c.hidden,
        "inter": inter,
        "heads": c.heads,
        "kv_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "activation": act_name(c.act),
        "vocab": c.vocab,
        "context": c.context,
        "tied": model.is_tied,
        "bytes_per_token": model.bytes_per_token().total(),
        "parts": parts,
        "savings": savings,
    })
}

fn tensors_table(checkpoint: &Checkpoint) -> Table {
    let mut table = Table::new(&["tensor", "type", "shape", "bytes"]);
    for t in checkpoint.tensors() {
        let shape: Vec<String> = t.shape.iter().map(usize::to_string).collect();
        table.row([
            t.name.clone(),
            t.dtype.name().into(),
            shape.join(" x "),
            t.data.len().to_string(),
        ]);
    }
    table
}

fn tensors_json(checkpoint: &Checkpoint) -> Json {
    checkpoint
        .tensors()
        .map(|t| json!({"name": t.name, "type": t.dtype.name(), "shape": t.shape, "bytes": t.data.len()}))
        .collect()
}

/// A layer's threshold (or number of neurons dropped) and the spread of its constants.
struct LayerLine {
    keep: f64,
    positive: Option<[f32; 3]>,
    negative: Option<[f32; 3]>,
}

fn layer_lines(plan: &SparsityPlan) -> Vec<LayerLine> {
    plan.rules
        .iter()
        .map(|rule| LayerLine {
            keep: match rule.keep {
                Keep::Above(tau) => f64::from(tau),
                Keep::AllBut { drop } => drop as f64,
            },
            positive: rule.score.weights().and_then(|w| spread(&w.positive)),
            negative: rule.score.weights().and_then(|w| spread(&w.negative)),
        })
        .collect()
}

/// Smallest, median and largest value.
fn spread(values: &[f32]) -> Option<[f32; 3]> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    Some([
        *sorted.first()?,
        *sorted.get(sorted.len() / 2)?,
        *sorted.last()?,
    ])
}

/// What [`LayerLine::keep`] is.
fn keep_name(plan: &SparsityPlan) -> &'static str {
    match plan.rules.first().map(|r| r.keep) {
        Some(Keep::AllBut { .. }) => "dropped",
        _ => "threshold",
    }
}

fn plan_text(plan: &SparsityPlan) -> String {
    let p = &plan.provenance;
    let lines = [
        ("plan", format!("{} {}", p.method, p.target)),
        ("predictor", p.predictor.clone().unwrap_or("none".into())),
        ("cut", p.cut.name().to_owned()),
        ("form", form_name(p.form).to_owned()),
        (
            "realised",
            p.realised.map_or("-".into(), |r| format!("{r:.3}")),
        ),
        ("model", format!("{} ({})", p.model, p.model_description)),
        (
            "calibration",
            match &p.calibration {
                Some(c) => format!("{} tokens, {}", c.tokens, c.hash),
                None => "none needed".into(),
            },
        ),
        ("made by", format!("{}, format {}", p.tool, p.version)),
    ];
    let mut text = String::new();
    for (name, value) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<14}{value}");
    }
    let three = |s: Option<[f32; 3]>| match s {
        Some([low, mid, high]) => format!("{low:.3} / {mid:.3} / {high:.3}"),
        None => "-".into(),
    };
    let mut layers = Table::new(&[
        "layer",
        keep_name(plan),
        "positive (min/median/max)",
        "negative (min/median/max)",
    ]);
    for (i, line) in layer_lines(plan).into_iter().enumerate() {
        layers.row([
            i.to_string(),
            format!("{:.5}", line.keep),
            three(line.positive),
            three(line.negative),
        ]);
    }
    let keeps: Vec<f32> = layer_lines(plan).iter().map(|l| l.keep as f32).collect();
    if let Some([low, mid, high]) = spread(&keeps) {
        let _ = writeln!(
            text,
            "{:<14}{low:.5} / {mid:.5} / {high:.5} (min/median/max over layers)",
            keep_name(plan)
        );
    }
    format!("{text}\n{}", layers.columns())
}

fn plan_json(plan: &SparsityPlan) -> Json {
    let layers: Vec<Json> = layer_lines(plan)
        .iter()
        .map(|l| json!({keep_name(plan): l.keep, "positive": l.positive, "negative": l.negative}))
        .collect();
    let mut object = json!(plan.provenance);
    object["kind"] = "plan".into();
    object["layers"] = layers.into();
    object
}
