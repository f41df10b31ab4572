//! Models on a card: the original framework's logits, and what the CPU gives under plans. Without a card that runs kernels, tests say so and check
//! nothing.

#[path = "../common/mod.rs"]
mod common;
mod fitting;

use common::{
    MODELS, by_copy, copied, difference, fixture, in_type, model, more_steps, plan_of, prose,
    session, steps, tokens,
};
use countdown::{
    Device, DownLayout, Error, Model, Phase, Session, SessionOptions, SparsityPlan,
    bench::{Load, Variant, bench},
    calibrate,
    kernels::{DType, cuda::Cuda, quant},
    model::{Linear, Matrix},
    sparsity::{Form, Keep, Outer, Predictor, PredictorKind, Score, Signal},
    synth::{self, Arch, Shape},
};
use safetensors::SafeTensors;
use std::sync::Arc;

/// Whether there is a card; says so where there is none.
fn has_card() -> bool {
    let opened = Cuda::open(0, None);
    if let Err(e) = &opened {
        eprintln!("SKIPPED: {e}");
    }
    opened.is_ok()
}

fn options(device: Device, batch: usize) -> SessionOptions {
    SessionOptions {
        context: Some(128),
        threads: Some(2),
        batch,
        cache_dtype: DType::F32,
        device,
        kernel_cache: Some(std::env::temp_dir().join("countdown-test-kernels")),
    }
}

fn on_card(model: &Arc<Model>, batch: usize) -> Session {
    Session::new(model.clone(), &options(Device::Cuda(0), batch)).unwrap()
}

/// Tokens, logits and rounding of a case of tools/golden.py.
fn golden(case: &str) -> (Vec<u32>, Vec<f32>, f32) {
    let file = fixture("golden").join(case).join("golden.safetensors");
    let bytes = std::fs::read(file).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let data = |name: &str| tensors.tensor(name).unwrap().data().to_vec();
    let rounding = header.metadata().as_ref().unwrap()["max_abs_diff_f64"].parse();
    (
        data("tokens")
            .chunks(4)
            .map(bytemuck::pod_read_unaligned)
            .collect(),
        data("logits")
            .chunks(4)
            .map(bytemuck::pod_read_unaligned)
            .collect(),
        rounding.unwrap(),
    )
}

/// As in golden.rs: another order of sums is another sample of the same rounding.
const FACTOR: f32 = 8.0;

/// The share of the largest logit that it may be off where prompts are multiplied in weights' own 16 bits.
fn share(dtype: DType) -> f32 {
    match dtype {
        DType::F32 => 0.0,
        DType::BF16 => 1.0 / 64.0,
        _ => 1.0 / 512.0,
    }
}

fn worst(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let off = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // A NaN must not vanish.
    off.fold(0.0, |w, x| if x <= w { w } else { x })
}

#[test]
fn the_card_gives_the_original_logits() {
    if !has_card() {
        return;
    }
    let families = MODELS.iter().filter_map(|m| m.strip_prefix("golden/"));
    for case in families.chain(["llama", "llama_untied", "qwen2_tied"]) {
        let (tokens, logits, rounding) = golden(case);
        let vocab = logits.len() / tokens.len();
        let largest = logits.iter().fold(0f32, |l, x| l.max(x.abs()));
        for down in [DownLayout::Stored, DownLayout::Transposed] {
            let m = Model::open(&fixture("golden").join(case), down, 2);
            let m = Arc::new(m.unwrap());
            // FFNs with biases have no kernels; nothing else is refused.
            if let Err(e) = Session::new(m.clone(), &options(Device::Cuda(0), 1)) {
                assert!(e.to_string().contains("biases"), "{case}: {e}");
                continue;
            }
            let dtype = m.layers[0].ffn.gate.dtype();
            let got = steps(&mut on_card(&m, 1), &tokens).concat();
            let off = worst(&got, &logits);
            assert!(
                off <= FACTOR * rounding,
                "{case} {down:?}, steps: {off} > {FACTOR} * {rounding}"
            );
            for batch in [64, 7] {
                let mut got = vec![0.0; logits.len()];
                on_card(&m, batch)
                    .score(&tokens, Phase::Prompt, |i, row| {
                        got[i * vocab..(i + 1) * vocab].copy_from_slice(row);
                    })
                    .unwrap();
                let allowed = (share(dtype) * largest).max(FACTOR * rounding);
                let off = worst(&got, &logits);
                assert!(off <= allowed, "{case} {down:?} {batch}: {off} > {allowed}");
            }
        }
    }
}

/// Every type that has kernels: those that files have, which come first.
fn types() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().take(DType::Q6_K as usize + 1)
}

