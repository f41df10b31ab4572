//! What can be asked of training.

use super::labels::Target;
use crate::{
    calibrate::Fit,
    error::{Error, Result},
    model::Model,
    sparsity::{Cut, Method, Practical, PredictorKind, Signal, check_sparsity},
};
use countdown_kernels::DType;

/// The types that matrices of low-rank and product predictors can be stored in.
pub const STORED: [DType; 2] = [DType::F16, DType::Q8_0];

/// A predictor to train for every layer of a model, and the plan it is for.
#[derive(Clone, Debug)]
pub struct TrainRequest {
    /// The method whose signal is predicted.
    pub method: &'static Method,
    /// The shape of the predictor.
    pub kind: PredictorKind,
    /// Width of the inner vector, for kinds that have one.
    pub rank: usize,
    /// The type that matrices of low-rank and product predictors are stored in, one of [`STORED`]; `None` for Q8_0 where its blocks of 32 fill their rows, and F16 otherwise.
    pub storage: Option<DType>,
    /// Which neurons are labelled as needed.
    pub labels: Target,
    /// The share of neurons to skip, in [0, 1).
    pub sparsity: f64,
    /// Passes over the text, at most; the one with the lowest held-out loss is kept. With 0 the initialisation is.
    pub epochs: usize,
    /// Learning rate at the end of the warm-up.
    pub rate: f32,
    /// Tokens a step.
    pub batch: usize,
    /// What initialisation and the order of tokens depend on.
    pub seed: u64,
    /// Bytes to use beside the model. Inputs that do not fit go to a file.
    pub memory: u64,
    /// How the plan's thresholds are fitted afterwards.
    pub fit: Fit,
}

impl TrainRequest {
    /// What trained best in our measurements, for a kind of predictor of a method.
    pub fn new(method: &'static Method, kind: PredictorKind, sparsity: f64) -> TrainRequest {
        TrainRequest {
            method,
            kind,
            rank: 128,
            storage: None,
            labels: TrainRequest::targets(method)
                .last()
                .copied()
                .unwrap_or(Target::Magnitude),
            sparsity,
            epochs: 6,
            rate: 3e-3,
            batch: 1024,
            seed: 1,
            memory: 4 << 30,
            fit: Fit::default(),
        }
    }

    /// The labels that make sense for a method, the best last.
    pub fn targets(method: &Method) -> &'static [Target] {
        match (method.signal, method.cuts) {
            _ if method.practical == Practical::Computed => &[],
            (Some(Signal::Product), [Cut::Neuron]) => &[Target::Output, Target::Weighted],
            (Some(Signal::Product), _) => &[Target::Magnitude, Target::Output, Target::Weighted],
            (Some(Signal::Gate), _) => &[Target::Gate],
            _ => &[],
        }
    }

    /// How the plan compares what the predictor says: labels that count norms want scores that do.
    pub(super) fn cut(&self) -> Cut {
        let asked = if self.labels.counts_norms() {
            Cut::Neuron
        } else {
            Cut::Layer
        };
        self.method.cut(Some(asked))
    }

    /// The name of the predictors in plans: `low-rank-128`.
    pub fn predictor_name(&self) -> String {
        match self.kind {
            PredictorKind::LowRank | PredictorKind::Product => {
                format!("{}-{}", self.kind.name(), self.rank)
            }
            _ => self.kind.name().into(),
        }
    }

    /// The type that matrices of the trained predictor have in a model of that width.
    pub fn storage_type(&self, hidden: usize) -> DType {
        if self.kind == PredictorKind::Ternary {
            return DType::T2;
        }
        let usual = if self.fills_blocks(DType::Q8_0, hidden) {
            DType::Q8_0
        } else {
            DType::F16
        };
        self.storage.unwrap_or(usual)
    }

    /// Whether rows of both matrices, as long as the hidden size and the rank, are whole blocks.
    fn fills_blocks(&self, dtype: DType, hidden: usize) -> bool {
        [hidden, self.rank]
            .iter()
            .all(|cols| dtype.row_bytes(*cols).is_some())
    }

    /// Refuses what cannot be trained.
    ///
    /// # Errors
    /// [`Error::Input`] naming the value and what to give instead.
    pub fn check(&self, model: &Model) -> Result<()> {
        let refuse = |cause: String, remedy: &str| {
            Err(Error::Input {
                cause,
                remedy: remedy.into(),
            })
        };
        check_sparsity(self.sparsity)?;
        let (method, kind) = (self.method.name, self.kind.name());
        let shaped = match self.kind {
            PredictorKind::LowRank | PredictorKind::Ternary => true,
            PredictorKind::Product => self.method.decides_by_coefficients(),
            _ => {
                return refuse(
                    format!("a {kind} predictor needs no training"),
                    "use `countdown calibrate --predictor`",
                );
            }
        };
        let targets = TrainRequest::targets(self.method);
        if targets.is_empty() {
            let names: Vec<_> = Practical::Predicted.methods().map(|m| m.name).collect();
            return refuse(
                format!("method {method} has no use for a predictor"),
                &format!("train for {}", names.join(" or ")),
            );
        }
        if !shaped {
            return refuse(
                format!(
                    "a {kind} predictor imitates coefficients, which {method} does not ask for"
                ),
                "use low-rank or ternary",
            );
        }
        if !targets.contains(&self.labels) {
            let names: Vec<_> = targets.iter().map(|t| t.name()).collect();
            return refuse(
                format!("method {method} has no labels \"{}\"", self.labels.name()),
                &format!("use {}", names.join(" or ")),
            );
        }
        let hidden = model.config.hidden;
        if self.kind != PredictorKind::Ternary && !(1..=hidden).contains(&self.rank) {
            return refuse(
                format!(
                    "rank {} is not between 1 and the model's hidden size of {hidden}",
                    self.rank
                ),
                &format!(
                    "use --rank {} or less; an eighth of the hidden size is usual",
                    hidden
                ),
            );
        }
        if self.kind == PredictorKind::Ternary && !hidden.is_multiple_of(32) {
            return refuse(
                format!(
                    "a ternary predictor needs a hidden size that is a multiple of 32; this model's is {hidden}"
                ),
                "train a low-rank predictor for this model",
            );
        }
        if let Some(dtype) = self.storage {
            let types = STORED.map(DType::name).join(" or ");
            if self.kind == PredictorKind::Ternary || !STORED.contains(&dtype) {
                return refuse(
                    format!("a {kind} predictor is not stored in {dtype}"),
                    &format!("leave the type out; low-rank and product can have {types}"),
                );
            }
            if !self.fills_blocks(dtype, hidden) {
                return refuse(
                    format!(
                        "rows of {hidden} and of rank {} are no whole blocks of {}, as {dtype} has them",
                        self.rank,
                        dtype.block_len()
                    ),
                    "use F16, or a rank that is a multiple of it",
                );
            }
        }
        if self.batch == 0 || !(self.rate > 0.0 && self.rate.is_finite()) {
            return refuse(
                format!(
                    "batch {} and learning rate {} must be above 0",
                    self.batch, self.rate
                ),
                "leave them out for the defaults",
            );
        }
        Ok(())
    }
}
