//! Task files: JSON lines, gzipped or plain, read line by line and never beyond a limit.

use crate::error::{Error, Result};
use flate2::bufread::MultiGzDecoder;
use serde_json::Value;
use std::{
    fmt::Display,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

/// Bytes of text that a file may hold, or expand to.
const LARGEST_TEXT: u64 = 1 << 30;
/// Bytes that a line may have.
const LONGEST_LINE: u64 = 1 << 24;
/// How a gzip file begins.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// One line of a task file.
pub(super) struct Line<'a> {
    path: &'a Path,
    /// From 1 on.
    pub(super) number: usize,
    value: Value,
    remedy: &'static str,
}

/// Hands `each` the lines that are not blank. `remedy` says what lines should be like. Returns the BLAKE3 hash of the text,
/// hexadecimal.
///
/// # Errors
/// [`Error::Read`], [`Error::Malformed`] for what is neither gzip nor UTF-8, is no JSON or is too large, and those of `each`.
pub(super) fn read(
    path: &Path,
    remedy: &'static str,
    each: impl FnMut(Line<'_>) -> Result<()>,
) -> Result<String> {
    read_bounded(path, remedy, LARGEST_TEXT, each)
}

fn read_bounded(
    path: &Path,
    remedy: &'static str,
    largest: u64,
    mut each: impl FnMut(Line<'_>) -> Result<()>,
) -> Result<String> {
    let unreadable = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let malformed = |cause: String| Error::Malformed {
        path: path.to_owned(),
        cause,
    };
    let mut file = BufReader::new(File::open(path).map_err(unreadable)?);
    let is_gzip = file.fill_buf().map_err(unreadable)?.starts_with(&GZIP);
    let mut text: Box<dyn BufRead> = if is_gzip {
        Box::new(BufReader::new(MultiGzDecoder::new(file)))
    } else {
        Box::new(file)
    };
    let failed = |e: io::Error| match is_gzip {
        true => malformed(format!("is no sound gzip file: {e}")),
        false => unreadable(e),
    };
    let mut hash = blake3::Hasher::new();
    let (mut number, mut total) = (0, 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        let room = LONGEST_LINE.min(largest - total) + 1;
        let n = text.by_ref().take(room).read_until(b'\n', &mut line);
        if n.map_err(failed)? == 0 {
            return Ok(hash.finalize().to_hex().to_string());
        }
        number += 1;
        total += line.len() as u64;
        if total > largest {
            return Err(malformed(format!(
                "holds more than {largest} bytes of text"
            )));
        }
        if line.len() as u64 > LONGEST_LINE {
            return Err(malformed(format!(
                "line {number} has more than {LONGEST_LINE} bytes"
            )));
        }
        hash.update(&line);
        if line.trim_ascii().is_empty() {
            continue;
        }
        let value = serde_json::from_slice(&line)
            .map_err(|e| malformed(format!("line {number} is not JSON: {e}")))?;
        each(Line {
            path,
            number,
            value,
            remedy,
        })?;
    }
}

impl Line<'_> {
    /// A field by its path, such as `request.context`; null is as good as absent.
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        let at = format!("/{}", field.replace('.', "/"));
        self.value.pointer(&at).filter(|v| !v.is_null())
    }

    /// A field that must be there.
    pub(super) fn need(&self, field: &str) -> Result<&Value> {
        self.get(field)
            .ok_or_else(|| self.wrong(format_args!("field \"{field}\" is missing")))
    }

    /// A field that must be a text.
    pub(super) fn text(&self, field: &str) -> Result<&str> {
        let value = self.need(field)?;
        value
            .as_str()
            .ok_or_else(|| self.wrong(format_args!("field \"{field}\" is not a text")))
    }

    /// A field that must be a whole number.
    pub(super) fn number(&self, field: &str) -> Result<u64> {
        self.as_number(field, self.need(field)?)
    }

    /// A field that must be a whole number if it is there.
    pub(super) fn opt_number(&self, field: &str) -> Result<Option<u64>> {
        let value = self.get(field);
        value.map(|v| self.as_number(field, v)).transpose()
    }

    fn as_number(&self, field: &str, value: &Value) -> Result<u64> {
        value
            .as_u64()
            .ok_or_else(|| self.wrong(format_args!("field \"{field}\" is not a whole number")))
    }

    /// A field that must be a list of texts.
    pub(super) fn texts(&self, field: &str) -> Result<Vec<String>> {
        let list = match self.need(field)? {
            Value::Array(list) => list.iter().map(|v| v.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        list.ok_or_else(|| self.wrong(format_args!("field \"{field}\" is not a list of texts")))
    }

    /// An error that names the file and the line.
    pub(super) fn wrong(&self, cause: impl Display) -> Error {
        wrong(self.path, self.number, cause, self.remedy)
    }
}

/// An error that names a file and a line.
pub(super) fn wrong(path: &Path, line: usize, cause: impl Display, remedy: &str) -> Error {
    Error::Input {
        cause: format!("{}: line {line}: {cause}", path.display()),
        remedy: remedy.into(),
    }
}

/// An error for a file without documents.
pub(super) fn empty(path: &Path, remedy: &str) -> Error {
    Error::Input {
        cause: format!("{} has no documents", path.display()),
        remedy: remedy.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = GzEncoder::new(Vec::new(), Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn numbers(bytes: &[u8], largest: u64) -> Result<(Vec<u64>, String)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("task");
        std::fs::write(&path, bytes).unwrap();
        let mut seen = Vec::new();
        let hash = read_bounded(&path, "", largest, |line| {
            seen.push(line.number("a.b")?);
            Ok(())
        })?;
        Ok((seen, hash))
    }

    #[test]
    fn plain_and_gzipped_members_are_the_same_text() {
        let (first, second) = (b"{\"a\":{\"b\":1}}\n\n".as_slice(), b"{\"a\":{\"b\":2}}");
        let plain = numbers(&[first, second].concat(), 100).unwrap();
        let members = [gzip(first), gzip(second)].concat();
        assert_eq!(plain.0, [1, 2]);
        assert_eq!(numbers(&members, 100).unwrap(), plain);
    }

    #[test]
    fn what_expands_beyond_the_limit_is_refused() {
        let bomb = gzip(&vec![b' '; 1 << 20]);
        assert!(bomb.len() < 10_000);
        let error = numbers(&bomb, 1 << 16).unwrap_err();
        assert!(
            error.to_string().contains("more than 65536 bytes"),
            "{error}"
        );
        let lines = gzip("{\"a\":{\"b\":1}}\n".repeat(100).as_bytes());
        assert!(numbers(&lines, 1399).is_err());
        assert_eq!(numbers(&lines, 1400).unwrap().0.len(), 100);
    }

    #[test]
    fn damage_names_the_line() {
        let mut half = gzip("{\"a\":{\"b\":1}}\n".repeat(1000).as_bytes());
        half.truncate(half.len() / 2);
        for (bytes, naming) in [
            (half.as_slice(), "no sound gzip"),
            (b"{\"a\":{\"b\":1}}\nnonsense\n", "line 2 is not JSON"),
            (b"{\"a\":{\"b\":1}}\n\xff\n", "line 2 is not JSON"),
            (b"{\"a\":{}}", "line 1: field \"a.b\" is missing"),
            (b"{\"a\":{\"b\":null}}", "line 1: field \"a.b\" is missing"),
            (
                b"{\"a\":{\"b\":-1}}",
                "line 1: field \"a.b\" is not a whole number",
            ),
            (b"[]", "line 1: field \"a.b\" is missing"),
        ] {
            let error = numbers(bytes, 1 << 20).unwrap_err().to_string();
            assert!(error.contains(naming), "{error}");
        }
    }
}
