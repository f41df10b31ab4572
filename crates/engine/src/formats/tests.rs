//! Checkpoints as users meet them: folders, files in them, and what can be wrong with both.

use super::*;
use crate::formats::gguf::{TensorInfo, Value};
use proptest::prelude::*;
use serde_json::json;
use std::fs;

/// A safetensors file whose header is given as JSON.
fn with_header(header: &serde_json::Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// Tensors of BF16 zeros, one behind the other.
fn safetensors_file(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(
            (*name).into(),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}),
        );
    }
    with_header(&header.into(), &vec![0; end])
}

fn valid() -> Vec<u8> {
    let header = json!({
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "b": {"dtype": "F16", "shape": [3], "data_offsets": [8, 14]},
        "c": {"dtype": "BF16", "shape": [], "data_offsets": [14, 16]},
    });
    with_header(&header, &(0..16).collect::<Vec<u8>>())
}

fn parse(bytes: Vec<u8>) -> Result<Vec<Tensor>> {
    safetensors::parse(Path::new("m.safetensors"), Bytes::from(bytes))
}

#[track_caller]
fn fails_with<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    let error = result.unwrap_err();
    assert!(
        matches!(error, Error::Malformed { .. } | Error::Unsupported { .. }),
        "{error:?}"
    );
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    assert!(!error.remedy().is_empty());
}

/// A folder of files.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn gguf_file(tensor: &str) -> Vec<u8> {
    let info = TensorInfo {
        name: tensor.into(),
        dtype: DType::F32,
        shape: vec![1],
    };
    let metadata = [("general.architecture".to_string(), Value::U8(0))];
    let mut bytes = Vec::new();
    gguf::encode(&mut bytes, &metadata, &[info], |_, out| {
        out.write_all(&[0; 4])
    })
    .unwrap();
    bytes
}

const CONFIG: &[u8] =
    br#"{"model_type": "llama", "hidden_size": 64, "rope_theta": 10000.0, "head_dim": null}"#;

mod safetensors_files {
    use super::*;

    #[test]
    fn tensors_are_read_in_place() {
        let mut tensors = parse(valid()).unwrap();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let [a, b, c] = &tensors[..] else { panic!() };
        assert_eq!(
            (a.dtype, &a.shape[..], &a.data[..]),
            (DType::F32, &[2, 1][..], &[0, 1, 2, 3, 4, 5, 6, 7][..])
        );
        assert_eq!(
            (b.dtype, &b.shape[..], b.data[0]),
            (DType::F16, &[3][..], 8)
        );
        assert_eq!(
            (c.dtype, c.elements(), &c.data[..]),
            (DType::BF16, 1, &[14, 15][..])
        );
        assert!(a.matrix().is_some() && b.matrix().is_none() && c.matrix().is_none());
    }

    #[test]
    fn elements_as_f32() {
        let data = [1.0f32, -2.5].map(f32::to_le_bytes).concat();
        let tensor = |dtype, data: Vec<u8>| Tensor {
            name: "t".into(),
            dtype,
            shape: vec![2, 1],
            data: Bytes::from(data),
        };
        assert_eq!(tensor(DType::F32, data).to_f32(), [1.0, -2.5]);
        let half = [0x3c00u16, 0xc100].map(u16::to_le_bytes).concat();
        assert_eq!(tensor(DType::F16, half).to_f32(), [1.0, -2.5]);
        let mut block = Tensor {
            shape: vec![1, 32],
            ..tensor(DType::Q8_0, vec![3; 34])
        };
        block.data = Bytes::from([&0x3800u16.to_le_bytes()[..], &[3; 32]].concat());
        assert_eq!(block.to_f32(), [1.5; 32]);
    }

    #[test]
    fn every_truncation() {
        let bytes = valid();
        for length in 0..bytes.len() {
            fails_with(parse(bytes[..length].to_vec()), &[]);
        }
        fails_with(parse(bytes[..4].to_vec()), &["no room for a header"]);
        fails_with(parse(bytes[..30].to_vec()), &["early, within its header"]);
        fails_with(
            parse(bytes[..bytes.len() - 3].to_vec()),
            &["ends 3 bytes early"],
        );
    }

