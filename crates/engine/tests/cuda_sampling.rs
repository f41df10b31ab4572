//! Tokens drawn from what a card lists are those drawn from all its logits. Without a card that runs kernels, tests say so and check nothing.

use countdown::{
    Device, DownLayout, Error, Model, Phase, Session, SessionOptions,
    kernels::{DType, cuda::Cuda},
    sampler::{Sampler, SamplingOptions},
    synth::{self, Arch, Shape},
};
use std::{path::Path, sync::Arc};

/// A model with more tokens than a list has room for.
fn many_tokens() -> Arc<Model> {
    let shape = Shape {
        arch: Arch::Llama,
        hidden: 64,
        inter: 96,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 32,
        vocab: 6001,
        context: 128,
        rope_base: 10_000.0,
        tied: false,
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("many.gguf");
    synth::write(&file, &shape, DType::F32, 7, &mut |_, _| Ok(())).unwrap();
    Arc::new(Model::open(&file, DownLayout::Stored, 2).unwrap())
}

/// A session on the card, if there is one; says so where there is none.
fn on_card(model: &Arc<Model>) -> Option<Session> {
    if let Err(e) = Cuda::open(0, None) {
        eprintln!("SKIPPED: {e}");
        return None;
    }
    let options = SessionOptions {
        context: Some(128),
        threads: Some(2),
        batch: 8,
        device: Device::Cuda(0),
        kernel_cache: Some(std::env::temp_dir().join("countdown-test-kernels")),
        ..SessionOptions::default()
    };
    Some(Session::new(model.clone(), &options).unwrap())
}

/// Tokens that are drawn in the test below.
const DRAWN: u64 = 25;

/// How tokens are drawn, and how many of them take all logits where not all are listed, as far as that does not depend on them.
fn settings() -> Vec<(SamplingOptions, Option<u64>)> {
    let seeded = SamplingOptions {
        seed: Some(5),
        ..SamplingOptions::default()
    };
    let with = |top_k, top_p, min_p| SamplingOptions {
        top_k,
        top_p,
        min_p,
        ..seeded.clone()
    };
    let penalty = |repeat_penalty| SamplingOptions {
        repeat_penalty,
        ..seeded.clone()
    };
    vec![
        (SamplingOptions::greedy(), Some(0)),
        (seeded.clone(), Some(0)),
        (with(40, 1.0, 0.0), Some(0)),
        (with(0, 0.9, 0.0), None),
        (with(0, 1.0, 0.5), None),
        (with(0, 1.0, 0.0), Some(DRAWN)),
        (penalty(1.3), Some(0)),
        // The first token is drawn before there is one to be penalised.
        (penalty(0.8), Some(DRAWN - 1)),
    ]
}

#[test]
fn lists_draw_what_all_logits_draw() {
    let golden = |case: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
        Arc::new(Model::open(&folder.join(case), DownLayout::Stored, 2).unwrap())
    };
    // One with a soft cap, one with a factor on logits.
    for model in [many_tokens(), golden("gemma2"), golden("granite")] {
        let Some(mut listed) = on_card(&model) else {
            return;
        };
        let mut whole = on_card(&model).unwrap();
        let vocab = model.config.vocab;
        for (options, from_all) in settings() {
            let mut samplers = [(); 2].map(|()| Sampler::new(options.clone(), vocab).unwrap());
            let [of_list, of_all] = &mut samplers;
            let prompt: Vec<u32> = (0..11).map(|i| (i * 37 + 11) % 97).collect();
            listed.reset();
            whole.reset();
            let mut drawn = listed
                .prompt(&prompt, |_, _| ())
                .unwrap()
                .sample(of_list)
                .unwrap();
            let all = whole.prompt(&prompt, |_, _| ()).unwrap().all().unwrap();
            assert_eq!(drawn, of_all.sample(all).unwrap(), "{options:?}");
            for _ in 1..DRAWN {
                of_list.accept(drawn);
                of_all.accept(drawn);
                let next = listed.feed(&[drawn], Phase::Decode).unwrap();
                let next = next.sample(of_list).unwrap();
                let all = whole.feed(&[drawn], Phase::Decode).unwrap().all().unwrap();
                assert_eq!(next, of_all.sample(all).unwrap(), "{options:?}");
                drawn = next;
            }
            let counted = listed.stats().drawn_from_all;
            let expected = if vocab > 1024 { from_all } else { Some(0) };
            assert_eq!(counted, expected.unwrap_or(counted), "{options:?}");
            assert_eq!(whole.stats().drawn_from_all, 0);
        }
    }
}

#[test]
fn logits_that_are_not_finite_are_refused() {
    let mut model = Model::clone(&many_tokens());
    let broken = vec![f32::NAN; model.config.hidden];
    model.output_norm = broken;
    let Some(mut s) = on_card(&Arc::new(model)) else {
        return;
    };
    let refused = s.feed(&[1, 2, 3], Phase::Prompt).err();
    assert!(matches!(refused, Some(Error::NotFinite(_))));
}
