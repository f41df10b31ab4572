//! `countdown train`: trains predictors and writes the plan that uses them.

use crate::{
    args::{self, ComputeArgs, DeviceArgs, FitArgs, ModelArgs, Wish},
    chart::{self, Axis, Chart, Legend, Mark, Point, Scale, Series, Stroke, Style},
    console::{Console, print},
    failure::{Failure, Result},
    load,
    plans::{CalibrationText, Planner},
    progress::Progress,
    table::Table,
};
use clap::Args;
use countdown::{
    DownLayout, SessionOptions, SparsityPlan,
    kernels::DType,
    sparsity::{Form, Method, PREDICTED, PredictorKind},
    train::{LayerReport, STORED, Target, TrainProgress, TrainReport, TrainRequest, train},
};
use std::{
    fmt::Write as _,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Train predictors of the neurons a token needs, and write the plan that uses them
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  countdown train -m model.gguf --predictor low-rank --rank 128 --sparsity 0.7 --text corpus.txt -o plan.safetensors
  countdown train -m model.gguf --predictor product --sparsity 0.8 --text corpus.txt -o plan.safetensors --svg report.svg
  countdown train -m model.gguf --predictor copy3 --sparsity 0.7 --text corpus.txt -o plan.safetensors

The copies need no training; the others take minutes to hours. A run that was interrupted goes on where it stopped when it is
started again with the same arguments.
Use a plan with: countdown run -m model.gguf --plan plan.safetensors -p TEXT")]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// The predictor's shape
    #[arg(long, value_name = "KIND", value_parser = args::predictors())]
    predictor: PredictorKind,
    /// The method that predictions are for
    #[arg(long, value_name = "METHOD", default_value = PREDICTED.name, value_parser = args::methods())]
    target: &'static Method,
    /// Share of neurons to skip, in [0, 1)
    #[arg(long, value_name = "S", value_parser = args::sparsity)]
    sparsity: f64,
    /// Text to train and calibrate on, of the kind the model will see; some fifty thousand tokens are a good start
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Where to write the plan
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    fit: FitArgs,
    /// Folder for the state of an unfinished run, which a later one goes on from; kept afterwards [default: beside the plan, removed]
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
    /// Write losses and measures of every layer to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw them to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Training")]
struct TrainingArgs {
    /// Width of the inner vector of low-rank and product
    #[arg(long, value_name = "R", default_value_t = 128)]
    rank: usize,
    /// Storage type of the matrices of low-rank and product [default: Q8_0 where its blocks of 32 fill their rows, F16 otherwise]
    #[arg(long = "type", value_name = "TYPE", value_parser = args::dtypes(STORED))]
    storage: Option<DType>,
    /// Passes over the text; the one that does best on held-out tokens is kept
    #[arg(long, value_name = "N")]
    epochs: Option<usize>,
    /// Learning rate at the end of the warm-up
    #[arg(long, value_name = "RATE")]
    lr: Option<f32>,
    /// Tokens a step
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Which neurons count as needed: the largest coefficients, those times what they add to the output, what the output
    /// loses most by, or gates [default: the method's best]
    #[arg(long, value_name = "WHAT", value_parser = args::targets())]
    labels: Option<Target>,
    /// Memory to use beside the model, in GiB
    #[arg(long, value_name = "GIB", default_value_t = 4.0)]
    memory: f64,
    /// Same seed, same predictors
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

impl TrainArgs {
    fn request(&self) -> Result<TrainRequest> {
        let t = &self.training;
        if !(t.memory > 0.0 && t.memory < 1e9) {
            return Err(Failure::input(
                format!("--memory {} is no amount of memory", t.memory),
                "give it in GiB, for example 4",
            ));
        }
        let usual = TrainRequest::new(self.target, self.predictor, self.sparsity);
        Ok(TrainRequest {
            rank: t.rank,
            storage: t.storage,
            labels: t.labels.unwrap_or(usual.labels),
            epochs: t.epochs.unwrap_or(usual.epochs),
            rate: t.lr.unwrap_or(usual.rate),
            batch: t.batch.unwrap_or(usual.batch),
            seed: t.seed,
            memory: (t.memory * f64::from(1 << 30)) as u64,
            fit: self.fit.fit(),
            ..usual
        })
    }
}

pub(crate) fn run(console: &Console, args: &TrainArgs) -> Result<()> {
    let outputs = [Some(&args.output), args.json.as_ref(), args.svg.as_ref()];
    for path in outputs.into_iter().flatten() {
        load::check_writable(path)?;
    }
    if !args.predictor.is_trained() && (args.json.is_some() || args.svg.is_some()) {
        return Err(Failure::input(
            format!(
                "there is nothing to report of a {} predictor, which is not trained",
                args.predictor.name()
            ),
            "leave --json and --svg out, and use `countdown eval` to see how good the plan is",
        ));
    }
    if !args.predictor.is_trained()
        && let Some(dtype) = args.training.storage
    {
        let name = args.predictor.name();
        return Err(Failure::input(
            format!("a {name} predictor is not stored in {dtype}: its name says its type"),
            "leave --type out, or train a low-rank or product predictor",
        ));
    }
    let request = args.request()?;
    let text = CalibrationText::open(Some(&args.text))?;
    let checkpoint = args.model.model.open(console)?;
    let tokenizer = load::tokenizer(console, &checkpoint)?;
    let threads = args.compute.threads();
    let model = load::model(console, &checkpoint, DownLayout::Transposed, threads)?;
    if !args.predictor.is_trained() {
        let planner = Planner {
            console,
            model: &model,
            tokenizer: &tokenizer,
            threads,
            device: args.device,
        };
        return copy(args, &planner, &text);
    }
    request.check(&model)?;
    let tokens = load::text_tokens(&tokenizer, text.text())?;
    let options = SessionOptions {
        context: Some(CONTEXT.min(model.config.context)),
        threads: Some(threads),
        ..SessionOptions::default()
    };
    let mut session = args.device.session(console, &model, &options)?;
    console.detail(format_args!("training on {}", session.device()));
    let folder = args.resume.clone().unwrap_or_else(|| beside(&args.output));
    let mut report = Reporter::new(console, session.model().layers.len());
    let opening = load::opening(&tokenizer);
    let (plan, result) = train(&mut session, &tokens, opening, &request, &folder, |p| {
        report.tell(p);
    })?;
    drop(report);
    plan.save(&args.output)?;
    if let Some(path) = &args.json {
        countdown::files::atomic_write(path, |out| writeln!(out, "{:#}", json(&plan, &result)))?;
    }
    if let Some(path) = &args.svg {
        let svg = chart::document(&subject(&result), &charts(&result), 2);
        countdown::files::atomic_write(path, |out| out.write_all(svg.as_bytes()))?;
    }
    if args.resume.is_none()
        && let Err(e) = std::fs::remove_dir_all(&folder)
    {
        console.warn(format_args!("cannot remove {}: {e}", folder.display()));
    }
    print(table(&plan, &result, &args.output))
}

/// Low-bit copies follow from the weights: only thresholds are fitted.
fn copy(args: &TrainArgs, planner: &Planner<'_>, text: &CalibrationText) -> Result<()> {
    let (form, predictor) = (Form::Practical, Some(args.predictor));
    let wish = Wish::new(
        args.target,
        None,
        form,
        args.sparsity,
        predictor,
        args.fit.fit(),
    );
    let requests = planner.requests(&[wish])?;
    let mut line = String::new();
    for plan in planner.fit_and_measure(&requests, text)? {
        plan.save(&args.output)?;
        let p = &plan.provenance;
        let _ = writeln!(
            line,
            "{} {} at {}: realised {:.3}, written to {}",
            p.method,
            args.predictor.name(),
            p.target,
            p.realised.unwrap_or(f64::NAN),
            args.output.display()
        );
    }
    print(line)
}

/// Positions of the session: windows are half a thousand tokens.
const CONTEXT: usize = 512;

/// `plan.safetensors.training` for `plan.safetensors`.
fn beside(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".training");
    name.into()
}

/// A bar on a terminal; on anything else a line a layer.
struct Reporter<'a> {
    console: &'a Console,
    bar: Progress,
    layers: usize,
    began: Instant,
    /// Work that was done when this run began.
    first: Option<u64>,
    told: Option<usize>,
}

