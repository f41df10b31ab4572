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
mod split;
#[cfg(test)]
mod tests;
mod types;
mod writer;

pub use metadata::{Array, Metadata, Strings, Value};
pub use reader::parse;
pub(super) use split::shard_number;
pub use types::dtypes;
pub(crate) use types::{file_type, fitting};
pub use writer::{TensorInfo, encode, write};

use super::{Checkpoint, malformed, map, unsupported};
use crate::error::Result;
use std::path::Path;

/// The alignment of tensor data where `general.alignment` says nothing.
const DEFAULT_ALIGNMENT: usize = 32;

/// Opens a GGUF file, with the other files of a split model.
pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    let (metadata, tensors) = parse(path, map(path)?)?;
    let shards = metadata.opt_u32("split.count")?.unwrap_or(1);
    if shards <= 1 {
        return Checkpoint::new(path, super::Metadata::Gguf(metadata), tensors);
    }
    split::open(path, shards)
}
