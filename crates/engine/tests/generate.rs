//! Generation with the tiny trained model: its known continuation, limits, shifts, and steps that allocate nothing.

use countdown::{
    DownLayout, Error, Fit, GenerateOptions, Generator, Model, Phase, PlanRequest, Session,
    SessionOptions, calibrate,
    generate::{FinishReason, OnFull},
    sampler::SamplingOptions,
    sparsity::{Cut, Form, METHODS},
    tokenizer::Tokenizer,
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

struct Counting;
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn model(down: DownLayout) -> Arc<Model> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/byte-llama");
    Arc::new(Model::open(&path, down, 2).unwrap())
}

fn session(model: &Arc<Model>, context: usize) -> Session {
    let options = SessionOptions {
        context: Some(context),
        threads: Some(2),
        ..SessionOptions::default()
    };
    Session::new(model.clone(), &options).unwrap()
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        max_tokens: Some(max_tokens),
        sampling: SamplingOptions {
            temperature: 0.0,
            ..SamplingOptions::default()
        },
        ..GenerateOptions::default()
    }
}

fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

const PROMPT: &str = "It is a truth universally acknowledged, that ";

#[test]
fn the_trained_model_continues_as_its_trainer_recorded() {
    let m = model(DownLayout::Stored);
    let tokenizer = Tokenizer::bytes(256);
    let mut s = session(&m, 256);
    let generator = Generator::new(&mut s, &tokenizer, &bytes(PROMPT), greedy(60), |_, _| ());
    let text: String = generator.unwrap().map(Result::unwrap).collect();
    let known = "she had\nsomething to her the same of the subject of the same";
    assert_eq!(text, known);
}

#[test]
fn stop_texts_limits_and_reasons() {
    let m = model(DownLayout::Stored);
    let tokenizer = Tokenizer::bytes(256);
    let mut s = session(&m, 256);
    let options = GenerateOptions {
        stop: vec!["something to".into()],
        ..greedy(60)
    };
    let mut g = Generator::new(&mut s, &tokenizer, &bytes(PROMPT), options, |_, _| ()).unwrap();
    let text: String = g.by_ref().map(Result::unwrap).collect();
    assert_eq!(text, "she had\n");
    assert_eq!(g.finish_reason(), Some(FinishReason::Stop));

    let mut g = Generator::new(&mut s, &tokenizer, &bytes(PROMPT), greedy(7), |_, _| ()).unwrap();
    assert_eq!(
        g.by_ref().map(Result::unwrap).collect::<String>(),
        "she had"
    );
    assert_eq!(g.finish_reason(), Some(FinishReason::Length));
    let t = g.timings();
    // The first token comes with the prompt, of which all but the last token was in the cache.
    assert_eq!((t.tokens, t.steps, t.prompt_computed), (7, 6, 1));
}

#[test]
fn a_full_context_fails_or_shifts() {
    let m = model(DownLayout::Stored);
    let tokenizer = Tokenizer::bytes(256);
    let mut s = session(&m, 64);
    let prompt = bytes(PROMPT);
    let results: Vec<_> = Generator::new(&mut s, &tokenizer, &prompt, greedy(100), |_, _| ())
        .unwrap()
        .collect();
    assert!(matches!(
        results.last(),
        Some(Err(Error::ContextFull { limit: 64, .. }))
    ));
    // Every position was used before that.
    assert_eq!(results.len() - 1, 64 - prompt.len() + 1);

    let options = GenerateOptions {
        on_full: OnFull::Shift { keep: 8 },
        ..greedy(100)
    };
    let mut g = Generator::new(&mut s, &tokenizer, &prompt, options, |_, _| ()).unwrap();
    assert_eq!(
        g.by_ref().map(Result::unwrap).collect::<String>().len(),
        100
    );
    drop(g);
    assert_eq!(s.history()[..8], prompt[..8]);

    let long = bytes(&PROMPT.repeat(2));
    let refused = Generator::new(&mut s, &tokenizer, &long, greedy(1), |_, _| ()).err();
    assert!(matches!(
        refused,
        Some(Error::ContextFull {
            needed: 90,
            limit: 64
        })
    ));
    assert!(matches!(s.prompt(&[], |_, _| ()), Err(Error::Input { .. })));
    assert!(matches!(
        s.feed(&[256], Phase::Decode),
        Err(Error::Input { .. })
    ));
}

#[test]
fn a_prompt_continues_what_the_cache_holds() {
    let m = model(DownLayout::Stored);
    let (mut fresh, mut reused) = (session(&m, 256), session(&m, 256));
    let (a, b) = (
        bytes("the same of the subject"),
        bytes("the same of the sea"),
    );
    reused.prompt(&a, |_, _| ()).unwrap();
    let with_prefix = reused
        .prompt(&b, |_, _| ())
        .unwrap()
        .all()
        .unwrap()
        .to_vec();
    let expected = fresh.prompt(&b, |_, _| ()).unwrap().all().unwrap();
    let worst = with_prefix
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - *b).abs())
        .fold(0f32, f32::max);
    // Keys and values are kept in f16, and batches of another length sum in another order.
    assert!(worst < 2e-2, "{worst}");
    assert_eq!(reused.history(), b);
}

#[test]
fn a_step_allocates_nothing() {
    let text: Vec<u32> = bytes(countdown::CALIBRATION_TEXT)[..6000]
        .iter()
        .map(|b| b & 127)
        .collect();
    let m = model(DownLayout::Transposed);
    let mut s = session(&m, 256);
    let requests: Vec<PlanRequest> = METHODS
        .iter()
        .filter(|m| !m.is_dense())
        .flat_map(|method| {
            [Form::Practical, Form::Ideal].map(|form| PlanRequest {
                method,
                cut: Cut::Neuron,
                form,
                sparsity: 0.6,
                predictor: None,
                fit: Fit::default(),
            })
        })
        .filter(|r| r.check().is_ok())
        .collect();
    let plans = calibrate(&mut s, &text, None, &requests, |_, _| ()).unwrap();
    for plan in std::iter::once(None).chain(plans.into_iter().map(|p| Some(Arc::new(p)))) {
        let what = plan.as_ref().map(|p| p.provenance.clone());
        s.set_plan(plan).unwrap();
        s.reset();
        s.prompt(&bytes(PROMPT), |_, _| ()).unwrap();
        s.feed(&[101], Phase::Decode).unwrap();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for token in [32, 116, 104, 101] {
            s.feed(&[token], Phase::Decode).unwrap();
        }
        let made = ALLOCATIONS.load(Ordering::Relaxed) - before;
        assert_eq!(made, 0, "{what:?}");
    }
}
