//! A plan on a card: what its rules decide by.

use super::error;
use crate::{
    error::{Error, Result},
    model::Model,
    sparsity::{Keep, Outer, Predictor, Rule, Score, Signal, SparsityPlan},
};
use countdown_kernels::{
    DType,
    cuda::{
        Cuda, CudaSlice, Recording, Weights,
        ffn::{self, Cut, Decide, copy4},
    },
};
use std::sync::Arc;

/// Width that FFNs are compiled for where a plan has no low-rank predictor.
pub(super) const NO_RANK: usize = 0;

/// A plan, and the step by it once that is recorded.
pub(super) struct DevicePlan {
    /// Kept so that no other plan is taken for it.
    pub(super) plan: Arc<SparsityPlan>,
    pub(super) rules: Vec<DeviceRule>,
    pub(super) steps: Steps,
}

/// Steps of one kind: the first is run as it is issued, for kernels to be loaded, and the second is recorded.
#[derive(Default)]
pub(super) enum Steps {
    #[default]
    None,
    Run,
    /// With what it counts: layers by a rule and their tokens, and neurons of the others.
    Recorded(Recording, Vec<(usize, usize)>, usize),
}

/// What decides in one layer.
pub(super) struct DeviceRule {
    how: How,
    constants: Option<[CudaSlice<f32>; 2]>,
    by_value: ByValue,
    tau: f32,
    expected: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum ByValue {
    No,
    Yes,
}

enum How {
    Gate,
    Up,
    LowRank {
        a: Weights,
        b: Weights,
        bias: Option<CudaSlice<f32>>,
    },
    Copy4(CudaSlice<u8>),
}

impl DevicePlan {
    /// Copies what rules need.
    pub(super) fn upload(cuda: &Cuda, model: &Model, plan: &Arc<SparsityPlan>) -> Result<Self> {
        let kept = 1.0 - plan.provenance.target;
        let rules = plan.rules.iter().zip(&model.layers);
        let rules = rules.map(|(rule, layer)| {
            let inter = layer.ffn.gate.rows();
            let expected = (kept * inter as f64) as usize;
            DeviceRule::upload(cuda, rule, expected)
        });
        Ok(DevicePlan {
            plan: plan.clone(),
            rules: rules.collect::<Result<_>>()?,
            steps: Steps::None,
        })
    }
}

fn refused(what: &str) -> Error {
    Error::Plan {
        cause: format!("{what}, for which there is no CUDA kernel"),
        remedy: "use --device cpu, or a plan with thresholds whose signal is gate or up, or is predicted by low rank or by a copy in 4 bits (copy4)".into(),
    }
}

impl DeviceRule {
    fn upload(cuda: &Cuda, rule: &Rule, expected: usize) -> Result<DeviceRule> {
        let Keep::Above(tau) = rule.keep else {
            return Err(refused("keeps the largest scores of each token"));
        };
        let how = match (&rule.predictor, rule.signal) {
            (Some(p), _) => How::of(cuda, p)?,
            (None, Signal::Gate) => How::Gate,
            (None, Signal::Up) => How::Up,
            (None, Signal::Product) => return Err(refused("decides by gate times up itself")),
        };
        let constants = match &rule.score {
            Score::Weighted(w) => Some([
                cuda.upload(&w.positive).map_err(error)?,
                cuda.upload(&w.negative).map_err(error)?,
            ]),
            Score::Magnitude | Score::Value => None,
        };
        Ok(DeviceRule {
            how,
            constants,
            by_value: match rule.score {
                Score::Value => ByValue::Yes,
                _ => ByValue::No,
            },
            tau,
            expected,
        })
    }

    /// The width and the type of a low-rank predictor.
    pub(super) fn rank(&self) -> Option<(usize, DType)> {
        match &self.how {
            How::LowRank { a, .. } => Some((a.rows(), a.dtype())),
            _ => None,
        }
    }

    /// As kernels take it.
    pub(super) fn decide(&self) -> Decide<'_> {
        let score = match (&self.constants, self.by_value) {
            (Some([positive, negative]), _) => ffn::Score::Weighted { positive, negative },
            (None, ByValue::Yes) => ffn::Score::Value,
            (None, ByValue::No) => ffn::Score::Magnitude,
        };
        let cut = Cut {
            score,
            tau: self.tau,
            expected: self.expected,
        };
        match &self.how {
            How::Gate => Decide::Gate(cut),
            How::Up => Decide::Up(cut),
            How::LowRank { a, b, bias } => Decide::LowRank {
                a,
                b,
                bias: bias.as_ref(),
                cut,
            },
            How::Copy4(copy) => Decide::Copy4 { copy, cut },
        }
    }
}

impl How {
    fn of(cuda: &Cuda, p: &Predictor) -> Result<How> {
        match (&p.inner, &p.outer) {
            (Some(a), Outer::Logits(b)) => {
                let dtype = a.dtype();
                if !matches!(dtype, DType::F16 | DType::BF16) || b.weight.dtype() != dtype {
                    let types = format!("{dtype} and {}", b.weight.dtype());
                    return Err(refused(&format!("predicts by matrices of type {types}")));
                }
                if !a.rows().is_multiple_of(8) {
                    let rank = a.rows();
                    return Err(refused(&format!("predicts by rank {rank}, not one of 8")));
                }
                let bias = b.bias.as_ref().map(|b| cuda.upload(b));
                Ok(How::LowRank {
                    a: Weights::upload(cuda, a.view(), None).map_err(error)?,
                    b: Weights::upload(cuda, b.weight.view(), None).map_err(error)?,
                    bias: bias.transpose().map_err(error)?,
                })
            }
            (None, Outer::Product { gate, up })
                if p.rest.is_none()
                    && [gate, up].map(|l| (l.weight.dtype(), l.bias.is_none()))
                        == [(DType::Q4_0, true); 2] =>
            {
                let [gate, up] = [gate, up].map(|l| l.weight.view());
                let copy = cuda.upload(&copy4(gate, up));
                Ok(How::Copy4(copy.map_err(error)?))
            }
            _ => {
                let mut types: Vec<_> =
                    p.outer.linears().map(|l| l.weight.dtype().name()).collect();
                types.dedup();
                let types = types.join(" and ");
                Err(refused(&format!("predicts by matrices of type {types}")))
            }
        }
    }
}
