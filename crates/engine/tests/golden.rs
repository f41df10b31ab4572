//! Logits of tiny random models against those of the original framework (see tools/golden.py): every family from every format, prompts
//! and single steps, both layouts of the down projection.

use countdown::{
    DownLayout, Model, Phase, Session, SessionOptions,
    arch::FAMILIES,
    convert::{Existing, Request, Weights, convert},
    formats::Checkpoint,
    kernels::{DType, cpu::Kernels},
};
use safetensors::SafeTensors;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What a case's folder holds: the file to open, `""` for the folder itself, and the name of its logits.
const FORMATS: [(&str, &str); 3] = [
    ("", "logits"),
    ("f16.gguf", "logits"),
    ("q8_0.gguf", "logits_q8_0"),
];

/// Positions in the cache, more than any text has.
const CONTEXT: usize = 64;

/// A text, and the original framework's logits after each of its tokens.
struct Golden {
    tokens: Vec<u32>,
    logits: HashMap<String, Vec<f32>>,
    /// How large rounding is in logits, by its name in the script.
    diffs: HashMap<String, String>,
}

impl Golden {
    fn of(case: &str) -> Golden {
        let path = folder(case).join("golden.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |data: &[u8]| data.chunks(4).map(bytemuck::pod_read_unaligned).collect();
        let named = tensors.iter().filter(|(name, _)| *name != "tokens");
        Golden {
            tokens: tensors
                .tensor("tokens")
                .unwrap()
                .data()
                .chunks(4)
                .map(bytemuck::pod_read_unaligned)
                .collect(),
            logits: named
                .map(|(name, t)| (name.to_owned(), floats(t.data())))
                .collect(),
            diffs: header.metadata().clone().unwrap(),
        }
    }

    /// The largest difference of logits that a kind of rounding made in the original framework.
    fn diff(&self, name: &str) -> f32 {
        self.diffs[&format!("max_abs_diff_{name}")].parse().unwrap()
    }
}

fn folder(case: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/golden")
        .join(case)
}

fn session(case: &str, file: &str, down: DownLayout, batch: usize, context: usize) -> Session {
    session_of(&folder(case).join(file), down, batch, context)
}

fn session_of(path: &Path, down: DownLayout, batch: usize, context: usize) -> Session {
    let model = Arc::new(Model::open(path, down, 2).unwrap());
    let options = SessionOptions {
        context: Some(context),
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

/// Activations rounded to 8 bits, and weights rounded once more, are rounded alike here and there but for those at the very edge of a
/// level, which fall to either side by the rounding of sums.
const FACTOR_INT8: f32 = 2.0;

/// Where prompts are multiplied in bf16, which has 8 significant bits: the share of the largest logit that a logit of these few layers
/// may be off.
const BF16_SHARE: f32 = 1.0 / 64.0;

/// Whether the kernels in use do so for this model's weights; the other instruction sets are tested, too.
fn rounds_prompts(s: &Session) -> bool {
    let isa = std::env::var("COUNTDOWN_ISA").ok();
    let kernels = Kernels::select(isa.as_deref()).unwrap();
    kernels.rounds_to_bf16(s.model().layers[0].ffn.gate.dtype())
}

/// What rounding may do to logits.
fn allowed(g: &Golden, s: &Session, down: DownLayout, phase: Phase, expected: &[f32]) -> f32 {
    let mut allowed = FACTOR * g.diff("f64");
    if s.model().layers[0].ffn.gate.dtype().is_quantized() {
        if down == DownLayout::Transposed {
            allowed += FACTOR_INT8 * g.diff("transposed");
        }
        if phase == Phase::Decode {
            allowed += FACTOR_INT8 * g.diff("int8");
        }
    }
    if phase == Phase::Prompt && rounds_prompts(s) {
        let largest = expected.iter().fold(0f32, |l, x| l.max(x.abs()));
        allowed += BF16_SHARE * largest;
    }
    allowed
}

fn worst(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    got.iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// Logits after each token, by prompts or by steps.
fn logits(s: &mut Session, tokens: &[u32], phase: Phase) -> Vec<f32> {
    let mut logits = Vec::new();
    match phase {
        Phase::Prompt => s
            .score(tokens, phase, |_, row| logits.extend_from_slice(row))
            .unwrap(),
        Phase::Decode => {
            for token in tokens {
                logits.extend_from_slice(s.feed(&[*token], phase).unwrap().all().unwrap());
            }
        }
    }
    logits
}

/// Cases and formats that there are.
fn all() -> Vec<(String, &'static str, &'static str)> {
    let entries = std::fs::read_dir(folder("")).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut cases: Vec<String> = names.collect();
    cases.sort();
    let formats = |case: &String| FORMATS.map(|(file, name)| (case.clone(), file, name));
    let mut all: Vec<_> = cases.iter().flat_map(formats).collect();
    all.retain(|(case, file, _)| folder(case).join(file).exists());
    all
}

/// Says how far logits are off, as a share of the largest, for `cargo xtask support`.
fn report(
    s: &Session,
    file: &str,
    (phase, down): (Phase, DownLayout),
    worst: f32,
    expected: &[f32],
) {
    let family = FAMILIES.iter().find(|f| f.name == s.model().config.family);
    let f = family.unwrap();
    let largest = expected.iter().fold(0f32, |l, x| l.max(x.abs()));
    let share = worst / largest;
    let (hf, gguf) = (f.hf_types.join(", "), f.gguf_types.join(", "));
    let fields = [f.name, f.models, &hf, &gguf, file];
    println!(
        "golden\t{}\t{phase:?} {down:?}\t{share:e}",
        fields.join("\t")
    );
}

fn check(phase: Phase, batches: &[usize]) {
    for (case, file, name) in all() {
        let case = case.as_str();
        let g = Golden::of(case);
        let expected = &g.logits[name];
        for down in [DownLayout::Stored, DownLayout::Transposed] {
            for &batch in batches {
                let mut s = session(case, file, down, batch, CONTEXT);
                let worst = worst(&logits(&mut s, &g.tokens, phase), expected);
                let allowed = allowed(&g, &s, down, phase, expected);
                report(&s, file, (phase, down), worst, expected);
                assert!(
                    worst <= allowed,
                    "{case} {file} {down:?} {batch}: {worst} > {allowed}"
                );
            }
        }
    }
}

#[test]
fn prompts_give_the_original_logits() {
    // One batch does not divide the prompts, so that later ones attend to earlier ones. It leaves more than four tokens: fewer are
    // multiplied one by one, as steps are.
    check(Phase::Prompt, &[CONTEXT, 23]);
}

#[test]
fn single_steps_give_the_original_logits() {
    check(Phase::Decode, &[CONTEXT]);
}

#[test]
fn ropes_for_short_contexts_differ_from_those_for_long_ones() {
    let (case, g) = ("phi3", Golden::of("phi3"));
    let expected = &g.logits["logits_short"];
    let vocab = g.logits["logits"].len() / g.tokens.len();
    let short = expected.len() / vocab;
    for file in ["", "f16.gguf"] {
        for phase in [Phase::Prompt, Phase::Decode] {
            // The room of the session decides, not the text: in a long one the same tokens are what they are in a long text.
            let mut s = session(case, file, DownLayout::Stored, CONTEXT, short);
            let got = logits(&mut s, &g.tokens[..short], phase);
            let allowed = allowed(&g, &s, DownLayout::Stored, phase, expected);
            let off = worst(&got, expected);
            assert!(off <= allowed, "{file} {phase:?}: {off} > {allowed}");
            let long = &g.logits["logits"][..expected.len()];
            assert!(worst(&got, long) > 10.0 * allowed);
        }
    }
}

/// What GGUF has no word for, by the hyper-parameter that the refusal names.
const WITHOUT_WORD: [(&str, &str); 2] = [
    ("gemma2_scaled", "attention_scale"),
    ("qwen2_window", "window"),
];

/// Every model in the other format: with the very logits of the source where weights are as they were and no rope went through rounded
/// divisors, and within the golden bound everywhere.
#[test]
fn converted_models_give_the_original_logits() {
    let scratch = tempfile::tempdir().unwrap();
    for (i, (case, file, name)) in all().into_iter().enumerate() {
        let case = case.as_str();
        let source = folder(case).join(file);
        let checkpoint = Checkpoint::open(&source).unwrap();
        let (suffix, choices) = match file {
            "" => (".gguf", &["as stored", "F32"][..]),
            "f16.gguf" => ("", &["as stored", "BF16"][..]),
            _ => ("", &["F32"][..]),
        };
        for choice in choices {
            let output = scratch.path().join(format!("{i} {choice}{suffix}"));
            let request = Request {
                output: &output,
                weights: Weights::from_name(choice).unwrap_or(Weights::AsStored),
                existing: Existing::Refuse,
                threads: 2,
            };
            let converted = convert(&checkpoint, &request, &mut |_, _| Ok(()));
            if let Some((_, what)) = WITHOUT_WORD.iter().find(|(c, _)| *c == case) {
                let error = converted.unwrap_err().to_string();
                assert!(error.contains(what) && !output.exists(), "{case}: {error}");
                continue;
            }
            converted.unwrap_or_else(|e| panic!("{case} {file} {choice}: {e}"));
            check_converted(case, (&source, &output), *choice == "as stored", name);
        }
    }
}

fn check_converted(case: &str, (source, output): (&Path, &Path), is_stored: bool, name: &str) {
    let g = Golden::of(case);
    let expected = &g.logits[name];
    let down = DownLayout::Stored;
    for phase in [Phase::Prompt, Phase::Decode] {
        let [mut a, mut b] = [source, output].map(|path| session_of(path, down, CONTEXT, CONTEXT));
        let [before, after] = [&mut a, &mut b].map(|s| logits(s, &g.tokens, phase));
        let of = format!("{} {phase:?}", output.display());
        let ropes = |s: &Session| s.model().config.layers.clone();
        if is_stored && ropes(&a) == ropes(&b) {
            assert!(before == after, "{case} {of}: other logits");
        }
        let mut allowed = allowed(&g, &b, down, phase, expected);
        // F16 to BF16 loses bits, as much as multiplying in it.
        if b.model().layers[0].ffn.gate.dtype() == DType::BF16 && !output.is_file() {
            allowed += BF16_SHARE * expected.iter().fold(0f32, |l, x| l.max(x.abs()));
        }
        let off = worst(&after, expected);
        assert!(off <= allowed, "{case} {of}: {off} > {allowed}");
    }
}

#[test]
fn every_family_is_compared_from_every_format() {
    let mut missing: Vec<_> = FAMILIES
        .iter()
        .flat_map(|family| FORMATS.map(|(file, _)| (family.name, file)))
        .collect();
    for (case, file, _) in all() {
        let s = session(&case, file, DownLayout::Stored, CONTEXT, CONTEXT);
        missing.retain(|of| *of != (s.model().config.family, file));
    }
    assert!(missing.is_empty(), "{missing:?}");
}
