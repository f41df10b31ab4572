//! `countdown bench`: speed, dense and sparse in turns; rows as llama-bench writes them.

use crate::{
    args::{DeviceArgs, ModelArgs, SweepArgs, at_least, threads},
    bandwidth::Probe,
    console::{Console, json, print},
    failure::{Failure, Result},
    load, machine,
    plans::{CalibrationText, Packed, Planner},
    progress::Progress,
    table::{self, Table, csv_line},
};
use clap::{Args, ValueEnum};
use countdown::{
    DownLayout, Model, Session, SessionOptions,
    bench::{BenchResult, Load, PartOfToken, Variant, bench},
    formats::Checkpoint,
    kernels::DType,
    session::physical_cores,
    sparsity::{Cut, Form},
    tokenizer::Tokenizer,
};
use serde::Serialize;
use serde_json::{Map, Value as Json};
use std::path::PathBuf;

/// Measure speed, dense and under plans, in turns
///
/// Every combination of threads and loads is one table: all variants run it in turns, so that a noisy machine is noisy
/// for all of them. Dense runs on the weights as stored, plans on transposed down projections; on a card all run on the same. Prompts are computed
/// densely whatever the plan. GB/s are the bytes that steps read over their time; the share is that of what plain
/// reading of memory reaches with as many threads, measured just before.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  countdown bench -m model.gguf
  countdown bench -m model.gguf -t 1,2 -p 0 -n 64 --method dense,cats,m-countdown --sparsity 0.5,0.7,0.9
  countdown bench -m model.gguf -p 512 -n 0 -r 10 -o csv
  countdown bench -m model.gguf -p 0 --method dense --plan plan.safetensors --profile")]
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

/// One line of results. llama-bench's keys, then those of sparsity.
#[derive(Serialize)]
struct Row {
    build_commit: &'static str,
    cpu_info: String,
    gpu_info: String,
    backends: String,
    model_filename: String,
    model_type: String,
    model_size: u64,
    model_n_params: u64,
    n_batch: usize,
    n_threads: usize,
    type_k: String,
    type_v: String,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    test_time: String,
    avg_ns: u64,
    stddev_ns: u64,
    avg_ts: f64,
    stddev_ts: f64,
    samples_ns: Vec<u64>,
    samples_ts: Vec<f64>,
    method: String,
    /// The plan's file; `None` for dense and for plans that were fitted or cached.
    plan: Option<String>,
    predictor: Option<String>,
    cut: Option<Cut>,
    form: Option<Form>,
    down: &'static str,
    target: f64,
    realised: f64,
    median_ts: f64,
    /// Effective read rate; nothing for prompts.
    gb_s: Option<f64>,
    /// The same over what plain reading reaches with as many threads.
    bandwidth_share: Option<f64>,
    /// Median rate over dense's, of the same run; nothing where dense does not run.
    ratio: Option<f64>,
    /// Bytes that a dense step reads over those of this one.
    bytes_ceiling: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    profile: Vec<PartOfToken>,
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
        context: loads.iter().map(|&l| positions(l)).max(),
        batch: args.batch_size,
        cache_dtype: CACHE,
        ..SessionOptions::default()
    };
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
        run.all(&loads, &contest, &mut [session], Place::Card)?;
        return run.print();
    }
    if has_dense {
        contest.add_dense(&*open(DownLayout::Stored)?, most)?;
    }
    if let Some(model) = &transposed {
        contest.add_plans(model, &plans, most)?;
    }
    let has_steps = loads.iter().any(|l| matches!(l, Load::Steps { .. }));
    let probe = has_steps.then(Probe::new);
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

