//! Plans for `countdown bench` on random models (`countdown synth`), where there is nothing to train a predictor on: M-CountDown with a constant for each
//! neuron and sign, and D-CountDown by random predictors, all with thresholds that keep the given share of each layer's neurons.
//!
//! ```text
//! random_plans MODEL SPARSITY PREDICTOR,... cpu|cuda FOLDER
//! ```
//!
//! writes FOLDER/m.safetensors and FOLDER/PREDICTOR.safetensors. A PREDICTOR is `low-rank-512` or `product-512`, of any rank, in bf16, or `low-rank-512-q8_0` in that type;
//! `ternary`; `copy4`, `copy3` or `copy2`.

use countdown::{
    Device, DownLayout, Model, Phase, Result, Session, SessionOptions, SparsityPlan,
    kernels::{DType, cpu::Act, quant, reference},
    model::{Linear, Matrix},
    sparsity::{Form, Keep, Method, NeuronWeights, Outer, Predictor, Rule, Score, Signal},
};
use std::{path::Path, sync::Arc};

/// Tokens whose scores thresholds are fitted on.
const TOKENS: u32 = 6;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, sparsity, predictors, device, folder] = &arguments[..] else {
        eprintln!("random_plans MODEL SPARSITY PREDICTOR,... cpu|cuda FOLDER");
        std::process::exit(2);
    };
    let sparsity = sparsity.parse().expect("a share such as 0.8");
    let predictors: Vec<&str> = predictors.split(',').collect();
    let device = match &device[..] {
        "cuda" => Device::Cuda(0),
        _ => Device::Cpu,
    };
    if let Err(e) = write(
        model.as_ref(),
        sparsity,
        &predictors,
        device,
        folder.as_ref(),
    ) {
        eprintln!("{e}\n{}", e.remedy());
        std::process::exit(1);
    }
}

fn write(
    path: &Path,
    sparsity: f64,
    predictors: &[&str],
    device: Device,
    folder: &Path,
) -> Result<()> {
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
    let predictors = predictors
        .iter()
        .map(|name| (*name, Arc::new(predictor(&mut noise, name, hidden, inter))));
    let predictors: Vec<_> = predictors.collect();
    let constants = NeuronWeights {
        positive: noise.around_one(inter),
        negative: noise.around_one(inter),
    };
    let kept = |mut scores: Vec<f32>| {
        let dropped = ((scores.len() - 1) as f64 * sparsity) as usize;
        Keep::Above(*scores.select_nth_unstable_by(dropped, f32::total_cmp).1)
    };
    let mut by_up = Vec::new();
    let mut by_predictors = vec![Vec::new(); predictors.len()];
    let tokens: Vec<u32> = (0..TOKENS).map(|t| t * 97 % 251).collect();
    session.trace(&tokens, Phase::Prompt, &mut |t| {
        let score = Score::Weighted(constants.clone());
        let scores =
            t.up.iter()
                .enumerate()
                .map(|(i, u)| score.of(i % inter, *u));
        by_up.push(Rule {
            signal: Signal::Up,
            predictor: None,
            keep: kept(scores.collect()),
            score,
        });
        for (rules, (_, predictor)) in by_predictors.iter_mut().zip(&predictors) {
            let score = match predictor.outer {
                Outer::Product { .. } => Score::Magnitude,
                _ => Score::Value,
            };
            let signals = signals(predictor, model.config.act, t.input, hidden, threads);
            rules.push(Rule {
                signal: Signal::Product,
                predictor: Some(predictor.clone()),
                keep: kept(signals.iter().map(|s| score.of(0, *s)).collect()),
                score,
            });
        }
    })?;
    let predicted = by_predictors.into_iter().zip(&predictors);
    let predicted = predicted.map(|(rules, (name, _))| (rules, "d-countdown", Some(*name)));
    for (rules, method, predictor) in predicted.chain([(by_up, "m-countdown", None)]) {
        let method = Method::by_name(method).expect("the registry has it");
        let signal = rules[0].signal;
        let mut plan = SparsityPlan::ideal(&model, method, signal, sparsity)?;
        plan.rules = rules;
        plan.provenance.form = Form::Practical;
        plan.provenance.predictor = predictor.map(str::to_string);
        let name = predictor.unwrap_or("m");
        plan.save(&folder.join(format!("{name}.safetensors")))?;
    }
    Ok(())
}

