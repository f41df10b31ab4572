//! Requests for answers: OpenAI's JSON to what the engine takes.

use crate::{error::ApiError, fields::Fields};
use countdown::{
    chat::{Conversation, Message},
    generate::GenerateOptions,
    sampler::SamplingOptions,
};
use serde_json::Value;

/// As many stop texts as llama-server's and OpenAI's clients ever send.
const MAX_STOPS: usize = 16;

/// A request as the engine takes it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) prompt: Prompt,
    pub(crate) options: GenerateOptions,
}

/// What is to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    /// A conversation, to be written by the model's template.
    Chat(Conversation),
    /// Text, special tokens included.
    Text(String),
    /// Tokens.
    Tokens(Vec<u32>),
}

/// How the answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// At once, when it is complete.
    Whole,
    /// Piece by piece.
    Stream(FinalUsage),
}

/// Whether a stream ends with a chunk of token counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FinalUsage {
    Include,
    Omit,
}

/// The body of `/v1/chat/completions`.
pub(crate) fn chat(body: &[u8]) -> Result<(Request, Delivery), ApiError> {
    let mut fields = Fields::parse(body)?;
    let messages = match fields.require("messages")? {
        Value::Array(items) if !items.is_empty() => items,
        _ => {
            return Err(ApiError::invalid(
                "messages",
                "a list of at least one message",
            ));
        }
    };
    let messages = messages
        .into_iter()
        .enumerate()
        .map(|(i, item)| message(Fields::nested(&format!("messages[{i}]"), item)?))
        .collect::<Result<Vec<_>, _>>()?;
    rest(fields, Prompt::Chat(Conversation::from(messages)))
}

/// The body of `/v1/completions`.
pub(crate) fn completion(body: &[u8]) -> Result<(Request, Delivery), ApiError> {
    let mut fields = Fields::parse(body)?;
    let prompt = prompt(fields.require("prompt")?).ok_or_else(|| {
        ApiError::invalid(
            "prompt",
            "a string, a list of one string, or a list of tokens",
        )
    })?;
    rest(fields, prompt)
}

/// The fields that both have.
fn rest(mut fields: Fields, prompt: Prompt) -> Result<(Request, Delivery), ApiError> {
    // There is one model, and as with llama-server every name means it.
    fields.text("model")?;
    let older = limit(&mut fields, "max_tokens")?;
    let newer = limit(&mut fields, "max_completion_tokens")?;
    let options = GenerateOptions {
        max_tokens: newer.or(older),
        stop: stop(&mut fields)?,
        sampling: sampling(&mut fields)?,
        ..GenerateOptions::default()
    };
    let delivery = delivery(&mut fields)?;
    fields.finish()?;
    Ok((Request { prompt, options }, delivery))
}

/// A number of tokens; -1 is no limit, as with llama-server.
fn limit(fields: &mut Fields, name: &str) -> Result<Option<usize>, ApiError> {
    let limit = fields.integer(name, -1)?;
    Ok(limit.and_then(|n| usize::try_from(n).ok()))
}

fn delivery(fields: &mut Fields) -> Result<Delivery, ApiError> {
    let stream = fields.flag("stream")?;
    let mut usage = FinalUsage::Omit;
    if let Some(options) = fields.take("stream_options") {
        let mut options = Fields::nested("stream_options", options)?;
        if options.flag("include_usage")? {
            usage = FinalUsage::Include;
        }
        // It pads chunks against eavesdroppers on a network: nothing that a client could miss.
        options.flag("include_obfuscation")?;
        options.finish()?;
    }
    Ok(if stream {
        Delivery::Stream(usage)
    } else {
        Delivery::Whole
    })
}

fn sampling(fields: &mut Fields) -> Result<SamplingOptions, ApiError> {
    let mut sampling = SamplingOptions::default();
    if let Some(temperature) = fields.number("temperature", 0.0..=2.0)? {
        sampling.temperature = temperature;
    }
    if let Some(top_k) = fields.integer("top_k", -1)? {
        // 0 and -1 are off.
        sampling.top_k = usize::try_from(top_k).unwrap_or(0);
    }
    if let Some(top_p) = fields.number("top_p", 0.0..=1.0)? {
        sampling.top_p = top_p;
    }
    if let Some(min_p) = fields.number("min_p", 0.0..=1.0)? {
        sampling.min_p = min_p;
    }
    if let Some(penalty) = fields.number("repeat_penalty", 0.01..=100.0)? {
        sampling.repeat_penalty = penalty;
    }
    if let Some(last) = fields.integer("repeat_last_n", 0)? {
        sampling.repeat_last_n = usize::try_from(last).unwrap_or(usize::MAX);
    }
    if let Some(seed) = fields.integer("seed", -1)? {
        // -1 is another one every time.
        sampling.seed = u64::try_from(seed).ok();
    }
    Ok(sampling)
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let invalid = || {
        let expected = format!("a string or a list of at most {MAX_STOPS} strings");
        ApiError::invalid("stop", &expected)
    };
    let mut stops = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(items)) if items.len() <= MAX_STOPS => items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(text),
                _ => Err(invalid()),
            })
            .collect::<Result<Vec<_>, _>>()?,
        Some(_) => return Err(invalid()),
    };
    // An empty text would stop everything; clients send it for none.
    stops.retain(|text| !text.is_empty());
    Ok(stops)
}

fn prompt(value: Value) -> Option<Prompt> {
    let items = match value {
        Value::String(text) => return Some(Prompt::Text(text)),
        Value::Array(items) => items,
        _ => return None,
    };
    if let [Value::String(text)] = &items[..] {
        return Some(Prompt::Text(text.clone()));
    }
    let token = |item: &Value| item.as_u64().and_then(|n| u32::try_from(n).ok());
    items
        .iter()
        .map(token)
        .collect::<Option<_>>()
        .map(Prompt::Tokens)
}

fn message(mut fields: Fields) -> Result<Message, ApiError> {
    let role = match fields.require_text("role")? {
        // OpenAI's newer word for the same; templates know the older one.
        role if role == "developer" => "system".into(),
        role => role,
    };
    let path = fields.path("content");
    let content = content(&path, fields.require("content")?)?;
    fields.finish()?;
    Ok(Message::new(role, content))
}

/// A text, or the texts of a list of parts, one a line.
fn content(path: &str, value: Value) -> Result<String, ApiError> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        _ => return Err(ApiError::invalid(path, "a string or a list of parts")),
    };
    let texts = parts.into_iter().enumerate().map(|(i, part)| {
        let mut part = Fields::nested(&format!("{path}[{i}]"), part)?;
        if part.text("type")?.as_deref() != Some("text") {
            return Err(ApiError::invalid(part.path("type"), "\"text\""));
        }
        let text = part.require_text("text")?;
        part.finish()?;
        Ok(text)
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}
