//! Sparse decoding against dense: the same sums with neurons left out, and nothing else.

mod common;

use common::{
    MODELS, by_copy, difference, fixture, in_type, model, plan_of, prose, session, steps, tokens,
};
use countdown::{
    Allocation, DownLayout, Fit, Inputs, Model, Packing, Phase, PlanRequest, Session, SparsityPlan,
    Threshold, calibrate,
    kernels::{DType, reference},
    measure_realised,
    model::{Down, Linear, Matrix},
    sparsity::{
        Cut, Form, Keep, METHODS, Method, Outer, Practical, Predictor, PredictorKind, Score, Signal,
    },
};
use std::sync::Arc;

/// The same model with all weights in F32: several tokens together are then multiplied in f32 whatever the CPU can.
fn in_f32(m: &Model) -> Arc<Model> {
    in_type(m, DType::F32)
}

#[test]
fn all_neurons_kept_is_dense_bit_for_bit() {
    for name in MODELS {
        let m = model(name);
        let tokens = tokens(20);
        let mut s = session(&m, 2);
        let dense = steps(&mut s, &tokens);
        for signal in [Signal::Gate, Signal::Up, Signal::Product] {
            s.set_plan(Some(plan_of(&m, signal, |_| {
                Keep::Above(f32::NEG_INFINITY)
            })))
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

#[test]
fn a_step_equals_the_dense_step_with_the_other_neurons_zeroed() {
    for name in MODELS {
        let m = in_f32(&model(name));
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
                let flipped = s.stats().kept.abs_diff(by_steps.kept);
                let d = difference(&sparse, &zeroed);
                s.set_plan(None).unwrap();
                let changed = difference(&sparse, &steps(&mut s, &tokens));
                let label = format!("{name} {signal:?} {:?}", plan.rules[0].keep);
                assert!(flipped <= 2, "{label}: {flipped}");
                // f32 throughout: two orders of summation over some hundred terms and up to seven layers.
                assert!(d < 1e-3, "{label}: {d}");
                assert!(changed > 10.0 * d, "{label}: the plan changes nothing");
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
        Keep::Above(if i == 0 { threshold } else { f32::NEG_INFINITY })
    });
    s.set_plan(Some(plan.clone())).unwrap();
    let clean = steps(&mut s, &tokens);
    let ffn = &mut poisoned.layers[0].ffn;
    ffn.gate = ffn.gate.with_rows_replaced(&victims, f32::NAN);
    if let Down::Transposed(down) = &mut ffn.down {
        *down = down.with_rows_replaced(&victims, f32::NAN);
    }
    let packing = Packing::of(Some(&plan));
    for poisoned in [poisoned.clone(), poisoned.packed(packing, 2).unwrap()] {
        let mut s = session(&Arc::new(poisoned), 2);
        s.set_plan(Some(plan.clone())).unwrap();
        assert_eq!(steps(&mut s, &tokens), clean);
    }
}

fn request(method: &str, cut: Cut, form: Form, sparsity: f64) -> PlanRequest {
    PlanRequest {
        method: Method::by_name(method).unwrap(),
        cut,
        form,
        sparsity,
        predictor: None,
        fit: Fit::default(),
    }
}

/// What a plan realises on a text that it was not fitted on.
fn realised(s: &mut Session, plan: SparsityPlan, text: &[u32]) -> f64 {
    s.set_plan(Some(Arc::new(plan))).unwrap();
    s.reset();
    for window in text.chunks(100) {
        s.truncate(0);
        s.trace(&window[..20], Phase::Prompt, &mut |_| ()).unwrap();
        s.trace(&window[20..], Phase::Decode, &mut |_| ()).unwrap();
    }
    let realised = s.stats().realised_sparsity();
    s.set_plan(None).unwrap();
    realised
}

#[test]
fn practical_plans_realise_their_target_on_other_text() {
    let m = model("byte-llama");
    let mut s = session(&m, 2);
    let text = prose(24_000);
    let (fitted, held_out) = text.split_at(20_000);
    let mut requests = Vec::new();
    for target in [0.5, 0.7, 0.9] {
        for method in ["cats", "m-countdown"] {
            for cut in [Cut::Layer, Cut::Neuron, Cut::Signed] {
                requests.push(request(method, cut, Form::Practical, target));
            }
        }
        for method in ["d-countdown", "s-countdown", "dejavu"] {
            let kind = PredictorKind::Copy4;
            requests.push(by_copy(&m, method, kind, Form::Practical, target));
        }
    }
    let plans = calibrate(&mut s, fitted, None, &requests, |_, _| ()).unwrap();
    for (plan, r) in plans.into_iter().zip(&requests) {
        let realised = realised(&mut s, plan, held_out);
        let name = r.method.name;
        assert!(
            (realised - r.sparsity).abs() < 0.02,
            "{name} {:?} {}: {realised}",
            r.cut,
            r.sparsity
        );
    }
}

#[test]
fn every_way_to_fit_meets_its_target() {
    let m = model("byte-llama");
    let mut s = session(&m, 2);
    let text = prose(24_000);
    let (fitted, held_out) = text.split_at(20_000);
    let ways = [
        (Threshold::Quantile, Inputs::Sequential, Allocation::Uniform),
        (Threshold::Quantile, Inputs::Dense, Allocation::Distortion),
        (Threshold::Mean, Inputs::Sequential, Allocation::Uniform),
    ];
    let requests = ways.map(|(threshold, inputs, allocation)| PlanRequest {
        fit: Fit {
            threshold,
            inputs,
            allocation,
        },
        ..request("m-countdown", Cut::Signed, Form::Practical, 0.7)
    });
    let mut last = 0;
    let plans = calibrate(&mut s, fitted, None, &requests, |done, all| {
        assert!(last <= done && done <= all);
        last = done;
    });
    let mut plans = plans.unwrap();
    measure_realised(&mut s, fitted, None, &mut plans, |done, all| {
        assert!(done <= all);
    })
    .unwrap();
    for (plan, (threshold, ..)) in plans.into_iter().zip(ways) {
        if let Some(targets) = &plan.provenance.layer_targets {
            let mean = targets.iter().sum::<f64>() / targets.len() as f64;
            assert!((mean - 0.7).abs() < 0.01, "{targets:?}");
            assert!(targets.iter().any(|t| (t - mean).abs() > 0.01));
        }
        // A mean of the tokens' own cuts is no quantile of them all: it misses, and the plan says by how much.
        let allowed = if threshold == Threshold::Mean {
            0.06
        } else {
            0.02
        };
        let said = plan.provenance.realised.unwrap();
        let got = realised(&mut s, plan, held_out);
        assert!((got - 0.7).abs() < allowed, "{threshold:?}: {got}");
        assert!((got - said).abs() < 0.02);
    }
}

/// Steps of a plan against batched steps, which compute every neuron and zero those the rule drops. Returns how many neurons the two
/// kept, and the difference of logits relative to the largest.
fn against_zeroed(s: &mut Session, plan: SparsityPlan, tokens: &[u32]) -> ([u64; 2], f32) {
    s.set_plan(Some(Arc::new(plan))).unwrap();
    let sparse = steps(s, tokens);
    let by_steps = s.stats();
    s.reset();
    let mut zeroed = vec![Vec::new(); tokens.len()];
    s.score(tokens, Phase::Decode, |i, row| zeroed[i] = row.to_vec())
        .unwrap();
    let kept = [by_steps.kept, s.stats().kept];
    assert_eq!(s.stats().neurons, by_steps.neurons);
    s.set_plan(None).unwrap();
    (kept, difference(&sparse, &zeroed))
}

/// Some text for random models, of tokens that all of them have.
fn noise(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * i * 31 + i * 7) % 70).collect()
}

