//! Models of the Hugging Face Hub, or of a mirror of it, in the cache that they share with Python's `huggingface_hub`.
//!
//! ```text
//! HF_HUB_CACHE/models--ORG--NAME/refs/REVISION             the commit it stood for when it was asked for
//!                                blobs/ETAG                the content of a file, under its SHA-256 where it is large
//!                                blobs/ETAG.incomplete     what has come of it so far
//!                                snapshots/COMMIT/FILE     a link to a blob
//!                                .no_exist/COMMIT/FILE     the repository has no such file
//! ```
//!
//! What is in the cache is used as it is, without asking: a model once fetched works without a network.

mod cache;
mod client;
mod download;
mod error;
mod select;
mod settings;
mod spec;

pub use error::{Error, Result};
pub use settings::Settings;
pub use spec::Spec;

use cache::Cache;
use client::Client;
use select::{Choice, INDEX, OPTIONAL, choose};
use std::path::PathBuf;

/// How far a file has come: its name, bytes that are there, bytes in all.
pub type Progress<'a> = dyn FnMut(&str, u64, u64) + 'a;

/// The path of a model on this machine: of its file, or of its folder. It is fetched where it is not in the cache yet.
///
/// # Errors
/// [`Error`] says whether the network, the repository, the user's rights, the content or this machine's disk is at fault.
pub fn fetch(spec: &Spec, settings: &Settings, progress: &mut Progress<'_>) -> Result<PathBuf> {
    let cache = Cache::new(&settings.cache, &spec.repository);
    if let Some(path) = cached(spec, &cache, settings) {
        return Ok(path);
    }
    if settings.offline {
        return Err(Error::NotCached(spec.to_string()));
    }
    let client = Client::new(settings, &spec.repository)?;
    let listing = client.listing(spec.revision())?;
    let choice = choose(&listing.files, spec)?;
    cache.set_commit(spec.revision(), &listing.commit)?;
    let mut get = |file: &str| download::file(&client, &cache, &listing.commit, file, progress);
    for file in &choice.files {
        get(file)?;
    }
    if choice.files.iter().any(|f| f == INDEX) {
        let index = cache.snapshot(&listing.commit).join(INDEX);
        for shard in cache::shards(&index)? {
            get(&shard)?;
        }
    }
    if choice.is_folder() {
        for name in OPTIONAL
            .iter()
            .filter(|n| !listing.files.iter().any(|f| f == *n))
        {
            cache.set_absent(&listing.commit, name)?;
        }
    }
    Ok(choice.path(&cache.snapshot(&listing.commit)))
}

/// The path of a model all of whose files are in the cache.
fn cached(spec: &Spec, cache: &Cache, settings: &Settings) -> Option<PathBuf> {
    let commit = cache.commit(spec.revision())?;
    let folder = cache.snapshot(&commit);
    let there = cache.files(&commit);
    let choice: Choice = choose(&there, spec).ok()?;
    let has = |name: &String| there.contains(name);
    let shards = || -> bool {
        let listed = cache::shards(&folder.join(INDEX));
        listed.is_ok_and(|shards| shards.iter().all(has))
    };
    let known = |name: &&str| there.iter().any(|f| f == name) || cache.is_absent(&commit, name);
    let complete = choice.files.iter().all(has)
        && (!choice.files.iter().any(|f| f == INDEX) || shards())
        && (!choice.is_folder() || OPTIONAL.iter().all(known))
        // Whether there is but one GGUF model, where the user names none, only the server can tell.
        && (choice.is_folder() || spec.file.is_some() || settings.offline);
    complete.then(|| choice.path(&folder))
}
