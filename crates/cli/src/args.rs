//! Flags that several commands share. Names and defaults are llama.cpp's wherever it has the flag.

mod values;

pub(crate) use values::{
    at_least, cuts, dtypes, methods, predictors, sparsity, steppings, targets, threads,
};

use crate::{
    failure::{Failure, Result},
    load::ModelSource,
};
use clap::Args;
use countdown::{
    Allocation, Device, Fit, Inputs, SessionOptions, Threshold,
    kernels::DType,
    session::physical_cores,
    sparsity::{Cut, Form, Method, PREDICTED, Practical, PredictorKind},
};
use std::path::PathBuf;
use values::{allocations, cache_types, inputs, thresholds};

/// The model to run.
#[derive(Args, Clone, Debug)]
pub(crate) struct ModelArgs {
    /// GGUF file, folder with config.json and safetensors files, or hf:ORG/NAME (with @REVISION and :FILE where needed) to fetch one
    #[arg(short, long, value_name = "MODEL")]
    pub(crate) model: ModelSource,
}

/// What computes.
#[derive(Args, Clone, Debug)]
pub(crate) struct ComputeArgs {
    /// Threads; the physical cores by default
    #[arg(short, long, value_name = "N", value_parser = threads())]
    pub(crate) threads: Option<usize>,
    /// Tokens of a prompt computed together
    #[arg(short, long, value_name = "N", default_value_t = SessionOptions::default().batch, value_parser = at_least(1))]
    pub(crate) batch_size: usize,
}

impl ComputeArgs {
    /// The number of threads in force.
    pub(crate) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(physical_cores)
    }
}

/// Where it computes.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct DeviceArgs {
    /// What computes: auto (a CUDA card where one can, the CPU otherwise), cpu, cuda or cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    pub(crate) device: Option<DeviceChoice>,
}

impl DeviceArgs {
    /// The CPU, for commands that run on nothing else.
    pub(crate) const CPU: DeviceArgs = DeviceArgs {
        device: Some(DeviceChoice::Only(Device::Cpu)),
    };
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceChoice {
    /// A card if there is one that does.
    Auto,
    /// This, or an error.
    Only(Device),
}

fn device(text: &str) -> Result<DeviceChoice, String> {
    match (text, text.strip_prefix("cuda:").map(str::parse)) {
        ("auto", _) => Ok(DeviceChoice::Auto),
        ("cpu", _) => Ok(DeviceChoice::Only(Device::Cpu)),
        ("cuda", _) => Ok(DeviceChoice::Only(Device::Cuda(0))),
        (_, Some(Ok(ordinal))) => Ok(DeviceChoice::Only(Device::Cuda(ordinal))),
        _ => Err("one of auto, cpu, cuda and cuda:N is needed".into()),
    }
}

/// The memory of a session.
#[derive(Args, Clone, Debug)]
pub(crate) struct ContextArgs {
    /// Positions of the context; 0 for all that the model was trained for [default: those, but 4096 at most]
    #[arg(short, long, value_name = "N", value_parser = at_least(0))]
    pub(crate) ctx_size: Option<usize>,
    /// Storage type of keys and values
    #[arg(long, aliases = ["ctk", "cache-type-k"], value_name = "TYPE", default_value = "f16", value_parser = cache_types())]
    pub(crate) cache_type: DType,
}

impl ContextArgs {
    /// Session options for a model trained for `trained` positions.
    pub(crate) fn session_options(&self, compute: &ComputeArgs, trained: usize) -> SessionOptions {
        SessionOptions {
            context: match self.ctx_size {
                Some(0) => Some(trained),
                given => given,
            },
            threads: Some(compute.threads()),
            batch: compute.batch_size,
            cache_dtype: self.cache_type,
            ..SessionOptions::default()
        }
    }
}

/// The one plan to run with.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sparsity")]
pub(crate) struct PlanArgs {
    /// How to decide which neurons a token needs; needs --sparsity
    #[arg(long, value_name = "NAME", value_parser = methods())]
    pub(crate) method: Option<&'static Method>,
    /// Share of neurons to skip, in [0, 1)
    #[arg(long, value_name = "S", value_parser = sparsity)]
    pub(crate) sparsity: Option<f64>,
    /// What is compared: the bare signal, or the signal times constants of the neuron [default: the method's best]
    #[arg(long, value_name = "CUT", value_parser = cuts())]
    pub(crate) cut: Option<Cut>,
    /// What predicts the coefficients, for methods that predict them [default: copy3]
    #[arg(long, value_name = "KIND", value_parser = predictors())]
    pub(crate) predictor: Option<PredictorKind>,
    #[command(flatten)]
    pub(crate) fit: FitArgs,
    /// Exact top-k of every token: the upper bound of quality, without the speed
    #[arg(long)]
    pub(crate) ideal: bool,
    /// Use this plan, made by `countdown calibrate`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["method", "sparsity", "cut", "predictor", "ideal", "calibration", "threshold", "inputs", "allocation"])]
    pub(crate) plan: Option<PathBuf>,
    /// Text to calibrate on where no plan is cached [default: a built-in one]
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
    /// Follow the plan even where steps that read all weights are measured to be quicker
    #[arg(long)]
    pub(crate) always_sparse: bool,
}

/// A model, what computes it and by which plan: what it takes to answer.
#[derive(Args, Clone, Debug)]
pub(crate) struct SessionArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) context: ContextArgs,
    #[command(flatten)]
    pub(crate) plan: PlanArgs,
}

