//! A line of results, and how it comes from what was measured.

use super::{BenchArgs, CACHE};
use crate::{load, machine, plans::Packed, table};
use countdown::{
    DownLayout, Model,
    bench::{BenchResult, Load, PartOfToken, Variant},
    formats::Checkpoint,
    sparsity::{Cut, Form},
};
use serde::Serialize;

/// One line of results. llama-bench's keys, then those of sparsity.
#[derive(Serialize)]
pub(super) struct Row {
    pub(super) build_commit: &'static str,
    pub(super) cpu_info: String,
    pub(super) gpu_info: String,
    pub(super) backends: String,
    pub(super) model_filename: String,
    pub(super) model_type: String,
    pub(super) model_size: u64,
    pub(super) model_n_params: u64,
    pub(super) n_batch: usize,
    pub(super) n_threads: usize,
    pub(super) type_k: String,
    pub(super) type_v: String,
    pub(super) n_prompt: usize,
    pub(super) n_gen: usize,
    /// Passes through the FFNs alone.
    pub(super) n_ffn: usize,
    pub(super) n_depth: usize,
    pub(super) test_time: String,
    pub(super) avg_ns: u64,
    pub(super) stddev_ns: u64,
    pub(super) avg_ts: f64,
    pub(super) stddev_ts: f64,
    pub(super) samples_ns: Vec<u64>,
    pub(super) samples_ts: Vec<f64>,
    pub(super) method: String,
    /// The plan's file; `None` for dense and for plans that were fitted or cached.
    pub(super) plan: Option<String>,
    pub(super) predictor: Option<String>,
    pub(super) cut: Option<Cut>,
    pub(super) form: Option<Form>,
    pub(super) down: &'static str,
    pub(super) target: f64,
    pub(super) realised: f64,
    pub(super) median_ts: f64,
    /// Microseconds of one layer's FFN, by the median; nothing where other parts run too.
    pub(super) ffn_us: Option<f64>,
    /// Effective read rate; nothing for prompts.
    pub(super) gb_s: Option<f64>,
    /// The same over what plain reading reaches with as many threads, or on the card.
    pub(super) bandwidth_share: Option<f64>,
    /// Median rate over dense's, of the same run; nothing where dense does not run.
    pub(super) ratio: Option<f64>,
    /// Bytes that a dense step reads over those of this one.
    pub(super) bytes_ceiling: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) profile: Vec<PartOfToken>,
}

/// Dense is the first of the variants where it takes part.
pub(super) fn rows_of(
    contest: &Packed,
    (args, checkpoint): (&BenchArgs, &Checkpoint),
    (threads, load): (usize, Load),
    variants: &[Variant],
    results: &[BenchResult],
) -> Vec<Row> {
    let models = &contest.models;
    let has_dense = contest.variants.first().is_some_and(|v| v.plan.is_none());
    let dense = results.first().filter(|_| has_dense);
    let (n_prompt, n_gen, n_ffn, n_depth) = match load {
        Load::Prompt(n) => (n, 0, 0, 0),
        Load::Steps { tokens, depth } => (0, tokens, 0, depth),
        Load::Ffns { passes, depth } => (0, 0, passes, depth),
    };
    let mut files = args.sweep.plan_files();
    let row = |(variant, result): (&Variant, &BenchResult)| {
        let plan = variant.plan.as_ref().and_then(|_| files.next().flatten());
        let model = &models[variant.session];
        let from = variant.plan.as_ref().map(|p| &p.provenance);
        let (avg_ts, stddev_ts) = result.mean_and_deviation();
        let (avg_ns, stddev_ns) = mean_and_deviation(&result.samples_ns);
        let bytes = result.bytes_per_token;
        Row {
            build_commit: env!("COUNTDOWN_COMMIT"),
            cpu_info: machine::cpu(),
            gpu_info: String::new(),
            backends: "CPU".into(),
            model_filename: args.model.model.to_string(),
            model_type: model_type(model),
            model_size: checkpoint.bytes(),
            model_n_params: model.parameters(),
            n_batch: args.batch_size,
            n_threads: threads,
            type_k: CACHE.name().to_lowercase(),
            type_v: CACHE.name().to_lowercase(),
            n_prompt,
            n_gen,
            n_ffn,
            n_depth,
            test_time: String::new(),
            avg_ns: avg_ns as u64,
            stddev_ns: stddev_ns as u64,
            avg_ts,
            stddev_ts,
            samples_ns: result.samples_ns.clone(),
            samples_ts: result.rates(),
            method: from.map_or("dense".into(), |p| p.method.clone()),
            plan,
            predictor: from.and_then(|p| p.predictor.clone()),
            cut: from.map(|p| p.cut),
            form: from.map(|p| p.form),
            down: match model.down_layout {
                DownLayout::Stored => "stored",
                DownLayout::Transposed => "transposed",
            },
            target: from.map_or(0.0, |p| p.target),
            realised: result.realised,
            median_ts: result.median(),
            ffn_us: (n_ffn > 0).then(|| 1e6 / result.median() / model.layers.len() as f64),
            gb_s: result.bandwidth(),
            bandwidth_share: None,
            ratio: dense.map(|d| result.median() / d.median()),
            bytes_ceiling: dense
                .filter(|_| bytes > 0.0)
                .map(|d| d.bytes_per_token / bytes),
            profile: if args.profile {
                result.parts.clone()
            } else {
                Vec::new()
            },
        }
    };
    variants.iter().zip(results).map(row).collect()
}

fn mean_and_deviation(samples: &[u64]) -> (f64, f64) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<u64>() as f64 / n;
    let squares: f64 = samples.iter().map(|&s| (s as f64 - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

/// Family, size and the type of most weights: `llama 134.52 M Q4_1`.
fn model_type(model: &Model) -> String {
    format!(
        "{} {} {}",
        model.config.family,
        table::parameters(model.parameters()),
        load::most_weights(model)
    )
}

/// llama-bench's name of a test.
pub(super) fn name(load: Load) -> String {
    match load {
        Load::Prompt(n) => format!("pp{n}"),
        Load::Steps { tokens, depth: 0 } => format!("tg{tokens}"),
        Load::Steps { tokens, depth } => format!("tg{tokens} @ d{depth}"),
        Load::Ffns { passes, depth } => format!("ffn{passes} @ d{depth}"),
    }
}
