//! GGUF, versions 2 and 3, little endian.
//!
//! ```text
//! "GGUF" | version u32 | tensors u64 | pairs u64
//! pairs:    key string | type u32 | value                     string = length u64, UTF-8
//! tensors:  name string | dims u32 | dim u64 ... | type u32 | offset u64     innermost dim first
//! padding to the alignment (general.alignment, else 32)
//! data:     each tensor at its offset from here, a multiple of the alignment
//! ```

mod metadata;
mod reader;
#[cfg(test)]
mod tests;
mod types;
mod writer;

pub use metadata::{Array, Metadata, Strings, Value};
pub use reader::parse;
pub use writer::{TensorInfo, encode, write};

use super::{Checkpoint, malformed, map, unsupported};
use crate::error::{Error, Result};
use std::{
    io,
    path::{Path, PathBuf},
};

/// The alignment of tensor data where `general.alignment` says nothing.
const DEFAULT_ALIGNMENT: usize = 32;

/// Opens a GGUF file, with the other files of a split model.
pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    let (metadata, tensors) = parse(path, map(path)?)?;
    let shards = metadata.opt_u32("split.count")?.unwrap_or(1);
    if shards <= 1 {
        return Checkpoint::new(path, super::Metadata::Gguf(metadata), tensors);
    }
    open_shards(path, shards)
}

/// Opens all files of a split model, of which `path` is one. The first file has the metadata.
fn open_shards(path: &Path, count: u32) -> Result<Checkpoint> {
    let mut first = None;
    let mut tensors = Vec::new();
    for number in 1..=count {
        let shard = sibling(path, number, count)?;
        let bytes = map(&shard).map_err(|e| match e {
            Error::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => unsupported(
                &shard,
                format!("file {number} of {count} of a split model is missing"),
                "fetch all files of the model into one folder",
            ),
            other => other,
        })?;
        let (metadata, more) = parse(&shard, bytes)?;
        let says = (
            metadata.get_u32("split.no")?,
            metadata.get_u32("split.count")?,
        );
        if says != (number - 1, count) {
            return Err(malformed(
                &shard,
                format!(
                    "should be file {number} of {count}, but says split.no {} of split.count {}",
                    says.0, says.1
                ),
            ));
        }
        tensors.extend(more);
        first.get_or_insert(metadata);
    }
    let Some(metadata) = first else {
        return Err(malformed(path, "split.count is 0".into()));
    };
    if let Some(expected) = metadata.opt_u64("split.tensors.count")?
        && expected != tensors.len() as u64
    {
        return Err(malformed(
            path,
            format!(
                "the {count} files hold {} tensors, split.tensors.count says {expected}",
                tensors.len()
            ),
        ));
    }
    Checkpoint::new(path, super::Metadata::Gguf(metadata), tensors)
}

/// The path of file `number` of the `count` files that `path` is one of.
fn sibling(path: &Path, number: u32, count: u32) -> Result<PathBuf> {
    let name = path.file_name().and_then(|n| n.to_str());
    match name.and_then(split_name) {
        Some((stem, _, named)) if named == count => {
            Ok(path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf")))
        }
        _ => Err(unsupported(
            path,
            format!(
                "is one of {count} files of a split model, but its name does not end in -NNNNN-of-{count:05}.gguf"
            ),
            "give the files their original names",
        )),
    }
}

/// Which file of a split model a file name says it is, counted from 1.
pub(super) fn shard_number(name: &str) -> Option<u32> {
    split_name(name).map(|(_, number, _)| number)
}

/// `model-00002-of-00003.gguf` as `("model", 2, 3)`.
fn split_name(name: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |s: &str| (s.len() == 5).then(|| s.parse().ok()).flatten();
    Some((stem, digits(number)?, digits(count)?))
}