/// Where the plan in force comes from.
#[derive(Clone, Debug)]
pub(crate) enum PlanChoice {
    /// None: every neuron.
    Dense,
    /// A file.
    File(PathBuf),
    /// The cache, or calibration.
    Fit(Wish),
}

/// A plan to be had from the cache or by calibration; what [`countdown::PlanRequest`] is once the model is there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wish {
    pub(crate) method: &'static Method,
    pub(crate) cut: Cut,
    pub(crate) form: Form,
    pub(crate) sparsity: f64,
    pub(crate) predictor: Option<PredictorKind>,
    pub(crate) fit: Fit,
}

impl Wish {
    /// What practical plans predict with where nothing else is asked for.
    const PREDICTOR: PredictorKind = PredictorKind::Copy3;

    /// Fills in what is not asked for. Ideal plans know the coefficients exactly unless a predictor is named.
    pub(crate) fn new(
        method: &'static Method,
        cut: Option<Cut>,
        form: Form,
        sparsity: f64,
        predictor: Option<PredictorKind>,
        fit: Fit,
    ) -> Wish {
        let predictor = match (method.practical, form) {
            (Practical::Computed, _) => None,
            (Practical::Predicted, Form::Ideal) => predictor,
            (Practical::Predicted, Form::Practical) => Some(predictor.unwrap_or(Self::PREDICTOR)),
        };
        Wish {
            method,
            cut: method.cut(cut),
            form,
            sparsity,
            predictor,
            fit,
        }
    }
}

/// How thresholds are fitted.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct FitArgs {
    /// Threshold of a layer: quantile of all scores, or mean of the tokens' own k-th scores (the paper's)
    #[arg(long, value_name = "RULE", default_value = "quantile", value_parser = thresholds())]
    pub(crate) threshold: Threshold,
    /// What layers see while thresholds are fitted: what the dense model gives, or what the sparse layers below give
    #[arg(long, value_name = "WHAT", default_value = "dense", value_parser = inputs())]
    pub(crate) inputs: Inputs,
    /// Which layers skip how much: all the same, or more where it costs the output less
    #[arg(long, value_name = "HOW", default_value = "uniform", value_parser = allocations())]
    pub(crate) allocation: Allocation,
}

impl FitArgs {
    pub(crate) fn fit(self) -> Fit {
        Fit {
            threshold: self.threshold,
            inputs: self.inputs,
            allocation: self.allocation,
        }
    }
}

