//! Methods of Python's strings that MiniJinja's own set of them lacks.

use minijinja::{Error, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::invalid;

/// Calls a method of a value.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        if name == "format" && is_wide(text) {
            return Err(invalid("a width in format() is too large"));
        }
        if let Some(result) = of_text(text, name, args) {
            state.consume_fuel((text.len() / 64) as u64)?;
            return result;
        }
    }
    unknown_method_callback(state, value, name, args)
}

/// Whether a format asks for widths that would make huge texts: refused before anything is allocated.
fn is_wide(format: &str) -> bool {
    const LONGEST_WIDTH: usize = 4;
    format
        .split(|c: char| !c.is_ascii_digit())
        .any(|digits| digits.len() > LONGEST_WIDTH)
}

/// `None` where the method is not one of these.
fn of_text(text: &str, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let known = [
        "removeprefix",
        "removesuffix",
        "partition",
        "rpartition",
        "rsplit",
    ];
    if !known.contains(&name) {
        return None;
    }
    let Some(part) = args
        .first()
        .and_then(Value::as_str)
        .filter(|p| !p.is_empty())
    else {
        return Some(Err(invalid(format!(
            "{name}() needs a text that is not empty"
        ))));
    };
    let pieces = |pieces: [&str; 3]| Value::from(pieces.map(Value::from).to_vec());
    Some(Ok(match name {
        "removeprefix" => Value::from(text.strip_prefix(part).unwrap_or(text)),
        "removesuffix" => Value::from(text.strip_suffix(part).unwrap_or(text)),
        "partition" => pieces(match text.split_once(part) {
            Some((before, after)) => [before, part, after],
            None => [text, "", ""],
        }),
        "rpartition" => pieces(match text.rsplit_once(part) {
            Some((before, after)) => [before, part, after],
            None => ["", "", text],
        }),
        _ => {
            let most = args
                .get(1)
                .and_then(|most| usize::try_from(most.clone()).ok());
            let mut found: Vec<Value> = match most {
                Some(most) => text
                    .rsplitn(most.saturating_add(1), part)
                    .map(Value::from)
                    .collect(),
                None => text.rsplit(part).map(Value::from).collect(),
            };
            found.reverse();
            Value::from(found)
        }
    }))
}
