use super::*;
use crate::formats::{Checkpoint, Metadata};
use std::collections::HashSet;

fn quiet(_: u64, _: u64) -> io::Result<()> {
    Ok(())
}

fn written(shape: &Shape, dtype: DType, seed: u64) -> (tempfile::TempDir, Checkpoint, Summary) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let summary = write(&path, shape, dtype, seed, &mut quiet).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    (folder, checkpoint, summary)
}

fn tiny() -> Shape {
    Shape::named("tiny").unwrap()
}

/// A small model of each family, with sizes that keep every dimension apart from the others.
fn of_each_family() -> Vec<Shape> {
    let of = |arch| Shape {
        arch,
        hidden: 192,
        inter: 320,
        heads: 6,
        kv_heads: 2,
        head_dim: 32,
        vocab: 300,
        ..tiny()
    };
    Arch::ALL.map(of).into()
}

#[test]
fn parameters_are_those_of_the_real_models() {
    // From the model cards and the sizes of the published files.
    let published = [
        ("smollm2-135m", 134_515_008),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("llama-3.1-8b", 8_030_261_248),
        ("mistral-7b", 7_248_023_552),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen3-8b", 8_190_735_360),
        ("gemma-2-9b", 9_241_705_984),
        ("gemma-3-270m", 268_098_176),
        ("phi-3.5-mini", 3_821_079_552),
        ("phi-4", 14_659_507_200),
    ];
    for (name, parameters) in published {
        assert_eq!(
            Shape::named(name).unwrap().parameters().unwrap(),
            parameters,
            "{name}"
        );
    }
    assert_eq!(Shape::names().count(), published.len() + 1);
}

#[test]
fn an_unknown_name_is_answered_with_the_known_ones() {
    let error = Shape::named("gpt-5").unwrap_err();
    assert!(error.to_string().contains("gpt-5") && error.remedy().contains("llama-3.2-1b"));
    for arch in Arch::ALL {
        assert_eq!(Arch::from_name(arch.name()), Some(arch));
    }
}

#[test]
fn every_family_in_every_type_can_be_read_back() {
    for shape in of_each_family() {
        for dtype in gguf::dtypes() {
            let (_folder, checkpoint, summary) = written(&shape, dtype, 1);
            assert_eq!(checkpoint.bytes(), summary.bytes);
            let elements: usize = checkpoint.tensors().map(|t| t.elements()).sum();
            assert_eq!(elements as u64, summary.parameters);
            let embedding = checkpoint.tensor("token_embd.weight").unwrap();
            assert_eq!(embedding.shape, [300, 192]);
            assert!(embedding.to_f32().iter().all(|w| w.is_finite()));
            let Metadata::Gguf(metadata) = &checkpoint.metadata else {
                panic!()
            };
            let arch = metadata.get_str("general.architecture").unwrap();
            assert_eq!(arch, shape.arch.name());
            assert_eq!(
                metadata
                    .get_u32(&format!("{arch}.feed_forward_length"))
                    .unwrap(),
                320
            );
            let tokens = metadata.get_strings("tokenizer.ggml.tokens").unwrap();
            assert_eq!(tokens.len(), 300);
            assert_eq!(tokens.iter().collect::<HashSet<_>>().len(), 300);
            assert_eq!(tokens.get(b' '.into()), Some("Ġ"));
            assert_eq!(tokens.get(b'a'.into()), Some("a"));
        }
    }
}

#[test]
fn every_family_can_be_run() {
    use crate::{DownLayout, Model, Phase, Session, SessionOptions};
    for shape in of_each_family() {
        let (folder, ..) = written(&shape, DType::Q8_0, 1);
        let model = Model::open(&folder.path().join("m.gguf"), DownLayout::Stored, 1).unwrap();
        assert_eq!(model.parameters(), shape.parameters().unwrap());
        let options = SessionOptions {
            context: Some(8),
            threads: Some(1),
            ..SessionOptions::default()
        };
        let mut s = Session::new(std::sync::Arc::new(model), &options).unwrap();
        // The session itself refuses logits that are no numbers.
        s.feed(&[1, 2, 3], Phase::Prompt).unwrap();
    }
}

#[test]
fn matrices_whose_rows_do_not_fit_fall_back_as_in_llama_cpp_and_say_so() {
    // 192 and 320 columns are no whole number of blocks of 256.
    let shape = &of_each_family()[0];
    for (asked, got) in [
        (DType::Q4_K, DType::Q5_0),
        (DType::Q5_K, DType::Q5_1),
        (DType::Q6_K, DType::Q8_0),
    ] {
        let (_folder, checkpoint, summary) = written(shape, asked, 1);
        assert_eq!(summary.fallbacks.len(), 1 + 7 * shape.layers);
        for (name, dtype) in &summary.fallbacks {
            assert_eq!((*dtype, checkpoint.tensor(name).unwrap().dtype), (got, got));
        }
    }
    let odd = Shape {
        hidden: 200,
        ..shape.clone()
    };
    let (_folder, checkpoint, _) = written(&odd, DType::Q4_0, 1);
    assert_eq!(
        checkpoint.tensor("token_embd.weight").unwrap().dtype,
        DType::F16
    );
    assert_eq!(
        checkpoint.tensor("blk.0.ffn_down.weight").unwrap().dtype,
        DType::Q4_0
    );
    assert!(written(&tiny(), DType::Q4_K, 1).2.fallbacks.is_empty());
}

