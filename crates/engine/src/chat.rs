//! Conversations to prompts, by the Jinja template that comes with a model.
//!
//! The environment is that of Hugging Face's `apply_chat_template`: blocks trimmed, Python's string and dictionary methods,
//! `raise_exception`, `strftime_now`, `tojson` as `json.dumps` writes it. A template is foreign code out of a model file:
//! it has no access to anything but the conversation, and its work, its output and its nesting are bounded.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use minijinja::{
    Environment, ErrorKind, Output, State, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, ValueKind},
};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::{Error, Result};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// Whether the prompt ends with the opening of the assistant's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// It does: the model is to answer.
    Add,
    /// It does not: the conversation is only written down.
    Omit,
}

/// A parsed chat template with the model's BOS and EOS in place.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

const NAME: &str = "chat template";

/// Largest template, in bytes. The longest in use are below 40 kB.
const MAX_SOURCE: usize = 1 << 17;

/// What one rendering may cost beside what the conversation's length adds. An instruction costs 1, and so do 64 bytes of
/// text that are made or looked through: about 20 MB.
const FUEL: u64 = 300_000;

/// How often a template may look through the whole conversation.
const PASSES: u64 = 16;

/// Instructions for each message beyond those.
const FUEL_PER_MESSAGE: u64 = 250;

/// No conversation makes a template more expensive than this.
const MAX_FUEL: u64 = 4_000_000;

/// Bytes of stack for one level of nesting. Expressions are parsed, and values that a loop has wrapped into one another are
/// compared and dropped, by recursion; a level takes at least one byte of source or one unit of fuel.
const STACK_PER_LEVEL: usize = 1024;

/// What is left to loop through exponentially many views of one value (fuel does not see comparisons) ends here.
const DEADLINE: Duration = Duration::from_secs(10);

/// Deepest nesting of lists and maps that `tojson` writes.
const MAX_DEPTH: usize = 64;

impl ChatTemplate {
    /// Parses `source`; `bos` and `eos` are the spellings of the model's tokens, empty where it has none.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE {
            return Err(Error::Template(format!(
                "it has {} bytes, more than {MAX_SOURCE}",
                source.len()
            )));
        }
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(template_error)?;
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment.set_formatter(print);
        environment.set_unknown_method_callback(method);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.add_test("iterable", is_iterable);
        let source = without_generation_marks(source);
        let environment = bounded(source.len(), move || {
            environment.add_template_owned(NAME, source)?;
            Ok(environment)
        })?;
        Ok(ChatTemplate {
            environment,
            bos: bos.into(),
            eos: eos.into(),
        })
    }

    /// The prompt for `messages`.
    pub fn render(&self, messages: &[Message], prompt: GenerationPrompt) -> Result<String> {
        let bytes: usize = messages
            .iter()
            .map(|message| message.role.len() + message.content.len())
            .sum();
        let conversation = PASSES * (bytes as u64 / 64) + FUEL_PER_MESSAGE * messages.len() as u64;
        let fuel = (FUEL + conversation).min(MAX_FUEL);
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => &message.role, content => &message.content })
            .collect();
        let context = context! {
            messages,
            add_generation_prompt => prompt == GenerationPrompt::Add,
            bos_token => &self.bos,
            eos_token => &self.eos,
            tools => (),
            documents => (),
        };
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        bounded(fuel as usize, move || {
            environment.get_template(NAME)?.render(context)
        })
    }
}

/// Runs `work` where `levels` of recursion fit the stack, and no longer than [`DEADLINE`].
fn bounded<T: Send + 'static>(
    levels: usize,
    work: impl FnOnce() -> Result<T, minijinja::Error> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let stack = (1 << 20) + levels * STACK_PER_LEVEL;
    let spawned = thread::Builder::new()
        .name(NAME.into())
        .stack_size(stack)
        .spawn(move || {
            // Nobody listens any more after the deadline.
            let _ = sender.send(work().map_err(template_error));
        });
    spawned.map_err(|e| Error::Machine {
        cause: format!("no thread with a stack of {stack} bytes for the chat template: {e}"),
        remedy: "raise the limits on threads and on virtual memory (ulimit -u, ulimit -v)".into(),
    })?;
    match receiver.recv_timeout(DEADLINE) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(Error::Template(format!(
            "it did not come to an end within {} s",
            DEADLINE.as_secs()
        ))),
        Err(RecvTimeoutError::Disconnected) => {
            Err(Error::Template("rendering it broke off".into()))
        }
    }
}