impl PlanArgs {
    /// What was asked for, checked as far as that goes without a model.
    pub(crate) fn choice(&self) -> Result<PlanChoice> {
        if let Some(path) = &self.plan {
            return Ok(PlanChoice::File(path.clone()));
        }
        let needs_method = self.sparsity.is_some() || self.ideal || self.calibration.is_some();
        match (self.method, self.sparsity) {
            (None, _) if needs_method => Err(Failure::input(
                "--sparsity, --ideal and --calibration say nothing without a method",
                "add --method with one of the names that `--help` lists",
            )),
            (None, _) => Ok(PlanChoice::Dense),
            (Some(m), _) if m.is_dense() && needs_method => Err(Failure::input(
                "method dense skips nothing, so it has no sparsity and no plan",
                "leave --sparsity, --ideal and --calibration out, or use another method",
            )),
            (Some(m), _) if m.is_dense() => Ok(PlanChoice::Dense),
            (Some(method), Some(_))
                if self.predictor.is_some() && method.practical == Practical::Computed =>
            {
                Err(Failure::input(
                    format!(
                        "method {} computes its signal, so it has no use for a predictor",
                        method.name
                    ),
                    format!("leave --predictor out, or use --method {}", PREDICTED.name),
                ))
            }
            (Some(method), Some(sparsity)) => Ok(PlanChoice::Fit(Wish::new(
                method,
                self.cut,
                form(self.ideal),
                sparsity,
                self.predictor,
                self.fit.fit(),
            ))),
            (Some(method), None) => Err(no_sparsity(method)),
        }
    }
}

/// Any number of plans to compare.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sparsity")]
pub(crate) struct SweepArgs {
    /// Methods to compare; all but dense need --sparsity
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = methods())]
    pub(crate) method: Vec<&'static Method>,
    /// Shares of neurons to skip, in [0, 1)
    #[arg(long, value_name = "S,...", value_delimiter = ',', value_parser = sparsity)]
    pub(crate) sparsity: Vec<f64>,
    /// What is compared: the bare signal, or the signal times constants of the neuron, or each in turn [default: the method's best]
    #[arg(long, value_name = "CUT,...", value_delimiter = ',', value_parser = cuts())]
    pub(crate) cut: Vec<Cut>,
    /// What predicts the coefficients, for methods that predict them [default: copy3]
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', value_parser = predictors())]
    pub(crate) predictor: Vec<PredictorKind>,
    #[command(flatten)]
    pub(crate) fit: FitArgs,
    /// Exact top-k of every token instead of fixed thresholds
    #[arg(long, conflicts_with = "both")]
    pub(crate) ideal: bool,
    /// Fixed thresholds and exact top-k
    #[arg(long)]
    pub(crate) both: bool,
    /// Plans made by `countdown calibrate`, in place of or beside methods
    #[arg(long, value_name = "FILE,...", value_delimiter = ',')]
    pub(crate) plan: Vec<PathBuf>,
    /// Text to calibrate on where a plan is not cached [default: a built-in one]
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
}

impl SweepArgs {
    /// The file of each plan: those from files come first, then those that are fitted or cached, which have none.
    pub(crate) fn plan_files(&self) -> impl Iterator<Item = Option<String>> {
        let files = self.plan.iter().map(|p| Some(p.display().to_string()));
        files.chain(std::iter::repeat(None))
    }

    /// Every combination of the lists that is possible and differs from the others.
    pub(crate) fn wishes(&self) -> Result<Vec<Wish>> {
        let sparse: Vec<_> = self.method.iter().filter(|m| !m.is_dense()).collect();
        match (sparse.first(), self.sparsity.is_empty()) {
            (None, false) => {
                return Err(Failure::input(
                    "--sparsity says nothing without a method that skips neurons",
                    "add --method with one of the names that `--help` lists",
                ));
            }
            (Some(method), true) => return Err(no_sparsity(method)),
            _ => {}
        }
        let forms: &[Form] = match (self.both, self.ideal) {
            (true, _) => &[Form::Practical, Form::Ideal],
            (false, true) => &[Form::Ideal],
            (false, false) => &[Form::Practical],
        };
        let cuts = asked(&self.cut);
        let mut predictors = asked(&self.predictor);
        if self.both && predictors != [None] {
            // The exact signal is the bound of all predictors.
            predictors.push(None);
        }
        let mut wishes: Vec<Wish> = Vec::new();
        for &method in sparse {
            for &cut in &cuts {
                for &predictor in &predictors {
                    for &form in forms {
                        for &sparsity in &self.sparsity {
                            let fit = self.fit.fit();
                            let wish = Wish::new(method, cut, form, sparsity, predictor, fit);
                            let is_default = predictor.is_none() && predictors != [None];
                            let skip = is_default && wish.predictor.is_some();
                            if !skip && !wishes.contains(&wish) {
                                wishes.push(wish);
                            }
                        }
                    }
                }
            }
        }
        Ok(wishes)
    }
}

