//! How weights and predictors are laid out for steps changes results by rounding at most.

mod common;

use common::{
    MODELS, by_copy, difference, fixture, in_type, model, plan_of, prose, session, steps, tokens,
};
use countdown::{
    DownLayout, Model, Packing, Phase, SparsityPlan, calibrate,
    kernels::{DType, cpu::Kernels},
    model::{Down, Matrix},
    sparsity::{Form, Keep, PredictorKind, Signal},
};
use std::sync::Arc;

#[test]
fn results_do_not_depend_on_how_neurons_are_packed() {
    for name in MODELS {
        let m = model(name);
        let tokens = tokens(20);
        let mut plans = vec![None];
        for signal in [Signal::Gate, Signal::Up] {
            plans.push(Some(plan_of(&m, signal, |_| Keep::Above(0.1))));
        }
        if m.config.hidden.is_multiple_of(32) {
            let kind = PredictorKind::Copy3;
            let request = by_copy(&m, "d-countdown", kind, Form::Practical, 0.5);
            let fitted = calibrate(
                &mut session(&m, 2),
                &self::tokens(600),
                None,
                &[request],
                |_, _| (),
            );
            plans.push(Some(Arc::new(fitted.unwrap().remove(0))));
        }
        let run = |m: &Arc<Model>, plan: &Option<Arc<SparsityPlan>>| {
            let mut s = session(m, 2);
            s.set_plan(plan.clone()).unwrap();
            let mut logits = steps(&mut s, &tokens);
            s.reset();
            s.score(&tokens, Phase::Prompt, |_, row| logits.push(row.to_vec()))
                .unwrap();
            logits
        };
        let apart: Vec<_> = plans.iter().map(|plan| run(&m, plan)).collect();
        for packing in [Packing::UpDown, Packing::GateDown, Packing::GateUpDown] {
            let packed = Arc::new(Model::clone(&m).packed(packing, 2).unwrap());
            assert_eq!(packed.bytes_per_token(), m.bytes_per_token());
            for (plan, apart) in plans.iter().zip(&apart) {
                assert_eq!(&run(&packed, plan), apart, "{name} {packing:?}");
            }
        }
        let suited = |plan: &Option<Arc<SparsityPlan>>| Packing::of(plan.as_deref());
        let all = [Packing::UpDown, Packing::GateDown, Packing::GateUpDown];
        assert!(
            plans[1..]
                .iter()
                .map(suited)
                .eq(all[..plans.len() - 1].iter().copied())
        );
    }
}

#[test]
fn models_as_stored_are_transposed_where_they_are_packed_for_plans() {
    for name in MODELS {
        let as_in_file = Model::open(&fixture(name), DownLayout::Stored, 2).unwrap();
        let in_eight_bits = Model::clone(&in_type(&as_in_file, DType::Q8_0));
        for stored in [as_in_file, in_eight_bits] {
            let transposed = stored.clone().packed(Packing::Apart, 1).unwrap();
            assert_eq!(transposed.down_layout, DownLayout::Transposed);
            for packing in [Packing::UpDown, Packing::GateDown, Packing::GateUpDown] {
                let [want, got] =
                    [&transposed, &stored].map(|m| Model::clone(m).packed(packing, 2).unwrap());
                assert_eq!(got.down_layout, DownLayout::Transposed);
                for (want, got) in want.layers.iter().zip(&got.layers) {
                    let [want, got] = [want, got].map(|l| {
                        let Down::Transposed(down) = &l.ffn.down else {
                            panic!("down is transposed for plans")
                        };
                        [&l.ffn.gate, &l.ffn.up, down]
                    });
                    assert_eq!(want, got, "{name} {packing:?}");
                }
            }
            // A tiled one has no columns until it is rows again.
            let dense = stored.packed(Packing::Dense, 2).unwrap();
            assert_eq!(dense.down_layout, DownLayout::Stored);
            let apart = dense.packed(Packing::Apart, 2).unwrap();
            for (want, got) in transposed.layers.iter().zip(&apart.layers) {
                assert_eq!(want.ffn.down.matrix(), got.ffn.down.matrix(), "{name}");
            }
        }
    }
}