#[test]
fn every_method_equals_the_dense_step_with_the_other_neurons_zeroed_in_every_family() {
    for name in MODELS {
        let m = in_f32(&model(name));
        let tokens = noise(24);
        let mut s = session(&m, 2);
        let dense = steps(&mut s, &tokens);
        // Ideal plans of all methods, and practical ones of those that compute what decides.
        let mut requests = Vec::new();
        for method in METHODS.iter().filter(|m| !m.is_dense()) {
            requests.push(request(method.name, method.cut(None), Form::Ideal, 0.6));
            if method.practical == Practical::Computed {
                requests.push(request(method.name, method.cut(None), Form::Practical, 0.6));
            }
        }
        let plans = calibrate(&mut s, &noise(1500), None, &requests, |_, _| ()).unwrap();
        for (plan, r) in plans.into_iter().zip(&requests) {
            let label = format!("{name} {} {:?}", r.method.name, r.form);
            let neurons = m.config.layers.iter().map(|l| l.inter).sum::<usize>() * tokens.len();
            let ([by_steps, zeroed], d) = against_zeroed(&mut s, plan.clone(), &tokens);
            let sparsity = 1.0 - by_steps as f64 / neurons as f64;
            assert!((0.3..0.9).contains(&sparsity), "{label}: {sparsity}");
            // A score at the very threshold may fall to either side of it by rounding; more than a few may not.
            assert!(by_steps.abs_diff(zeroed) <= 2, "{label}");
            // f32 throughout: two orders of summation over some hundred terms and up to seven layers.
            assert!(d < 1e-3, "{label}: {d}");
            s.set_plan(Some(Arc::new(plan))).unwrap();
            let changed = difference(&steps(&mut s, &tokens), &dense);
            s.set_plan(None).unwrap();
            assert!(changed > 10.0 * d, "{label}: the plan changes nothing");
        }
    }
}

