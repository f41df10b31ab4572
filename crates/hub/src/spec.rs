//! What the user writes: `hf:ORG/NAME`, `hf:ORG/NAME@REVISION`, `hf:ORG/NAME:FILE` or `:TAG`.

use crate::error::{Error, Result};
use std::{fmt, str::FromStr};

const PREFIX: &str = "hf:";
const MAIN: &str = "main";

/// A model on the Hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// `ORG/NAME`, or `NAME` alone for the oldest models.
    pub repository: String,
    /// Branch, tag or commit.
    revision: Option<String>,
    /// A file of the repository, or what the name of a GGUF file ends in, such as `Q4_K_M`.
    pub file: Option<String>,
}

impl Spec {
    /// Whether a text means a model on the Hub rather than a path.
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// Branch, tag or commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Spec> {
        let wrong = || Error::Spec(text.to_owned());
        let rest = text.strip_prefix(PREFIX).ok_or_else(wrong)?;
        let (rest, file) = match rest.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (rest, None),
        };
        let (repository, revision) = match rest.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (rest, None),
        };
        let parts: Vec<&str> = repository.split('/').collect();
        let sound = (1..=2).contains(&parts.len()) && parts.iter().all(|p| is_name(p));
        let paths = [revision, file].into_iter().flatten();
        if !sound || !paths.into_iter().all(is_path) {
            return Err(wrong());
        }
        Ok(Spec {
            repository: repository.to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        })
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.repository)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(file) = &self.file {
            write!(f, ":{file}")?;
        }
        Ok(())
    }
}

/// A name as the Hub allows it; what is one names no other place in the cache or on the server.
fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && name.chars().all(allowed) && !name.starts_with('.') && !name.contains("--")
}

/// A path with `/` that leads nowhere but down.
pub(crate) fn is_path(path: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty() && p != "." && p != ".." && !p.contains(['\\', ':', '\0', '?', '#', '%'])
    };
    path.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_meant() {
        for (text, repository, revision, file) in [
            ("hf:o/n", "o/n", "main", None),
            ("hf:gpt2", "gpt2", "main", None),
            ("hf:o/n.v2-x@v1.0", "o/n.v2-x", "v1.0", None),
            ("hf:o/n:Q4_K_M", "o/n", "main", Some("Q4_K_M")),
            (
                "hf:o/n@refs/pr/3:a/b.gguf",
                "o/n",
                "refs/pr/3",
                Some("a/b.gguf"),
            ),
        ] {
            let spec: Spec = text.parse().unwrap();
            assert_eq!(
                (&*spec.repository, spec.revision(), spec.file.as_deref()),
                (repository, revision, file)
            );
            assert_eq!(spec.to_string(), text);
        }
    }

    #[test]
    fn nothing_leads_out_of_the_cache() {
        for text in [
            "o/n",
            "hf:",
            "hf:/n",
            "hf:o/",
            "hf:../n",
            "hf:o/..",
            "hf:o/n/x",
            "hf:o/n@",
            "hf:o/n:",
            "hf:o/n@../x",
            "hf:o/n:../x",
            "hf:o/n:/x",
            "hf:o/n:a//b",
            "hf:o/a b",
            "hf:a--b/c",
            "hf:o/n:a\\b",
            "hf:o/n@v?x",
        ] {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
    }
}