/// A random predictor of that name.
fn predictor(noise: &mut Noise, name: &str, hidden: usize, inter: usize) -> Predictor {
    let linear = |weight| Linear { weight, bias: None };
    let copies = [
        ("copy4", DType::Q4_0),
        ("copy3", DType::Q3_0),
        ("copy2", DType::Q2_0),
    ];
    let mut outer = |dtype, width| linear(noise.matrix(dtype, inter, width));
    if name == "ternary" {
        return Predictor {
            inner: None,
            outer: Outer::Logits(outer(DType::T2, hidden)),
            rest: None,
        };
    }
    if let Some((_, dtype)) = copies.iter().find(|(n, _)| *n == name) {
        return Predictor {
            inner: None,
            outer: Outer::Product {
                gate: outer(*dtype, hidden),
                up: outer(*dtype, hidden),
            },
            rest: None,
        };
    }
    let logits = name.strip_prefix("low-rank-");
    let of_rank = logits.or(name.strip_prefix("product-"));
    let of_rank = of_rank.expect("a predictor's name");
    let (rank, dtype) = of_rank.split_once('-').unwrap_or((of_rank, "bf16"));
    let rank = rank.parse().expect("a rank");
    let dtype = DType::from_name(dtype).expect("a type");
    let outer = match logits {
        Some(_) => Outer::Logits(outer(dtype, rank)),
        None => Outer::Product {
            gate: outer(dtype, rank),
            up: outer(dtype, rank),
        },
    };
    Predictor {
        inner: Some(noise.matrix(dtype, rank, hidden)),
        outer,
        rest: None,
    }
}

/// What a predictor says of all neurons, for rows of `x`.
fn signals(p: &Predictor, act: Act, x: &[f32], hidden: usize, threads: usize) -> Vec<f32> {
    let z = match &p.inner {
        Some(a) => products(a, x, hidden, threads),
        None => x.to_vec(),
    };
    let width = p.width(hidden);
    let outer: Vec<_> = p.outer.linears().collect();
    let first = products(&outer[0].weight, &z, width, threads);
    let [_, up] = outer[..] else { return first };
    let up = products(&up.weight, &z, width, threads);
    let pairs = first.iter().zip(up);
    pairs
        .map(|(g, u)| reference::act(act, f64::from(*g)) as f32 * u)
        .collect()
}

/// Products of all rows of a matrix with rows of `x`, `[rows of x, rows of m]`.
fn products(m: &Matrix, x: &[f32], cols: usize, threads: usize) -> Vec<f32> {
    let tokens = x.len() / cols;
    let mut out = vec![0.0; m.rows() * tokens];
    let each = m.rows().div_ceil(threads);
    std::thread::scope(|scope| {
        for (part, out) in out.chunks_mut(each * tokens).enumerate() {
            scope.spawn(move || {
                let mut row = vec![0.0; cols];
                for (i, out) in out.chunks_exact_mut(tokens).enumerate() {
                    quant::unpack_row(m.dtype(), m.view().row(part * each + i), &mut row);
                    for (x, out) in x.chunks_exact(cols).zip(out) {
                        *out = row.iter().zip(x).map(|(w, x)| w * x).sum();
                    }
                }
            });
        }
    });
    let of_token = |t: usize| out.iter().skip(t).step_by(tokens);
    (0..tokens).flat_map(of_token).copied().collect()
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

    fn matrix(&mut self, dtype: DType, rows: usize, cols: usize) -> Matrix {
        let bytes = dtype.row_bytes(cols).expect("whole blocks");
        let mut data = vec![0; rows * bytes];
        let scale = match dtype {
            DType::T2 => 1.0,
            _ => 1.7 / (cols as f32).sqrt(),
        };
        for row in data.chunks_exact_mut(bytes) {
            let values: Vec<f32> = (0..cols).map(|_| scale * self.next()).collect();
            quant::pack_row(dtype, &values, row);
        }
        Matrix::new(dtype, rows, cols, data.into()).expect("as long as it must be")
    }
}
