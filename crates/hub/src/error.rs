//! What can go wrong on the way from a server to a file, with what to do about it.

use std::{io, path::PathBuf};

/// Why a model could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text names no model of the Hub.
    #[error("{0:?} names no model on the Hub")]
    Spec(String),
    /// The cache does not have it, and nothing may be fetched.
    #[error("{0} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it")]
    NotCached(String),
    /// No connection, or one that kept breaking.
    #[error("cannot reach {url}: {cause}")]
    Network {
        /// What was asked for.
        url: String,
        /// Why.
        cause: String,
    },
    /// The server wants to know who asks, or does not let them.
    #[error("{url}: access denied ({status})")]
    Denied {
        /// What was asked for.
        url: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        has_token: bool,
    },
    /// No such repository, revision or file.
    #[error("{0}: not found (404)")]
    NotFound(String),
    /// Any other status, or an answer that makes no sense.
    #[error("{url}: {cause}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What came back.
        cause: String,
    },
    /// The repository has no such model, or several.
    #[error("{repository} {cause}")]
    Choice {
        /// `ORG/NAME`.
        repository: String,
        /// What it has instead.
        cause: String,
        /// What to write.
        remedy: String,
    },
    /// What came is not what the server says it is; it was deleted.
    #[error("{file}: {cause}; what came was deleted")]
    Corrupt {
        /// The repository's file.
        file: String,
        /// Expected and found.
        cause: String,
    },
    /// The cache cannot be written or read.
    #[error("cannot write {}: {source}", path.display())]
    Disk {
        /// File or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// No home folder, and no variable that says where the cache is.
    #[error(
        "there is no folder for the cache: neither HF_HUB_CACHE nor HF_HOME nor a home folder is set"
    )]
    NoCache,
}

impl Error {
    /// What the user can do about it, as a short imperative sentence.
    pub fn remedy(&self) -> String {
        match self {
            Error::Spec(_) => "write hf:ORG/NAME, then @REVISION and :FILE where you need them".into(),
            Error::NotCached(_) => "unset HF_HUB_OFFLINE, or give the path of a file".into(),
            Error::Network { .. } => {
                "check the network and try again (what has come is kept), set HF_ENDPOINT to a mirror, or give the path of a file".into()
            }
            Error::Denied { has_token: false, .. } => {
                "the repository is private or gated, or does not exist: set HF_TOKEN to a token of yours".into()
            }
            Error::Denied { has_token: true, .. } => {
                "accept the model's terms on its page, and check that the token in HF_TOKEN is valid and may read it".into()
            }
            Error::NotFound(_) => "check the names of the repository, the revision and the file".into(),
            Error::Answer { .. } => "try again later, or set HF_ENDPOINT to another server".into(),
            Error::Choice { remedy, .. } => remedy.clone(),
            Error::Corrupt { .. } => {
                "fetch it again; if that gives the same, the server or a proxy on the way is at fault".into()
            }
            Error::Disk { source, .. }
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                "make room on the disk, or set HF_HUB_CACHE to a folder on another; what has come is kept".into()
            }
            Error::Disk { .. } => {
                "check that you may write there and that the disk has room, or set HF_HUB_CACHE to another folder".into()
            }
            Error::NoCache => "set HF_HUB_CACHE to a folder".into(),
        }
    }
}

/// The result of fetching.
pub type Result<T, E = Error> = std::result::Result<T, E>;
