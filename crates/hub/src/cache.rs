//! The cache's folders; see the drawing at the top of the crate.

use crate::{
    error::{Error, Result},
    spec::is_path,
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// What the cache has of one repository.
pub(crate) struct Cache {
    folder: PathBuf,
    locks: PathBuf,
}

impl Cache {
    pub(crate) fn new(cache: &Path, repository: &str) -> Cache {
        let name = format!("models--{}", repository.replace('/', "--"));
        Cache {
            folder: cache.join(&name),
            locks: cache.join(".locks").join(name),
        }
    }

    /// The commit that a revision stood for when it was asked for; a commit stands for itself.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|c| is_commit(c))
    }

    pub(crate) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        make_parent(&path)?;
        fs::write(&path, commit).map_err(|e| disk(&path, e))
    }

    /// The folder of a commit's files.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The files of a commit that are in the cache, with `/` between folders.
    pub(crate) fn files(&self, commit: &str) -> Vec<String> {
        let mut found = Vec::new();
        walk(&self.snapshot(commit), "", &mut found);
        found.sort_unstable();
        found
    }

    pub(crate) fn is_absent(&self, commit: &str, file: &str) -> bool {
        self.absence(commit, file).exists()
    }

    /// Notes that the repository has no such file.
    pub(crate) fn set_absent(&self, commit: &str, file: &str) -> Result<()> {
        let path = self.absence(commit, file);
        make_parent(&path)?;
        File::create(&path).map(|_| ()).map_err(|e| disk(&path, e))
    }

    fn absence(&self, commit: &str, file: &str) -> PathBuf {
        self.folder.join(".no_exist").join(commit).join(file)
    }

    /// Where the content of that ETag belongs.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Waits until nobody else fetches the content of that ETag; it is the caller's until the file is closed.
    pub(crate) fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_parent(&path)?;
        let open = File::options().create(true).append(true).open(&path);
        let file = open.map_err(|e| disk(&path, e))?;
        // A file system without locks is no reason not to fetch.
        let _ = file.lock();
        Ok(file)
    }

    /// Makes a file of a commit stand for a blob.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        make_parent(&path)?;
        let up = "../".repeat(2 + file.matches('/').count());
        let placed = symlink(Path::new(&format!("{up}blobs/{etag}")), &path).or_else(|e| {
            match e.kind() {
                io::ErrorKind::AlreadyExists => Ok(()),
                // Without links the file itself goes there, as Python's library does it.
                _ => fs::rename(self.blob(etag), &path),
            }
        });
        placed.map_err(|e| disk(&path, e))
    }
}

#[cfg(unix)]
fn symlink(to: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(to, path)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The files that an index of safetensors names.
pub(crate) fn shards(index: &Path) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = fs::read(index).map_err(|e| disk(index, e))?;
    let corrupt = |cause: String| Error::Corrupt {
        file: index.display().to_string(),
        cause,
    };
    let parsed: Index = serde_json::from_slice(&text).map_err(|e| corrupt(e.to_string()))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    match names.iter().find(|n| !is_path(n)) {
        Some(name) => Err(corrupt(format!("{name:?} is no file name"))),
        None => Ok(names),
    }
}

fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let path = entry.path();
        if path.is_dir() {
            walk(&path, &format!("{prefix}{name}/"), found);
        } else if path.exists() {
            found.push(format!("{prefix}{name}"));
        }
    }
}

pub(crate) fn make_parent(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|e| disk(folder, e))
}

pub(crate) fn disk(path: &Path, source: io::Error) -> Error {
    Error::Disk {
        path: path.to_owned(),
        source,
    }
}

/// 40 hexadecimal digits.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}
