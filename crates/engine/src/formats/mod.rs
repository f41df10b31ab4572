//! Weights on disk: GGUF files and Hugging Face folders, mapped and checked, never copied.
//!
//! [`Checkpoint::open`] finds out what a path holds. Everything read from a file is bounded against
//! the file's size before memory is set aside for it, and every tensor handed out lies wholly within
//! its file with exactly the bytes that its shape and type need.

pub mod gguf;
pub mod huggingface;
pub mod safetensors;
mod sniff;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};
use crate::kernels::{Bytes, DType, MatRef, quant::unpack_row};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// One named tensor, borrowed from its file.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The name in the file, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// How the elements are stored.
    pub dtype: DType,
    /// Outermost dimension first: a matrix is `[rows, cols]`. A scalar has no dimension.
    pub shape: Vec<usize>,
    /// The elements, row after row; as many bytes as `dtype` and `shape` need.
    pub data: Bytes,
}

impl Tensor {
    /// Elements in all.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// All elements as `f32`, row after row. It makes a copy: for norms, biases and preparation, not
    /// for the weights that a token reads.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut elements = vec![0.0; self.elements()];
        unpack_row(self.dtype, &self.data, &mut elements);
        elements
    }

    /// The tensor as a matrix `[rows, cols]`, or `None` where it has another number of dimensions.
    pub fn matrix(&self) -> Option<MatRef<'_>> {
        let [rows, cols] = self.shape[..] else {
            return None;
        };
        MatRef::new(self.dtype, rows, cols, &self.data).ok()
    }
}

/// What a checkpoint says about itself beside its tensors.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // there is one value a model
pub enum Metadata {
    /// The key-value pairs of a GGUF file.
    Gguf(gguf::Metadata),
    /// The JSON files of a Hugging Face folder.
    HuggingFace(huggingface::Metadata),
}

/// A model on disk: its metadata and its tensors, mapped into memory.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The file or folder opened, for messages.
    pub path: PathBuf,
    /// What the checkpoint says about itself.
    pub metadata: Metadata,
    tensors: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// Opens what `path` leads to:
    ///
    /// - a GGUF file (any one file of a split model opens the whole of it);
    /// - a folder with `config.json` and safetensors files, or either of these files in it;
    /// - a folder with nothing but one GGUF model.
    ///
    /// The files are mapped: they must not be changed while the checkpoint is in use.
    ///
    /// # Errors
    /// [`Error::Read`] if a file cannot be read, [`Error::Malformed`] if its bytes contradict its
    /// format, [`Error::Unsupported`] if it is no model, or one stored in a way not supported.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let there = fs::metadata(path).map_err(|e| read_error(path, e))?;
        if there.is_dir() {
            return open_folder(path);
        }
        if let Some(folder) = huggingface::folder_of(path) {
            return huggingface::open(folder, Some(path));
        }
        gguf::open(path)
    }

    /// Puts a checkpoint together from its tensors, each under a name of its own.
    pub(crate) fn new(path: &Path, metadata: Metadata, tensors: Vec<Tensor>) -> Result<Checkpoint> {
        let mut by_name = BTreeMap::new();
        for tensor in tensors {
            if let Some(twice) = by_name.insert(tensor.name.clone(), tensor) {
                return Err(malformed(
                    path,
                    format!("two tensors are named `{}`", twice.name),
                ));
            }
        }
        Ok(Checkpoint {
            path: path.to_path_buf(),
            metadata,
            tensors: by_name,
        })
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// All tensors, ordered by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.tensors.values()
    }

    /// Bytes of all tensors together.
    pub fn bytes(&self) -> u64 {
        self.tensors().map(|t| t.data.len() as u64).sum()
    }

    /// A short name for these very weights: 32 hexadecimal digits.
    ///
    /// It is a BLAKE3 hash over every tensor's name, type, shape and size and over a sample of its
    /// bytes: the first, the middle and the last 4 KiB. So it takes milliseconds for any size of
    /// model, and differs between two models unless they agree in all those places. Metadata is left
    /// out: a corrected chat template makes no other model. The same weights in another format or
    /// type have another fingerprint. It guards against mix-ups, not against forgery.
    pub fn fingerprint(&self) -> String {
        const SAMPLE: usize = 4096;
        let mut hash = blake3::Hasher::new_derive_key("countdown checkpoint fingerprint 1");
        for tensor in self.tensors() {
            // Lengths go in front, so that no two lists of tensors hash the same bytes.
            hash.update(&(tensor.name.len() as u64).to_le_bytes());
            hash.update(tensor.name.as_bytes());
            hash.update(&(tensor.dtype.name().len() as u64).to_le_bytes());
            hash.update(tensor.dtype.name().as_bytes());
            hash.update(&(tensor.shape.len() as u64).to_le_bytes());
            for &dim in &tensor.shape {
                hash.update(&(dim as u64).to_le_bytes());
            }
            let data = &tensor.data[..];
            hash.update(&(data.len() as u64).to_le_bytes());
            if data.len() <= 3 * SAMPLE {
                hash.update(data);
            } else {
                let middle = (data.len() - SAMPLE) / 2;
                hash.update(&data[..SAMPLE]);
                hash.update(&data[middle..middle + SAMPLE]);
                hash.update(&data[data.len() - SAMPLE..]);
            }
        }
        hash.finalize().to_hex()[..32].to_string()
    }
}