impl<'a> Reporter<'a> {
    fn new(console: &'a Console, layers: usize) -> Reporter<'a> {
        Reporter {
            console,
            bar: Progress::bar(console, "training"),
            layers,
            began: Instant::now(),
            first: None,
            told: None,
        }
    }

    fn tell(&mut self, p: &TrainProgress) {
        self.bar.update(p.done as usize, p.all as usize);
        let loss = p.loss.map_or(String::new(), |l| format!(", loss {l:.4}"));
        let place = format!(
            "layer {} of {}, epoch {}{loss}",
            p.layer + 1,
            self.layers,
            p.epoch
        );
        self.bar.say(&place);
        let first = *self.first.get_or_insert(p.done);
        if self.console.shows_progress() || p.loss.is_none() || self.told == Some(p.layer) {
            return;
        }
        self.told = Some(p.layer);
        let left = match p.done - first {
            0 => String::new(),
            done => {
                let share = (p.all - p.done) as f64 / done as f64;
                format!("; {} left", duration(self.began.elapsed().mul_f64(share)))
            }
        };
        self.console.note(format_args!("{place}{left}"));
    }
}

fn duration(d: Duration) -> String {
    match d.as_secs() {
        s @ 0..100 => format!("{s} s"),
        s @ 100..6000 => format!("{} min", s.div_ceil(60)),
        s => format!("{:.1} h", s as f64 / 3600.0),
    }
}

fn json(plan: &SparsityPlan, report: &TrainReport) -> serde_json::Value {
    serde_json::json!({
        "run": report.identity,
        "realised": plan.provenance.realised,
        "layers": report.layers,
    })
}

/// What was trained, in a few words.
fn subject(report: &TrainReport) -> String {
    let run = &report.identity;
    format!("{} {} at {}", run.method, run.predictor, run.sparsity)
}

/// What a line of a chart shows of a layer.
type LayerFigure = fn(&LayerReport) -> f64;

/// Layer by layer: the loss, the selection, and what it loses.
fn charts(report: &TrainReport) -> Vec<Chart> {
    const STYLES: [(Stroke, Mark); 3] = [
        (Stroke::Solid, Mark::Disc),
        (Stroke::Dashed, Mark::Disc),
        (Stroke::Dashed, Mark::Square),
    ];
    let chart = |title: String, figures: &[(&str, LayerFigure)]| {
        let lines = figures.iter().zip(STYLES).enumerate();
        let series = lines.map(|(i, ((name, figure), (stroke, mark)))| {
            let point = |l: &LayerReport| Point {
                x: l.layer as f64,
                y: figure(l),
                note: format!("{name}, layer {}: {:.4}", l.layer, figure(l)),
            };
            Series {
                name: (*name).into(),
                style: Style {
                    colour: i + 1,
                    stroke,
                    mark,
                },
                points: report.layers.iter().map(point).collect(),
            }
        });
        Chart {
            title,
            x: Axis::new("layer", Scale::Linear),
            y: Axis::new("", Scale::Linear),
            series: series.collect(),
            size: (440.0, 290.0),
            legend: Legend::Below,
        }
    };
    let predictor = &report.identity.predictor[..];
    vec![
        chart(
            format!("{}: held-out loss", subject(report)),
            &[
                ("trained", |l| l.losses[l.best_epoch].held_out),
                ("start", |l| l.losses[0].held_out),
                ("frequencies alone", |l| l.chance),
            ],
        ),
        chart(
            "selected of the labelled, and the reverse".into(),
            &[
                ("recall", |l| l.quality.recall),
                ("precision", |l| l.quality.precision),
                ("sparsity", |l| l.quality.sparsity),
            ],
        ),
        chart(
            "share of the sum of |s| kept".into(),
            &[
                (predictor, |l| l.quality.mass),
                ("labels themselves", |l| l.bound.mass),
            ],
        ),
        chart(
            "output error, relative".into(),
            &[
                (predictor, |l| l.quality.error),
                ("labels themselves", |l| l.bound.error),
            ],
        ),
    ]
}

fn table(plan: &SparsityPlan, report: &TrainReport, output: &Path) -> String {
    let mut table = Table::new(&[
        "layer",
        "start",
        "loss",
        "chance",
        "epoch",
        "precision",
        "recall",
        "mass",
        "error",
        "bound",
        "realised",
    ]);
    for l in &report.layers {
        table.row([
            l.layer.to_string(),
            format!("{:.4}", l.losses[0].held_out),
            format!("{:.4}", l.losses[l.best_epoch].held_out),
            format!("{:.4}", l.chance),
            l.best_epoch.to_string(),
            format!("{:.3}", l.quality.precision),
            format!("{:.3}", l.quality.recall),
            format!("{:.3}", l.quality.mass),
            format!("{:.3}", l.quality.error),
            format!("{:.3}", l.bound.error),
            format!("{:.3}", l.quality.sparsity),
        ]);
    }
    let bytes: usize = report.layers.iter().map(|l| l.bytes).sum();
    format!(
        "{}\n{}: realised {:.3}, {:.1} MB of predictors, written to {}\n",
        table.columns(),
        subject(report),
        plan.provenance.realised.unwrap_or(f64::NAN),
        bytes as f64 / 1e6,
        output.display()
    )
}
