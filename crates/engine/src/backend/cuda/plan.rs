//! A plan on a card: what its rules decide by.

use super::error;
use crate::{
    error::{Error, Result},
    model::Model,
    sparsity::{Keep, Predictor, Rule, Score, Signal, SparsityPlan},
};
use countdown_kernels::{
    cpu::Team,
    cuda::{
        self, Cuda, CudaError, CudaSlice, PredictorShape, Recording,
        ffn::{self, Cut, Decide},
    },
};
use std::sync::Arc;

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
    Predicted(Box<cuda::Predictor>),
}

impl DevicePlan {
    /// Copies what rules need. `threads` help to lay out rows.
    pub(super) fn upload(
        cuda: &Cuda,
        model: &Model,
        plan: &Arc<SparsityPlan>,
        threads: usize,
    ) -> Result<Self> {
        let mut team = crate::session::team(threads)?;
        let kept = 1.0 - plan.provenance.target;
        let rules = plan.rules.iter().zip(&model.layers);
        let rules = rules.map(|(rule, layer)| {
            let inter = layer.ffn.gate.rows();
            let expected = (kept * inter as f64) as usize;
            DeviceRule::upload(cuda, rule, expected, &mut team)
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
        remedy: "use --device cpu, or a plan with thresholds whose signal is gate or up, or is predicted by other than planes".into(),
    }
}

impl DeviceRule {
    fn upload(cuda: &Cuda, rule: &Rule, expected: usize, team: &mut Team) -> Result<DeviceRule> {
        let Keep::Above(tau) = rule.keep else {
            return Err(refused("keeps the largest scores of each token"));
        };
        let how = match (&rule.predictor, rule.signal) {
            (Some(p), _) => How::Predicted(Box::new(upload(cuda, p, team)?)),
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

    /// What kernels must be compiled for.
    pub(super) fn predictor(&self) -> Option<PredictorShape> {
        match &self.how {
            How::Predicted(p) => Some(p.shape()),
            How::Gate | How::Up => None,
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
            How::Predicted(predictor) => Decide::Predicted { predictor, cut },
        }
    }
}

fn upload(cuda: &Cuda, p: &Predictor, team: &mut Team) -> Result<cuda::Predictor> {
    if p.rest.is_some() {
        return Err(refused("predicts by planes of the weights"));
    }
    let types = p.outer.linears().map(|l| l.weight.dtype().name());
    let mut types: Vec<_> = types.collect();
    types.dedup();
    if types.len() > 1 {
        let types = types.join(" and ");
        return Err(refused(&format!("predicts by matrices of type {types}")));
    }
    let inner = p.inner.as_ref().map(|a| a.view());
    if let Some(rank) = inner.map(|a| a.rows()).filter(|r| !r.is_multiple_of(8)) {
        return Err(refused(&format!("predicts by rank {rank}, not one of 8")));
    }
    match cuda::Predictor::upload(cuda, inner, p.estimate(), team) {
        Err(CudaError::Weights { dtype, cols }) => Err(refused(&format!(
            "predicts by rows of {cols} weights of type {dtype}"
        ))),
        uploaded => uploaded.map_err(error),
    }
}
