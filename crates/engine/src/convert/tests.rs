//! Conversions of the golden models, there and back.

use super::{Existing, Request, Weights, convert};
use crate::{
    DownLayout, Model,
    arch::Config,
    error::{Error, Result},
    formats::{Checkpoint, Metadata, gguf},
    kernels::{DType, quant},
};
use serde_json::{Value as Json, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

fn folder_of_golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden")
}

fn golden(name: &str) -> Checkpoint {
    Checkpoint::open(&folder_of_golden().join(name)).unwrap()
}

/// Models that GGUF has no word for.
const WITHOUT_WORD: [&str; 2] = ["gemma2_scaled", "qwen2_window"];

/// The names of all others.
fn all_golden() -> Vec<String> {
    let entries = std::fs::read_dir(folder_of_golden()).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    names
        .filter(|n| !WITHOUT_WORD.contains(&n.as_str()))
        .collect()
}

/// As the source's configuration, but for the family's name and the rounding of ropes.
fn beside(c: &Config, source: &Config) -> Config {
    let mut c = c.clone().up_to_rounding(source);
    c.family = source.family;
    c
}

fn converted(from: &Checkpoint, to: &Path, weights: Weights) -> Result<Checkpoint> {
    let request = Request {
        output: to,
        weights,
        existing: Existing::Refuse,
        threads: 2,
    };
    convert(from, &request, &mut |_, _| Ok(()))?;
    Checkpoint::open(to)
}

/// Every tensor's type and bytes.
fn tensors(c: &Checkpoint) -> BTreeMap<String, (DType, Vec<u8>)> {
    let entry = |t: &crate::formats::Tensor| (t.name.clone(), (t.dtype, t.data.to_vec()));
    c.tensors().map(entry).collect()
}

fn model(c: &Checkpoint) -> Model {
    Model::from_checkpoint(c, DownLayout::Stored, 1).unwrap()
}

#[test]
fn there_and_back_is_bit_exact_and_the_models_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for name in all_golden() {
        let original = golden(&name);
        let file = converted(
            &original,
            &folder.path().join(format!("{name}.gguf")),
            Weights::AsStored,
        )
        .unwrap();
        let back = converted(&file, &folder.path().join(&name), Weights::AsStored).unwrap();
        let (a, b) = (tensors(&original), tensors(&back));
        assert!(a.keys().eq(b.keys()), "{name}");
        for (tensor, (dtype, bytes)) in &a {
            assert_eq!(
                (&b[tensor].0, &b[tensor].1),
                (dtype, bytes),
                "{name}: {tensor}"
            );
        }
        let (a, b, c) = (model(&original), model(&file), model(&back));
        assert_eq!(a.config, beside(&b.config, &a.config), "{name}");
        assert_eq!(a.config, beside(&c.config, &a.config), "{name}");
        for (x, y) in a.layers.iter().zip(&b.layers) {
            assert_eq!((&x.query, &x.key), (&y.query, &y.key), "{name}");
            assert_eq!(x.attn_norm, y.attn_norm, "{name}");
            assert_eq!(x.query_norm, y.query_norm, "{name}");
        }
        assert_eq!(a.head, b.head, "{name}");
    }
}

/// Every type: the bytes are those of the quantiser, row by row, and a second conversion to the same type changes nothing.
#[test]
fn every_type_is_packed_row_by_row() {
    let folder = tempfile::tempdir().unwrap();
    let original = golden("qwen2");
    for dtype in gguf::dtypes() {
        let path = |copy: usize| folder.path().join(format!("{dtype}-{copy}.gguf"));
        let once = converted(&original, &path(1), Weights::All(dtype)).unwrap();
        for t in once.tensors().filter(|t| t.shape.len() == 2) {
            let fits = dtype.row_bytes(t.shape[1]).is_some();
            assert!(
                !fits || t.dtype == dtype,
                "{}: {} for {dtype}",
                t.name,
                t.dtype
            );
        }
        let (name, source) = ("blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight");
        let (stored, source) = (once.tensor(name).unwrap(), original.tensor(source).unwrap());
        let cols = source.shape[1];
        let mut expected = vec![0; stored.data.len()];
        let rows = expected.chunks_exact_mut(stored.dtype.row_bytes(cols).unwrap());
        for (row, out) in source.to_f32().chunks(cols).zip(rows) {
            quant::pack_row(stored.dtype, row, out);
        }
        assert_eq!(stored.data[..], expected, "{dtype}");
        let twice = converted(&once, &path(2), Weights::AsStored).unwrap();
        assert_eq!(tensors(&once), tensors(&twice), "{dtype}");
        assert_eq!(model(&twice).config, model(&original).config);
    }
}

#[test]
fn a_mix_gives_the_head_and_some_layers_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wide.gguf");
    let shape = crate::synth::Shape {
        hidden: 256,
        inter: 512,
        layers: 8,
        ..crate::synth::Shape::named("tiny").unwrap()
    };
    crate::synth::write(&path, &shape, DType::F16, 0, &mut |_, _| Ok(())).unwrap();
    let wide = Checkpoint::open(&path).unwrap();
    let mixed = converted(
        &wide,
        &folder.path().join("mix.gguf"),
        Weights::from_name("q4_k_m").unwrap(),
    )
    .unwrap();
    let types = |part: &str| -> Vec<DType> {
        let name = |layer| format!("blk.{layer}.{part}.weight");
        (0..8)
            .map(|i| mixed.tensor(&name(i)).unwrap().dtype)
            .collect()
    };
    let better = [true, false, false, true, false, false, true, true];
    let expected = better.map(|b| if b { DType::Q6_K } else { DType::Q4_K });
    assert_eq!(types("ffn_down"), expected);
    assert_eq!(types("attn_v"), expected);
    assert_eq!(types("ffn_up"), [DType::Q4_K; 8]);
    assert_eq!(
        mixed.tensor("token_embd.weight").unwrap().dtype,
        DType::Q6_K
    );
    let Metadata::Gguf(m) = &mixed.metadata else {
        panic!("not GGUF")
    };
    assert_eq!(m.get_u32("general.file_type").unwrap(), 15);
}