/// Each value asked for, or nothing in particular.
pub(crate) fn asked<T: Copy>(values: &[T]) -> Vec<Option<T>> {
    if values.is_empty() {
        vec![None]
    } else {
        values.iter().copied().map(Some).collect()
    }
}

fn no_sparsity(method: &Method) -> Failure {
    Failure::input(
        format!("method {} needs a sparsity", method.name),
        "add --sparsity with the share of neurons to skip, for example --sparsity 0.7",
    )
}

/// The form that `--ideal` asks for.
pub(crate) fn form(ideal: bool) -> Form {
    if ideal { Form::Ideal } else { Form::Practical }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct One {
        #[command(flatten)]
        plan: PlanArgs,
    }
    #[derive(Parser)]
    struct Many {
        #[command(flatten)]
        sweep: SweepArgs,
    }

    fn one(flags: &str) -> Result<PlanChoice> {
        let words = std::iter::once("x").chain(flags.split_whitespace());
        One::try_parse_from(words).unwrap().plan.choice()
    }

    fn many(flags: &str) -> Vec<String> {
        let words = std::iter::once("x").chain(flags.split_whitespace());
        let wishes = Many::try_parse_from(words).unwrap().sweep.wishes();
        let line = |w: &Wish| {
            let predictor = w.predictor.map_or("-", PredictorKind::name);
            let (name, cut, form) = (w.method.name, w.cut, w.form);
            format!("{name} {predictor} {cut:?} {form:?} {}", w.sparsity)
        };
        wishes.unwrap().iter().map(line).collect()
    }

    #[test]
    fn a_choice_is_complete_or_refused() {
        assert!(matches!(one(""), Ok(PlanChoice::Dense)));
        assert!(matches!(one("--method dense"), Ok(PlanChoice::Dense)));
        assert!(matches!(one("--plan x"), Ok(PlanChoice::File(_))));
        assert!(matches!(
            one("--method cats --sparsity 0.5 --cut layer"),
            Ok(PlanChoice::Fit(Wish {
                cut: Cut::Layer,
                predictor: None,
                ..
            }))
        ));
        for incomplete in [
            "--method cats",
            "--sparsity 0.5",
            "--ideal",
            "--method dense --sparsity 0.5",
        ] {
            assert_eq!(one(incomplete).unwrap_err().exit_code(), 2, "{incomplete}");
        }
    }

    #[test]
    fn combinations_that_are_the_same_or_impossible_are_left_out() {
        assert_eq!(
            many("--method dense,d-countdown,cats --sparsity 0.5 --cut layer,neuron --both"),
            [
                "d-countdown copy3 Layer Practical 0.5",
                "d-countdown - Layer Ideal 0.5",
                "d-countdown copy3 Neuron Practical 0.5",
                "d-countdown - Neuron Ideal 0.5",
                "cats - Layer Practical 0.5",
                "cats - Layer Ideal 0.5",
                "cats - Neuron Practical 0.5",
                "cats - Neuron Ideal 0.5",
            ]
        );
        assert_eq!(
            many("--method d-countdown,m-countdown --sparsity 0.5,0.7 --predictor copy4,copy2"),
            [
                "d-countdown copy4 Neuron Practical 0.5",
                "d-countdown copy4 Neuron Practical 0.7",
                "d-countdown copy2 Neuron Practical 0.5",
                "d-countdown copy2 Neuron Practical 0.7",
                "m-countdown - Signed Practical 0.5",
                "m-countdown - Signed Practical 0.7",
            ]
        );
        assert_eq!(
            many("--method dejavu --sparsity 0.5 --predictor copy4 --both"),
            [
                "dejavu copy4 Layer Practical 0.5",
                "dejavu copy4 Layer Ideal 0.5",
                "dejavu - Layer Ideal 0.5",
            ]
        );
        assert!(many("--method dense").is_empty());
    }
}
