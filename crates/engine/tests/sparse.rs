//! Sparse decoding against dense: the same sums with neurons left out, and nothing else.

use countdown::{
    DownLayout, Model, Phase, PlanRequest, Session, SessionOptions, SparsityPlan, calibrate,
    kernels::DType,
    sparsity::{Cut, Form, Keep, METHODS, Method, Rule, Signal},
};
use std::{path::PathBuf, sync::Arc};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// The trained model and one random model of each family.
const MODELS: [&str; 4] = [
    "byte-llama",
    "golden/llama",
    "golden/qwen2",
    "golden/gemma3",
];

fn model(name: &str) -> Arc<Model> {
    Arc::new(Model::open(&fixture(name), DownLayout::Transposed, 2).unwrap())
}

fn session(model: &Arc<Model>, threads: usize) -> Session {
    let options = SessionOptions {
        context: Some(128),
        threads: Some(threads),
        batch: 64,
        cache_dtype: DType::F32,
    };
    Session::new(model.clone(), &options).unwrap()
}

/// Tokens every fixture's vocabulary has, in no particular order.
fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 37 + 11) % 97).collect()
}

/// Plain English bytes, for the trained model.
fn prose(n: usize) -> Vec<u32> {
    let text = countdown::CALIBRATION_TEXT.bytes().filter(u8::is_ascii);
    text.map(u32::from).take(n).collect()
}

fn steps(s: &mut Session, tokens: &[u32]) -> Vec<Vec<f32>> {
    s.reset();
    tokens
        .iter()
        .map(|t| s.feed(&[*t], Phase::Decode).unwrap().to_vec())
        .collect()
}

fn plan_of(model: &Model, signal: Signal, keep: impl Fn(usize) -> Keep) -> Arc<SparsityPlan> {
    let method = METHODS.iter().find(|m| m.signal == Some(signal)).unwrap();
    let mut plan = SparsityPlan::ideal(model, method, signal, 0.5).unwrap();
    for (i, rule) in plan.rules.iter_mut().enumerate() {
        *rule = Rule {
            signal,
            weights: None,
            keep: keep(i),
        };
    }
    Arc::new(plan)
}

