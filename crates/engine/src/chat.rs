//! Conversations to prompts, by the Jinja template that comes with a model.
//!
//! The environment is that of Hugging Face's `apply_chat_template`: blocks trimmed, Python's string and dictionary methods,
//! `raise_exception`, `strftime_now`, `tojson` as `json.dumps` writes it. A template is foreign code out of a model file:
//! it has no access to anything but the conversation, and its work, its output and its nesting are bounded.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use minijinja::{
    Environment, ErrorKind, Value,
    syntax::SyntaxConfig,
    value::{Serde, ValueKind},
};
use serde_json::{Map, Value as Json, json};

use crate::{Error, Result};

mod dates;
mod methods;
mod values;

/// One turn of a conversation: what OpenAI's API and Hugging Face's templates call a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(Map<String, Json>);

impl Message {
    /// A turn of `role` (`system`, `user`, `assistant`, or what else the template knows) that says `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let fields = [("role", role.into()), ("content", content.into())];
        let fields = fields.map(|(name, text)| (name.to_owned(), Json::String(text)));
        Message(fields.into_iter().collect())
    }

    /// A message with everything that templates read: `role`, and `content` (a text or a list of parts), `tool_calls`,
    /// `tool_call_id`, `name`, `reasoning_content` and their like.
    ///
    /// # Errors
    /// [`Error::Input`] where it is no object with a `role`.
    pub fn from_json(message: Json) -> Result<Self> {
        match message {
            Json::Object(fields) if fields.get("role").is_some_and(Json::is_string) => {
                Ok(Message(fields))
            }
            _ => Err(Error::Input {
                cause: "a message is no object with a `role`".into(),
                remedy: "write it as {\"role\": \"user\", \"content\": \"...\"}".into(),
            }),
        }
    }
}

/// What a template writes down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    /// The turns so far.
    pub messages: Vec<Message>,
    /// The functions that the model may call, as OpenAI's API describes them:
    /// `{"type": "function", "function": {"name": ..., "parameters": ...}}`.
    pub tools: Vec<Json>,
    /// Further variables under the names that the template knows, such as `enable_thinking`.
    pub variables: Map<String, Json>,
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        Conversation {
            messages,
            ..Conversation::default()
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
    /// Whether there is a second template for conversations with tools.
    has_tool_use: bool,
}

const NAME: &str = "chat template";
const TOOL_USE: &str = "chat template `tool_use`";

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

impl ChatTemplate {
    /// Parses `source`; `bos` and `eos` are the spellings of the model's tokens, empty where it has none.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(template_error)?;
        let mut environment = Environment::new();
        environment.set_syntax(syntax);
        environment.set_formatter(values::print);
        environment.set_unknown_method_callback(methods::method);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", dates::strftime_now);
        environment.add_filter("tojson", values::to_json);
        environment.add_filter("string", values::text);
        environment.add_filter("trim", values::trim);
        environment.add_test("iterable", is_iterable);
        environment.add_test("sequence", is_sequence);
        Ok(ChatTemplate {
            environment: with_template(environment, NAME, source)?,
            bos: bos.into(),
            eos: eos.into(),
            has_tool_use: false,
        })
    }

    /// Adds the model's other template, which takes the place of the first where a conversation has tools.
    pub fn with_tool_use(mut self, source: &str) -> Result<Self> {
        self.environment = with_template(self.environment, TOOL_USE, source)?;
        self.has_tool_use = true;
        Ok(self)
    }

    /// The prompt for a conversation.
    pub fn render(&self, conversation: &Conversation, prompt: GenerationPrompt) -> Result<String> {
        let messages: Vec<&Map<String, Json>> =
            conversation.messages.iter().map(|m| &m.0).collect();
        let tools = (!conversation.tools.is_empty()).then_some(&conversation.tools);
        let mut context = Map::from_iter([
            ("bos_token".into(), json!(self.bos)),
            ("eos_token".into(), json!(self.eos)),
            ("documents".into(), Json::Null),
        ]);
        context.extend(conversation.variables.clone());
        context.extend([
            ("messages".into(), json!(messages)),
            ("tools".into(), json!(tools)),
            (
                "add_generation_prompt".into(),
                json!(prompt == GenerationPrompt::Add),
            ),
        ]);
        let context = Json::Object(context);
        let bytes = context.to_string().len() as u64;
        let length = PASSES * (bytes / 64) + FUEL_PER_MESSAGE * messages.len() as u64;
        let fuel = (FUEL + length).min(MAX_FUEL);
        let context = Value::from(Serde(context));
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let name = match tools {
            Some(_) if self.has_tool_use => TOOL_USE,
            _ => NAME,
        };
        bounded(fuel as usize, move || {
            environment.get_template(name)?.render(context)
        })
    }
}

/// Parses one more template.
fn with_template(
    mut environment: Environment<'static>,
    name: &'static str,
    source: &str,
) -> Result<Environment<'static>> {
    if source.len() > MAX_SOURCE {
        let bytes = source.len();
        return Err(Error::Template(format!(
            "it has {bytes} bytes, more than {MAX_SOURCE}"
        )));
    }
    let source = without_generation_marks(source);
    bounded(source.len(), move || {
        environment.add_template_owned(name, source)?;
        Ok(environment)
    })
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

/// Jinja's `sequence` test: what has a length and items, which texts and maps have, too.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::Map | ValueKind::String
    )
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

#[cfg(test)]
mod tests;
