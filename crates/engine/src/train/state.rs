//! Files of numbers with a note of what they are: what a training goes on from after it was killed.

use crate::{
    error::{Error, Result},
    files,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Serialize, de::DeserializeOwned};
use std::{collections::HashMap, io::Write, path::Path};

const NOTE: &str = "countdown_train";

/// Vectors by name, and the note beside them.
pub(super) struct Saved<T> {
    vectors: HashMap<String, Vec<f32>>,
    pub(super) note: T,
}

impl<T> Saved<T> {
    /// A vector, if it has the length that is wanted.
    pub(super) fn take(&mut self, name: &str, len: usize) -> Option<Vec<f32>> {
        self.vectors.remove(name).filter(|v| v.len() == len)
    }
}

/// Writes vectors and a note beside `path`, and renames.
///
/// # Errors
/// [`Error::Write`].
pub(super) fn save(path: &Path, vectors: &[(&str, &[f32])], note: &impl Serialize) -> Result<()> {
    let views = vectors.iter().map(|(name, v)| {
        TensorView::new(Dtype::F32, vec![v.len()], bytemuck::cast_slice(v)).map(|t| (*name, t))
    });
    let encoded = views.collect::<Result<Vec<_>, _>>().and_then(|views| {
        let note = serde_json::to_string(note).expect("notes are plain structures");
        safetensors::serialize(views, Some(HashMap::from([(NOTE.to_owned(), note)])))
    });
    files::atomic_write(path, |out| {
        out.write_all(&encoded.map_err(std::io::Error::other)?)
    })
}

/// Reads what [`save`] wrote; `None` where there is no such file.
///
/// # Errors
/// [`Error::Read`], or [`Error::Malformed`] for a file that [`save`] did not write.
pub(super) fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<Saved<T>>> {
    let bytes = match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?,
    };
    let damaged = |cause: String| Error::Malformed {
        path: path.to_owned(),
        cause: format!("is no state of a training ({cause}); remove it to train the layer again"),
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(e.to_string()))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
    let note = header.metadata().as_ref().and_then(|m| m.get(NOTE));
    let note = note.ok_or_else(|| damaged("it has no note".into()))?;
    let vectors = tensors
        .tensors()
        .into_iter()
        .filter(|(_, t)| t.dtype() == Dtype::F32)
        .map(|(name, t)| {
            let values = t.data().chunks_exact(4).map(bytemuck::pod_read_unaligned);
            (name, values.collect())
        })
        .collect();
    Ok(Some(Saved {
        vectors,
        note: serde_json::from_str(note).map_err(|e| damaged(e.to_string()))?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        assert!(load::<u32>(&path).unwrap().is_none());
        let numbers = [1.5f32, f32::MIN_POSITIVE, -0.0];
        save(&path, &[("a", &numbers), ("b", &[])], &7u32).unwrap();
        let mut saved = load::<u32>(&path).unwrap().unwrap();
        assert_eq!(saved.note, 7);
        assert!(saved.take("b", 1).is_none());
        let a = saved.take("a", 3).unwrap();
        assert_eq!(a.map_bits(), numbers.map_bits());
        std::fs::write(&path, b"something else").unwrap();
        assert!(matches!(load::<u32>(&path), Err(Error::Malformed { .. })));
    }

    trait Bits {
        fn map_bits(&self) -> Vec<u32>;
    }
    impl Bits for [f32] {
        fn map_bits(&self) -> Vec<u32> {
            self.iter().map(|x| x.to_bits()).collect()
        }
    }
}
