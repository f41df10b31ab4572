//! The kinds of predictors by name.

use super::{PredictorSet, copies, planes};
use crate::{
    error::{Error, Result},
    model::{Layer, Matrix, Model},
    sparsity::Signal,
};
use countdown_kernels::DType;

/// Every kind, in the order of help texts and tables.
pub const PREDICTORS: &[PredictorKind] = &[
    PredictorKind::Copy4,
    PredictorKind::Copy3,
    PredictorKind::Copy2,
    PredictorKind::Planes,
    PredictorKind::LowRank,
    PredictorKind::Product,
    PredictorKind::Ternary,
];

/// How coefficients are predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PredictorKind {
    /// Gate and up once more in 4 bits, blocks of 32 with a scale each (4.5 bits a weight).
    Copy4,
    /// The same in 3 bits (3.5 bits a weight).
    Copy3,
    /// The same in 2 bits (2.5 bits a weight).
    Copy2,
    /// The upper four bits of Q8_0 weights; of the neurons kept only the lower four are read then.
    Planes,
    /// Logits B (A x) + b, trained (arXiv 2505.17701, with a bias).
    LowRank,
    /// Gate and up of low rank with a shared A, then the FFN's own product; trained.
    Product,
    /// Logits W x + b with W of -1, 0 and 1, trained (arXiv 2505.17701, with a bias).
    Ternary,
}

impl PredictorKind {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            PredictorKind::Copy4 => "copy4",
            PredictorKind::Copy3 => "copy3",
            PredictorKind::Copy2 => "copy2",
            PredictorKind::Planes => "planes",
            PredictorKind::LowRank => "low-rank",
            PredictorKind::Product => "product",
            PredictorKind::Ternary => "ternary",
        }
    }

    /// One line for help texts.
    pub fn summary(self) -> &'static str {
        match self {
            PredictorKind::Copy4 => "gate and up in 4 bits; no training",
            PredictorKind::Copy3 => "gate and up in 3 bits; no training",
            PredictorKind::Copy2 => "gate and up in 2 bits; no training",
            PredictorKind::Planes => "the upper four bits of Q8_0 weights; no training",
            PredictorKind::LowRank => "logits of low rank, as in the paper; trained",
            PredictorKind::Product => "gate and up of low rank, then their product; trained",
            PredictorKind::Ternary => "logits with weights of -1, 0 and 1; trained",
        }
    }

    /// The kind of that name.
    ///
    /// # Errors
    /// [`Error::Input`] listing the names.
    pub fn by_name(name: &str) -> Result<PredictorKind> {
        let found = PREDICTORS.iter().find(|k| k.name() == name);
        found.copied().ok_or_else(|| Error::Input {
            cause: format!("there is no predictor \"{name}\""),
            remedy: format!("use one of {}", names().join(", ")),
        })
    }

    /// Whether it must be trained; the others follow from the weights.
    pub fn is_trained(self) -> bool {
        matches!(
            self,
            PredictorKind::LowRank | PredictorKind::Product | PredictorKind::Ternary
        )
    }

    /// The storage type of a copy; `None` for other kinds.
    pub fn copy_dtype(self) -> Option<DType> {
        match self {
            PredictorKind::Copy4 => Some(DType::Q4_0),
            PredictorKind::Copy3 => Some(DType::Q3_0),
            PredictorKind::Copy2 => Some(DType::Q2_0),
            PredictorKind::Planes
            | PredictorKind::LowRank
            | PredictorKind::Product
            | PredictorKind::Ternary => None,
        }
    }

    /// Bytes that a copy of what `signal` needs reads a token; `None` for other kinds, or where it does not fit the model.
    pub fn copy_bytes(self, model: &Model, signal: Signal) -> Option<usize> {
        let dtype = self.copy_dtype()?;
        let bytes = |m: &Matrix| Some(m.rows() * dtype.row_bytes(m.cols())?);
        let layer = |l: &Layer| match signal {
            Signal::Gate => bytes(&l.ffn.gate),
            Signal::Up => bytes(&l.ffn.up),
            Signal::Product => Some(bytes(&l.ffn.gate)? + bytes(&l.ffn.up)?),
        };
        model.layers.iter().map(layer).sum()
    }

    /// The predictors themselves, where they follow from the model's weights.
    ///
    /// # Errors
    /// [`Error::Input`] for a kind that must be trained, and whatever [`copies`] or [`planes`] gives.
    pub fn untrained(self, model: &Model, signal: Signal, threads: usize) -> Result<PredictorSet> {
        let layers = match (self, self.copy_dtype()) {
            (_, Some(dtype)) => copies(model, dtype, signal, threads)?,
            (PredictorKind::Planes, _) => planes(model, signal)?,
            _ => {
                return Err(Error::Input {
                    cause: format!("a {} predictor must be trained", self.name()),
                    remedy: "run `countdown train`, then use the plan it writes with --plan".into(),
                });
            }
        };
        Ok(PredictorSet {
            name: self.name().into(),
            layers,
        })
    }
}

fn names() -> Vec<&'static str> {
    PREDICTORS.iter().map(|k| k.name()).collect()
}
