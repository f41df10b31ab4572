//! From one format or type of weights to another, tensor by tensor.
//!
//! A conversion is planned as a whole before a byte is written: every tensor of the source has a place in the output, and the
//! output's metadata describe the very model that the source's do. Then rows stream through, some at a time.

mod folder;
mod gguf_file;
mod rows;
mod tensors;
#[cfg(test)]
mod tests;
mod weights;

pub use weights::{MIXES, Mix, Weights};

use crate::{
    arch::{Config, Family, Params, Role},
    error::{Error, Result},
    formats::{Checkpoint, Metadata, Tensor, gguf::TensorInfo},
    kernels::{Bytes, DType},
};
use std::{io, path::Path};
use tensors::Piece;

/// The format to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One GGUF file.
    Gguf,
    /// A Hugging Face folder: config.json, tokenizer and safetensors files.
    Folder,
}

impl Format {
    /// The format that a path asks for by its ending.
    pub fn of(path: &Path) -> Format {
        match path.extension() {
            Some(e) if e.eq_ignore_ascii_case("gguf") => Format::Gguf,
            _ => Format::Folder,
        }
    }
}

/// What to do with what already stands where the output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Nothing may stand there.
    Refuse,
    /// A file, or a folder that holds nothing but a model, is replaced once the new one is complete.
    Replace,
}

/// A conversion.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// File or folder to write; [`Format::of`] says which.
    pub output: &'a Path,
    /// The types to store weights in.
    pub weights: Weights,
    /// What may be overwritten.
    pub existing: Existing,
    /// Threads that convert rows.
    pub threads: usize,
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Weights in all.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Bytes by type, those with the most first.
    pub types: Vec<(DType, u64)>,
    /// Matrices whose rows are no whole number of blocks of the type asked for, with the type they are stored in instead.
    pub fallbacks: Vec<(String, DType)>,
    /// Whether weights that were quantised already were quantised once more.
    pub requantised: bool,
    /// What the source has and the output lacks, one sentence each.
    pub left_out: Vec<String>,
}

/// Converts a checkpoint. `progress` gets the bytes done and the bytes in all, and stops the writing by an error, which leaves
/// what stood at the output untouched. A few MiB a thread are in memory at a time.
///
/// # Errors
/// [`Error::Input`] for a type that the format cannot hold or an output that already exists, [`Error::Unsupported`] where the
/// output's format has no word for what the model is, [`Error::NotFinite`] for weights that are or become so, [`Error::Write`].
pub fn convert(
    checkpoint: &Checkpoint,
    request: &Request<'_>,
    progress: &mut dyn FnMut(u64, u64) -> io::Result<()>,
) -> Result<Summary> {
    let format = Format::of(request.output);
    request.weights.check(format, checkpoint)?;
    check_output(request)?;
    let family = Family::of(checkpoint)?;
    let config = family.config(checkpoint)?;
    let pieces = tensors::plan(checkpoint, family, &config, format, request.weights)?;
    let mut summary = summarise(&pieces, request.weights)?;
    let job = Job {
        checkpoint,
        family,
        config: &config,
        pieces: &pieces,
        request,
    };
    match format {
        Format::Gguf => gguf_file::write(&job, &mut summary, progress)?,
        Format::Folder => folder::write(&job, &mut summary, progress)?,
    }
    Ok(summary)
}

const KEEP: &str = "keep the model in the format it has";

/// A conversion that is planned.
struct Job<'a> {
    checkpoint: &'a Checkpoint,
    family: &'static Family,
    config: &'a Config,
    pieces: &'a [Piece],
    request: &'a Request<'a>,
}

