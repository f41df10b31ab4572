//! One layer from its data to its finished predictor.

use super::{
    arithmetic::Arithmetic,
    finish,
    fit::{EpochLoss, Schedule, State, Trainer},
    host::Host,
    init::{self, GateAndUp, Sample, Standard},
    layer_data::{LayerData, Spread},
    machine::Machine,
    metrics::{Quality, QualitySums, quantile},
    request::TrainRequest,
    students::{Gradient, LowRank, Product, Student, Ternary},
};
use crate::{
    arch::Act,
    backend::cpu::kernels,
    error::Result,
    model::{Ffn, Matrix},
    sparsity::{Estimator, Predictor, PredictorKind},
};
use countdown_kernels::{DType, quant};

/// Tokens that initialisation looks at, at most.
const SAMPLE: usize = 8192;
/// Training tokens whose scores the cut is fitted on, at most.
const CUT_TOKENS: usize = 2048;
/// Held-out tokens measured at a time.
const MEASURED: usize = 256;

/// What is known of a layer's predictor.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LayerReport {
    /// The layer.
    pub layer: usize,
    /// Tokens trained on.
    pub tokens: usize,
    /// Tokens measured on.
    pub held_out: usize,
    /// Bytes that the predictor reads a token.
    pub bytes: usize,
    /// Held-out loss of one who knows how often each neuron is needed, and nothing else.
    pub chance: f64,
    /// Losses at the start and after each epoch: means over tokens and neurons.
    pub losses: Vec<EpochLoss>,
    /// The epoch that was kept; 0 is the start.
    pub best_epoch: usize,
    /// What the predictor selects on held-out tokens, by a cut fitted on training tokens.
    pub quality: Quality,
    /// What the labels themselves select: the bound.
    pub bound: Quality,
}

/// A student that knows its shape.
pub(super) enum Shape {
    LowRank(LowRank),
    Product(Product),
    Ternary(Ternary),
}

impl Shape {
    /// The student that a request asks for in a layer.
    pub(super) fn new(request: &TrainRequest, act: Act, data: &LayerData) -> Shape {
        let (hidden, inter, rank) = (data.hidden(), data.inter(), request.rank);
        match request.kind {
            PredictorKind::Ternary => Shape::Ternary(Ternary { hidden, inter }),
            PredictorKind::Product => Shape::Product(Product {
                hidden,
                inter,
                rank,
                act,
                weight: if request.labels.counts_norms() {
                    data.norms().to_vec()
                } else {
                    vec![1.0; inter]
                },
                floor: 0.0,
            }),
            _ => Shape::LowRank(LowRank {
                hidden,
                inter,
                rank,
            }),
        }
    }

    pub(super) fn student(&self) -> &dyn Student {
        match self {
            Shape::LowRank(s) => s,
            Shape::Product(s) => s,
            Shape::Ternary(s) => s,
        }
    }

    fn gradient<A: Arithmetic>(&self) -> &dyn Gradient<A> {
        match self {
            Shape::LowRank(s) => s,
            Shape::Product(s) => s,
            Shape::Ternary(s) => s,
        }
    }

    /// How inputs are changed for it.
    pub(super) fn standard(&self, data: &LayerData) -> Standard {
        data.standard(match self {
            Shape::LowRank(_) | Shape::Product(_) => Spread::Unit,
            Shape::Ternary(_) => Spread::Kept,
        })
    }

    /// Parameters to start from.
    pub(super) fn start(
        &mut self,
        request: &TrainRequest,
        ffn: &Ffn,
        standard: &Standard,
        data: &mut LayerData,
        seed: u64,
        machine: &Machine,
    ) -> Result<Vec<f32>> {
        let taken = spread(data.samples.tokens(), SAMPLE);
        let mut x = vec![0.0; taken.len() * data.hidden()];
        data.samples.gather(&taken, &mut x)?;
        standard.apply(&mut x);
        let inter = data.inter();
        let mut needs = Vec::new();
        if !matches!(self, Shape::Product(_)) {
            needs.reserve(taken.len() * inter);
            for &t in &taken {
                needs.extend(
                    (0..inter).map(|i| f32::from(u8::from(data.labels.get(t as usize, i)))),
                );
            }
        }
        let sample = Sample {
            x: &x,
            needs: &needs,
            frequencies: &data.labels.frequencies(),
        };
        let products = &mut machine.products()?;
        match self {
            Shape::LowRank(s) => init::low_rank(s, &sample, seed, products),
            Shape::Ternary(s) => init::ternary(s, &sample, products),
            Shape::Product(s) => {
                let weights = GateAndUp {
                    gate: &unpacked(&ffn.gate),
                    up: &unpacked(&ffn.up),
                };
                init::product(
                    s,
                    &weights,
                    standard,
                    &sample,
                    request.sparsity,
                    seed,
                    products,
                )
            }
        }
    }

