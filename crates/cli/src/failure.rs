//! How a command fails: always a cause, a remedy and an exit code.

use clap::error::ErrorKind;
use countdown_server::ServeError;
use std::{ffi::OsString, io};

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The engine says so, or a flag's value does not make sense.
    #[error(transparent)]
    Engine(#[from] countdown::Error),
    /// The server could not start, or ended.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A model could not be fetched.
    #[error(transparent)]
    Hub(#[from] countdown_hub::Error),
    /// Whoever read standard output went away. That is how `countdown ... | head` ends: a success.
    #[error("standard output was closed")]
    Closed,
}

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A value given by the user that cannot be: exit code 2.
    pub(crate) fn input(cause: impl Into<String>, remedy: impl Into<String>) -> Failure {
        Failure::Engine(countdown::Error::Input {
            cause: cause.into(),
            remedy: remedy.into(),
        })
    }

    /// Standard output could not be written.
    pub(crate) fn output(source: io::Error) -> Failure {
        if source.kind() == io::ErrorKind::BrokenPipe {
            return Failure::Closed;
        }
        Failure::Engine(countdown::Error::Write {
            path: "standard output".into(),
            source,
        })
    }

    /// 0 for success, 1 for failure, 2 for wrong usage.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::Closed => 0,
            Failure::Engine(countdown::Error::Input { .. }) => 2,
            Failure::Engine(_) | Failure::Serve(_) | Failure::Hub(_) => 1,
        }
    }

    /// What the user can do about it.
    pub(crate) fn remedy(&self) -> String {
        match self {
            Failure::Closed => String::new(),
            Failure::Engine(e) => e.remedy(),
            Failure::Hub(e) => e.remedy(),
            Failure::Serve(ServeError::Listen { .. }) => {
                "choose another --port or --host, or end the program that listens there".into()
            }
            Failure::Serve(_) => "start it again; if it happens again, report it with -v".into(),
        }
    }
}

/// A parse error of the command line as a cause and a remedy, each one line; `None` where it asks for help or the version,
/// which is no error. `arguments` and `cli` tell which command's help to point at.
pub(crate) fn of_usage(
    error: &clap::Error,
    arguments: &[OsString],
    cli: &clap::Command,
) -> Option<(String, String)> {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        return None;
    }
    let text = error.render().to_string();
    let cause: Vec<&str> = text
        .lines()
        .take_while(|l| !l.trim().is_empty())
        .map(str::trim)
        .collect();
    let cause = cause.join(" ");
    let cause = cause.strip_prefix("error: ").unwrap_or(&cause);
    let tip = text.lines().find_map(|l| l.trim().strip_prefix("tip: "));
    let command = arguments
        .iter()
        .filter_map(|a| a.to_str())
        .find(|a| cli.find_subcommand(a).is_some());
    let remedy = format!(
        "{}see `countdown {}--help`",
        tip.map(|t| format!("{t}; ")).unwrap_or_default(),
        command.map(|c| format!("{c} ")).unwrap_or_default()
    );
    Some((cause.to_owned(), remedy))
}