/// A random model whose rows are whole blocks of any type, in `dtype`, as a file of that type gives it.
fn wide(dtype: DType) -> Arc<Model> {
    let shape = Shape {
        arch: Arch::Llama,
        hidden: 512,
        inter: 768,
        layers: 2,
        heads: 8,
        kv_heads: 4,
        head_dim: 64,
        vocab: 300,
        context: 128,
        rope_base: 10_000.0,
        tied: false,
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wide.gguf");
    synth::write(&file, &shape, dtype, 7, &mut |_, _| Ok(())).unwrap();
    Arc::new(Model::open(&file, DownLayout::Transposed, 2).unwrap())
}

/// How far quantised steps on the card may be from the CPU's, of the largest logit: both round activations to the same 8 bits but for what lies at the
/// edge of a step, and one such step is a part in 127 of a block's largest; what one layer rounds otherwise the next ones see.
const LEVELS: f32 = 0.02;

#[test]
fn every_type_gives_what_the_cpu_gives() {
    if !has_card() {
        return;
    }
    let tokens = tokens(20);
    for dtype in types() {
        let m = wide(dtype);
        let cpu = steps(&mut session(&m, 2), &tokens);
        let mut s = on_card(&m, 16);
        let card = steps(&mut s, &tokens);
        let allowed = if dtype.is_quantized() { LEVELS } else { 1e-4 };
        let off = difference(&card, &cpu);
        assert!(off <= allowed, "{dtype}: {off} > {allowed}");
        if !dtype.is_quantized() {
            let greedy = |rows: &[Vec<f32>]| -> Vec<usize> {
                let top = |r: &Vec<f32>| (0..r.len()).max_by(|&a, &b| r[a].total_cmp(&r[b]));
                rows.iter().map(|r| top(r).unwrap()).collect()
            };
            assert_eq!(greedy(&card), greedy(&cpu), "{dtype}");
        }

        // Prompts are multiplied in floats: what is off is the rounding of activations.
        let mut together = vec![Vec::new(); tokens.len()];
        s.reset();
        s.score(&tokens, Phase::Prompt, |i, row| together[i] = row.to_vec())
            .unwrap();
        let off = difference(&together, &card);
        let allowed = if dtype.is_quantized() {
            0.03
        } else {
            share(dtype).max(1e-4)
        };
        assert!(off <= allowed, "{dtype} together: {off} > {allowed}");
    }
}

#[test]
fn a_layer_may_mix_types() {
    if !has_card() {
        return;
    }
    // As the mixes of llama.cpp do.
    let mut m = Model::clone(&wide(DType::Q4_K));
    let others = wide(DType::Q6_K);
    m.head = others.head.clone();
    m.layers[0].value = others.layers[0].value.clone();
    m.layers[1].ffn.down = others.layers[1].ffn.down.clone();
    m.layers[1].key = wide(DType::F16).layers[1].key.clone();
    let m = Arc::new(m);
    let tokens = tokens(20);
    let cpu = steps(&mut session(&m, 2), &tokens);
    let off = difference(&steps(&mut on_card(&m, 16), &tokens), &cpu);
    assert!(off <= LEVELS, "{off}");
}

#[test]
fn plans_skip_what_the_cpu_skips() {
    if !has_card() {
        return;
    }
    let m = model("byte-llama");
    let tokens = prose(40);
    let (mut cpu, mut card) = (session(&m, 2), on_card(&m, 16));
    let dense = steps(&mut card, &tokens);
    for signal in [Signal::Gate, Signal::Up] {
        for tau in [f32::NEG_INFINITY, 0.1, 0.4] {
            let plan = plan_of(&m, signal, |_| Keep::Above(tau));
            cpu.set_plan(Some(plan.clone())).unwrap();
            card.set_plan(Some(plan)).unwrap();
            let expected = steps(&mut cpu, &tokens);
            let got = steps(&mut card, &tokens);
            let off = difference(&got, &expected);
            assert!(off <= 1e-3, "{signal:?} {tau}: {off}");
            let [kept, same] = [&card, &cpu].map(|s| s.stats().kept);
            // A score that rounds to the other side of the threshold is one neuron in thousands.
            assert!(
                kept.abs_diff(same) <= same / 500,
                "{signal:?} {tau}: kept {kept}, the CPU {same}"
            );
            if tau == f32::NEG_INFINITY {
                assert_eq!(card.stats().realised_sparsity(), 0.0);
                assert!(difference(&got, &dense) <= 1e-4);
            } else {
                assert!(card.stats().realised_sparsity() > 0.02);
            }
            // Several tokens in one step are decided one by one.
            let mut together = vec![Vec::new(); tokens.len()];
            card.reset();
            card.score(&tokens, Phase::Decode, |i, row| together[i] = row.to_vec())
                .unwrap();
            let off = difference(&together, &got);
            assert!(off <= 1e-3, "{signal:?} {tau} together: {off}");
            assert!(card.stats().kept.abs_diff(kept) <= kept / 500);
        }
    }
    // Without the plan it is dense again.
    card.set_plan(None).unwrap();
    assert_eq!(steps(&mut card, &tokens), dense);
}

#[test]
fn plans_of_quantised_models_skip_what_the_cpu_skips() {
    if !has_card() {
        return;
    }
    let tokens = prose(30);
    let byte_llama = model("byte-llama");
    for dtype in [DType::Q8_0, DType::Q4_0, DType::Q5_1] {
        let m = in_type(&byte_llama, dtype);
        let (mut cpu, mut card) = (session(&m, 2), on_card(&m, 16));
        for (signal, tau) in [(Signal::Up, 0.3), (Signal::Gate, 0.1)] {
            let plan = plan_of(&m, signal, |_| Keep::Above(tau));
            cpu.set_plan(Some(plan.clone())).unwrap();
            card.set_plan(Some(plan)).unwrap();
            let (expected, got) = (steps(&mut cpu, &tokens), steps(&mut card, &tokens));
            let off = difference(&got, &expected);
            assert!(off <= LEVELS, "{dtype} {signal:?}: {off}");
            let [kept, same] = [&card, &cpu].map(|s| s.stats().kept);
            assert!(
                kept.abs_diff(same) <= same / 200,
                "{dtype} {signal:?}: {kept}, the CPU {same}"
            );
            assert!(card.stats().realised_sparsity() > 0.02);
        }
    }
}

/// A matrix of noise.
fn noise(dtype: DType, rows: usize, cols: usize, scale: f32) -> Matrix {
    let mut state = (rows * cols) as u64 + u64::from(scale.to_bits());
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        scale * ((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
    };
    let values: Vec<f32> = (0..rows * cols).map(|_| next()).collect();
    let mut data = vec![0; rows * dtype.row_bytes(cols).unwrap()];
    quant::pack_row(dtype, &values, &mut data);
    Matrix::new(dtype, rows, cols, data.into()).unwrap()
}

/// Predictors of noise, of the kinds that training makes: logits of low rank, a product of low rank, and ternary weights.
fn trained(hidden: usize, inter: usize) -> [Predictor; 3] {
    let linear = |weight: Matrix| Linear {
        weight,
        bias: Some((0..inter).map(|i| (i % 7) as f32 - 3.0).collect()),
    };
    let low = |rank: usize, scale: f32| linear(noise(DType::F16, inter, rank, scale));
    let inner = |rank: usize| Some(noise(DType::F16, rank, hidden, 1.0));
    let ternary = linear(noise(DType::T2, inter, hidden, 1.0));
    [
        (inner(16), Outer::Logits(low(16, 1.0))),
        (
            inner(32),
            Outer::Product {
                gate: low(32, 1.0),
                up: low(32, 0.5),
            },
        ),
        (None, Outer::Logits(ternary)),
    ]
    .map(|(inner, outer)| Predictor {
        inner,
        outer,
        rest: None,
    })
}

#[test]
fn predictors_keep_what_they_keep_on_the_cpu() {
    if !has_card() {
        return;
    }
    for dtype in [DType::BF16, DType::Q4_0] {
        predictors_keep_the_same(&in_type(&model("byte-llama"), dtype));
    }
}

fn predictors_keep_the_same(m: &Arc<Model>) {
    let tokens = prose(40);
    let (mut cpu, mut card) = (session(m, 2), on_card(m, 16));
    // Rounding moves a level of x to the next, and that neurons over their cut, large ones where a plan keeps them by noise. How far that goes the CPU shows
    // with norms that are off by a little.
    let mut moved = Model::clone(m);
    for w in moved.layers.iter_mut().flat_map(|l| &mut l.attn_norm) {
        w.iter_mut().for_each(|w| *w *= 1.0 + 1e-5);
    }
    let mut nudged = session(&Arc::new(moved), 2);
    let copies = [
        ("d-countdown", PredictorKind::Copy4),
        ("d-countdown", PredictorKind::Copy3),
        ("d-countdown", PredictorKind::Copy2),
        ("dejavu", PredictorKind::Copy4),
    ];
    let copies = copies.map(|(method, kind)| by_copy(m, method, kind, Form::Practical, 0.5));
    let text = prose(600);
    let copies = calibrate(&mut cpu, &text, None, &copies, |_, _| ()).unwrap();
    let inter = m.config.layers[0].inter;
    let plan_by = |predictor: Predictor| {
        let mut plan = SparsityPlan::clone(&plan_of(m, Signal::Product, |_| Keep::Above(0.0)));
        let predictor = Arc::new(predictor);
        for rule in &mut plan.rules {
            rule.predictor = Some(predictor.clone());
            rule.score = Score::Value;
        }
        plan
    };
    let trained = trained(m.config.hidden, inter).map(plan_by);
    for plan in copies.into_iter().chain(trained) {
        let plan = Arc::new(plan);
        nudged.set_plan(Some(plan.clone())).unwrap();
        let moved = steps(&mut nudged, &tokens);
        cpu.set_plan(Some(plan.clone())).unwrap();
        card.set_plan(Some(plan.clone())).unwrap();
        let (expected, got) = (steps(&mut cpu, &tokens), steps(&mut card, &tokens));
        let off = difference(&got, &expected);
        let name = &plan.provenance.predictor;
        let allowed = match m.layers[0].ffn.gate.dtype().is_quantized() {
            true => LEVELS.max(2.0 * difference(&moved, &expected)),
            false => LEVELS,
        };
        assert!(off <= allowed, "{name:?}: {off} > {allowed}");
        let [kept, same] = [&card, &cpu].map(|s| s.stats().kept);
        assert!(kept.abs_diff(same) <= same / 100, "{kept}, the CPU {same}");
        let realised = card.stats().realised_sparsity();
        assert!((0.1..0.9).contains(&realised), "{name:?}: {realised}");
    }
}

#[test]
fn a_session_goes_on_from_where_it_was_cut() {
    if !has_card() {
        return;
    }
    for name in ["byte-llama", "golden/gemma3"] {
        let m = model(name);
        let tokens = tokens(30);
        let mut s = on_card(&m, 8);
        let whole = steps(&mut s, &tokens);
        s.truncate(11);
        assert_eq!(more_steps(&mut s, &tokens[11..]), whole[11..], "{name}");
        // Observed or not, a prompt is the same.
        s.reset();
        let plain = copied(s.prompt(&tokens, |_, _| ()).unwrap());
        s.reset();
        let mut seen = 0;
        s.trace(&tokens[..29], Phase::Prompt, &mut |t| {
            seen += t.gate.len();
            assert!(t.gate.iter().chain(t.up).all(|v| v.is_finite()));
        })
        .unwrap();
        assert_eq!(
            seen,
            29 * m.config.layers.iter().map(|l| l.inter).sum::<usize>()
        );
        let last = copied(s.feed(&tokens[29..], Phase::Prompt).unwrap());
        assert!(difference(&[last], &[plain]) <= 0.02, "{name}");
    }
}

#[test]
fn ffns_by_themselves_keep_what_they_keep_on_the_cpu() {
    if !has_card() {
        return;
    }
    let m = model("byte-llama");
    let plan = plan_of(&m, Signal::Up, |_| Keep::Above(0.1));
    let variants = [None, Some(plan)].map(|plan| Variant { session: 0, plan });
    let realised = |session: Session| {
        let load = Load::Ffns {
            passes: 3,
            depth: 20,
        };
        let done = bench(&mut [session], &variants, load, &prose(40), 2, |_, _| ());
        done.unwrap().iter().map(|r| r.realised).collect::<Vec<_>>()
    };
    let (card, cpu) = (realised(on_card(&m, 16)), realised(session(&m, 2)));
    assert_eq!((card[0], cpu[0]), (0.0, 0.0));
    let off = (card[1] - cpu[1]).abs();
    assert!(card[1] > 0.02 && off <= 0.01, "{card:?} for {cpu:?}");
}

#[test]
fn what_a_card_cannot_run_is_refused_by_name() {
    if !has_card() {
        return;
    }
    let m = model("byte-llama");
    let refused = |m: &Arc<Model>| Session::new(m.clone(), &options(Device::Cuda(0), 8)).err();
    let mut odd = Model::clone(&m);
    odd.layers[1].ffn.up = in_type(&m, DType::Q5_0).layers[1].ffn.up.clone();
    let error = refused(&Arc::new(odd)).unwrap();
    assert!(error.to_string().contains("up of type Q5_0"), "{error}");
    assert!(error.remedy().contains("--device cpu"));
    let none = Session::new(m.clone(), &options(Device::Cuda(99), 8)).err();
    assert!(matches!(none.unwrap(), Error::Machine { .. }));
    let mut s = on_card(&m, 8);
    let plan = plan_of(&m, Signal::Up, |_| Keep::AllBut { drop: 30 });
    let error = s.set_plan(Some(plan)).unwrap_err();
    assert!(matches!(error, Error::Plan { .. }), "{error}");
}