    #[test]
    fn bytes_behind_the_last_tensor() {
        let mut bytes = valid();
        bytes.push(0);
        fails_with(parse(bytes), &["1 bytes follow the last tensor"]);
    }

    #[test]
    fn a_huge_header() {
        for length in [100_000_001u64, u64::MAX] {
            let mut bytes = valid();
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            fails_with(parse(bytes), &[&length.to_string()]);
        }
    }

    #[test]
    fn a_header_that_is_no_json() {
        fails_with(parse(with_header(&json!([1]), &[])), &["header"]);
        let mut bytes = valid();
        bytes[9] = 0xff;
        fails_with(parse(bytes), &["header"]);
    }

    fn one(
        dtype: &str,
        shape: serde_json::Value,
        offsets: [u64; 2],
        data: usize,
    ) -> Result<Vec<Tensor>> {
        let header =
            json!({"x.qweight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}});
        parse(with_header(&header, &vec![0; data]))
    }

    #[test]
    fn offsets_and_shapes_that_disagree() {
        fails_with(one("F32", json!([2]), [0, 4], 4), &["header"]);
        fails_with(one("F32", json!([1]), [4, 8], 8), &["header", "x.qweight"]);
        fails_with(one("F32", json!([1]), [4, 0], 4), &["header"]);
        fails_with(one("F32", json!([-1]), [0, 4], 4), &["header"]);
    }

    #[test]
    fn shapes_that_overflow() {
        fails_with(
            one("F32", json!([1u64 << 62, 16]), [0, 4], 4),
            &["header", "overflow"],
        );
        let end = u64::MAX - 3;
        fails_with(one("F32", json!([1u64 << 62]), [0, end], 4), &["header"]);
        let most = 1u64 << 60;
        fails_with(one("U8", json!([most]), [0, most], 4), &["early"]);
    }

    #[test]
    fn zero_dimension() {
        fails_with(one("F32", json!([0, 5]), [0, 0], 0), &["dimension of 0"]);
    }

    #[test]
    fn overlapping_tensors() {
        let header = json!({
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        });
        fails_with(parse(with_header(&header, &[0; 12])), &["header", "`b`"]);
    }

    #[test]
    fn types_that_cannot_be_loaded() {
        fails_with(
            one("I32", json!([1]), [0, 4], 4),
            &["`x.qweight`", "I32", "GPTQ or AWQ"],
        );
        fails_with(one("F8_E4M3", json!([4]), [0, 4], 4), &["F8_E4M3"]);
        fails_with(one("X3", json!([4]), [0, 4], 4), &["header"]);
    }

    #[test]
    fn a_file_of_another_kind() {
        fails_with(parse(gguf_file("t")), &["GGUF"]);
        fails_with(
            parse(b"version https://git-lfs.github.com/spec/v1\n".to_vec()),
            &["git-lfs"],
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn damaged_files_never_panic(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
            cut_it in any::<bool>(),
        ) {
            let mut bytes = valid();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if cut_it {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            if let Ok(tensors) = parse(bytes) {
                for tensor in tensors {
                    prop_assert_eq!(tensor.dtype.row_bytes(tensor.elements()), Some(tensor.data.len()));
                }
            }
        }
    }
}

mod folders {
    use super::*;

    fn names(checkpoint: &Checkpoint) -> Vec<&str> {
        checkpoint.tensors().map(|t| t.name.as_str()).collect()
    }

    fn sharded(index: &serde_json::Value) -> tempfile::TempDir {
        folder(&[
            ("config.json", CONFIG),
            (
                "one.safetensors",
                &safetensors_file(&[("a", &[2]), ("b", &[1])]),
            ),
            ("two.safetensors", &safetensors_file(&[("c", &[3])])),
            (safetensors::INDEX, index.to_string().as_bytes()),
        ])
    }

    #[test]
    fn a_folder_opens_by_itself_and_by_its_files() {
        let dir = folder(&[("config.json", CONFIG), ("model.safetensors", &valid())]);
        for path in [
            dir.path().into(),
            dir.path().join("config.json"),
            dir.path().join("model.safetensors"),
        ] {
            let checkpoint = Checkpoint::open(&path).unwrap();
            assert_eq!(
                (names(&checkpoint), checkpoint.bytes()),
                (vec!["a", "b", "c"], 16)
            );
            let Metadata::HuggingFace(metadata) = &checkpoint.metadata else {
                panic!()
            };
            assert_eq!(metadata.get_u32("hidden_size").unwrap(), 64);
            assert_eq!(metadata.get_f32("rope_theta").unwrap(), 10000.0);
            assert_eq!(metadata.opt_u32("head_dim").unwrap(), None);
            fails_with(
                metadata.get_u32("head_dim"),
                &["config.json", "`head_dim` is missing (u32 expected)"],
            );
            fails_with(
                metadata.get_u32("model_type"),
                &["`model_type`: u32 expected, found \"llama\""],
            );
            fails_with(metadata.tokenizer_json(), &["no tokenizer.json"]);
        }
    }

    #[test]
    fn several_files_under_an_index() {
        let dir = sharded(
            &json!({"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}),
        );
        for path in [
            dir.path().into(),
            dir.path().join("two.safetensors"),
            dir.path().join(safetensors::INDEX),
        ] {
            assert_eq!(names(&Checkpoint::open(&path).unwrap()), ["a", "b", "c"]);
        }
    }

    #[test]
    fn an_index_naming_a_missing_file() {
        let dir = sharded(&json!({"weight_map": {"a": "three.safetensors"}}));
        fails_with(
            Checkpoint::open(dir.path()),
            &["three.safetensors", "is missing"],
        );
    }

    #[test]
    fn an_index_promising_a_tensor_that_its_file_lacks() {
        for file in ["one.safetensors", "two.safetensors"] {
            let dir = sharded(
                &json!({"weight_map": {"a": "one.safetensors", "c": "two.safetensors", "x": file}}),
            );
            fails_with(Checkpoint::open(dir.path()), &["`x` is not in it", file]);
        }
        let dir = sharded(&json!({"weight_map": {"a": "two.safetensors", "b": "one.safetensors"}}));
        fails_with(
            Checkpoint::open(dir.path()),
            &["`a` is not in it", "two.safetensors"],
        );
    }

    #[test]
    fn a_tensor_in_two_files() {
        let index = json!({"weight_map": {"a": "one.safetensors", "c": "two.safetensors"}});
        let dir = sharded(&index);
        fs::write(
            dir.path().join("two.safetensors"),
            safetensors_file(&[("a", &[2]), ("c", &[3])]),
        )
        .unwrap();
        fails_with(
            Checkpoint::open(dir.path()),
            &["`a` is in two files: one.safetensors and two.safetensors"],
        );
    }

    #[test]
    fn an_index_leading_out_of_its_folder() {
        let outside = folder(&[("secret.safetensors", &valid())]);
        let absolute = outside.path().join("secret.safetensors");
        let absolute = absolute.to_str().unwrap();
        for name in [
            "../secret.safetensors",
            "/etc/passwd",
            "a/b.safetensors",
            "./one.safetensors",
            "..",
            "",
            absolute,
        ] {
            let dir = sharded(&json!({"weight_map": {"a": name}}));
            fails_with(Checkpoint::open(dir.path()), &["is no plain file name"]);
        }
    }

    #[test]
    fn an_index_that_is_none() {
        for index in [
            json!([]),
            json!({}),
            json!({"weight_map": {}}),
            json!({"weight_map": {"a": 1}}),
        ] {
            fails_with(
                Checkpoint::open(sharded(&index).path()),
                &[safetensors::INDEX],
            );
        }
    }

    #[test]
    fn a_whole_file_goes_before_an_index() {
        let dir = sharded(&json!({"weight_map": {"a": "one.safetensors"}}));
        fs::write(dir.path().join("model.safetensors"), valid()).unwrap();
        assert_eq!(Checkpoint::open(dir.path()).unwrap().bytes(), 16);
    }

    #[test]
    fn several_files_without_an_index() {
        let dir = folder(&[
            ("config.json", CONFIG),
            ("x.safetensors", &valid()),
            ("y.safetensors", &valid()),
        ]);
        fails_with(
            Checkpoint::open(dir.path()),
            &["several", "x.safetensors", "y.safetensors"],
        );
        assert!(Checkpoint::open(&dir.path().join("y.safetensors")).is_ok());
    }

    #[test]
    fn a_folder_without_weights() {
        fails_with(Checkpoint::open(folder(&[]).path()), &["holds no model"]);
        fails_with(
            Checkpoint::open(folder(&[("config.json", CONFIG)]).path()),
            &["holds no model"],
        );
        let pytorch = folder(&[("config.json", CONFIG), ("pytorch_model.bin", b"PK")]);
        fails_with(
            Checkpoint::open(pytorch.path()),
            &["PyTorch", "pytorch_model.bin"],
        );
    }

    #[test]
    fn a_folder_without_config() {
        let dir = folder(&[("model.safetensors", &valid())]);
        fails_with(Checkpoint::open(dir.path()), &["no config.json"]);
        fails_with(
            Checkpoint::open(&dir.path().join("model.safetensors")),
            &["no config.json"],
        );
    }

    #[test]
    fn a_config_that_is_no_object() {
        for config in ["", "[1, 2]", "{", "nonsense"] {
            let dir = folder(&[
                ("config.json", config.as_bytes()),
                ("model.safetensors", &valid()),
            ]);
            fails_with(Checkpoint::open(dir.path()), &["config.json"]);
        }
        let nested = "[".repeat(1 << 20);
        let dir = folder(&[
            ("config.json", nested.as_bytes()),
            ("model.safetensors", &valid()),
        ]);
        fails_with(Checkpoint::open(dir.path()), &["config.json", "recursion"]);
    }

    #[test]
    fn a_config_too_large_to_be_one() {
        let dir = folder(&[("model.safetensors", &valid())]);
        // A sparse file: it takes no room.
        let config = fs::File::create(dir.path().join("config.json")).unwrap();
        config.set_len(huggingface::MAX_JSON + 1).unwrap();
        fails_with(
            Checkpoint::open(dir.path()),
            &["config.json", "67108865 bytes"],
        );
    }

    #[test]
    fn a_folder_of_one_gguf_file() {
        let dir = folder(&[
            ("m.gguf", &gguf_file("t")),
            ("config.json", CONFIG),
            ("README.md", b""),
        ]);
        assert_eq!(names(&Checkpoint::open(dir.path()).unwrap()), ["t"]);
    }

    #[test]
    fn a_folder_of_several_gguf_files() {
        let dir = folder(&[("m.gguf", &gguf_file("t")), ("n.gguf", &gguf_file("t"))]);
        fails_with(
            Checkpoint::open(dir.path()),
            &["several models: m.gguf, n.gguf"],
        );
    }

    #[test]
    fn safetensors_go_before_gguf() {
        let dir = folder(&[
            ("config.json", CONFIG),
            ("model.safetensors", &valid()),
            ("m.gguf", &gguf_file("t")),
        ]);
        assert_eq!(
            names(&Checkpoint::open(dir.path()).unwrap()),
            ["a", "b", "c"]
        );
        assert_eq!(
            names(&Checkpoint::open(&dir.path().join("m.gguf")).unwrap()),
            ["t"]
        );
    }

    #[test]
    fn an_empty_file() {
        let dir = folder(&[
            ("m.gguf", b""),
            ("model.safetensors", b""),
            ("config.json", CONFIG),
        ]);
        fails_with(
            Checkpoint::open(&dir.path().join("m.gguf")),
            &["m.gguf", "empty"],
        );
        fails_with(
            Checkpoint::open(dir.path()),
            &["model.safetensors", "empty"],
        );
    }

    #[test]
    fn a_path_to_nothing() {
        let error = Checkpoint::open(Path::new("no/such/model.gguf")).unwrap_err();
        assert!(matches!(error, Error::Read { .. }), "{error:?}");
    }

    #[cfg(unix)]
    #[test]
    fn a_device() {
        fails_with(Checkpoint::open(Path::new("/dev/zero")), &["is a device"]);
    }

    #[test]
    fn chat_templates_in_every_place() {
        let template = |files: &[(&str, &[u8])]| {
            let mut all = vec![("config.json", CONFIG)];
            all.extend(files);
            let dir = folder(&all);
            fs::write(dir.path().join("model.safetensors"), valid()).unwrap();
            match Checkpoint::open(dir.path()).unwrap().metadata {
                Metadata::HuggingFace(metadata) => metadata.chat_template,
                Metadata::Gguf(_) => panic!(),
            }
        };
        let string: &[u8] = br#"{"chat_template": "one"}"#;
        let list: &[u8] = br#"{"chat_template": [{"name": "tool", "template": "x"}, {"name": "default", "template": "two"}]}"#;
        assert_eq!(template(&[]), None);
        assert_eq!(template(&[("tokenizer_config.json", b"{}")]), None);
        assert_eq!(
            template(&[("tokenizer_config.json", string)]).as_deref(),
            Some("one")
        );
        assert_eq!(
            template(&[("tokenizer_config.json", list)]).as_deref(),
            Some("two")
        );
        let both = template(&[
            ("tokenizer_config.json", string),
            ("chat_template.jinja", b"file"),
        ]);
        assert_eq!(both.as_deref(), Some("file"));
    }
}

mod fingerprints {
    use super::*;

    fn fingerprint(tensors: &[(&str, DType, &[usize], Vec<u8>)]) -> String {
        let tensors = tensors.iter().map(|(name, dtype, shape, data)| Tensor {
            name: (*name).into(),
            dtype: *dtype,
            shape: shape.to_vec(),
            data: Bytes::from(data.clone()),
        });
        let metadata = gguf::Metadata::new(Path::new("m"), BTreeMap::new());
        let checkpoint =
            Checkpoint::new(Path::new("m"), Metadata::Gguf(metadata), tensors.collect());
        checkpoint.unwrap().fingerprint()
    }

    #[test]
    fn the_same_for_the_same_weights_in_any_order() {
        let (a, b) = (
            ("a", DType::F32, &[1][..], vec![1; 4]),
            ("b", DType::F16, &[2][..], vec![2; 4]),
        );
        let one = fingerprint(&[a.clone(), b.clone()]);
        assert_eq!(one, fingerprint(&[b, a]));
        assert!(one.len() == 32 && one.bytes().all(|c| c.is_ascii_hexdigit()));
    }

    #[test]
    fn another_for_every_other_name_type_shape_or_sampled_byte() {
        let large = 40_000;
        let data = |at: usize| {
            let mut data = vec![0u8; large];
            if at < large {
                data[at] = 1;
            }
            data
        };
        let n = large / 4;
        let all = [
            fingerprint(&[]),
            fingerprint(&[("a", DType::F32, &[n], data(large))]),
            fingerprint(&[("b", DType::F32, &[n], data(large))]),
            fingerprint(&[("a", DType::F16, &[2 * n], data(large))]),
            fingerprint(&[("a", DType::BF16, &[2 * n], data(large))]),
            fingerprint(&[("a", DType::F32, &[2, n / 2], data(large))]),
            fingerprint(&[("a", DType::F32, &[n], data(0))]),
            fingerprint(&[("a", DType::F32, &[n], data(large / 2))]),
            fingerprint(&[("a", DType::F32, &[n], data(large - 1))]),
        ];
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
    }
}