#[test]
fn tiles_change_results_by_rounding_only_and_are_kept_from_plans_that_need_rows() {
    for dtype in [DType::Q4_0, DType::Q5_0] {
        let m = in_type(&model("byte-llama"), dtype);
        assert_eq!(m.layers[0].ffn.gate.dtype(), dtype);
        let tokens = prose(24);
        let by_up = plan_of(&m, Signal::Up, |_| Keep::Above(0.3));
        let request = by_copy(
            &m,
            "d-countdown",
            PredictorKind::Copy4,
            Form::Practical,
            0.5,
        );
        let fitted = calibrate(
            &mut session(&m, 2),
            &prose(2000),
            None,
            &[request],
            |_, _| (),
        );
        let by_copy = Arc::new(fitted.unwrap().remove(0));
        for plan in [None, Some(by_up.clone()), Some(by_copy.clone())] {
            let packing = Packing::of(plan.as_deref());
            // Packed for something else before, which is undone.
            let packed = Model::clone(&m).packed(Packing::GateUpDown, 1).unwrap();
            let mut packed = packed.packed(packing, 2).unwrap();
            let mut packed_twice = |p: Arc<SparsityPlan>| {
                let once = p.packed(&mut packed, 2).unwrap();
                Arc::new(once.packed(&mut packed, 1).unwrap())
            };
            let packed_plan = plan.clone().map(&mut packed_twice);
            let mut s = session(&m, 2);
            s.set_plan(plan.clone()).unwrap();
            let rows = steps(&mut s, &tokens);
            let mut s = session(&Arc::new(packed), 2);
            s.set_plan(packed_plan).unwrap();
            let d = difference(&rows, &steps(&mut s, &tokens));
            // The next product rounds its input to 8 bits, so that a last bit may become a whole level, and a neuron near the
            // cut fall to its other side.
            assert!(d < 0.03, "{dtype} {packing:?}: {d}");
        }
        // What is read as a whole is laid out as the kernels in use want it.
        let packed = by_copy.packed(&mut Model::clone(&m), 2).unwrap();
        let copies = packed.rules[0].predictor.as_ref().unwrap();
        for l in copies.outer.linears() {
            let isa = std::env::var("COUNTDOWN_ISA").ok();
            let kernels = Kernels::select(isa.as_deref()).unwrap();
            let wanted = kernels.prefers_tiles(l.weight.view());
            assert_eq!(
                l.weight.is_tiled(),
                wanted && l.weight.rows().is_multiple_of(16)
            );
        }
        // Where they want tiles, a plan that reads rows of them is refused.
        let dense = Arc::new(Model::clone(&m).packed(Packing::Dense, 2).unwrap());
        let refused = session(&dense, 1).set_plan(Some(by_up));
        assert_eq!(refused.is_err(), dense.layers[0].ffn.gate.is_tiled());
        // Files hold rows, whatever lies in memory.
        let folder = tempfile::tempdir().unwrap();
        let files = ["rows", "tiles"].map(|name| folder.path().join(name));
        by_copy.save(&files[0]).unwrap();
        packed.save(&files[1]).unwrap();
        let [rows, tiles] = files.map(|f| std::fs::read(f).unwrap());
        assert!(rows == tiles);
    }
}

#[test]
fn what_planes_leave_of_a_neuron_lies_beside_its_row_of_down() {
    let m = in_type(&model("byte-llama"), DType::Q8_0);
    let kind = PredictorKind::Planes;
    let request = by_copy(&m, "d-countdown", kind, Form::Practical, 0.5);
    let text = prose(2000);
    let fitted = calibrate(&mut session(&m, 2), &text, None, &[request], |_, _| ());
    let plan = fitted.unwrap().remove(0);
    let packing = Packing::of(Some(&plan));
    assert_eq!(packing, Packing::DownWithPlan);
    let mut packed = Model::clone(&m).packed(packing, 2).unwrap();
    let packed_plan = plan.packed(&mut packed, 2).unwrap();
    for (layer, rule) in packed.layers.iter().zip(&packed_plan.rules) {
        let rest = rule.predictor.as_ref().unwrap().rest.as_ref().unwrap();
        let Down::Transposed(down) = &layer.ffn.down else {
            panic!("down is transposed for plans")
        };
        let [gate, up, down] = [&rest.gate, &rest.up, down].map(Matrix::view);
        for [first, next] in [[gate, up], [up, down]] {
            let behind = first.row_bytes().next_multiple_of(64);
            let from = first.data().as_ptr().addr();
            assert_eq!(next.data().as_ptr().addr() - from, behind);
        }
    }
    // Of another model, whose down has other rows, it is refused before anything is moved.
    let mut other = Model::clone(&in_type(&model("golden/llama3"), DType::Q8_0));
    other.fingerprint = m.fingerprint.clone();
    assert_ne!(other.config.layers[0].inter, m.config.layers[0].inter);
    let refused = plan.packed(&mut other, 1);
    assert!(matches!(refused, Err(countdown::Error::Plan { .. })));
    let tokens = prose(24);
    let run = |m: Arc<Model>, plan: Option<SparsityPlan>| {
        let mut s = session(&m, 2);
        s.set_plan(plan.map(Arc::new)).unwrap();
        let logits = steps(&mut s, &tokens);
        (logits, s.stats().realised_sparsity())
    };
    let (apart, realised) = run(m.clone(), Some(plan.clone()));
    assert!(realised > 0.3, "{realised}");
    let packed = Arc::new(packed);
    let d = difference(&apart, &run(packed.clone(), Some(packed_plan)).0);
    assert!(d < 0.03, "{d}");
    // The model it moved in suits other plans and none as before.
    let (apart, packed) = (run(m, None).0, run(packed, None).0);
    let d = difference(&apart, &packed);
    assert!(d < 0.03, "dense: {d}");
}