#[test]
fn the_same_seed_gives_the_same_file_and_another_another() {
    let bytes = |seed| {
        let (folder, ..) = written(&tiny(), DType::Q8_0, seed);
        std::fs::read(folder.path().join("m.gguf")).unwrap()
    };
    assert!(bytes(7) == bytes(7));
    assert_ne!(
        written(&tiny(), DType::Q8_0, 7).1.fingerprint(),
        written(&tiny(), DType::Q8_0, 8).1.fingerprint()
    );
}

#[test]
fn weights_are_normal_and_no_two_chunks_or_tensors_alike() {
    // Wide enough that the embedding takes several chunks.
    let shape = Shape {
        vocab: 10_000,
        ..tiny()
    };
    let (_folder, checkpoint, _) = written(&shape, DType::F32, 3);
    let embedding = checkpoint.tensor("token_embd.weight").unwrap().to_f32();
    let n = embedding.len() as f64;
    let moment = |k| {
        embedding
            .iter()
            .map(|&w| (f64::from(w) * 16.0).powi(k))
            .sum::<f64>()
            / n
    };
    // Standard errors at 2.56 million draws: mean 0.0006, variance 0.0009, fourth moment 0.006.
    assert!(moment(1).abs() < 0.004, "{}", moment(1));
    assert!((moment(2) - 1.0).abs() < 0.006, "{}", moment(2));
    assert!((moment(4) - 3.0).abs() < 0.04, "{}", moment(4));

    let chunk = crate::rows::CHUNK;
    assert_ne!(embedding[..1000], embedding[chunk..chunk + 1000]);
    let down = |layer| {
        checkpoint
            .tensor(&format!("blk.{layer}.ffn_down.weight"))
            .unwrap()
            .to_f32()
    };
    assert_ne!(down(0), down(1));

    let norm = checkpoint.tensor("blk.1.ffn_norm.weight").unwrap().to_f32();
    assert!(norm.iter().all(|w| (0.8..1.2).contains(w)) && norm[0] != norm[1]);
}

#[test]
fn progress_ends_at_all_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    let path = folder.path().join("m.gguf");
    let mut progress = |done, all| {
        seen.push((done, all));
        Ok(())
    };
    let summary = write(&path, &tiny(), DType::Q4_0, 1, &mut progress).unwrap();
    assert_eq!(seen.last(), Some(&(summary.bytes, summary.bytes)));
    assert!(seen.is_sorted() && seen.len() > 2);
}

#[test]
fn stopped_by_progress_it_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut stop = |done, _| {
        if done > 10_000 {
            Err(io::Error::other("stopped"))
        } else {
            Ok(())
        }
    };
    let error = write(
        &folder.path().join("m.gguf"),
        &tiny(),
        DType::F16,
        1,
        &mut stop,
    )
    .unwrap_err();
    assert!(error.to_string().contains("stopped"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn impossible_shapes_are_refused_before_anything_is_written() {
    let cases = [
        (
            Shape {
                hidden: 0,
                ..tiny()
            },
            "hidden is 0",
        ),
        (
            Shape {
                layers: 1 << 30,
                ..tiny()
            },
            "layers is 1073741824",
        ),
        (
            Shape {
                vocab: 257,
                ..tiny()
            },
            "vocabulary of 257",
        ),
        (
            Shape {
                kv_heads: 3,
                ..tiny()
            },
            "cannot share 3 kv_heads",
        ),
        (
            Shape {
                head_dim: 33,
                ..tiny()
            },
            "head_dim is 33",
        ),
        (
            Shape {
                rope_base: f32::NAN,
                ..tiny()
            },
            "rope_base is NaN",
        ),
        (
            Shape {
                arch: Arch::Qwen2,
                head_dim: 32,
                ..tiny()
            },
            "qwen2 with 4 heads of 32",
        ),
        (
            Shape {
                arch: Arch::Gemma2,
                tied: false,
                ..tiny()
            },
            "gemma2 has no head",
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (shape, part) in cases {
        let error = write(&folder.path().join("m"), &shape, DType::F32, 1, &mut quiet).unwrap_err();
        assert!(matches!(error, Error::Input { .. }));
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn types_that_no_file_can_hold_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for dtype in [DType::Q3_0, DType::Q2_0, DType::T2, DType::Q8_H] {
        let error = write(&folder.path().join("m"), &tiny(), dtype, 1, &mut quiet).unwrap_err();
        assert!(matches!(error, Error::Input { .. }));
        assert!(error.to_string().contains(dtype.name()), "{error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