#[test]
fn a_tokenizer_survives_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let shape = crate::synth::Shape::named("tiny").unwrap();
    crate::synth::write(&path("a.gguf"), &shape, DType::F16, 0, &mut |_, _| Ok(())).unwrap();
    let a = Checkpoint::open(&path("a.gguf")).unwrap();
    let b = converted(&a, &path("b"), Weights::AsStored).unwrap();
    let c = converted(&b, &path("c.gguf"), Weights::AsStored).unwrap();
    let [ta, tb, tc] = [&a, &b, &c].map(|c| crate::text::tokenizer(c).unwrap());
    assert!(ta.same_tokens(&tb) && ta.same_tokens(&tc));
    assert_eq!(
        (ta.bos(), ta.eos(), ta.adds_bos()),
        (tc.bos(), tc.eos(), tc.adds_bos())
    );
    // Padding is a token that nothing leads to, whatever it is called.
    let strings = |c: &Checkpoint| match &c.metadata {
        Metadata::Gguf(m) => m.get_strings("tokenizer.ggml.tokens").unwrap().clone(),
        Metadata::HuggingFace(_) => panic!("not GGUF"),
    };
    assert_eq!(strings(&a).len(), strings(&c).len());
    let unique: std::collections::HashSet<String> = strings(&c).iter().map(str::to_owned).collect();
    assert_eq!(unique.len(), strings(&c).len());
    for id in 0..258 {
        assert_eq!(
            (ta.token(id), ta.is_special(id)),
            (tc.token(id), tc.is_special(id))
        );
    }
}

#[test]
fn what_cannot_be_written_is_refused_before_a_byte_is() {
    let folder = tempfile::tempdir().unwrap();
    let (file, dir) = (folder.path().join("x.gguf"), folder.path().join("x"));
    let original = golden("llama");
    let error = converted(&original, &dir, Weights::All(DType::Q4_0)).unwrap_err();
    assert!(
        matches!(error, Error::Input { .. }) && error.to_string().contains("Q4_0"),
        "{error}"
    );

    let quantised = converted(&original, &file, Weights::All(DType::Q8_0)).unwrap();
    let error = converted(&quantised, &dir, Weights::AsStored).unwrap_err();
    assert!(error.remedy().contains("F16"), "{error}");
    let error = converted(&original, &file, Weights::AsStored).unwrap_err();
    assert!(error.to_string().contains("already exists"), "{error}");
    assert!(!dir.exists());

    let yarn = json!({
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64,
        "truncate": false,
    });
    for (name, key, value, naming) in [
        ("mistral_yarn", "rope_parameters", yarn, "frequencies: ["),
        (
            "gemma3",
            "query_pre_attn_scalar",
            json!(16),
            "attention_scale: 0.25 would become",
        ),
        (
            "gemma2",
            "final_logit_softcapping",
            Json::Null,
            "logit_soft_cap: None would become",
        ),
        (
            "smollm3",
            "no_rope_layers",
            json!([1, 0, 1, 1, 1]),
            "rope: Some(",
        ),
    ] {
        let mut changed = golden(name);
        let Metadata::HuggingFace(m) = &mut changed.metadata else {
            panic!("not a folder")
        };
        m.config[key] = value;
        let out = folder.path().join("changed.gguf");
        let error = converted(&changed, &out, Weights::AsStored).unwrap_err();
        assert!(error.to_string().contains(naming), "{name}: {error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_folder_is_replaced_only_where_asked_and_only_if_it_is_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let original = golden("qwen2_tied");
    converted(&original, &out, Weights::All(DType::F32)).unwrap();
    let again = |weights| {
        let request = Request {
            output: &out,
            weights,
            existing: Existing::Replace,
            threads: 1,
        };
        convert(&original, &request, &mut |_, _| Ok(()))
    };
    again(Weights::All(DType::BF16)).unwrap();
    let dtype = |c: &Checkpoint| c.tensor("model.embed_tokens.weight").unwrap().dtype;
    assert_eq!(dtype(&Checkpoint::open(&out).unwrap()), DType::BF16);
    std::fs::write(out.join("notes.txt"), "mine").unwrap();
    let error = again(Weights::All(DType::F32)).unwrap_err();
    assert!(error.to_string().contains("notes.txt"), "{error}");
    assert_eq!(dtype(&Checkpoint::open(&out).unwrap()), DType::BF16);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn numbers_beyond_a_type_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (value, expected) in [(1e6f32, "beyond 65504"), (f32::NAN, "not finite")] {
        let source = folder.path().join(format!("{value}"));
        converted(&golden("llama"), &source, Weights::All(DType::F32)).unwrap();
        let file = source.join("model.safetensors");
        let mut bytes = std::fs::read(&file).unwrap();
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&value.to_le_bytes());
        std::fs::write(&file, bytes).unwrap();
        let changed = Checkpoint::open(&source).unwrap();
        let out = folder.path().join("out.gguf");
        let error = converted(&changed, &out, Weights::All(DType::F16)).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!out.exists());
    }
}
