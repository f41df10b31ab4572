//! What takes part: every method in the forms and cuts that tell something, and plans from files.

use super::results::{Key, PlanFile};
use crate::{
    args::{FitArgs, Wish, asked, cuts, methods, predictors, sparsity},
    failure::{Failure, Result},
    plans::Planner,
};
use clap::Args;
use countdown::{
    Error, SparsityPlan,
    sparsity::{Cut, Form, METHODS, Method, Practical, PredictorKind},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What takes part.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sparsity")]
pub(crate) struct FieldArgs {
    /// Methods [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = methods())]
    method: Vec<&'static Method>,
    /// Shares of neurons to skip, in [0, 1)
    #[arg(long, value_name = "S,...", value_delimiter = ',', default_value = "0.5,0.6,0.7,0.8,0.9", value_parser = sparsity)]
    sparsity: Vec<f64>,
    /// What is compared [default: the paper's cut and the method's best]
    #[arg(long, value_name = "CUT,...", value_delimiter = ',', value_parser = cuts())]
    cut: Vec<Cut>,
    /// Predictors that need no training, for methods that predict
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', default_value = "copy4,copy3,copy2", value_parser = predictors())]
    predictor: Vec<PredictorKind>,
    #[command(flatten)]
    pub(super) fit: FitArgs,
    /// Plans from files, such as those of trained predictors
    #[arg(long, value_name = "FILE,...", value_delimiter = ',')]
    plan: Vec<PathBuf>,
    /// Text to fit plans on [default: a built-in one]
    #[arg(long, value_name = "FILE")]
    pub(super) calibration: Option<PathBuf>,
}

/// One that takes part.
#[derive(Clone)]
pub(super) struct Candidate {
    pub(super) key: Key,
    pub(super) source: Source,
}

/// Where its plan comes from.
#[derive(Clone)]
pub(super) enum Source {
    /// It is to be fitted.
    Wish(Wish),
    /// A file.
    File(Arc<SparsityPlan>),
    /// It keeps the same neurons as another candidate, which alone is measured.
    SameAs(Key),
}

impl Candidate {
    /// Whether it is measured itself.
    pub(super) fn is_measured(&self) -> bool {
        !matches!(self.source, Source::SameAs(_))
    }
}

/// All that take part, by target, each once.
pub(super) fn candidates(args: &FieldArgs, planner: &Planner<'_>) -> Result<Vec<Candidate>> {
    let mut all: Vec<Candidate> = Vec::new();
    let mut wishes: Vec<(Wish, Key)> = Vec::new();
    for wish in wishes_of(args) {
        let key = key(&wish);
        let twin = wishes.iter().find(|(other, _)| keep_the_same(other, &wish));
        let source = match twin {
            Some((_, other)) => Source::SameAs(other.clone()),
            None => Source::Wish(wish.clone()),
        };
        if twin.is_none() {
            wishes.push((wish, key.clone()));
        }
        if all.iter().all(|c| c.key != key) {
            all.push(Candidate { key, source });
        }
    }
    for path in &args.plan {
        let candidate = from_file(path, planner)?;
        if all.iter().all(|c| c.key != candidate.key) {
            all.push(candidate);
        }
    }
    if all.is_empty() {
        return Err(Failure::input(
            "there is nothing to compare with dense",
            "leave --method out, or name another method than dense",
        ));
    }
    all.sort_by(|a, b| a.key.target.total_cmp(&b.key.target));
    Ok(all)
}

/// Practical and ideal plans of what computes its signal; of what predicts it, a practical plan by each predictor, and the ideal
/// one that knows the signal: the bound. In the paper's cut and in the method's best unless cuts are given.
fn wishes_of(args: &FieldArgs) -> Vec<Wish> {
    let mut wishes = Vec::new();
    let methods = match &args.method[..] {
        [] => METHODS,
        some => some,
    };
    for method in methods.iter().filter(|m| !m.is_dense()) {
        let mut cuts: Vec<Cut> = match asked(&args.cut)[..] {
            [None] => method
                .cuts
                .first()
                .into_iter()
                .copied()
                .chain([method.cut(None)])
                .collect(),
            ref cuts => cuts.iter().map(|c| method.cut(*c)).collect(),
        };
        cuts.dedup();
        for cut in cuts {
            for &sparsity in &args.sparsity {
                let wish = |form, predictor| {
                    Wish::new(method, Some(cut), form, sparsity, predictor, args.fit.fit())
                };
                match method.practical {
                    Practical::Computed => wishes.push(wish(Form::Practical, None)),
                    Practical::Predicted => {
                        let by = |kind: &PredictorKind| wish(Form::Practical, Some(*kind));
                        wishes.extend(args.predictor.iter().map(by));
                    }
                }
                wishes.push(wish(Form::Ideal, None));
            }
        }
    }
    wishes
}

/// Whether two wishes come to the same neurons at the same cost.
fn keep_the_same(a: &Wish, b: &Wish) -> bool {
    let decides = |w: &Wish| {
        (
            w.method.signal,
            w.method.practical,
            w.cut,
            w.form,
            w.predictor,
        )
    };
    decides(a) == decides(b) && a.sparsity == b.sparsity
}

fn key(wish: &Wish) -> Key {
    Key {
        method: wish.method.name.into(),
        predictor: wish.predictor.map(|k| k.name().into()),
        cut: Some(wish.cut),
        form: Some(wish.form),
        target: wish.sparsity,
        plan: None,
    }
}

fn from_file(path: &Path, planner: &Planner<'_>) -> Result<Candidate> {
    let plan = planner.open(path)?;
    let bytes = fs::read(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    let from = &plan.provenance;
    // The method must be known: what a row reads depends on it.
    Method::by_name(&from.method)?;
    let name = path.file_name().unwrap_or(path.as_os_str());
    Ok(Candidate {
        key: Key {
            method: from.method.clone(),
            predictor: from.predictor.clone(),
            cut: Some(from.cut),
            form: Some(from.form),
            target: from.target,
            plan: Some(PlanFile {
                name: name.to_string_lossy().into_owned(),
                hash: blake3::hash(&bytes).to_hex().to_string(),
            }),
        },
        source: Source::File(plan),
    })
}