#[test]
fn predicted_steps_equal_the_dense_step_with_the_other_neurons_zeroed() {
    for name in MODELS {
        let m = in_f32(&model(name));
        if !m.config.hidden.is_multiple_of(32) {
            continue;
        }
        let mut s = session(&m, 2);
        let dense = steps(&mut s, &noise(24));
        let mut requests = Vec::new();
        for method in Practical::Predicted.methods() {
            for form in [Form::Practical, Form::Ideal] {
                requests.push(by_copy(&m, method.name, PredictorKind::Copy4, form, 0.6));
            }
        }
        let mut plans = calibrate(&mut s, &noise(1500), None, &requests, |_, _| ()).unwrap();
        // Logits of low rank, with biases: what a trained predictor looks like.
        let mut logits = plans[0].clone();
        for (rule, layer) in logits.rules.iter_mut().zip(&m.layers) {
            rule.score = Score::Value;
            rule.keep = Keep::Above(0.1);
            rule.predictor = Some(Arc::new(low_rank(&layer.ffn.gate)));
        }
        plans.push(logits);
        for plan in plans {
            let label = format!("{name} {:?}", plan.provenance);
            // By predictors of floats, so that steps and batches see the same signals but for the order of sums.
            let floats = in_floats(&plan);
            let ([by_steps, zeroed], d) = against_zeroed(&mut s, floats.clone(), &noise(24));
            assert!(by_steps.abs_diff(zeroed) <= 2, "{label}");
            assert!(d < 1e-3, "{label}: {d}");
            s.set_plan(Some(Arc::new(floats))).unwrap();
            let changed = difference(&steps(&mut s, &noise(24)), &dense);
            s.set_plan(None).unwrap();
            assert!(changed > 10.0 * d, "{label}: the plan changes nothing");

            // By those of the plan: steps round the input of a copy to 8 bits, batches to bf16 or not at all, so that neurons near the cut
            // may fall to either side. Where neurons are few, one of them is much.
            if name == "byte-llama" {
                let ([by_steps, zeroed], d) = against_zeroed(&mut s, plan, &noise(24));
                let flipped = by_steps.abs_diff(zeroed) as f64 / by_steps as f64;
                assert!(flipped < 0.02, "{label}: {flipped}");
                assert!(d < 0.05, "{label}: {d}");
            }
        }
    }
}

