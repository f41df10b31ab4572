//! Safetensors: one file, or several under an index.

use super::{Tensor, gguf::TensorInfo, huggingface, malformed, map, unsupported};
use crate::error::{Error, Result};
use crate::kernels::{Bytes, DType};
use safetensors::tensor::{Dtype, Metadata, TensorInfo as Entry};
use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Component, Path},
};

/// The index of a model in several files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// Largest header read, in bytes; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// Reads one file: a header in JSON, then the data. The tensors are parts of `file`; `path` is for
/// messages.
///
/// # Errors
/// [`Error::Malformed`] if the bytes contradict the format, [`Error::Unsupported`] for types of
/// numbers other than F32, F16 and BF16.
pub fn parse(path: &Path, file: Bytes) -> Result<Vec<Tensor>> {
    let bad = |cause: String| malformed(path, cause);
    let Some(length) = file.first_chunk::<8>().map(|n| u64::from_le_bytes(*n)) else {
        return Err(bad(format!(
            "the file has {} bytes, no room for a header",
            file.len()
        )));
    };
    if file.starts_with(b"GGUF") {
        return Err(bad(
            "a GGUF file under the name of a safetensors file".into()
        ));
    }
    if file.starts_with(b"version https://git-lfs") {
        return Err(unsupported(
            path,
            "is a git-lfs pointer, a few lines of text in place of the model".into(),
            "run `git lfs pull` in its folder",
        ));
    }
    let after_length = (file.len() - 8) as u64;
    if length > MAX_HEADER {
        return Err(bad(format!(
            "a header of {length} bytes, at most {MAX_HEADER} are allowed"
        )));
    }
    if length > after_length {
        return Err(bad(format!(
            "the file ends {} bytes early, within its header",
            length - after_length
        )));
    }
    let data_start = 8 + length as usize;
    // This also makes sure that the tensors lie one behind the other, each with the bytes of its shape.
    let header: Metadata = serde_json::from_slice(&file[8..data_start])
        .map_err(|e| bad(format!("the header is wrong: {e}")))?;

    let (available, needed) = (file.len() - data_start, header.data_len());
    if needed > available {
        return Err(bad(format!(
            "the file ends {} bytes early",
            needed - available
        )));
    }
    if needed < available {
        return Err(bad(format!(
            "{} bytes follow the last tensor",
            available - needed
        )));
    }
    let tensors = header.tensors().into_iter().map(|(name, info)| {
        let Some(dtype) = loadable(info.dtype) else {
            return Err(not_loadable(path, &name, info.dtype));
        };
        if info.shape.contains(&0) {
            return Err(bad(format!(
                "tensor `{name}`: shape {:?} has a dimension of 0",
                info.shape
            )));
        }
        let (start, end) = info.data_offsets;
        Ok(Tensor {
            data: file.slice(data_start + start..data_start + end),
            shape: info.shape.clone(),
            name,
            dtype,
        })
    });
    tensors.collect()
}

/// Writes a file in one pass: the header, then the data of each tensor as `fill` writes it, in the order given.
///
/// # Errors
/// Whatever `out` or `fill` gives; `InvalidInput` if a tensor is of a type that the format does not have.
pub(crate) fn encode(
    out: &mut dyn Write,
    tensors: &[TensorInfo],
    mut fill: impl FnMut(&TensorInfo, &mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let invalid = |cause: String| io::Error::new(io::ErrorKind::InvalidInput, cause);
    let mut entries = Vec::with_capacity(tensors.len());
    let mut end = 0;
    for tensor in tensors {
        let dtype = match tensor.dtype {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            other => return Err(invalid(format!("safetensors files hold no {other}"))),
        };
        let start = end;
        end += tensor.bytes()?;
        let entry = Entry {
            dtype,
            shape: tensor.shape.clone(),
            data_offsets: (start, end),
        };
        entries.push((tensor.name.clone(), entry));
    }
    // The mark that Hugging Face's own writers leave.
    let about = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(about), entries).map_err(|e| invalid(e.to_string()))?;
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    tensors.iter().try_for_each(|tensor| fill(tensor, out))
}