    /// The predictor of these parameters; `storage` is [`TrainRequest::storage_type`].
    pub(super) fn finish(
        &self,
        parameters: &[f32],
        standard: &Standard,
        storage: DType,
    ) -> Result<Predictor> {
        match self {
            Shape::LowRank(s) => finish::low_rank(s, parameters, standard, storage),
            Shape::Product(s) => finish::product(s, parameters, standard, storage),
            Shape::Ternary(s) => finish::ternary(s, parameters, standard),
        }
    }
}

/// Up to `most` of `tokens`, evenly spread.
fn spread(tokens: usize, most: usize) -> Vec<u32> {
    let step = tokens.div_ceil(most).max(1);
    (0..tokens as u32).step_by(step).collect()
}

fn unpacked(m: &Matrix) -> Vec<f32> {
    let (view, cols) = (m.view(), m.cols());
    let mut out = vec![0.0; m.rows() * cols];
    for (r, row) in out.chunks_exact_mut(cols).enumerate() {
        quant::unpack_row_of(view, r, row);
    }
    out
}

/// Trains from `state` (or from the start) to the last epoch, calling `saved` after each with the state to keep.
pub(super) fn train(
    shape: &Shape,
    standard: &Standard,
    data: &mut LayerData,
    schedule: Schedule,
    machine: &Machine,
    begin: Begin,
    saved: impl FnMut(&State) -> Result<()>,
) -> Result<State> {
    match &machine.card {
        Some(card) => train_by(card.clone(), shape, standard, data, schedule, begin, saved),
        None => {
            let host = Host::new(machine.threads)?;
            train_by(host, shape, standard, data, schedule, begin, saved)
        }
    }
}

fn train_by<A: Arithmetic>(
    by: A,
    shape: &Shape,
    standard: &Standard,
    data: &mut LayerData,
    schedule: Schedule,
    begin: Begin,
    mut saved: impl FnMut(&State) -> Result<()>,
) -> Result<State> {
    let mut trainer = Trainer::new(shape.gradient::<A>(), standard, schedule, by)?;
    let mut state = match begin {
        Begin::From(state) => state,
        Begin::At(parameters) => trainer.start(data, parameters)?,
    };
    while state.epochs() < schedule.epochs {
        trainer.epoch(data, &mut state)?;
        saved(&state)?;
    }
    Ok(state)
}

/// Where a layer's training begins.
pub(super) enum Begin {
    /// Where an earlier run was interrupted.
    From(State),
    /// At the first epoch, with these parameters.
    At(Vec<f32>),
}

/// Measures a finished predictor on the held-out tokens. `down` is transposed, `[inter, hidden]`.
pub(super) fn measure(
    predictor: &Predictor,
    request: &TrainRequest,
    act: Act,
    down: &Matrix,
    data: &mut LayerData,
    machine: &Machine,
) -> Result<(Quality, Quality)> {
    let (hidden, inter) = (data.hidden(), data.inter());
    let mut down = machine.packed(down.view(), MEASURED)?;
    let (mut team, kernels) = (crate::session::team(machine.threads)?, kernels()?);
    let mut estimator = Estimator::default();
    let weighs = request.labels.counts_norms() && !predictor.scores_by_value();
    let norms = data.norms().to_vec();
    let mut scores = |x: &[f32], out: &mut Vec<f32>| {
        out.resize(x.len() / hidden * inter, 0.0);
        estimator.signals(&mut team, kernels, predictor, act, x, out);
        if predictor.scores_by_value() {
            return;
        }
        for row in out.chunks_exact_mut(inter) {
            for (s, n) in row.iter_mut().zip(&norms) {
                *s = if weighs { s.abs() * n } else { s.abs() };
            }
        }
    };
    let taken = spread(data.samples.tokens(), CUT_TOKENS);
    let mut x = vec![0.0; taken.len() * hidden];
    data.samples.gather(&taken, &mut x)?;
    let mut all = Vec::new();
    scores(&x, &mut all);
    let cut = quantile(&mut all, request.sparsity);

    let (mut by_predictor, mut by_labels) = (QualitySums::default(), QualitySums::default());
    let held = &data.held;
    let tokens = held.labels.tokens();
    for first in (0..tokens).step_by(MEASURED) {
        let end = (first + MEASURED).min(tokens);
        scores(&held.x[first * hidden..end * hidden], &mut all);
        let labels: Vec<u32> = (first..end)
            .flat_map(|t| held.labels.row(t).to_vec())
            .collect();
        let exact = &held.coefficients[first * inter..end * inter];
        let keep = |t: usize, i: usize| all[t * inter + i] > cut;
        by_predictor.add(keep, &labels, exact, &mut down)?;
        let keep = |t: usize, i: usize| held.labels.get(first + t, i);
        by_labels.add(keep, &labels, exact, &mut down)?;
    }
    Ok((by_predictor.quality(), by_labels.quality()))
}