/// Hugging Face's `{% generation %}` blocks mark what the assistant says, for training; to a prompt they add nothing.
fn without_generation_marks(source: &str) -> String {
    let mut parts = source.split("{%");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str("{%");
        let word = part.trim_start_matches(['-', '+']).trim_start();
        let (before, statement) = match word
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .next()
        {
            Some("generation") => ("generation", "if true"),
            Some("endgeneration") => ("endgeneration", "endif"),
            _ => ("", ""),
        };
        text.push_str(&part[..part.len() - word.len()]);
        text.push_str(statement);
        text.push_str(&word[before.len()..]);
    }
    text
}

/// Jinja's `iterable` test: unlike MiniJinja's, none is not.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Writes a value as Python's `str` does. Lists and maps are refused: their Python form is not what Jinja engines outside
/// Python print, and `tojson` is what templates mean.
fn print(out: &mut Output, _: &mut State, value: &Value) -> Result<(), minijinja::Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::None => Ok(out.write_str("None")?),
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        ValueKind::Number | ValueKind::String => Ok(write!(out, "{value}")?),
        kind => Err(invalid(format!(
            "it prints a value of the kind {kind}; tojson would make it text"
        ))),
    }
}

/// Python's methods. Widths that would make huge texts in `str.format` are refused before anything is allocated.
fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, minijinja::Error> {
    const LONGEST_WIDTH: usize = 4;
    let wide = |text: &str| {
        text.split(|c: char| !c.is_ascii_digit())
            .any(|digits| digits.len() > LONGEST_WIDTH)
    };
    if name == "format" && value.as_str().is_some_and(wide) {
        return Err(invalid("a width in format() is too large"));
    }
    unknown_method_callback(state, value, name, args)
}

fn template_error(error: minijinja::Error) -> Error {
    if error.kind() == ErrorKind::OutOfFuel {
        let line = error
            .line()
            .map_or_else(String::new, |line| format!(" (line {line})"));
        return Error::Template(format!(
            "it did not come to an end within its limit of work and output{line}"
        ));
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    Error::Template(text)
}

/// `raise_exception(message)`: the template's own way to refuse a conversation.
fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(invalid(format!(
        "the template refuses this conversation: {message}"
    )))
}

fn invalid(detail: impl Into<std::borrow::Cow<'static, str>>) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, detail)
}

/// `strftime_now(format)`: the time, in UTC.
fn strftime_now(format: String) -> Result<String, minijinja::Error> {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    strftime(&format, seconds)
}

/// C's `strftime` for the directives that dates in prompts use; `seconds` since 1970, UTC.
fn strftime(format: &str, seconds: u64) -> Result<String, minijinja::Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = [
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "Monday",
        "Tuesday",
        "Wednesday",
    ];
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let (year, month, day, day_of_year) = date(days);
    let month_name = MONTHS[month];
    // 1970 began on a Thursday.
    let day_name = DAYS[(days % 7) as usize];
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let mut directive = chars.next();
        // glibc's `-` leaves out leading zeros and blanks.
        let bare = directive == Some('-');
        if bare {
            directive = chars.next();
        }
        let number = |value: u64, width: usize| {
            if bare {
                value.to_string()
            } else {
                format!("{value:0width$}")
            }
        };
        let piece = match directive {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month as u64 + 1, 2),
            Some('B') => month_name.into(),
            Some('b' | 'h') => month_name[..3].into(),
            Some('d') => number(day, 2),
            Some('e') if bare => day.to_string(),
            Some('e') => format!("{day:2}"),
            Some('j') => number(day_of_year, 3),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('H') => number(hour, 2),
            Some('I') => number((hour + 11) % 12 + 1, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('F') => format!("{year}-{:02}-{day:02}", month + 1),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".into(),
            Some('z') => "+0000".into(),
            Some('%') => "%".into(),
            other => {
                let directive = other.map_or_else(String::new, String::from);
                return Err(invalid(format!(
                    "strftime_now does not know the directive %{directive}"
                )));
            }
        };
        text.push_str(&piece);
    }
    Ok(text)
}

/// Year, month from 0, day from 1 and day of the year from 1, of a number of days since 1970 (Gregorian).
fn date(mut days: u64) -> (u64, usize, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let day_of_year = days + 1;
    let mut month = 0;
    for length in [
        31,
        if leap(year) { 29 } else { 28 },
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
    ] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1, day_of_year)
}

/// `tojson(indent=None, ensure_ascii=False, separators=None, sort_keys=False)` as Python's `json.dumps` writes it: unlike
/// Jinja's own filter it escapes nothing for HTML.
fn to_json(state: &State, value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
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
        self.state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::None | ValueKind::Undefined => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
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

#[cfg(test)]
mod tests;
