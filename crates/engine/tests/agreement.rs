//! Choices of neurons against the exact choice, on the trained model.

use countdown::{
    DownLayout, Fit, Model, PlanRequest, Session, SessionOptions, SparsityPlan, calibrate,
    eval::{Agreement, LayerAgreement, agreement},
    kernels::DType,
    sparsity::{Cut, Form, Method, PredictorKind, Signal},
};
use std::{path::Path, sync::Arc};

fn session(down: DownLayout) -> Session {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/byte-llama");
    let options = SessionOptions {
        context: Some(128),
        threads: Some(2),
        batch: 48,
        cache_dtype: DType::F32,
        ..SessionOptions::default()
    };
    let model = Model::open(&path, down, 2).unwrap();
    Session::new(Arc::new(model), &options).unwrap()
}

fn prose(from: usize, n: usize) -> Vec<u32> {
    let text = countdown::CALIBRATION_TEXT.bytes().filter(u8::is_ascii);
    text.map(u32::from).skip(from).take(n).collect()
}

fn ideal(s: &Session, name: &str, signal: Signal, sparsity: f64) -> Arc<SparsityPlan> {
    let method = Method::by_name(name).unwrap();
    Arc::new(SparsityPlan::ideal(s.model(), method, signal, sparsity).unwrap())
}

fn compare(s: &mut Session, plans: &[Arc<SparsityPlan>], pairs: &[(usize, usize)]) -> Agreement {
    agreement(s, &prose(9000, 300), None, 0.7, plans, pairs, |_, _| ()).unwrap()
}

#[test]
fn the_exact_choice_agrees_with_itself_and_leaves_the_least_error() {
    let mut s = session(DownLayout::Transposed);
    let plans = [
        ideal(&s, "d-countdown", Signal::Product, 0.7),
        ideal(&s, "m-countdown", Signal::Up, 0.7),
        ideal(&s, "cats", Signal::Gate, 0.7),
    ];
    let got = compare(&mut s, &plans, &[(0, 1), (2, 1), (1, 2)]);
    // Of each window of 128 tokens the first 16 are not counted.
    assert_eq!(got.tokens, 300 - 3 * 16);
    for (layer, exact) in got.plans[0].iter().enumerate() {
        assert_eq!((exact.recall, exact.precision), (1.0, 1.0));
        assert!((exact.sparsity - 179.0 / 256.0).abs() < 1e-9);
        for other in &got.plans[1..] {
            let other = other[layer];
            assert!(other.recall < 0.95 && other.recall > 0.3, "{other:?}");
            assert!((other.recall - other.precision).abs() < 0.02, "{other:?}");
            assert!(other.mass < exact.mass);
            assert!(other.error > exact.error && other.error < 1.0);
        }
    }
    let [exact_and_m, cats_and_m, m_and_cats] = got.pairs[..] else {
        panic!("{:?}", got.pairs)
    };
    assert_eq!(exact_and_m.kept.wrong[0], 0.0);
    assert_eq!(exact_and_m.kept.other_right[1], 1.0);
    let recall = |layers: &[LayerAgreement]| {
        layers.iter().map(|l| l.recall).sum::<f64>() / layers.len() as f64
    };
    assert!((1.0 - recall(&got.plans[1]) - exact_and_m.kept.wrong[1]).abs() < 1e-9);
    assert_eq!(cats_and_m.kept.wrong[0], m_and_cats.kept.wrong[1]);
    assert_eq!(
        cats_and_m.dropped.other_right[1],
        m_and_cats.dropped.other_right[0]
    );
}

#[test]
fn the_error_falls_with_the_sparsity() {
    let mut s = session(DownLayout::Transposed);
    let plans = [0.9, 0.7, 0.5, 0.2].map(|target| ideal(&s, "m-countdown", Signal::Up, target));
    let got = compare(&mut s, &plans, &[]);
    for layer in 0..4 {
        let of = |p: usize| got.plans[p][layer];
        for p in 1..plans.len() {
            assert!(of(p).error < of(p - 1).error);
            assert!(of(p).mass > of(p - 1).mass && of(p).recall > of(p - 1).recall);
        }
    }
}

#[test]
fn a_predictor_is_judged_by_its_estimates_in_either_layout_of_down() {
    let mut s = session(DownLayout::Transposed);
    let kinds = [PredictorKind::Copy4, PredictorKind::Copy2];
    let requests = kinds.map(|kind| PlanRequest {
        method: Method::by_name("d-countdown").unwrap(),
        cut: Cut::Layer,
        form: Form::Practical,
        sparsity: 0.7,
        predictor: Some(Arc::new(
            kind.untrained(s.model(), Signal::Product, 2).unwrap(),
        )),
        fit: Fit::default(),
    });
    let plans = calibrate(&mut s, &prose(0, 4000), None, &requests, |_, _| ()).unwrap();
    let plans: Vec<_> = plans.into_iter().map(Arc::new).collect();
    let got = compare(&mut s, &plans, &[]);
    for (four, two) in got.plans[0].iter().zip(&got.plans[1]) {
        assert!(four.recall > 0.85, "{four:?}");
        assert!(
            two.recall < four.recall && two.error > four.error,
            "{two:?}"
        );
        assert!((four.sparsity - 0.7).abs() < 0.1, "{four:?}");
    }
    let stored = compare(&mut session(DownLayout::Stored), &plans, &[]);
    for (a, b) in got
        .plans
        .iter()
        .flatten()
        .zip(stored.plans.iter().flatten())
    {
        assert!((a.error - b.error).abs() < 1e-4 && a.recall == b.recall);
    }
}

#[test]
fn a_text_that_says_nothing_and_a_plan_of_another_model_are_refused() {
    let mut s = session(DownLayout::Transposed);
    let plan = ideal(&s, "cats", Signal::Gate, 0.7);
    let mut run = |tokens: usize, target: f64, plan: &Arc<SparsityPlan>| {
        let plans = std::slice::from_ref(plan);
        agreement(
            &mut s,
            &prose(0, tokens),
            None,
            target,
            plans,
            &[],
            |_, _| (),
        )
        .map(|_| ())
    };
    assert!(
        run(20, 0.7, &plan)
            .unwrap_err()
            .to_string()
            .contains("20 tokens")
    );
    assert!(
        run(100, 1.0, &plan)
            .unwrap_err()
            .to_string()
            .contains("sparsity 1")
    );
    let mut other = (*plan).clone();
    other.provenance.model = "0000".into();
    assert!(
        run(100, 0.7, &Arc::new(other))
            .unwrap_err()
            .to_string()
            .contains("0000")
    );
    assert!(run(100, 0.7, &plan).is_ok());
}
