//! Plans fitted and predictors trained on a card.

use crate::{
    common::{by_copy, in_type, model, prose},
    has_card, options,
};
use countdown::{
    Allocation, Device, Fit, Inputs, Model, PlanRequest, Session, SessionOptions, calibrate,
    kernels::DType,
    measure_realised,
    sparsity::{Form, Keep, Method, PredictorKind},
    train::{TrainRequest, train},
};
use std::{path::Path, slice::from_ref, sync::Arc};

/// The share of a loss that it may be off after two epochs. Sums in another order move parameters by their rounding, and where a gradient is next to nothing the
/// optimiser takes its sign; 1.4e-5 were seen.
const LOSSES: f64 = 5e-5;
/// The same where weights are rounded to three values: some of them to another one. 6e-5 were seen.
const TERNARY_LOSSES: f64 = 1e-3;

/// The same session on the CPU and on the card, for texts in windows of its context.
fn both(m: &Arc<Model>, context: usize) -> [Session; 2] {
    [Device::Cpu, Device::Cuda(0)].map(|device| {
        let options = SessionOptions {
            context: Some(context),
            ..options(device, context)
        };
        Session::new(m.clone(), &options).unwrap()
    })
}

/// The threshold of a rule.
fn tau(keep: Keep) -> f32 {
    match keep {
        Keep::Above(tau) => tau,
        Keep::AllBut { .. } => panic!("the plan is practical"),
    }
}

#[test]
fn plans_calibrated_on_the_card_are_those_of_the_cpu() {
    if !has_card() {
        return;
    }
    let m = model("byte-llama");
    let text = prose(700);
    let fits = [
        (Inputs::Dense, Allocation::Uniform),
        (Inputs::Sequential, Allocation::Uniform),
        (Inputs::Sequential, Allocation::Distortion),
    ];
    for (inputs, allocation) in fits {
        let fit = Fit {
            inputs,
            allocation,
            ..Fit::default()
        };
        let computed = ["cats", "m-countdown"].map(|name| {
            let method = Method::by_name(name).unwrap();
            PlanRequest {
                method,
                cut: method.cut(None),
                form: Form::Practical,
                sparsity: 0.6,
                predictor: None,
                fit,
            }
        });
        let predicted = by_copy(
            &m,
            "d-countdown",
            PredictorKind::Copy3,
            Form::Practical,
            0.6,
        );
        let predicted = PlanRequest { fit, ..predicted };
        let requests: Vec<PlanRequest> = computed.into_iter().chain([predicted]).collect();
        let [expected, got] = both(&m, 72).map(|mut s| {
            let mut plans = calibrate(&mut s, &text, None, &requests, |_, _| ()).unwrap();
            measure_realised(&mut s, &text, None, &mut plans, |_, _| ()).unwrap();
            plans
        });
        for (got, expected) in got.iter().zip(&expected) {
            let (p, e) = (&got.provenance, &expected.provenance);
            let name = format!("{} {inputs:?} {allocation:?}", p.method);
            // Activations are the same to some 1e-5. A bin of scores is 1/128 wide; what moves across its border moves the threshold by less. Under the layers
            // below, a neuron at a threshold may fall otherwise, which moves what comes after it.
            let allowed = match inputs {
                Inputs::Dense => 1e-3,
                Inputs::Sequential => 1e-2,
            };
            for (layer, (a, b)) in got.rules.iter().zip(&expected.rules).enumerate() {
                let (a, b) = (tau(a.keep), tau(b.keep));
                assert!(
                    (a - b).abs() <= allowed * b.abs(),
                    "{name}, layer {layer}: {a} for {b}"
                );
            }
            let realised = [p, e].map(|p| p.realised.unwrap());
            assert!(
                (realised[0] - realised[1]).abs() <= 2e-3,
                "{name}: {realised:?}"
            );
            assert!((realised[0] - 0.6).abs() < 0.1, "{name}: {realised:?}");
        }
    }
}

