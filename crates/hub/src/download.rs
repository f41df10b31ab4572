//! One file into the cache: what is there of it is kept, the rest is fetched, the whole is checked.

use crate::{
    Progress,
    cache::{Cache, disk, make_parent},
    client::{About, Client},
    error::{Error, Result},
};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// How often a connection may break without a byte having come in between.
const ATTEMPTS: u32 = 4;
/// The pause after the first break; it doubles.
const PAUSE: Duration = Duration::from_millis(500);

/// Brings a file of a commit into the cache.
///
/// # Errors
/// Those of the server, of the network once it broke several times in a row, of the disk; [`Error::Corrupt`] where size or hash
/// are not what the server says.
pub(crate) fn file(
    client: &Client,
    cache: &Cache,
    commit: &str,
    file: &str,
    progress: &mut Progress<'_>,
) -> Result<()> {
    if cache.snapshot(commit).join(file).exists() {
        return Ok(());
    }
    let about = client.about(commit, file)?;
    let blob = cache.blob(&about.etag);
    make_parent(&blob)?;
    let _lock = cache.lock(&about.etag)?;
    if !blob.exists() {
        let incomplete = blob.with_file_name(format!("{}.incomplete", about.etag));
        let download = Download {
            client,
            commit,
            file,
            about: &about,
            incomplete: &incomplete,
        };
        download.fetch(progress)?;
        download.check()?;
        fs::rename(&incomplete, &blob).map_err(|e| disk(&blob, e))?;
    }
    cache.link(commit, file, &about.etag)
}

struct Download<'a> {
    client: &'a Client,
    commit: &'a str,
    file: &'a str,
    about: &'a About,
    incomplete: &'a PathBuf,
}

impl Download<'_> {
    /// Fetches what is missing, again where the connection breaks.
    fn fetch(&self, progress: &mut Progress<'_>) -> Result<()> {
        let mut failures = 0;
        loop {
            let before = self.present();
            if self.about.size.is_some_and(|size| size == before) && before > 0 {
                return Ok(());
            }
            let broken = match self.rest(before, progress) {
                Ok(()) => return Ok(()),
                Err(broken @ Error::Network { .. }) => broken,
                Err(other) => return Err(other),
            };
            failures = if self.present() > before {
                1
            } else {
                failures + 1
            };
            if failures == ATTEMPTS {
                return Err(broken);
            }
            thread::sleep(PAUSE * 2u32.pow(failures - 1));
        }
    }

    fn present(&self) -> u64 {
        fs::metadata(self.incomplete).map_or(0, |m| m.len())
    }

    /// One request for all that is missing.
    fn rest(&self, present: u64, progress: &mut Progress<'_>) -> Result<()> {
        let on_disk = |e| disk(self.incomplete, e);
        // More than there should be is of another file.
        let start = if self.about.size.is_some_and(|size| present > size) {
            0
        } else {
            present
        };
        let (start, mut content) = self.client.content(self.commit, self.file, start)?;
        let open = File::options()
            .create(true)
            .append(true)
            .open(self.incomplete);
        let mut out = open.map_err(on_disk)?;
        out.set_len(start).map_err(on_disk)?;
        let mut done = start;
        let mut buffer = vec![0; 1 << 18];
        loop {
            let broken = |cause: String| Error::Network {
                url: self.file.to_owned(),
                cause,
            };
            let n = match content.read(&mut buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(broken(e.to_string())),
            };
            if n == 0 {
                return match self.about.size {
                    Some(size) if done < size => Err(broken(format!(
                        "the connection ended after {done} of {size} bytes"
                    ))),
                    _ => out.sync_all().map_err(on_disk),
                };
            }
            out.write_all(&buffer[..n]).map_err(on_disk)?;
            done += n as u64;
            if self.about.size.is_some_and(|size| done > size) {
                // The check will say so.
                return Ok(());
            }
            progress(self.file, done, self.about.size.unwrap_or(done));
        }
    }

    /// Deletes what is not what it should be.
    fn check(&self) -> Result<()> {
        let cause = match (self.about.size, self.present()) {
            (Some(size), present) if size != present => {
                Some(format!("has {present} bytes where {size} are expected"))
            }
            _ => match self.about.sha256() {
                None => None,
                Some(expected) => {
                    let found = sha256(self.incomplete).map_err(|e| disk(self.incomplete, e))?;
                    (found != expected.to_ascii_lowercase())
                        .then(|| format!("has SHA-256 {found} where {expected} is expected"))
                }
            },
        };
        let Some(cause) = cause else { return Ok(()) };
        fs::remove_file(self.incomplete).map_err(|e| disk(self.incomplete, e))?;
        Err(Error::Corrupt {
            file: self.file.to_owned(),
            cause,
        })
    }
}

/// The SHA-256 of a file in hexadecimal digits.
fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    let digits = hash.finalize();
    Ok(digits.iter().map(|b| format!("{b:02x}")).collect())
}
