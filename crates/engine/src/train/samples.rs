//! The inputs of one layer's FFN, in memory or, where they do not fit, in a file.

use crate::error::{Error, Result};
use std::{
    fs::File,
    io::{BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

enum Store {
    Memory(Vec<f32>),
    File { path: PathBuf, out: BufWriter<File> },
}

/// Inputs `[tokens, hidden]` that are written in order and read in any.
pub(crate) struct Samples {
    hidden: usize,
    tokens: usize,
    store: Store,
}

impl Samples {
    /// Samples in memory, room for `tokens` of them being taken at once.
    pub(crate) fn in_memory(hidden: usize, tokens: usize) -> Samples {
        Samples {
            hidden,
            tokens: 0,
            store: Store::Memory(Vec::with_capacity(tokens * hidden)),
        }
    }

    /// Samples in a file that exists as long as they do and replaces one of the same name.
    ///
    /// # Errors
    /// [`Error::Write`] if the file cannot be made.
    pub(crate) fn in_file(hidden: usize, path: &Path) -> Result<Samples> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(|source| Error::Write {
                path: path.to_owned(),
                source,
            })?;
        Ok(Samples {
            hidden,
            tokens: 0,
            store: Store::File {
                path: path.to_owned(),
                out: BufWriter::with_capacity(1 << 20, file),
            },
        })
    }

    /// Appends tokens.
    ///
    /// # Errors
    /// [`Error::Write`] if the disk is full.
    ///
    /// # Panics
    /// If `x` is no whole number of tokens.
    pub(crate) fn push(&mut self, x: &[f32]) -> Result<()> {
        assert!(x.len().is_multiple_of(self.hidden), "samples: length");
        match &mut self.store {
            Store::Memory(all) => all.extend_from_slice(x),
            Store::File { path, out } => {
                out.write_all(bytemuck::cast_slice(x))
                    .map_err(|source| Error::Write {
                        path: path.clone(),
                        source,
                    })?;
            }
        }
        self.tokens += x.len() / self.hidden;
        Ok(())
    }

    /// Tokens in all.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Copies the tokens named to `out`, `[tokens.len(), hidden]`.
    ///
    /// # Errors
    /// [`Error::Write`] or [`Error::Read`] where the file fails.
    ///
    /// # Panics
    /// If a token is beyond the last, or `out` has another length.
    pub(crate) fn gather(&mut self, tokens: &[u32], out: &mut [f32]) -> Result<()> {
        let hidden = self.hidden;
        assert_eq!(out.len(), tokens.len() * hidden, "samples: output");
        assert!(
            tokens.iter().all(|t| (*t as usize) < self.tokens),
            "samples: token"
        );
        let rows = tokens.iter().zip(out.chunks_exact_mut(hidden));
        match &mut self.store {
            Store::Memory(all) => {
                for (&t, row) in rows {
                    row.copy_from_slice(&all[t as usize * hidden..][..hidden]);
                }
            }
            Store::File { path, out } => {
                out.flush().map_err(|source| Error::Write {
                    path: path.clone(),
                    source,
                })?;
                let file = out.get_mut();
                for (&t, row) in rows {
                    let at = (t as usize * hidden * size_of::<f32>()) as u64;
                    file.seek(SeekFrom::Start(at))
                        .and_then(|_| file.read_exact(bytemuck::cast_slice_mut(row)))
                        .map_err(|source| Error::Read {
                            path: path.clone(),
                            source,
                        })?;
                }
                file.seek(SeekFrom::End(0)).map_err(|source| Error::Read {
                    path: path.clone(),
                    source,
                })?;
            }
        }
        Ok(())
    }
}

impl Drop for Samples {
    fn drop(&mut self) {
        if let Store::File { path, .. } = &self.store {
            // A file left behind is replaced by the next run in the same folder.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_what_memory_gives_and_goes_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inputs");
        let data: Vec<f32> = (0..40).map(|i| i as f32).collect();
        let mut memory = Samples::in_memory(4, 10);
        let mut file = Samples::in_file(4, &path).unwrap();
        for s in [&mut memory, &mut file] {
            s.push(&data[..12]).unwrap();
            let mut out = [0.0; 8];
            s.gather(&[2, 0], &mut out).unwrap();
            assert_eq!(out, [8.0, 9.0, 10.0, 11.0, 0.0, 1.0, 2.0, 3.0]);
            s.push(&data[12..]).unwrap();
            assert_eq!(s.tokens(), 10);
            s.gather(&[9, 9], &mut out).unwrap();
            assert_eq!(out[4..], data[36..]);
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 160);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let path = Path::new("nowhere/at/all/inputs");
        let error = Samples::in_file(4, path).err().unwrap();
        assert!(error.to_string().contains("nowhere"), "{error}");
    }
}
