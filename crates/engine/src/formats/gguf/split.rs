//! Models split into several files, `NAME-00001-of-00003.gguf` and so on.

use super::{malformed, map, parse, unsupported};
use crate::error::{Error, Result};
use crate::formats::{Checkpoint, Metadata as AnyMetadata};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Opens all files of a split model, of which `path` is one. The first file has the metadata.
pub(super) fn open(path: &Path, count: u32) -> Result<Checkpoint> {
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
    Checkpoint::new(path, AnyMetadata::Gguf(metadata), tensors)
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
pub(in crate::formats) fn shard_number(name: &str) -> Option<u32> {
    split_name(name).map(|(_, number, _)| number)
}

/// `model-00002-of-00003.gguf` as `("model", 2, 3)`.
fn split_name(name: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |s: &str| (s.len() == 5).then(|| s.parse().ok()).flatten();
    Some((stem, digits(number)?, digits(count)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::gguf::{TensorInfo, Value, write};
    use crate::kernels::DType;

    /// A folder with a model in `count` files of one tensor each.
    fn split_model(count: u32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for number in 1..=count {
            let path = folder
                .path()
                .join(format!("m-{number:05}-of-{count:05}.gguf"));
            let metadata = [
                ("split.no".to_string(), Value::U16(number as u16 - 1)),
                ("split.count".to_string(), Value::U16(count as u16)),
                ("split.tensors.count".to_string(), Value::I32(count as i32)),
                (format!("from.{number}"), Value::Bool(true)),
            ];
            let tensor = [TensorInfo {
                name: format!("t{number}"),
                dtype: DType::F32,
                shape: vec![1],
            }];
            write(&path, &metadata, &tensor, |_, out| {
                out.write_all(&[number as u8; 4])
            })
            .unwrap();
        }
        folder
    }

    #[test]
    fn a_split_model_opens_from_any_of_its_files_and_from_its_folder() {
        let folder = split_model(3);
        let file = |n: u32| folder.path().join(format!("m-{n:05}-of-00003.gguf"));
        for path in [file(1), file(3), folder.path().to_path_buf()] {
            let checkpoint = Checkpoint::open(&path).unwrap();
            let names: Vec<&str> = checkpoint.tensors().map(|t| t.name.as_str()).collect();
            assert_eq!(names, ["t1", "t2", "t3"]);
            assert_eq!(checkpoint.tensor("t2").unwrap().data[..], [2; 4]);
            let AnyMetadata::Gguf(metadata) = &checkpoint.metadata else {
                panic!("not GGUF");
            };
            assert!(metadata.get("from.1").is_some() && metadata.get("from.2").is_none());
        }
    }

    #[test]
    fn a_split_model_without_one_of_its_files() {
        let folder = split_model(3);
        std::fs::remove_file(folder.path().join("m-00002-of-00003.gguf")).unwrap();
        let error = Checkpoint::open(&folder.path().join("m-00001-of-00003.gguf")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("file 2 of 3 of a split model is missing"),
            "{error}"
        );
        std::fs::remove_file(folder.path().join("m-00001-of-00003.gguf")).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err();
        assert!(
            error.to_string().contains("without its first file"),
            "{error}"
        );
    }

    #[test]
    fn a_split_model_under_other_names_or_mixed_up() {
        let folder = split_model(2);
        let (first, second) = (
            folder.path().join("m-00001-of-00002.gguf"),
            folder.path().join("m-00002-of-00002.gguf"),
        );
        std::fs::copy(&first, folder.path().join("renamed.gguf")).unwrap();
        let error = Checkpoint::open(&folder.path().join("renamed.gguf")).unwrap_err();
        assert!(error.to_string().contains("-of-00002.gguf"), "{error}");
        std::fs::copy(&first, &second).unwrap();
        let error = Checkpoint::open(&first).unwrap_err();
        assert!(
            error.to_string().contains("should be file 2 of 2"),
            "{error}"
        );
    }
}