impl Job<'_> {
    /// Fails unless the output's metadata describe the same model.
    fn check(&self, metadata: Metadata) -> Result<()> {
        let nothing = Bytes::from(Vec::new());
        let tensor = |p: &Piece| Tensor {
            name: p.info.name.clone(),
            dtype: p.info.dtype,
            shape: p.info.shape.clone(),
            data: match p.is_copied() {
                true => p.source.data.clone(),
                false => nothing.clone(),
            },
        };
        let tensors = self.pieces.iter().map(tensor).collect();
        let output = Checkpoint::new(self.request.output, metadata, tensors)?;
        let family = Family::of(&output)?;
        let mut config = family.config(&output)?.up_to_rounding(self.config);
        // One family's models may go by another one's name.
        config.family = self.config.family;
        if config == *self.config {
            return self.check_biases(family, &output);
        }
        Err(Error::Unsupported {
            path: self.checkpoint.path.clone(),
            cause: format!(
                "the output's format has no word for a hyper-parameter of this {} model: {}",
                self.family.name,
                difference(self.config, &config)
            ),
            remedy: KEEP.into(),
        })
    }

    /// Fails where the output's metadata ask for biases that there are not.
    fn check_biases(&self, family: &Family, output: &Checkpoint) -> Result<()> {
        let params = Params::new(output)?;
        let name = |role: Role| match Format::of(self.request.output) {
            Format::Gguf => role.gguf(0),
            Format::Folder => role.hugging_face(0, (family.hf_name)(role)),
        };
        let missing = family.roles().filter(|r| r.is_bias()).find(|&role| {
            family.biases.require(role, &params) && output.tensor(&name(role)).is_none()
        });
        match missing {
            None => Ok(()),
            Some(role) => Err(Error::Unsupported {
                path: self.checkpoint.path.clone(),
                cause: format!(
                    "the output's format has no word for biases without {}",
                    name(role)
                ),
                remedy: KEEP.into(),
            }),
        }
    }

    /// The descriptions of all tensors to write.
    fn infos(&self) -> Vec<TensorInfo> {
        self.pieces.iter().map(|p| p.info.clone()).collect()
    }
}

/// The first line in which two configurations differ, with the name of what it is in.
fn difference(a: &Config, b: &Config) -> String {
    let (a, b) = (format!("{a:#?}"), format!("{b:#?}"));
    let Some((at, (x, y))) = a
        .lines()
        .zip(b.lines())
        .enumerate()
        .find(|(_, (x, y))| x != y)
    else {
        return String::new();
    };
    let depth = |line: &str| line.len() - line.trim_start().len();
    let bare = |line: &str| line.trim().trim_end_matches(',').to_owned();
    let changed = format!("{} would become {}", bare(x), bare(y));
    match a.lines().take(at).filter(|l| depth(l) < depth(x)).last() {
        // An element of a list has no name of its own.
        Some(outer) if !x.contains(": ") => format!("{} {changed}", outer.trim()),
        _ => changed,
    }
}

fn check_output(request: &Request<'_>) -> Result<()> {
    if request.existing == Existing::Refuse && request.output.exists() {
        return Err(Error::Input {
            cause: format!("{} already exists", request.output.display()),
            remedy: "name another output, or say --force to replace it".into(),
        });
    }
    Ok(())
}

fn summarise(pieces: &[Piece], weights: Weights) -> Result<Summary> {
    let mut summary = Summary {
        parameters: 0,
        bytes: 0,
        types: Vec::new(),
        fallbacks: Vec::new(),
        requantised: false,
        left_out: Vec::new(),
    };
    for p in pieces {
        let (info, bytes) = (&p.info, p.bytes as u64);
        summary.parameters += info.shape.iter().product::<usize>() as u64;
        summary.bytes += bytes;
        match summary.types.iter_mut().find(|(t, _)| *t == info.dtype) {
            Some((_, sum)) => *sum += bytes,
            None => summary.types.push((info.dtype, bytes)),
        }
        if p.wanted != info.dtype {
            summary.fallbacks.push((info.name.clone(), info.dtype));
        }
        summary.requantised |= weights != Weights::AsStored
            && p.source.dtype.is_quantized()
            && info.dtype.is_quantized()
            && p.source.dtype != info.dtype;
    }
    summary
        .types
        .sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    Ok(summary)
}
