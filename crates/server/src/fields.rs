//! The fields of a request's JSON object, taken out one by one with checks that name the field.

use crate::error::ApiError;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// Fields that say something about a request but nothing about its answer.
const WITHOUT_EFFECT: [&str; 10] = [
    "cache_prompt",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "timings_per_token",
    "user",
];

/// What has not been taken yet.
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// In front of names in errors, such as `messages[2].`.
    prefix: String,
}

impl Fields {
    /// The fields of a body.
    pub(crate) fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Fields {
                map,
                prefix: String::new(),
            }),
            Ok(_) => Err(ApiError::bad_request("the body must be a JSON object")),
            Err(e) => Err(ApiError::bad_request(format!("the body is not JSON: {e}"))),
        }
    }

    /// The fields of an object at `path` within the body.
    pub(crate) fn nested(path: &str, value: Value) -> Result<Fields, ApiError> {
        match value {
            Value::Object(map) => Ok(Fields {
                map,
                prefix: format!("{path}."),
            }),
            _ => Err(ApiError::invalid(path, "an object")),
        }
    }

    /// The name of a field as seen from the body.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A field, `None` where it is absent or null.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// A field that must be there.
    pub(crate) fn require(&mut self, name: &str) -> Result<Value, ApiError> {
        let path = self.path(name);
        self.take(name).ok_or_else(|| ApiError::missing(&path))
    }

    fn checked<T>(
        &mut self,
        name: &str,
        expected: impl FnOnce() -> String,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => convert(&value)
                .map(Some)
                .ok_or_else(|| ApiError::invalid(self.path(name), &expected())),
        }
    }

    /// A number.
    pub(crate) fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f32>, ApiError> {
        self.checked(
            name,
            || format!("a number from {} to {}", range.start(), range.end()),
            |value| {
                value
                    .as_f64()
                    .filter(|n| range.contains(n))
                    .map(|n| n as f32)
            },
        )
    }

    /// A whole number of at least `least`.
    pub(crate) fn integer(&mut self, name: &str, least: i64) -> Result<Option<i64>, ApiError> {
        self.checked(
            name,
            || format!("a whole number of at least {least}"),
            |value| value.as_i64().filter(|&n| n >= least),
        )
    }

    /// Yes or no; no where it is absent.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        self.checked(name, || "true or false".into(), Value::as_bool)
            .map(Option::unwrap_or_default)
    }

    /// Text.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.checked(
            name,
            || "a string".into(),
            |value| value.as_str().map(String::from),
        )
    }

    /// Text that must be there.
    pub(crate) fn require_text(&mut self, name: &str) -> Result<String, ApiError> {
        let path = self.path(name);
        self.text(name)?.ok_or_else(|| ApiError::missing(&path))
    }

    /// Refuses what is left, unless it asks for nothing.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        let wanted = |(name, value): &(&String, &Value)| !asks_nothing(name, value);
        match self.map.iter().find(wanted) {
            Some((name, _)) => Err(ApiError::unsupported(self.path(name))),
            None => Ok(()),
        }
    }
}

/// Whether a field that this server does not know changes no answer: it is off, or has the value that stands for nothing.
fn asks_nothing(name: &str, value: &Value) -> bool {
    if WITHOUT_EFFECT.contains(&name) {
        return true;
    }
    match (name, value) {
        // How many answers, and among how many the best is chosen.
        ("n" | "best_of", _) => value.as_u64() == Some(1),
        // Completions with `logprobs: 0` want the probability of each token.
        ("logprobs", Value::Number(_)) => false,
        ("tool_choice" | "function_call", Value::String(s)) => s == "none" || s == "auto",
        ("response_format", Value::Object(format)) => {
            format.len() == 1 && format.get("type").and_then(Value::as_str) == Some("text")
        }
        ("modalities", Value::Array(kinds)) => kinds.iter().all(|k| k == "text"),
        (_, Value::Null | Value::Bool(false)) => true,
        (_, Value::Number(n)) => n.as_f64() == Some(0.0),
        (_, Value::String(s)) => s.is_empty(),
        (_, Value::Array(items)) => items.is_empty(),
        (_, Value::Object(map)) => map.is_empty(),
        (_, Value::Bool(true)) => false,
    }
}