/// The same plan with predictors of the same numbers stored in F32.
fn in_floats(plan: &SparsityPlan) -> SparsityPlan {
    let unpacked = |l: &Linear| {
        let (rows, cols) = (l.weight.rows(), l.weight.cols());
        let numbers = (0..rows).flat_map(|i| reference::row(l.weight.view(), i));
        let data: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
        Linear {
            weight: Matrix::new(DType::F32, rows, cols, data.into()).unwrap(),
            bias: l.bias.clone(),
        }
    };
    let mut plan = plan.clone();
    for p in plan.rules.iter_mut().filter_map(|r| r.predictor.as_mut()) {
        let mut floats = Predictor::clone(p);
        floats.outer = match &p.outer {
            Outer::Logits(l) => Outer::Logits(unpacked(l)),
            Outer::Gate(l) => Outer::Gate(unpacked(l)),
            Outer::Product { gate, up } => Outer::Product {
                gate: unpacked(gate),
                up: unpacked(up),
            },
        };
        *p = Arc::new(floats);
    }
    plan
}

/// A predictor with the first rows of `gate` as its narrow matrix.
fn low_rank(gate: &Matrix) -> Predictor {
    let (rank, inter, hidden) = (5, gate.rows(), gate.cols());
    let matrix = |rows: usize, cols: usize, value: &dyn Fn(usize) -> f32| {
        let data: Vec<u8> = (0..rows * cols)
            .flat_map(|i| value(i).to_le_bytes())
            .collect();
        Matrix::new(DType::F32, rows, cols, data.into()).unwrap()
    };
    Predictor {
        inner: Some(matrix(rank, hidden, &|i| {
            ((i * 7919) % 13) as f32 / 13.0 - 0.5
        })),
        outer: Outer::Logits(Linear {
            weight: matrix(inter, rank, &|i| ((i * 104_729) % 11) as f32 / 11.0 - 0.5),
            bias: Some((0..inter).map(|i| (i % 3) as f32 * 0.2 - 0.2).collect()),
        }),
        rest: None,
    }
}

#[test]
fn a_finer_copy_chooses_more_like_the_exact_coefficients() {
    let m = model("byte-llama");
    let mut s = session(&m, 2);
    let text = prose(24_000);
    let (fitted, held_out) = text.split_at(20_000);
    let kinds = [
        PredictorKind::Copy4,
        PredictorKind::Copy3,
        PredictorKind::Copy2,
    ];
    let mut requests: Vec<_> = kinds
        .iter()
        .map(|k| by_copy(&m, "s-countdown", *k, Form::Ideal, 0.7))
        .collect();
    requests.push(request("s-countdown", Cut::Neuron, Form::Ideal, 0.7));
    requests.push(request("m-countdown", Cut::Signed, Form::Ideal, 0.7));
    let plans = calibrate(&mut s, fitted, None, &requests, |_, _| ()).unwrap();
    let plans: Vec<_> = plans.into_iter().map(Arc::new).collect();
    let options = countdown::eval::PerplexityOptions {
        ctx: 128,
        chunks: None,
        stepping: countdown::eval::Stepping::Batched,
        threads: 2,
    };
    let rows =
        countdown::eval::perplexity(&mut s, held_out, None, &plans, &options, |_, _| ()).unwrap();
    let kl: Vec<f64> = rows.iter().skip(1).map(|r| r.kl).collect();
    let [four, three, two, exact, up] = kl[..] else {
        panic!("{kl:?}")
    };
    assert!(
        exact < 1.1 * four && four < three && three < two && four < up,
        "{kl:?}"
    );
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
        request("m-countdown", Cut::Signed, Form::Ideal, 0.7),
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
        request("m-countdown", Cut::Signed, Form::Practical, 0.6),
        request("cats", Cut::Layer, Form::Practical, 0.6),
        request("d-countdown", Cut::Layer, Form::Ideal, 0.6),
        by_copy(
            &a,
            "d-countdown",
            PredictorKind::Copy4,
            Form::Practical,
            0.6,
        ),
        by_copy(&a, "dejavu", PredictorKind::Copy2, Form::Ideal, 0.6),
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
