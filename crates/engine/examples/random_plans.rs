//! Plans for `countdown bench` on random models (`countdown synth`), where there is nothing to train a predictor on: M-CountDown with a constant for each
//! neuron and sign, and D-CountDown by a random low-rank predictor, both with thresholds that keep the given share of each layer's neurons.
//!
//! ```text
//! random_plans MODEL SPARSITY RANK cpu|cuda FOLDER
//! ```
//!
//! writes FOLDER/m.safetensors and FOLDER/d.safetensors.

use countdown::{
    Device, DownLayout, Model, Phase, Result, Session, SessionOptions, SparsityPlan,
    kernels::{DType, quant},
    model::{Linear, Matrix},
    sparsity::{Form, Keep, Method, NeuronWeights, Outer, Predictor, Rule, Score, Signal},
};
use std::{path::Path, sync::Arc};

/// Tokens whose scores thresholds are fitted on.
const TOKENS: u32 = 6;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, sparsity, rank, device, folder] = &arguments[..] else {
        eprintln!("random_plans MODEL SPARSITY RANK cpu|cuda FOLDER");
        std::process::exit(2);
    };
    let sparsity = sparsity.parse().expect("a share such as 0.8");
    let rank = rank.parse().expect("a number");
    let device = match &device[..] {
        "cuda" => Device::Cuda(0),
        _ => Device::Cpu,
    };
    if let Err(e) = write(model.as_ref(), sparsity, rank, device, folder.as_ref()) {
        eprintln!("{e}\n{}", e.remedy());
        std::process::exit(1);
    }
}

fn write(path: &Path, sparsity: f64, rank: usize, device: Device, folder: &Path) -> Result<()> {
    let threads = countdown::session::physical_cores();
    let model = Arc::new(Model::open(path, DownLayout::Stored, threads)?);
    let options = SessionOptions {
        context: Some(64),
        batch: 16,
        device,
        ..SessionOptions::default()
    };
    let mut session = Session::new(model.clone(), &options)?;
    let mut noise = Noise(1);
    let (hidden, inter) = (model.config.hidden, model.config.layers[0].inter);
    // One predictor for all layers: each has a copy of its own on a card.
    let predictor = Arc::new(Predictor {
        inner: Some(noise.matrix(rank, hidden)),
        outer: Outer::Logits(Linear {
            weight: noise.matrix(inter, rank),
            bias: None,
        }),
        rest: None,
    });
    let constants = NeuronWeights {
        positive: noise.around_one(inter),
        negative: noise.around_one(inter),
    };
    let mut rules: [Vec<Rule>; 2] = Default::default();
    let kept = |mut scores: Vec<f32>| {
        let dropped = ((scores.len() - 1) as f64 * sparsity) as usize;
        Keep::Above(*scores.select_nth_unstable_by(dropped, f32::total_cmp).1)
    };
    let tokens: Vec<u32> = (0..TOKENS).map(|t| t * 97 % 251).collect();
    session.trace(&tokens, Phase::Prompt, &mut |t| {
        let score = Score::Weighted(constants.clone());
        let scores =
            t.up.iter()
                .enumerate()
                .map(|(i, u)| score.of(i % inter, *u));
        rules[0].push(Rule {
            signal: Signal::Up,
            predictor: None,
            keep: kept(scores.collect()),
            score,
        });
        rules[1].push(Rule {
            signal: Signal::Product,
            predictor: Some(predictor.clone()),
            score: Score::Value,
            keep: kept(logits(&predictor, t.input, hidden)),
        });
    })?;
    let names = [("m-countdown", None), ("d-countdown", Some("low-rank"))];
    for (rules, (name, predictor)) in rules.into_iter().zip(names) {
        let method = Method::by_name(name).expect("the registry has it");
        let signal = rules[0].signal;
        let mut plan = SparsityPlan::ideal(&model, method, signal, sparsity)?;
        plan.rules = rules;
        plan.provenance.form = Form::Practical;
        plan.provenance.predictor = predictor.map(|p| format!("{p}-{rank}"));
        plan.save(&folder.join(format!("{}.safetensors", &name[..1])))?;
    }
    Ok(())
}

/// What a predictor says of all neurons, for rows of `x`.
fn logits(p: &Predictor, x: &[f32], hidden: usize) -> Vec<f32> {
    let (Some(a), Outer::Logits(b)) = (&p.inner, &p.outer) else {
        unreachable!("as it was made above")
    };
    let times = |m: &Matrix, x: &[f32]| -> Vec<f32> {
        let mut row = vec![0.0; m.cols()];
        let rows = (0..m.rows()).map(|i| {
            quant::unpack_row(m.dtype(), m.view().row(i), &mut row);
            row.iter().zip(x).map(|(w, x)| w * x).sum()
        });
        rows.collect()
    };
    let tokens = x.chunks_exact(hidden);
    tokens
        .flat_map(|x| times(&b.weight, &times(a, x)))
        .collect()
}

struct Noise(u64);

impl Noise {
    /// In -1..1.
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn around_one(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| 1.0 + 0.3 * self.next()).collect()
    }

    fn matrix(&mut self, rows: usize, cols: usize) -> Matrix {
        let mut data = vec![0; 2 * rows * cols];
        let scale = 1.7 / (cols as f32).sqrt();
        let values: Vec<f32> = (0..rows * cols).map(|_| scale * self.next()).collect();
        quant::pack_row(DType::BF16, &values, &mut data);
        Matrix::new(DType::BF16, rows, cols, data.into()).expect("as long as it must be")
    }
}
