//! Flags that several commands share. Names and defaults are llama.cpp's wherever it has the flag.

use crate::failure::{Failure, Result};
use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser, RangedU64ValueParser, TypedValueParser},
};
use countdown::{
    PlanRequest, SessionOptions,
    kernels::DType,
    session::physical_cores,
    sparsity::{Cut, Form, METHODS, Method, check_sparsity},
};
use std::path::PathBuf;

/// The model to run.
#[derive(Args, Clone, Debug)]
pub(crate) struct ModelArgs {
    /// GGUF file, or folder with config.json and safetensors files
    #[arg(short, long, value_name = "PATH")]
    pub(crate) model: PathBuf,
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
    /// What is compared: a neuron's signal weighted by its own constants, or the bare signal
    #[arg(long, value_name = "CUT", default_value = "neuron", value_parser = cuts())]
    pub(crate) cut: Cut,
    /// Exact top-k of every token: the upper bound of quality, without the speed
    #[arg(long)]
    pub(crate) ideal: bool,
    /// Use this plan, made by `countdown calibrate`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["method", "sparsity", "cut", "ideal", "calibration"])]
    pub(crate) plan: Option<PathBuf>,
    /// Text to calibrate on where no plan is cached [default: a built-in one]
    #[arg(long, value_name = "FILE")]
    pub(crate) calibration: Option<PathBuf>,
}

/// Where the plan in force comes from.
#[derive(Clone, Debug)]
pub(crate) enum PlanChoice {
    /// None: every neuron.
    Dense,
    /// A file.
    File(PathBuf),
    /// The cache, or calibration.
    Fit(PlanRequest),
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
                "add --method m-countdown, or another method of `--help`",
            )),
            (None, _) => Ok(PlanChoice::Dense),
            (Some(m), _) if m.is_dense() && needs_method => Err(Failure::input(
                "method dense skips nothing, so it has no sparsity and no plan",
                "leave --sparsity, --ideal and --calibration out, or use another method",
            )),
            (Some(m), _) if m.is_dense() => Ok(PlanChoice::Dense),
            (Some(method), Some(sparsity)) => {
                let request = PlanRequest {
                    method,
                    cut: self.cut,
                    form: form(self.ideal),
                    sparsity,
                };
                request.check()?;
                Ok(PlanChoice::Fit(request))
            }
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
    /// What is compared: a neuron's signal weighted by its own constants, or the bare signal, or each in turn
    #[arg(long, value_name = "CUT,...", value_delimiter = ',', default_value = "neuron", value_parser = cuts())]
    pub(crate) cut: Vec<Cut>,
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
    /// Every combination of the lists that is possible and differs from the others. A method that lacks one of two forms
    /// asked for gives the other.
    pub(crate) fn requests(&self) -> Result<Vec<PlanRequest>> {
        let sparse: Vec<_> = self.method.iter().filter(|m| !m.is_dense()).collect();
        match (sparse.first(), self.sparsity.is_empty()) {
            (None, false) => {
                return Err(Failure::input(
                    "--sparsity says nothing without a method that skips neurons",
                    "add --method m-countdown, or another method of `--help`",
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
        let mut requests: Vec<PlanRequest> = Vec::new();
        for &method in sparse {
            for &cut in &self.cut {
                for &form in forms {
                    if self.both && form == Form::Practical && method.practical.is_err() {
                        continue;
                    }
                    for &sparsity in &self.sparsity {
                        let request = PlanRequest {
                            method,
                            // Without constants both cuts compare the bare signal.
                            cut: if has_constants(method) {
                                cut
                            } else {
                                Cut::Layer
                            },
                            form,
                            sparsity,
                        };
                        request.check()?;
                        if !requests.iter().any(|r| same(r, &request)) {
                            requests.push(request);
                        }
                    }
                }
            }
        }
        Ok(requests)
    }
}

fn has_constants(method: &Method) -> bool {
    method.constants != countdown::sparsity::Constants::None
}

fn same(a: &PlanRequest, b: &PlanRequest) -> bool {
    let key = |r: &PlanRequest| (r.method.name, r.cut, r.form, r.sparsity.to_bits());
    key(a) == key(b)
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

/// Parses a method, with the registry's summaries as help.
pub(crate) fn methods() -> impl TypedValueParser<Value = &'static Method> {
    let values = METHODS
        .iter()
        .map(|m| PossibleValue::new(m.name).help(m.summary));
    PossibleValuesParser::new(values).try_map(|name| Method::by_name(&name))
}

/// Parses a target.
pub(crate) fn sparsity(text: &str) -> Result<f64, String> {
    let value: f64 = text
        .parse()
        .map_err(|_| "a share such as 0.7 is needed".to_owned())?;
    check_sparsity(value).map_err(|e| e.to_string())?;
    Ok(value)
}

/// Parses a cut.
pub(crate) fn cuts() -> impl TypedValueParser<Value = Cut> {
    let values = [
        PossibleValue::new("layer")
            .help("the signal itself, one threshold a layer, as in the paper"),
        PossibleValue::new("neuron").help("the signal times constants of the neuron"),
    ];
    PossibleValuesParser::new(values).map(|name| match name.as_str() {
        "layer" => Cut::Layer,
        _ => Cut::Neuron,
    })
}

/// Parses the storage type of a cache.
fn cache_types() -> impl TypedValueParser<Value = DType> {
    PossibleValuesParser::new(["f16", "f32"]).map(|name| match name.as_str() {
        "f32" => DType::F32,
        _ => DType::F16,
    })
}

/// Parses a number of threads; more than a thousand are a mistake.
pub(crate) fn threads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1024)
}

/// Parses a number that has a lower limit.
pub(crate) fn at_least(least: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..)
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
        let requests = Many::try_parse_from(words).unwrap().sweep.requests();
        let line =
            |r: &PlanRequest| format!("{} {:?} {:?} {}", r.method.name, r.cut, r.form, r.sparsity);
        requests.unwrap().iter().map(line).collect()
    }

    #[test]
    fn a_choice_is_complete_or_refused() {
        assert!(matches!(one(""), Ok(PlanChoice::Dense)));
        assert!(matches!(one("--method dense"), Ok(PlanChoice::Dense)));
        assert!(matches!(one("--plan x"), Ok(PlanChoice::File(_))));
        assert!(matches!(
            one("--method cats --sparsity 0.5 --cut layer"),
            Ok(PlanChoice::Fit(PlanRequest {
                cut: Cut::Layer,
                ..
            }))
        ));
        for incomplete in [
            "--method cats",
            "--sparsity 0.5",
            "--ideal",
            "--method dense --sparsity 0.5",
            "--method d-countdown --sparsity 0.5",
        ] {
            assert_eq!(one(incomplete).unwrap_err().exit_code(), 2, "{incomplete}");
        }
    }

    #[test]
    fn combinations_that_are_the_same_or_impossible_are_left_out() {
        assert_eq!(
            many("--method dense,d-countdown,cats --sparsity 0.5,0.7 --cut layer,neuron --both"),
            [
                "d-countdown Layer Ideal 0.5",
                "d-countdown Layer Ideal 0.7",
                "cats Layer Practical 0.5",
                "cats Layer Practical 0.7",
                "cats Layer Ideal 0.5",
                "cats Layer Ideal 0.7",
                "cats Neuron Practical 0.5",
                "cats Neuron Practical 0.7",
                "cats Neuron Ideal 0.5",
                "cats Neuron Ideal 0.7",
            ]
        );
        assert!(many("--method dense").is_empty());
    }
}
