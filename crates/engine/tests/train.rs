//! Training predictors on a model small enough for a test: it learns, it resumes, it refuses.

use countdown::{
    DownLayout, Error, Model, Session, SessionOptions, SparsityPlan,
    kernels::DType,
    sparsity::{Cut, Method, PredictorKind},
    train::{LayerReport, Target, TrainReport, TrainRequest, train},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

fn model() -> Arc<Model> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/byte-llama");
    Arc::new(Model::open(&path, DownLayout::Transposed, 2).unwrap())
}

fn session(model: &Arc<Model>, threads: usize) -> Session {
    let options = SessionOptions {
        // Short windows: attention would take most of a test's time.
        context: Some(80),
        threads: Some(threads),
        batch: 80,
        cache_dtype: DType::F32,
        ..SessionOptions::default()
    };
    Session::new(model.clone(), &options).unwrap()
}

/// Plain English bytes.
fn prose(n: usize) -> Vec<u32> {
    let text = countdown::CALIBRATION_TEXT.bytes().filter(u8::is_ascii);
    text.map(u32::from).take(n).collect()
}

fn request(method: &str, kind: PredictorKind) -> TrainRequest {
    TrainRequest {
        rank: 24,
        epochs: 3,
        batch: 512,
        ..TrainRequest::new(Method::by_name(method).unwrap(), kind, 0.7)
    }
}

fn run(request: &TrainRequest, tokens: &[u32], folder: &Path) -> (SparsityPlan, TrainReport) {
    train(
        &mut session(&model(), 2),
        tokens,
        None,
        request,
        folder,
        |_| (),
    )
    .unwrap()
}

fn refusal(request: &TrainRequest, tokens: &[u32], folder: &Path) -> String {
    match train(
        &mut session(&model(), 1),
        tokens,
        None,
        request,
        folder,
        |_| (),
    ) {
        Ok(_) => panic!("it was accepted"),
        Err(e) => format!("{e}; {}", e.remedy()),
    }
}

fn last(report: &LayerReport) -> f64 {
    report.losses[report.best_epoch].held_out
}

#[test]
fn every_kind_learns_and_gives_a_plan_that_skips_what_was_asked_for() {
    let tokens = prose(5_000);
    for (method, kind) in [
        ("d-countdown", PredictorKind::LowRank),
        ("d-countdown", PredictorKind::Product),
        ("s-countdown", PredictorKind::Product),
        ("d-countdown", PredictorKind::Ternary),
        ("dejavu", PredictorKind::LowRank),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (plan, report) = run(&request(method, kind), &tokens, folder.path());
        let name = format!("{method} {}", kind.name());
        assert_eq!(plan.provenance.method, method);
        assert_eq!(report.layers.len(), 4);
        let realised = plan.provenance.realised.unwrap();
        assert!((realised - 0.7).abs() < 0.05, "{name}: {realised}");
        for l in &report.layers {
            assert_eq!(l.losses.len(), 4);
            assert!(l.best_epoch > 0, "{name}: {l:?}");
            assert!(last(l) < l.losses[0].held_out, "{name}: {l:?}");
            assert!(last(l) < 0.95 * l.chance, "{name}: {l:?}");
            assert!(l.losses[3].training < l.losses[1].training, "{name}: {l:?}");
            // Keeping 30 % at random would have a recall of 0.3.
            assert!(l.quality.recall > 0.45, "{name}: {l:?}");
            assert!((l.quality.sparsity - 0.7).abs() < 0.05, "{name}: {l:?}");
            assert!(l.quality.error > l.bound.error && l.bound.recall == 1.0);
        }
    }
}

#[test]
fn an_interrupted_run_comes_to_the_same_bits_on_any_number_of_threads() {
    let tokens = prose(3_000);
    for kind in [PredictorKind::LowRank, PredictorKind::Ternary] {
        let request = request("d-countdown", kind);
        let whole = tempfile::tempdir().unwrap();
        let (plan, report) = run(&request, &tokens, whole.path());

        let folder = tempfile::tempdir().unwrap();
        // In the middle of the first layer, between two layers, in the middle of the last.
        for stop in [(0, 2), (1, 3), (3, 1)] {
            let stopped = catch_unwind(AssertUnwindSafe(|| {
                let mut s = session(&model(), 1);
                train(&mut s, &tokens, None, &request, folder.path(), |p| {
                    assert!(
                        (p.layer, p.epoch) <= stop,
                        "stopped behind layer {}, epoch {}",
                        p.layer,
                        p.epoch
                    );
                    if (p.layer, p.epoch) == stop {
                        panic!("killed");
                    }
                })
            }));
            assert!(stopped.is_err());
        }
        // What was finished is not trained again.
        let mut seen = Vec::new();
        let mut s = session(&model(), 2);
        let resumed = train(&mut s, &tokens, None, &request, folder.path(), |p| {
            if p.loss.is_some() {
                seen.push((p.layer, p.epoch));
            }
        });
        assert_eq!(seen, [(3, 2), (3, 3)]);
        let (resumed_plan, resumed_report) = resumed.unwrap();
        assert_eq!(resumed_plan, plan);
        assert_eq!(resumed_report, report);
    }
}

