//! The engine's one error type. Every message names the thing at fault; [`Error::remedy`] says what to do.

use std::{io, path::PathBuf};

/// What can go wrong between a model file and a token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file could not be written; what stood there before is untouched.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file's bytes contradict its format: truncated, hostile, or of another format.
    #[error("{}: {cause}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with names and numbers.
        cause: String,
    },
    /// A sound file that is no model this engine can run: a tensor is missing or has another shape, a family is unknown.
    #[error("{}: {cause}", path.display())]
    Unsupported {
        /// The file or folder.
        path: PathBuf,
        /// What is missing or unknown, by name.
        cause: String,
        /// What the user can do.
        remedy: String,
    },
    /// A sparsity plan that does not fit.
    #[error("plan {cause}")]
    Plan {
        /// What is wrong, with the plan's and the model's own words.
        cause: String,
        /// What the user can do.
        remedy: String,
    },
    /// More tokens than the context holds.
    #[error("{needed} tokens do not fit the context of {limit}")]
    ContextFull {
        /// Tokens asked for.
        needed: usize,
        /// Tokens that fit.
        limit: usize,
    },
    /// A value given by the user is out of range or empty.
    #[error("{cause}")]
    Input {
        /// What is wrong with which value.
        cause: String,
        /// What to give instead.
        remedy: String,
    },
    /// Not-a-number or infinity where a number must be.
    #[error("{0} is not finite")]
    NotFinite(String),
    /// A chat template could not be parsed or rendered.
    #[error("chat template: {0}")]
    Template(String),
    /// The machine lacks something: a thread, an instruction set.
    #[error("{cause}")]
    Machine {
        /// What is missing.
        cause: String,
        /// What the user can do.
        remedy: String,
    },
}

impl Error {
    /// What the user can do about it, as a short imperative sentence.
    pub fn remedy(&self) -> String {
        match self {
            Error::Read { .. } => "check that the path exists and that you may read it".into(),
            Error::Write { .. } => {
                "check that the folder exists, that you may write there and that the disk has room".into()
            }
            Error::Malformed { .. } => {
                "the file is damaged or of another kind: fetch it again and compare its size and checksum".into()
            }
            Error::Unsupported { remedy, .. }
            | Error::Plan { remedy, .. }
            | Error::Input { remedy, .. }
            | Error::Machine { remedy, .. } => remedy.clone(),
            Error::ContextFull { .. } => {
                "shorten the prompt, raise the context (-c) or allow old text to be dropped (--context-shift)".into()
            }
            Error::NotFinite(_) => {
                "the weights or the plan are damaged or overflow: check the file's checksum".into()
            }
            Error::Template(_) => {
                "run without a chat template (run instead of chat), or give another one with --chat-template-file".into()
            }
        }
    }
}

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