#[test]
fn all_neurons_kept_is_dense_bit_for_bit() {
    for name in MODELS {
        let m = model(name);
        let tokens = tokens(20);
        let mut s = session(&m, 2);
        let dense = steps(&mut s, &tokens);
        for signal in [Signal::Gate, Signal::Up, Signal::Product] {
            s.set_plan(Some(plan_of(&m, signal, |_| Keep::Above(-1.0))))
                .unwrap();
            assert_eq!(steps(&mut s, &tokens), dense, "{name} {signal:?}");
            assert_eq!(s.stats().realised_sparsity(), 0.0);
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let m = model("byte-llama");
    let tokens = prose(40);
    let plan = plan_of(&m, Signal::Up, |_| Keep::Above(0.4));
    let mut one = session(&m, 1);
    one.set_plan(Some(plan.clone())).unwrap();
    let expected = steps(&mut one, &tokens);
    for threads in [2, 3] {
        let mut s = session(&m, threads);
        s.set_plan(Some(plan.clone())).unwrap();
        assert_eq!(steps(&mut s, &tokens), expected);
    }
}

/// Largest difference between two runs, relative to the largest logit.
fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let (mut worst, mut largest) = (0f32, 0f32);
    for (x, y) in a.iter().flatten().zip(b.iter().flatten()) {
        worst = worst.max((x - y).abs());
        largest = largest.max(x.abs());
    }
    worst / largest
}

#[test]
fn a_step_equals_the_dense_step_with_the_other_neurons_zeroed() {
    for name in MODELS {
        let m = model(name);
        let tokens = tokens(24);
        for signal in [Signal::Gate, Signal::Up, Signal::Product] {
            let plans = [
                plan_of(&m, signal, |i| Keep::Above(0.05 + 0.05 * i as f32)),
                plan_of(&m, signal, |_| Keep::AllBut { drop: 30 }),
            ];
            for plan in plans {
                // Batched steps compute every neuron and zero those the rule drops.
                let mut s = session(&m, 2);
                s.set_plan(Some(plan.clone())).unwrap();
                let sparse = steps(&mut s, &tokens);
                let by_steps = s.stats();
                s.reset();
                let mut zeroed = vec![Vec::new(); tokens.len()];
                s.score(&tokens, Phase::Decode, |i, row| zeroed[i] = row.to_vec())
                    .unwrap();
                assert!(
                    by_steps.realised_sparsity() > 0.02,
                    "{name} {signal:?}: nothing skipped"
                );
                assert_eq!(s.stats().neurons, by_steps.neurons);
                // A score at the very threshold may fall to either side of it by rounding; more than a few may not.
                assert!(s.stats().kept.abs_diff(by_steps.kept) <= 2);
                // f32 throughout: two orders of summation over some hundred terms and up to seven layers.
                let d = difference(&sparse, &zeroed);
                assert!(d < 1e-3, "{name} {signal:?} {:?}: {d}", plan.rules[0].keep);
                s.set_plan(None).unwrap();
                let dense = steps(&mut s, &tokens);
                assert!(
                    difference(&sparse, &dense) > 10.0 * d,
                    "{name}: the plan changes nothing"
                );
            }
        }
    }
}

#[test]
fn neurons_that_are_skipped_are_never_read() {
    let mut poisoned = Model::open(&fixture("byte-llama"), DownLayout::Transposed, 2).unwrap();
    let m = model("byte-llama");
    let tokens = prose(30);
    // The largest up signal of each neuron of the first layer; half of them never reach the median.
    let mut largest = vec![0f32; m.config.layers[0].inter];
    let mut s = session(&m, 1);
    for t in &tokens {
        s.trace(&[*t], Phase::Decode, &mut |t| {
            if t.layer == 0 {
                largest
                    .iter_mut()
                    .zip(t.up)
                    .for_each(|(l, u)| *l = l.max(u.abs()));
            }
        })
        .unwrap();
    }
    let mut sorted = largest.clone();
    sorted.sort_by(f32::total_cmp);
    // A little above, so that rounding differences between paths decide nothing.
    let threshold = 1.01 * sorted[sorted.len() / 2];
    let victims: Vec<usize> = (0..largest.len())
        .filter(|i| largest[*i] <= sorted[sorted.len() / 2])
        .collect();
    let plan = plan_of(&m, Signal::Up, |i| {
        Keep::Above(if i == 0 { threshold } else { -1.0 })
    });
    s.set_plan(Some(plan.clone())).unwrap();
    let clean = steps(&mut s, &tokens);
    let ffn = &mut poisoned.layers[0].ffn;
    ffn.gate = ffn.gate.with_rows_replaced(&victims, f32::NAN);
    if let countdown::model::Down::Transposed(down) = &mut ffn.down {
        *down = down.with_rows_replaced(&victims, f32::NAN);
    }
    let mut s = session(&Arc::new(poisoned), 2);
    s.set_plan(Some(plan)).unwrap();
    assert_eq!(steps(&mut s, &tokens), clean);
}

fn request(method: &str, cut: Cut, form: Form, sparsity: f64) -> PlanRequest {
    PlanRequest {
        method: Method::by_name(method).unwrap(),
        cut,
        form,
        sparsity,
    }
}

#[test]
fn practical_plans_realise_their_target_on_other_text() {
    let m = model("byte-llama");
    let mut s = session(&m, 2);
    let text = prose(24_000);
    let (fitted, held_out) = text.split_at(20_000);
    let requests: Vec<PlanRequest> = ["cats", "m-countdown"]
        .into_iter()
        .flat_map(|method| {
            [Cut::Layer, Cut::Neuron].into_iter().flat_map(move |cut| {
                [0.5, 0.7, 0.9].map(|target| request(method, cut, Form::Practical, target))
            })
        })
        .collect();
    let plans = calibrate(&mut s, fitted, None, &requests, |_, _| ()).unwrap();
    for (plan, r) in plans.into_iter().zip(&requests) {
        s.set_plan(Some(Arc::new(plan))).unwrap();
        s.reset();
        for window in held_out.chunks(100) {
            s.truncate(0);
            s.trace(&window[..20], Phase::Prompt, &mut |_| ()).unwrap();
            s.trace(&window[20..], Phase::Decode, &mut |_| ()).unwrap();
        }
        let realised = s.stats().realised_sparsity();
        assert!((realised - r.sparsity).abs() < 0.02, "{r:?}: {realised}");
    }
}

#[test]
fn exact_coefficients_beat_both_factors_and_neuron_cuts_help_the_up_signal() {
    let m = model("byte-llama");
    let mut s = session(&m, 2);
    let text = prose(24_000);
    let (fitted, held_out) = text.split_at(20_000);
    let requests = [
        request("d-countdown", Cut::Layer, Form::Ideal, 0.7),
        request("cats", Cut::Layer, Form::Ideal, 0.7),
        request("m-countdown", Cut::Layer, Form::Ideal, 0.7),
        request("m-countdown", Cut::Neuron, Form::Ideal, 0.7),
    ];
    let plans: Vec<_> = calibrate(&mut s, fitted, None, &requests, |_, _| ())
        .unwrap()
        .into_iter()
        .map(Arc::new)
        .collect();
    let options = countdown::eval::PerplexityOptions {
        ctx: 128,
        chunks: None,
        stepping: countdown::eval::Stepping::Batched,
        threads: 2,
    };
    let rows =
        countdown::eval::perplexity(&mut s, held_out, None, &plans, &options, |_, _| ()).unwrap();
    let kl = |i: usize| rows[i].kl;
    assert!(kl(1) < kl(2) && kl(1) < kl(3), "{rows:#?}");
    assert!(kl(4) < kl(3), "{rows:#?}");
    assert!(
        rows.iter()
            .skip(1)
            .all(|r| r.perplexity > rows[0].perplexity * 0.99)
    );
}

#[test]
fn a_plan_survives_its_file_and_refuses_another_model() {
    let (a, b) = (model("golden/llama"), model("golden/qwen2"));
    let mut s = session(&a, 1);
    let tokens = tokens(2000);
    let requests = [
        request("m-countdown", Cut::Neuron, Form::Practical, 0.6),
        request("cats", Cut::Layer, Form::Practical, 0.6),
        request("d-countdown", Cut::Layer, Form::Ideal, 0.6),
    ];
    let folder = tempfile::tempdir().unwrap();
    for plan in calibrate(&mut s, &tokens, None, &requests, |_, _| ()).unwrap() {
        let path = folder.path().join("plan.safetensors");
        plan.save(&path).unwrap();
        assert_eq!(SparsityPlan::load(&path).unwrap(), plan);
        let refused = session(&b, 1).set_plan(Some(Arc::new(plan))).unwrap_err();
        let said = refused.to_string();
        assert!(
            said.contains(&a.fingerprint) && said.contains(&b.fingerprint),
            "{said}"
        );
    }
}