/// The index of a model in several files: which file has which tensor, and the bytes of all.
pub(crate) fn index<'a>(
    bytes: u64,
    places: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Vec<u8> {
    let map: BTreeMap<&str, &str> = places.into_iter().collect();
    let index = serde_json::json!({"metadata": {"total_size": bytes}, "weight_map": map});
    format!("{index:#}\n").into_bytes()
}

fn loadable(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// Names the quantisation, where the tensor's name gives it away.
fn not_loadable(path: &Path, name: &str, dtype: Dtype) -> Error {
    let part = name.rsplit('.').next().unwrap_or(name);
    let scheme = match part {
        "qweight" | "qzeros" | "g_idx" | "scales" => " (GPTQ or AWQ weights)",
        "SCB" | "absmax" | "quant_map" | "nested_absmax" => " (bitsandbytes weights)",
        "weight_packed" | "weight_shape" => " (compressed-tensors weights)",
        _ if matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2) => " (FP8 weights)",
        _ => "",
    };
    unsupported(
        path,
        format!("tensor `{name}` is stored as {dtype}{scheme}, which is not supported"),
        "use the original model in BF16, F16 or F32, or a GGUF file of it",
    )
}

/// Opens the files that an index names and checks that they hold what it says.
pub(super) fn open_sharded(folder: &Path, index: &Path) -> Result<Vec<Tensor>> {
    let weight_map = weight_map(index)?;
    let mut by_shard: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &weight_map {
        by_shard.entry(shard).or_default().push(tensor);
    }
    let mut tensors: BTreeMap<String, (Tensor, &str)> = BTreeMap::new();
    for (shard, promised) in by_shard {
        let path = folder.join(file_name(index, shard)?);
        let bytes = map(&path).map_err(|e| match e {
            Error::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => unsupported(
                &path,
                format!("is missing, though {INDEX} names it"),
                "fetch all files of the model into one folder",
            ),
            other => other,
        })?;
        for tensor in parse(&path, bytes)? {
            let name = tensor.name.clone();
            if let Some((twice, other)) = tensors.insert(name, (tensor, shard)) {
                return Err(malformed(
                    index,
                    format!(
                        "tensor `{}` is in two files: {other} and {shard}",
                        twice.name
                    ),
                ));
            }
        }
        let absent = promised
            .iter()
            .find(|&&t| !matches!(tensors.get(t), Some((_, s)) if *s == shard));
        if let Some(absent) = absent {
            return Err(malformed(
                &path,
                format!("tensor `{absent}` is not in it, though {INDEX} says so"),
            ));
        }
    }
    Ok(tensors.into_values().map(|(tensor, _)| tensor).collect())
}

/// Whether the index counts a file among those of its model.
pub(super) fn names_shard(index: &Path, file: &str) -> Result<bool> {
    Ok(weight_map(index)?.values().any(|shard| shard == file))
}

/// Which tensor is in which file.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = huggingface::read(index, huggingface::MAX_JSON)?;
    let parsed: Index =
        serde_json::from_slice(&text).map_err(|e| malformed(index, e.to_string()))?;
    if parsed.weight_map.is_empty() {
        return Err(malformed(index, "weight_map is empty".into()));
    }
    Ok(parsed.weight_map)
}

/// Accepts plain file names only: an index must not lead out of its folder.
fn file_name<'a>(index: &Path, shard: &'a str) -> Result<&'a Path> {
    let path = Path::new(shard);
    let mut parts = path.components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(only)), None) if only == shard => Ok(path),
        _ => Err(malformed(index, format!("{shard:?} is no plain file name"))),
    }
}

/// Opens a single file.
pub(super) fn open_single(path: &Path) -> Result<Vec<Tensor>> {
    let bytes = map(path)?;
    parse(path, bytes)
}
