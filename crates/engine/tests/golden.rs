//! Logits of tiny random models against those of the original framework (see tools/golden.py): prompts and single steps,
//! both layouts of the down projection.

use countdown::{
    DownLayout, Model, Phase, Session, SessionOptions,
    kernels::{DType, cpu::Kernels},
};
use safetensors::SafeTensors;
use std::{path::PathBuf, sync::Arc};

const CASES: [&str; 5] = ["llama", "llama_untied", "qwen2", "qwen2_tied", "gemma3"];

struct Golden {
    tokens: Vec<u32>,
    logits: Vec<f32>,
    /// How far float32 was from float64 in the original framework: the scale of rounding, in logits.
    rounding: f32,
}

fn folder(case: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/golden")
        .join(case)
}

fn golden(case: &str) -> Golden {
    let bytes = std::fs::read(folder(case).join("golden.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let read = |name: &str| tensors.tensor(name).unwrap().data().to_vec();
    Golden {
        tokens: read("tokens")
            .chunks(4)
            .map(bytemuck::pod_read_unaligned)
            .collect(),
        logits: read("logits")
            .chunks(4)
            .map(bytemuck::pod_read_unaligned)
            .collect(),
        rounding: header.metadata().as_ref().unwrap()["max_abs_diff_f64"]
            .parse()
            .unwrap(),
    }
}

fn session(case: &str, down: DownLayout, batch: usize) -> Session {
    let model = Arc::new(Model::open(&folder(case), down, 2).unwrap());
    let options = SessionOptions {
        context: Some(64),
        threads: Some(2),
        batch,
        cache_dtype: DType::F32,
        ..SessionOptions::default()
    };
    Session::new(model, &options).unwrap()
}

/// Our sums run in another order, so our rounding is another sample of the same size; the largest of some thousand
/// differences may well be a few times the largest of theirs.
const FACTOR: f32 = 8.0;

/// Where prompts are multiplied in bf16, which has 8 significant bits: the share of the largest logit that a logit of these few layers
/// may be off.
const BF16_SHARE: f32 = 1.0 / 64.0;

/// Whether the kernels in use do so for this model's weights; the other instruction sets are tested, too.
fn rounds_prompts(s: &Session) -> bool {
    let isa = std::env::var("COUNTDOWN_ISA").ok();
    let kernels = Kernels::select(isa.as_deref()).unwrap();
    kernels.rounds_to_bf16(s.model().layers[0].ffn.gate.dtype())
}

fn worst(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    got.iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

#[test]
fn prompts_give_the_original_logits() {
    for case in CASES {
        let g = golden(case);
        let vocab = g.logits.len() / g.tokens.len();
        for down in [DownLayout::Stored, DownLayout::Transposed] {
            // A batch that does not divide the prompt, so that later batches attend to earlier ones.
            for batch in [64, 7] {
                let mut logits = vec![0.0; g.logits.len()];
                let mut s = session(case, down, batch);
                s.score(&g.tokens, Phase::Prompt, |i, row| {
                    logits[i * vocab..(i + 1) * vocab].copy_from_slice(row);
                })
                .unwrap();
                let worst = worst(&logits, &g.logits);
                let allowed = if rounds_prompts(&s) {
                    let largest = g.logits.iter().fold(0f32, |l, x| l.max(x.abs()));
                    BF16_SHARE * largest
                } else {
                    FACTOR * g.rounding
                };
                assert!(
                    worst <= allowed,
                    "{case} {down:?} {batch}: {worst} > {allowed}"
                );
            }
        }
    }
}

#[test]
fn single_steps_give_the_original_logits() {
    for case in CASES {
        let g = golden(case);
        let vocab = g.logits.len() / g.tokens.len();
        for down in [DownLayout::Stored, DownLayout::Transposed] {
            let mut s = session(case, down, 64);
            let mut worst_step = 0f32;
            for (token, row) in g.tokens.iter().zip(g.logits.chunks(vocab)) {
                let got = s.feed(&[*token], Phase::Decode).unwrap();
                worst_step = worst_step.max(worst(got, row));
            }
            let allowed = FACTOR * g.rounding;
            assert!(
                worst_step <= allowed,
                "{case} {down:?}: {worst_step} > {allowed}"
            );
        }
    }
}
