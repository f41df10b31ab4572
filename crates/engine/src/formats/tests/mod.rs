//! Checkpoints as users meet them: folders, files in them, and what can be wrong with both.

mod fingerprints;
mod folders;
mod safetensors_files;

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
