//! Values as Python writes them: `str`, `repr` and `json.dumps`.

use minijinja::{
    Output, State, Value,
    value::{Kwargs, ValueKind},
};

use super::invalid;

/// Deepest nesting of lists and maps that is written.
const MAX_DEPTH: usize = 64;

/// Fuel for writing a value once: a list can hold the same long text many times.
fn cost(value: &Value) -> u64 {
    1 + value.as_str().map_or(0, |text| text.len() as u64 / 64)
}

/// Writes what `{{ value }}` prints.
pub(super) fn print(
    out: &mut Output,
    state: &mut State,
    value: &Value,
) -> Result<(), minijinja::Error> {
    match value.as_str() {
        Some(text) => Ok(out.write_str(text)?),
        None => Ok(out.write_str(&text(state, value)?)?),
    }
}

/// Python's `str`: the `string` filter.
pub(super) fn text(state: &State, value: &Value) -> Result<String, minijinja::Error> {
    let mut text = String::new();
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::String => text.push_str(value.as_str().unwrap_or_default()),
        _ => repr(state, value, 0, &mut text)?,
    }
    Ok(text)
}

/// The `trim` filter, which makes a text of what is none.
pub(super) fn trim(
    state: &State,
    value: &Value,
    chars: Option<String>,
) -> Result<String, minijinja::Error> {
    let text = text(state, value)?;
    Ok(match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
        None => text.trim().to_owned(),
    })
}

fn repr(
    state: &State,
    value: &Value,
    depth: usize,
    out: &mut String,
) -> Result<(), minijinja::Error> {
    state.consume_fuel(cost(value))?;
    if depth > MAX_DEPTH {
        return Err(invalid(format!(
            "it prints more than {MAX_DEPTH} lists and maps inside one another"
        )));
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(state, &key, depth + 1, out)?;
                out.push_str(": ");
                repr(state, &value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(state, &item, depth + 1, out)?;
            }
            out.push(']');
        }
        kind => {
            return Err(invalid(format!(
                "it prints a value of the kind {kind}, which is no text"
            )));
        }
    }
    Ok(())
}

/// A string as Python's source would have it.
fn quote(text: &str, out: &mut String) {
    let mark = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => out.push_str(&match u32::from(c) {
                code @ ..0x100 => format!("\\x{code:02x}"),
                code @ ..0x1_0000 => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
        }
    }
    out.push(mark);
}

/// Neither a control or format character, nor unassigned, nor white space other than the blank.
fn is_printable(c: char) -> bool {
    // Quotes and backslashes are handled before; behind a letter, marks stand for themselves.
    let mut behind = [0; 5];
    behind[0] = b'a';
    let length = 1 + c.encode_utf8(&mut behind[1..]).len();
    matches!(c, '"' | '\'')
        || std::str::from_utf8(&behind[..length])
            .is_ok_and(|text| text.escape_debug().eq(text.chars()))
}

/// A number as Python's `repr` has it: floats with a point or an exponent of two digits.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(float) = f64::try_from(value.clone()) else {
        return value.to_string();
    };
    let text = format!("{float:?}");
    let Some((mantissa, exponent)) = text.split_once('e') else {
        return text;
    };
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent),
    };
    format!("{mantissa}e{sign}{digits:0>2}")
}

/// `tojson(indent=None, ensure_ascii=False, separators=None, sort_keys=False)` as Python's `json.dumps` writes it: unlike
/// Jinja's own filter it escapes nothing for HTML.
pub(super) fn to_json(
    state: &State,
    value: &Value,
    options: Kwargs,
) -> Result<Value, minijinja::Error> {
    let indent: Option<Value> = options.get("indent")?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        Some(indent) => match indent.as_str() {
            Some(text) => Some(text.to_owned()),
            None => Some(" ".repeat(usize::try_from(indent)?.min(MAX_DEPTH))),
        },
        None => None,
    };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("tojson needs two separators")),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let json = Json {
        state,
        indent,
        item,
        key,
        ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut text = String::new();
    json.write(value, 0, &mut text)?;
    Ok(Value::from_safe_string(text))
}

struct Json<'s, 't, 'e> {
    state: &'s State<'t, 'e>,
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

impl Json<'_, '_, '_> {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), minijinja::Error> {
        self.state.consume_fuel(cost(value))?;
        match value.kind() {
            ValueKind::None | ValueKind::Undefined => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default(), out),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.write_items(('{', '}'), keys, depth, out, |json, key, out| {
                    json.write_string(&key.to_string(), out);
                    out.push_str(&json.key);
                    json.write(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_items(('[', ']'), items, depth, out, |json, item, out| {
                    json.write(item, depth + 1, out)
                })?;
            }
            kind => {
                return Err(invalid(format!(
                    "tojson cannot write a value of the kind {kind}"
                )));
            }
        }
        Ok(())
    }

    fn write_items(
        &self,
        (open, close): (char, char),
        items: Vec<Value>,
        depth: usize,
        out: &mut String,
        write: impl Fn(&Self, &Value, &mut String) -> Result<(), minijinja::Error>,
    ) -> Result<(), minijinja::Error> {
        if depth >= MAX_DEPTH {
            return Err(invalid(format!(
                "tojson: more than {MAX_DEPTH} lists and maps inside one another"
            )));
        }
        out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item);
            }
            self.new_line(depth + 1, out)?;
            write(self, item, out)?;
        }
        if !items.is_empty() {
            self.new_line(depth, out)?;
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, depth: usize, out: &mut String) -> Result<(), minijinja::Error> {
        let Some(indent) = &self.indent else {
            return Ok(());
        };
        self.state
            .consume_fuel((indent.len() * depth / 64) as u64)?;
        out.push('\n');
        out.push_str(&indent.repeat(depth));
        Ok(())
    }

    fn write_string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || self.ascii && !c.is_ascii() => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
