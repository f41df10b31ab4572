//! Models of the fixtures, texts, and plans for them.

use countdown::{
    DownLayout, Fit, Logits, Model, Phase, PlanRequest, Session, SessionOptions, SparsityPlan,
    kernels::{DType, quant, reference},
    model::{Down, Matrix},
    sparsity::{Form, Keep, METHODS, Method, PredictorKind, Rule, Score, Signal},
};
use std::{path::PathBuf, sync::Arc};

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// The trained model and a random model of each family.
pub(crate) const MODELS: [&str; 12] = [
    "byte-llama",
    "golden/llama3",
    "golden/mistral",
    "golden/qwen2",
    "golden/qwen3",
    "golden/gemma",
    "golden/gemma2",
    "golden/gemma3",
    "golden/phi3",
    "golden/smollm3",
    "golden/olmo2",
    "golden/granite",
];

pub(crate) fn model(name: &str) -> Arc<Model> {
    Arc::new(Model::open(&fixture(name), DownLayout::Transposed, 2).unwrap())
}

pub(crate) fn session(model: &Arc<Model>, threads: usize) -> Session {
    let options = SessionOptions {
        context: Some(128),
        threads: Some(threads),
        batch: 64,
        cache_dtype: DType::F32,
        ..SessionOptions::default()
    };
    Session::new(model.clone(), &options).unwrap()
}

/// Tokens every fixture's vocabulary has, in no particular order.
pub(crate) fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 37 + 11) % 97).collect()
}

/// Plain English bytes, for the trained model.
pub(crate) fn prose(n: usize) -> Vec<u32> {
    let text = countdown::CALIBRATION_TEXT.bytes().filter(u8::is_ascii);
    text.map(u32::from).take(n).collect()
}

/// The same model with all weights stored in another type, where that goes into the width of their rows.
pub(crate) fn in_type(m: &Model, dtype: DType) -> Arc<Model> {
    let mut m = m.clone();
    let converted = |w: &mut Matrix| {
        let Some(bytes) = dtype.row_bytes(w.cols()) else {
            return;
        };
        let mut data = vec![0; w.rows() * bytes];
        for (i, out) in data.chunks_exact_mut(bytes).enumerate() {
            quant::pack_row(dtype, &reference::row(w.view(), i), out);
        }
        *w = Matrix::new(dtype, w.rows(), w.cols(), data.into()).unwrap();
    };
    converted(&mut m.head);
    for l in &mut m.layers {
        for linear in [&mut l.query, &mut l.key, &mut l.value, &mut l.attn_output] {
            converted(&mut linear.weight);
        }
        let (Down::Stored(down) | Down::Transposed(down)) = &mut l.ffn.down;
        [&mut l.ffn.gate, &mut l.ffn.up, down]
            .into_iter()
            .for_each(converted);
    }
    Arc::new(m)
}

/// The logits after each token, from the start.
pub(crate) fn steps(s: &mut Session, tokens: &[u32]) -> Vec<Vec<f32>> {
    s.reset();
    more_steps(s, tokens)
}

/// The same, after what the session has seen.
pub(crate) fn more_steps(s: &mut Session, tokens: &[u32]) -> Vec<Vec<f32>> {
    let step = |t: &u32| copied(s.feed(&[*t], Phase::Decode).unwrap());
    tokens.iter().map(step).collect()
}

/// All of them.
pub(crate) fn copied(logits: Logits) -> Vec<f32> {
    logits.all().unwrap().to_vec()
}

pub(crate) fn plan_of(
    model: &Model,
    signal: Signal,
    keep: impl Fn(usize) -> Keep,
) -> Arc<SparsityPlan> {
    let method = METHODS.iter().find(|m| m.signal == Some(signal)).unwrap();
    let mut plan = SparsityPlan::ideal(model, method, signal, 0.5).unwrap();
    for (i, rule) in plan.rules.iter_mut().enumerate() {
        *rule = Rule {
            signal,
            predictor: None,
            score: Score::Magnitude,
            keep: keep(i),
        };
    }
    Arc::new(plan)
}

/// Largest difference between two runs, relative to the largest logit.
pub(crate) fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let (mut worst, mut largest) = (0f32, 0f32);
    for (x, y) in a.iter().flatten().zip(b.iter().flatten()) {
        worst = worst.max((x - y).abs());
        largest = largest.max(x.abs());
    }
    worst / largest
}

/// A request for predictions by a copy of the model's weights.
pub(crate) fn by_copy(
    m: &Model,
    method: &str,
    kind: PredictorKind,
    form: Form,
    sparsity: f64,
) -> PlanRequest {
    let method = Method::by_name(method).unwrap();
    let set = kind.untrained(m, method.signal.unwrap(), 2).unwrap();
    PlanRequest {
        method,
        cut: method.cut(None),
        form,
        sparsity,
        predictor: Some(Arc::new(set)),
        fit: Fit::default(),
    }
}