#[test]
fn inputs_in_a_file_change_nothing() {
    let tokens = prose(4_000);
    let mut request = request("d-countdown", PredictorKind::LowRank);
    request.epochs = 1;
    let (memory, file) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (plan, _) = run(&request, &tokens, memory.path());
    // Streams take 4,000 * 96 floats, labels 4,000 * 256 bits: that fits once, but not twice.
    request.memory = 2_500_000;
    assert_eq!(run(&request, &tokens, file.path()).0, plan);
    request.memory = 1_000_000;
    let other = tempfile::tempdir().unwrap();
    let text = refusal(&request, &tokens, other.path());
    assert!(text.contains("--memory"), "{text}");
}

#[test]
fn labels_by_output_lose_less_of_it_and_take_the_cut_that_counts_norms() {
    let tokens = prose(4_000);
    let of = |labels| {
        let request = TrainRequest {
            labels,
            epochs: 1,
            ..request("d-countdown", PredictorKind::LowRank)
        };
        let folder = tempfile::tempdir().unwrap();
        let trained = run(&request, &tokens, folder.path());
        (trained, request, folder)
    };
    let ((weighted_plan, weighted), ..) = of(Target::Weighted);
    let ((plan, output), mut request, folder) = of(Target::Output);
    for (o, w) in output.layers.iter().zip(&weighted.layers) {
        assert!(o.bound.error < w.bound.error, "{o:?}, weighted {w:?}");
        assert!((o.bound.sparsity - w.bound.sparsity).abs() < 1e-9);
        assert!(last(o) < o.chance, "{o:?}");
    }
    assert_eq!(plan.provenance.cut, Cut::Neuron);
    assert_eq!(plan.provenance.cut, weighted_plan.provenance.cut);

    request.labels = Target::Weighted;
    let text = refusal(&request, &tokens, folder.path());
    assert!(
        text.contains("labels is \"output\" there and \"weighted\" here"),
        "{text}"
    );

    // What scoring takes is counted: with streams and labels, 1.8 MB for neurons alone and 2.0 MB for the output.
    (request.memory, request.epochs) = (1_900_000, 0);
    let [alone, refused] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    run(&request, &tokens, alone.path());
    request.labels = Target::Output;
    let text = refusal(&request, &tokens, refused.path());
    assert!(text.contains("--memory"), "{text}");
}

#[test]
fn matrices_in_8_bits_read_half_the_bytes_and_choose_alike() {
    let tokens = prose(4_000);
    for kind in [PredictorKind::LowRank, PredictorKind::Product] {
        let of = |rank, storage| {
            let request = TrainRequest {
                rank,
                storage,
                epochs: 1,
                ..request("d-countdown", kind)
            };
            let folder = tempfile::tempdir().unwrap();
            let (plan, report) = run(&request, &tokens, folder.path());
            let set = plan.predictors().expect("a plan by a predictor");
            let types = set.layers.iter().flat_map(|p| {
                let outer = p.outer.linears().map(|l| l.weight.dtype());
                outer.chain(p.inner.as_ref().map(|m| m.dtype()))
            });
            (types.collect::<Vec<_>>(), report)
        };
        // Blocks of 32 fill no rows of 24.
        let (types, _) = of(24, None);
        assert!(types.iter().all(|t| *t == DType::F16));
        let (types, report) = of(32, None);
        assert!(types.iter().all(|t| *t == DType::Q8_0));
        assert_eq!(report.identity.storage, "Q8_0");
        let (types, halves) = of(32, Some(DType::F16));
        assert!(types.iter().all(|t| *t == DType::F16));
        for (eight, sixteen) in report.layers.iter().zip(&halves.layers) {
            let name = format!("{} {eight:?} {sixteen:?}", kind.name());
            assert_eq!(eight.losses, sixteen.losses, "{name}");
            // 8.5 bits for 16, and biases of 32.
            let biases = 4 * 256 * (1 + usize::from(kind == PredictorKind::Product));
            let weights = sixteen.bytes - biases;
            assert_eq!(eight.bytes, weights * 17 / 32 + biases, "{name}");
            let differs = |of: fn(&LayerReport) -> f64| (of(eight) - of(sixteen)).abs();
            assert!(differs(|l| l.quality.recall) < 0.01, "{name}");
            assert!(differs(|l| l.quality.error) < 0.01, "{name}");
        }
    }
}

