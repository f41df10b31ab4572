//! Bytes that a step reads, by arithmetic: of the file's own weights, and of the same shapes in other types.

use countdown::{
    Model, SparsityPlan,
    kernels::DType,
    model::{Matrix, ReadDensely, StepBytes},
    sparsity::{Form, Method, Practical},
};
use serde::{Deserialize, Serialize};

/// FFN bytes that a step reads over those that a dense step reads, by the type of gate, up and down.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Shares {
    /// The file's own types; down as it is stored for dense steps, transposed for sparse ones.
    pub(super) file: f64,
    /// 2 bytes a weight.
    pub(super) bits16: f64,
    /// 1.0625 bytes a weight: blocks of 32 with a scale.
    pub(super) bits8: f64,
}

/// FFN bytes of dense and sparse steps.
pub(super) struct Bytes {
    /// All weights that a dense step reads of the file, down as it is stored.
    dense: StepBytes,
    /// The same with transposed down projections.
    transposed: StepBytes,
    bits16: StepBytes,
    bits8: StepBytes,
}

impl Bytes {
    /// Of one model, with its down projections as stored and transposed.
    pub(super) fn of(stored: &Model, transposed: &Model) -> Bytes {
        let as_type = |dtype: DType| {
            let blocks = dtype.block_len();
            let per_block = dtype.row_bytes(blocks).unwrap_or(0);
            let bytes = |m: &Matrix| m.rows() * m.cols() * per_block / blocks;
            let sum = |pick: &dyn Fn(&countdown::model::Ffn) -> usize| {
                stored.layers.iter().map(|l| pick(&l.ffn)).sum()
            };
            StepBytes {
                gate: sum(&|f| bytes(&f.gate)),
                up: sum(&|f| bytes(&f.up)),
                down: sum(&|f| bytes(f.down.matrix())),
                ..StepBytes::default()
            }
        };
        Bytes {
            dense: stored.bytes_per_token(),
            transposed: transposed.bytes_per_token(),
            bits16: as_type(DType::F16),
            bits8: as_type(DType::Q8_0),
        }
    }

    /// All weight bytes of a dense step.
    pub(super) fn dense(&self) -> f64 {
        self.dense.total() as f64
    }

    /// All weight bytes of a step under a plan that skips `realised`.
    pub(super) fn sparse(&self, plan: &SparsityPlan, realised: f64) -> f64 {
        self.transposed.at(reads(plan), 1.0 - realised)
    }

    /// FFN bytes of such a step over those of a dense one.
    pub(super) fn shares(&self, plan: &SparsityPlan, realised: f64) -> Shares {
        let share = |sparse: StepBytes, dense: StepBytes| {
            let ffn = StepBytes {
                attention: 0,
                head: 0,
                ..sparse
            };
            ffn.at(reads(plan), 1.0 - realised) / dense.ffn() as f64
        };
        Shares {
            file: share(self.transposed, self.dense),
            bits16: share(self.bits16, self.bits16),
            bits8: share(self.bits8, self.bits8),
        }
    }
}

/// What a step reads for all neurons. An ideal plan of a method that would have to predict its signal is a bound: knowing the
/// signal costs nothing.
fn reads(plan: &SparsityPlan) -> ReadDensely {
    let from = &plan.provenance;
    let predicted =
        Method::by_name(&from.method).is_ok_and(|m| m.practical == Practical::Predicted);
    if predicted && from.form == Form::Ideal && from.predictor.is_none() {
        return ReadDensely::Predictor {
            bytes: 0,
            rest: None,
        };
    }
    plan.reads()
}