/// What variants run on.
#[derive(Clone, Copy)]
enum Place {
    /// So many threads, which read so many GB/s where nothing else is done.
    Cpu {
        threads: usize,
        readable: Option<f64>,
    },
    Card,
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
            Place::Card => (0, None),
        };
        for &load in loads {
            let variants = match load {
                Load::Steps { .. } => contest.variants.clone(),
                Load::Prompt(_) => prompt_variants(contest),
            };
            let started = machine::utc_now();
            let results = {
                let what = match place {
                    Place::Cpu { threads, .. } => format!("{}, {threads} threads", name(load)),
                    Place::Card => name(load),
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
                if let Place::Card = place {
                    row.backends = "CUDA".into();
                    row.gpu_info = sessions[0].device();
                }
            }
            if self.args.output == Format::Jsonl {
                for row in &new {
                    print(json(row)? + "\n")?;
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
            Format::Json => print(json_array(&self.rows)?),
            Format::Csv => print(csv(&self.rows)?),
            Format::Md => print(markdown(&self.rows)),
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
    if loads.is_empty() {
        return Err(Failure::input(
            "there is nothing to measure: neither a prompt (-p) nor generated tokens (-n)",
            "give -p or -n a number above 0",
        ));
    }
    Ok(loads)
}

fn bench_tokens(tokenizer: &Tokenizer, text: &CalibrationText) -> Result<Vec<u32>> {
    let mut tokens: Vec<u32> = load::opening(tokenizer).into_iter().collect();
    tokens.extend(load::text_tokens(tokenizer, text.text())?);
    Ok(tokens)
}

/// Positions that a load needs.
fn positions(load: Load) -> usize {
    match load {
        Load::Prompt(n) => n,
        Load::Steps { tokens, depth } => tokens + depth,
    }
}

/// llama-bench's name of a test.
fn name(load: Load) -> String {
    match load {
        Load::Prompt(n) => format!("pp{n}"),
        Load::Steps { tokens, depth: 0 } => format!("tg{tokens}"),
        Load::Steps { tokens, depth } => format!("tg{tokens} @ d{depth}"),
    }
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

/// Dense is the first of the variants where it takes part.
fn rows_of(
    contest: &Packed,
    (args, checkpoint): (&BenchArgs, &Checkpoint),
    (threads, load): (usize, Load),
    variants: &[Variant],
    results: &[BenchResult],
) -> Vec<Row> {
    let models = &contest.models;
    let has_dense = contest.variants.first().is_some_and(|v| v.plan.is_none());
    let dense = results.first().filter(|_| has_dense);
    let (n_prompt, n_gen, n_depth) = match load {
        Load::Prompt(n) => (n, 0, 0),
        Load::Steps { tokens, depth } => (0, tokens, depth),
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

/// llama-bench's name of a row's test.
fn test(r: &Row) -> String {
    name(match (r.n_prompt, r.n_gen) {
        (n, 0) => Load::Prompt(n),
        (_, tokens) => Load::Steps {
            tokens,
            depth: r.n_depth,
        },
    })
}

/// The method with what tells it from others of its name.
fn method(r: &Row) -> String {
    let predictor = r.predictor.as_deref().map(|p| format!(" by {p}"));
    let ideal = match r.form {
        Some(Form::Ideal) => " (ideal)",
        _ => "",
    };
    let layout = match (r.method.as_str(), r.down) {
        ("dense", "transposed") => " (transposed)",
        _ => "",
    };
    let label = format!(
        "{}{}{ideal}{layout}",
        r.method,
        predictor.unwrap_or_default()
    );
    load::with_file(label, r.plan.as_deref())
}

fn markdown(rows: &[Row]) -> String {
    let mut table = Table::new(&[
        "model", "size", "backend", "threads", "test", "method", "cut", "target", "realised",
        "t/s", "median", "GB/s", "share", "ratio", "ceiling",
    ]);
    let number = |n: Option<f64>| n.map_or("-".into(), |n| format!("{n:.2}"));
    for r in rows {
        table.row([
            r.model_type.clone(),
            table::bytes(r.model_size as f64),
            r.backends.clone(),
            r.n_threads.to_string(),
            test(r),
            method(r),
            r.cut.map_or("-", Cut::name).into(),
            format!("{:.2}", r.target),
            format!("{:.3}", r.realised),
            format!("{:.2} ± {:.2}", r.avg_ts, r.stddev_ts),
            format!("{:.2}", r.median_ts),
            number(r.gb_s),
            r.bandwidth_share
                .map_or("-".into(), |s| format!("{:.0} %", s * 100.0)),
            number(r.ratio),
            number(r.bytes_ceiling),
        ]);
    }
    let profiles: String = rows.iter().filter_map(profile).collect();
    format!(
        "{}{profiles}\nbuild: {}\n",
        table.markdown(),
        env!("COUNTDOWN_COMMIT")
    )
}

/// Where the time of a row's token goes, where that was asked for.
fn profile(r: &Row) -> Option<String> {
    let all: f64 = r.profile.iter().map(|p| p.us).sum();
    if r.profile.is_empty() {
        return None;
    }
    let mut table = Table::new(&["part", "calls", "us", "share", "MB", "GB/s"]);
    for p in &r.profile {
        table.row([
            p.part.into(),
            format!("{:.2}", p.calls),
            format!("{:.1}", p.us),
            format!("{:.1} %", p.us / all * 100.0),
            format!("{:.2}", p.bytes / 1e6),
            p.bandwidth().map_or("-".into(), |b| format!("{b:.1}")),
        ]);
    }
    let target = if r.target > 0.0 {
        format!(" {:.2}", r.target)
    } else {
        String::new()
    };
    Some(format!(
        "\n{}{target}, {}, {} threads, a token:\n\n{}",
        method(r),
        test(r),
        r.n_threads,
        table.markdown()
    ))
}

fn json_array(rows: &[Row]) -> Result<String> {
    let lines = rows.iter().map(json).collect::<Result<Vec<_>>>()?;
    Ok(format!("[\n  {}\n]\n", lines.join(",\n  ")))
}

/// The same keys as JSON, without the samples, as llama-bench has it.
fn csv(rows: &[Row]) -> Result<String> {
    let object = |row: &Row| -> Result<Map<String, Json>> {
        let value = serde_json::to_value(row).map_err(|e| Failure::output(e.into()))?;
        let Json::Object(mut object) = value else {
            return Ok(Map::new());
        };
        object.shift_remove("samples_ns");
        object.shift_remove("samples_ts");
        object.shift_remove("profile");
        Ok(object)
    };
    let objects = rows.iter().map(object).collect::<Result<Vec<_>>>()?;
    let Some(first) = objects.first() else {
        return Ok(String::new());
    };
    let cell = |value: &Json| match value {
        Json::Null => String::new(),
        Json::String(s) => s.clone(),
        other => other.to_string(),
    };
    let header = first.keys().cloned().collect::<Vec<_>>().join(",") + "\n";
    let lines = objects.iter().map(|o| csv_line(o.values().map(cell)));
    Ok(header + &lines.collect::<String>())
}