/// Opens a folder: Hugging Face files if there are any, else its only GGUF model.
fn open_folder(folder: &Path) -> Result<Checkpoint> {
    let names = file_names(folder)?;
    let with_ending = |ending: &str| -> Vec<&str> {
        let found = names.iter().map(String::as_str);
        found.filter(|n| n.ends_with(ending)).collect()
    };
    let ggufs = with_ending(".gguf");
    if with_ending(".safetensors").is_empty() && !ggufs.is_empty() {
        // The files of a split model count once, as their first file.
        let models: Vec<&str> = ggufs
            .into_iter()
            .filter(|n| gguf::shard_number(n).is_none_or(|number| number == 1))
            .collect();
        return match models[..] {
            [only] => gguf::open(&folder.join(only)),
            [] => Err(unsupported(
                folder,
                "holds a split GGUF model without its first file".into(),
                "fetch all files of the model into this folder",
            )),
            _ => Err(unsupported(
                folder,
                format!("holds several models: {}", models.join(", ")),
                "name one of the files",
            )),
        };
    }
    huggingface::open(folder, None)
}

/// The names of the files in a folder, sorted; names that are no Unicode are passed over.
fn file_names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| read_error(folder, e))? {
        let entry = entry.map_err(|e| read_error(folder, e))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// Maps a file of weights.
fn map(path: &Path) -> Result<Bytes> {
    let there = fs::metadata(path).map_err(|e| read_error(path, e))?;
    if !there.is_file() {
        let kind = if there.is_dir() {
            "a folder"
        } else {
            "a device"
        };
        return Err(unsupported(
            path,
            format!("is {kind}, not a file of weights"),
            "name a GGUF file or a folder with config.json and safetensors files",
        ));
    }
    if there.len() == 0 {
        return Err(malformed(path, "the file is empty".into()));
    }
    Bytes::map(path).map_err(|e| read_error(path, e))
}

fn read_error(path: &Path, source: std::io::Error) -> Error {
    Error::Read {
        path: path.to_path_buf(),
        source,
    }
}

fn malformed(path: &Path, cause: String) -> Error {
    Error::Malformed {
        path: path.to_path_buf(),
        cause,
    }
}

fn unsupported(path: &Path, cause: String, remedy: &str) -> Error {
    Error::Unsupported {
        path: path.to_path_buf(),
        cause,
        remedy: remedy.into(),
    }
}
