//! Where to fetch from and to, in the variables that Python's `huggingface_hub` reads.

use crate::error::{Error, Result};
use std::{env, fs, path::PathBuf};

/// Server, cache and rights.
#[derive(Clone)]
pub struct Settings {
    /// The server, without a slash at the end.
    pub endpoint: String,
    /// The folder of the cache.
    pub cache: PathBuf,
    /// Who asks. Sent to the endpoint only, never to where it redirects.
    pub token: Option<String>,
    /// Whether nothing may be fetched.
    pub offline: bool,
}

impl Settings {
    /// What the environment says: `HF_ENDPOINT`, `HF_HUB_CACHE` or else `HF_HOME` or else the user's cache folder, `HF_TOKEN` or
    /// else the file that Python's log-in writes, `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// [`Error::NoCache`] where nothing says where the cache is.
    pub fn from_env() -> Result<Settings> {
        let home = home();
        let cache = path("HF_HUB_CACHE").or_else(|| Some(home.as_ref()?.join("hub")));
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")));
        let saved = || fs::read_to_string(token_file?).ok();
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Ok(Settings {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: cache.ok_or(Error::NoCache)?,
            token: text("HF_TOKEN")
                .or_else(saved)
                .map(|t| t.trim().to_owned())
                .filter(|t| !t.is_empty()),
            offline: text("HF_HUB_OFFLINE").is_some_and(|v| is_true(&v)),
        })
    }
}

fn home() -> Option<PathBuf> {
    let caches = || path("XDG_CACHE_HOME").or_else(|| Some(env::home_dir()?.join(".cache")));
    path("HF_HOME").or_else(|| Some(caches()?.join("huggingface")))
}

fn path(variable: &str) -> Option<PathBuf> {
    env::var_os(variable)
        .filter(|v| !v.is_empty())
        .map(PathBuf::from)
}

fn text(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|v| !v.is_empty())
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
}