#[test]
fn plans_that_steps_on_the_card_cannot_follow_are_calibrated_there_all_the_same() {
    if !has_card() {
        return;
    }
    let m = in_type(&model("byte-llama"), DType::Q8_0);
    let text = prose(700);
    let method = "d-countdown";
    let planes = by_copy(&m, method, PredictorKind::Planes, Form::Practical, 0.6);
    let [mut cpu, mut card] = both(&m, 72);
    let [expected, got] = [&mut cpu, &mut card].map(|s| {
        let mut plans = calibrate(s, &text, None, from_ref(&planes), |_, _| ()).unwrap();
        measure_realised(s, &text, None, &mut plans, |_, _| ()).unwrap();
        plans.remove(0)
    });
    // Products of prompts round x and weights to F16 on the card.
    for (a, b) in got.rules.iter().zip(&expected.rules) {
        let (a, b) = (tau(a.keep), tau(b.keep));
        assert!((a - b).abs() <= 2e-2 * b.abs(), "{a} for {b}");
    }
    let [a, b] = [&got, &expected].map(|p| p.provenance.realised.unwrap());
    assert!((a - b).abs() <= 1e-2, "{a} for {b}");
    let error = card.set_plan(Some(Arc::new(got))).unwrap_err();
    assert!(error.to_string().contains("planes"), "{error}");
}

#[test]
fn activations_that_are_no_numbers_are_named_on_the_card_too() {
    if !has_card() {
        return;
    }
    let mut m = Arc::unwrap_or_clone(model("byte-llama"));
    let ffn = &mut m.layers[2].ffn;
    ffn.up = ffn.up.with_rows_replaced(&[7], f32::NAN);
    let [_, mut card] = both(&Arc::new(m), 72);
    let method = Method::by_name("cats").unwrap();
    let request = PlanRequest {
        method,
        cut: method.cut(None),
        form: Form::Practical,
        sparsity: 0.5,
        predictor: None,
        fit: Fit::default(),
    };
    let error = calibrate(&mut card, &prose(520), None, &[request], |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("layer 2"), "{error}");
}

#[test]
fn predictors_learn_on_the_card_what_they_learn_on_the_cpu() {
    if !has_card() {
        return;
    }
    let m = model("byte-llama");
    let text = prose(2100);
    for kind in [
        PredictorKind::LowRank,
        PredictorKind::Product,
        PredictorKind::Ternary,
    ] {
        let method = Method::by_name("d-countdown").unwrap();
        let request = TrainRequest {
            rank: 8,
            epochs: 2,
            batch: 500,
            ..TrainRequest::new(method, kind, 0.7)
        };
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [mut cpu, mut card] = both(&m, 72);
        let run = |s: &mut Session, at: &Path| train(s, &text, None, &request, at, |_| ());
        let (expected_plan, expected) = run(&mut cpu, folders[0].path()).unwrap();
        let (plan, report) = run(&mut card, folders[1].path()).unwrap();
        let name = kind.name();
        let losses = match kind {
            PredictorKind::Ternary => TERNARY_LOSSES,
            _ => LOSSES,
        };
        for (got, expected) in report.layers.iter().zip(&expected.layers) {
            for (epoch, (a, b)) in got.losses.iter().zip(&expected.losses).enumerate() {
                let allowed = losses * b.held_out;
                assert!(
                    (a.held_out - b.held_out).abs() <= allowed,
                    "{name}, layer {}, epoch {epoch}: {a:?} for {b:?}",
                    got.layer
                );
                if let (Some(a), Some(b)) = (a.training, b.training) {
                    assert!((a - b).abs() <= losses * b, "{name}: {a} for {b}");
                }
            }
            assert!(
                got.losses[2].held_out < got.losses[0].held_out,
                "{name}: {got:?}"
            );
            assert!(
                (got.quality.recall - expected.quality.recall).abs() <= 0.02,
                "{name}"
            );
            assert!(
                (got.quality.error - expected.quality.error).abs() <= 0.02,
                "{name}"
            );
            assert!(
                (got.bound.error - expected.bound.error).abs() <= 1e-3,
                "{name}"
            );
        }
        let [a, b] = [&plan, &expected_plan].map(|p| p.provenance.realised.unwrap());
        assert!((a - b).abs() <= 0.02, "{name}: {a} for {b}");

        // What is finished is taken up again, by the device that finished it.
        let (again, _) = run(&mut card, folders[1].path()).unwrap();
        assert_eq!(again, plan, "{name}");
        let error = run(&mut card, folders[0].path()).unwrap_err();
        assert!(
            error.to_string().contains("device is \"cpu\" there"),
            "{error}"
        );
        if kind == PredictorKind::LowRank {
            let anew = tempfile::tempdir().unwrap();
            let (same, _) = run(&mut card, anew.path()).unwrap();
            assert_eq!(same, plan, "the same bits for a seed");
        }
    }
}
