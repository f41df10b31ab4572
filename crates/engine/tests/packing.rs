//! How weights and predictors are laid out for steps changes results by rounding at most.

mod common;

use common::{MODELS, by_copy, difference, in_type, model, plan_of, prose, session, steps, tokens};
use countdown::{
    Model, Packing, Phase, SparsityPlan, calibrate,
    kernels::{DType, cpu::Kernels},
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
            let packed = Arc::new(packed.packed(packing, 2).unwrap());
            let mut s = session(&m, 2);
            s.set_plan(plan.clone()).unwrap();
            let rows = steps(&mut s, &tokens);
            let mut s = session(&packed, 2);
            let packed_twice = |p: Arc<SparsityPlan>| p.packed(2).unwrap().packed(1).unwrap();
            s.set_plan(plan.map(|p| Arc::new(packed_twice(p)))).unwrap();
            let d = difference(&rows, &steps(&mut s, &tokens));
            // The next product rounds its input to 8 bits, so that a last bit may become a whole level, and a neuron near the
            // cut fall to its other side.
            assert!(d < 0.03, "{dtype} {packing:?}: {d}");
        }
        // What is read as a whole is laid out as the kernels in use want it.
        let packed = by_copy.packed(2).unwrap();
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
        by_copy.packed(2).unwrap().save(&files[1]).unwrap();
        let [rows, tiles] = files.map(|f| std::fs::read(f).unwrap());
        assert!(rows == tiles);
    }
}
