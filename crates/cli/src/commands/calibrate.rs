//! `countdown calibrate`: fits plans and writes them.

use crate::{
    args::{self, ComputeArgs, DeviceArgs, FitArgs, ModelArgs, Wish},
    console::{Console, print},
    failure::{Failure, Result},
    load::{self, form_name},
    plans::{CalibrationText, Planner},
    table::Table,
};
use clap::Args;
use countdown::{
    DownLayout, PlanRequest, SparsityPlan,
    sparsity::{Cut, Method, PredictorKind},
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Fit sparsity plans for a model and write them to files
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  countdown calibrate -m model.gguf --method m-countdown --sparsity 0.7 -o plan.safetensors
  countdown calibrate -m model.gguf --method cats --sparsity 0.5,0.7,0.9 -o 'cats-{sparsity}.safetensors'
  countdown calibrate -m model.gguf --method m-countdown --sparsity 0.7 --text corpus.txt -o plan.safetensors
  countdown calibrate -m model.gguf --method d-countdown --predictor-of trained.safetensors --sparsity 0.5 -o d5.safetensors

Use a plan with: countdown run -m model.gguf --plan plan.safetensors -p TEXT")]
pub(crate) struct CalibrateArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// How to decide which neurons a token needs
    #[arg(long, value_name = "NAME", value_parser = args::methods())]
    method: &'static Method,
    /// Shares of neurons to skip, in [0, 1); one plan each
    #[arg(long, value_name = "S,...", required = true, value_delimiter = ',', value_parser = args::sparsity)]
    sparsity: Vec<f64>,
    /// What is compared: the bare signal, or the signal times constants of the neuron [default: the method's best]
    #[arg(long, value_name = "CUT", value_parser = args::cuts())]
    cut: Option<Cut>,
    /// What predicts the coefficients, for methods that predict them; trained ones come from `countdown train` [default: copy3]
    #[arg(long, value_name = "KIND", value_parser = args::predictors())]
    predictor: Option<PredictorKind>,
    /// Predict with the predictors of this plan, for example a trained plan's at another sparsity
    #[arg(long, value_name = "PLAN", conflicts_with = "predictor")]
    predictor_of: Option<PathBuf>,
    #[command(flatten)]
    fit: FitArgs,
    /// Exact top-k of every token: the upper bound of quality, without the speed
    #[arg(long)]
    ideal: bool,
    /// Text to fit on, of the kind the model will see [default: a built-in one]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Where to write; {sparsity} stands for the target where there are several
    #[arg(short, long, value_name = "FILE")]
    output: String,
    /// Print one JSON object a plan
    #[arg(long)]
    json: bool,
}

const PLACEHOLDER: &str = "{sparsity}";

pub(crate) fn run(console: &Console, args: &CalibrateArgs) -> Result<()> {
    let outputs = outputs(args)?;
    let wishes: Vec<Wish> = args.sparsity.iter().map(|&s| wish(args, s)).collect();
    if args.method.is_dense() {
        return Err(Failure::input(
            "method dense has no plan",
            "use another method of `--help`",
        ));
    }
    let text = CalibrationText::open(args.text.as_deref())?;
    let checkpoint = args.model.model.open(console)?;
    let tokenizer = load::tokenizer(console, &checkpoint)?;
    let threads = args.compute.threads();
    let model = load::model(console, &checkpoint, DownLayout::Transposed, threads)?;
    let planner = Planner {
        console,
        model: &model,
        tokenizer: &tokenizer,
        threads,
        device: args.device,
    };
    let requests: Vec<PlanRequest> = match &args.predictor_of {
        None => planner.requests(&wishes)?,
        Some(path) => predicted_by(&*planner.open(path)?, args.method, &wishes)?,
    };
    let plans = planner.fit_and_measure(&requests, &text)?;
    for (plan, path) in plans.iter().zip(&outputs) {
        plan.save(path)?;
    }
    print(if args.json {
        json(&plans, &outputs)
    } else {
        table(&plans, &outputs)
    })
}

fn wish(args: &CalibrateArgs, sparsity: f64) -> Wish {
    let form = args::form(args.ideal);
    Wish::new(
        args.method,
        args.cut,
        form,
        sparsity,
        args.predictor,
        args.fit.fit(),
    )
}

/// Wishes with the predictors of a plan.
fn predicted_by(
    plan: &SparsityPlan,
    method: &'static Method,
    wishes: &[Wish],
) -> Result<Vec<PlanRequest>> {
    let signal = plan.rules.first().map(|r| r.signal);
    let Some(set) = plan.predictors().filter(|_| signal == method.signal) else {
        return Err(Failure::input(
            format!(
                "the plan given to --predictor-of has no predictors for method {}",
                method.name
            ),
            "give a plan of `countdown train` for the same kind of signal",
        ));
    };
    let set = Arc::new(set);
    let request = |w: &Wish| {
        let request = PlanRequest {
            method,
            cut: w.cut,
            form: w.form,
            sparsity: w.sparsity,
            predictor: Some(set.clone()),
            fit: w.fit,
        };
        request.check()?;
        Ok(request)
    };
    wishes.iter().map(request).collect()
}

/// A file for each target, each in a folder that exists.
fn outputs(args: &CalibrateArgs) -> Result<Vec<PathBuf>> {
    let path = |s: &f64| PathBuf::from(args.output.replace(PLACEHOLDER, &s.to_string()));
    let paths: Vec<PathBuf> = args.sparsity.iter().map(path).collect();
    for (i, path) in paths.iter().enumerate() {
        if paths[..i].contains(path) {
            return Err(Failure::input(
                format!("several plans would be written to {}", path.display()),
                format!("put {PLACEHOLDER} into the name given to -o, and give every target once"),
            ));
        }
        load::check_writable(path)?;
    }
    Ok(paths)
}

fn json(plans: &[SparsityPlan], paths: &[PathBuf]) -> String {
    let line = |(plan, path): (&SparsityPlan, &PathBuf)| {
        let p = &plan.provenance;
        let object = serde_json::json!({
            "file": path,
            "method": p.method,
            "predictor": p.predictor,
            "cut": p.cut,
            "form": p.form,
            "target": p.target,
            "realised": p.realised,
            "model": p.model,
            "layer_targets": p.layer_targets,
            "fit": p.fit,
            "calibration": p.calibration,
        });
        format!("{object}\n")
    };
    plans.iter().zip(paths).map(line).collect()
}

fn table(plans: &[SparsityPlan], paths: &[PathBuf]) -> String {
    let mut table = Table::new(&[
        "method",
        "predictor",
        "cut",
        "form",
        "target",
        "realised",
        "file",
    ]);
    for (plan, path) in plans.iter().zip(paths) {
        let p = &plan.provenance;
        table.row([
            p.method.clone(),
            p.predictor.clone().unwrap_or("-".into()),
            p.cut.name().into(),
            form_name(p.form).into(),
            p.target.to_string(),
            p.realised.map_or("-".into(), |r| format!("{r:.3}")),
            name(path),
        ]);
    }
    table.columns()
}

fn name(path: &Path) -> String {
    path.display().to_string()
}