#[test]
fn the_seed_decides() {
    let tokens = prose(4_000);
    let mut request = request("d-countdown", PredictorKind::LowRank);
    request.epochs = 1;
    let folders: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let (plan, _) = run(&request, &tokens, folders[0].path());
    request.seed = 2;
    assert_ne!(run(&request, &tokens, folders[1].path()).0, plan);
}

#[test]
fn a_folder_of_another_run_is_refused_with_what_differs() {
    let tokens = prose(4_000);
    let mut request = request("d-countdown", PredictorKind::LowRank);
    request.epochs = 0;
    let folder = tempfile::tempdir().unwrap();
    let (plan, _) = run(&request, &tokens, folder.path());
    request.rate = 5e-4;
    let text = refusal(&request, &tokens[1..], folder.path());
    for part in [
        "rate is 0.003",
        "tokens is 4000 there and 3999 here",
        "another folder",
    ] {
        assert!(text.contains(part), "{text}");
    }
    request.rate = 3e-3;
    assert_eq!(run(&request, &tokens, folder.path()).0, plan);

    // Damaged state is named, not trusted.
    std::fs::write(folder.path().join("layer-002.safetensors"), b"nonsense").unwrap();
    let text = refusal(&request, &tokens, folder.path());
    assert!(
        text.contains("layer-002") && text.contains("remove it"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_trained_is_refused_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = prose(4_000);
    let good = request("d-countdown", PredictorKind::LowRank);
    let check = |request: &TrainRequest, tokens: &[u32], parts: [&str; 2]| {
        let text = refusal(request, tokens, folder.path());
        assert!(parts.iter().all(|p| text.contains(p)), "{text}");
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
    };
    check(&good, &[], ["0 tokens", "longer text"]);
    check(&good, &tokens[..100], ["100 tokens", "longer text"]);
    let rank = TrainRequest {
        rank: 97,
        ..good.clone()
    };
    check(&rank, &tokens, ["rank 97", "hidden size of 96"]);
    let rank = TrainRequest {
        rank: 0,
        ..good.clone()
    };
    check(&rank, &tokens, ["rank 0", "--rank"]);
    let copy = request("d-countdown", PredictorKind::Copy3);
    check(&copy, &tokens, ["copy3", "calibrate"]);
    let computed = request("m-countdown", PredictorKind::LowRank);
    check(&computed, &tokens, ["m-countdown", "d-countdown"]);
    let product = request("dejavu", PredictorKind::Product);
    check(&product, &tokens, ["product", "low-rank"]);
    let rate = TrainRequest {
        rate: f32::NAN,
        ..good.clone()
    };
    check(&rate, &tokens, ["learning rate NaN", "defaults"]);
    let stored = |request: &TrainRequest, storage| TrainRequest {
        storage: Some(storage),
        ..request.clone()
    };
    let blocks = stored(&good, DType::Q8_0);
    check(&blocks, &tokens, ["rank 24", "blocks of 32"]);
    let four_bits = stored(&good, DType::Q4_0);
    check(&four_bits, &tokens, ["Q4_0", "F16 or Q8_0"]);
    let ternary = request("d-countdown", PredictorKind::Ternary);
    let ternary = stored(&ternary, DType::F16);
    check(&ternary, &tokens, ["ternary", "leave the type out"]);
    let sparsity = TrainRequest {
        sparsity: 1.0,
        ..good
    };
    check(&sparsity, &tokens, ["sparsity 1", "0.7"]);
}

#[test]
fn a_rate_that_diverges_and_a_folder_that_cannot_be_written_are_named() {
    let tokens = prose(4_000);
    let mut request = request("d-countdown", PredictorKind::LowRank);
    request.rate = 1e30;
    let folder = tempfile::tempdir().unwrap();
    let text = refusal(&request, &tokens, folder.path());
    assert!(text.contains("diverged") && text.contains("--lr"), "{text}");

    let file = folder.path().join("a-file");
    std::fs::write(&file, b"").unwrap();
    let mut s = session(&model(), 1);
    let error = train(&mut s, &tokens, None, &request, &file, |_| ()).unwrap_err();
    assert!(matches!(error, Error::Write { .. }), "{error}");
}

#[test]
fn activations_that_are_no_numbers_are_named() {
    let mut model = Arc::into_inner(model()).unwrap();
    let ffn = &mut model.layers[2].ffn;
    ffn.up = ffn.up.with_rows_replaced(&[7], f32::NAN);
    let folder = tempfile::tempdir().unwrap();
    let request = request("d-countdown", PredictorKind::LowRank);
    let mut s = session(&Arc::new(model), 1);
    let error = train(&mut s, &prose(4_000), None, &request, folder.path(), |_| ()).unwrap_err();
    assert!(error.to_string().contains("layer 2"), "{error}");
}
