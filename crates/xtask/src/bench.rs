//! Running `countdown bench` and its like, and reading what they print.

use serde_json::Value as Json;
use std::{ffi::OsStr, path::Path, process::Command};

pub(crate) type Result<T> = std::result::Result<T, String>;

/// What a program prints on standard output.
///
/// # Errors
/// A program that cannot be run or fails, with its last words.
pub(crate) fn output(
    program: &Path,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<String> {
    let name = program.display();
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|e| format!("{name}: {e}"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "{name} failed: {}",
            why.lines().last().unwrap_or_default()
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The rows of results that a bench prints as JSON lines, with llama-bench's keys; at least one.
///
/// # Errors
/// As [`output`], and a bench that prints none.
pub(crate) fn rows(
    program: &Path,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<Vec<Json>> {
    let said = output(program, arguments)?;
    let rows: Vec<Json> = said
        .lines()
        .filter_map(|l| serde_json::from_str(l).ok())
        .collect();
    if rows.is_empty() {
        return Err(format!("{} printed no results", program.display()));
    }
    Ok(rows)
}

/// A row's number.
///
/// # Errors
/// A row that lacks it.
pub(crate) fn number(row: &Json, key: &str) -> Result<f64> {
    row[key]
        .as_f64()
        .ok_or_else(|| format!("a row without {key}: {row}"))
}

/// A row's text; "?" where it has none.
pub(crate) fn text<'a>(row: &'a Json, key: &str) -> &'a str {
    row[key].as_str().unwrap_or("?")
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(of: impl IntoIterator<Item = f64>) -> f64 {
    let mut of: Vec<f64> = of.into_iter().collect();
    of.sort_by(f64::total_cmp);
    match of.len() {
        0 => f64::NAN,
        n => (of[(n - 1) / 2] + of[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }
}
