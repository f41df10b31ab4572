//! Answers: what the engine says to OpenAI's JSON, whole or in chunks.

use crate::engine_thread::Summary;
use countdown::generate::FinishReason;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Which of the two endpoints answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Chat,
    Completion,
}

/// What all chunks of an answer have in common.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    style: Style,
    id: String,
    created: u64,
    model: Arc<str>,
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

impl Reply {
    /// An answer with an id of its own.
    pub(crate) fn new(style: Style, model: Arc<str>) -> Reply {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let now = unix_time();
        let prefix = match style {
            Style::Chat => "chatcmpl",
            Style::Completion => "cmpl",
        };
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Reply {
            style,
            id: format!("{prefix}-{:x}{count:08x}", now.as_nanos()),
            created: now.as_secs(),
            model,
        }
    }

    fn object(&self, kind: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": &*self.model,
            "choices": choices,
        })
    }

    /// The whole answer.
    pub(crate) fn whole(&self, text: &str, finish: FinishReason, summary: &Summary) -> Value {
        let (kind, content, value) = match self.style {
            Style::Chat => (
                "chat.completion",
                "message",
                json!({ "role": "assistant", "content": text }),
            ),
            Style::Completion => ("text_completion", "text", json!(text)),
        };
        let choice = json!({
            "index": 0,
            content: value,
            "logprobs": null,
            "finish_reason": finish_name(finish),
        });
        let mut answer = self.object(kind, json!([choice]));
        answer["usage"] = usage(summary);
        answer["timings"] = timings(summary);
        answer
    }

    fn chunk(&self, content: Option<&str>, finish: Option<FinishReason>) -> Value {
        let (kind, name, value) = match (self.style, content) {
            (Style::Chat, Some(text)) => {
                ("chat.completion.chunk", "delta", json!({ "content": text }))
            }
            (Style::Chat, None) => ("chat.completion.chunk", "delta", json!({})),
            (Style::Completion, text) => {
                ("text_completion", "text", json!(text.unwrap_or_default()))
            }
        };
        let choice = json!({
            "index": 0,
            name: value,
            "logprobs": null,
            "finish_reason": finish.map(finish_name),
        });
        self.object(kind, json!([choice]))
    }

    /// The chunk in front of the first text.
    pub(crate) fn opening(&self) -> Value {
        let mut chunk = self.piece("");
        if self.style == Style::Chat {
            chunk["choices"][0]["delta"] = json!({ "role": "assistant", "content": "" });
        }
        chunk
    }

    /// A chunk of text.
    pub(crate) fn piece(&self, text: &str) -> Value {
        self.chunk(Some(text), None)
    }

    /// The chunk after the last text.
    pub(crate) fn closing(&self, finish: FinishReason, summary: &Summary) -> Value {
        let mut chunk = self.chunk(None, Some(finish));
        chunk["timings"] = timings(summary);
        chunk
    }

    /// The chunk of token counts, after all others.
    pub(crate) fn usage(&self, summary: &Summary) -> Value {
        let kind = match self.style {
            Style::Chat => "chat.completion.chunk",
            Style::Completion => "text_completion",
        };
        let mut chunk = self.object(kind, json!([]));
        chunk["usage"] = usage(summary);
        chunk
    }
}

fn finish_name(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

fn usage(summary: &Summary) -> Value {
    let t = &summary.timings;
    json!({
        "prompt_tokens": t.prompt_tokens,
        "completion_tokens": t.tokens,
        "total_tokens": t.prompt_tokens + t.tokens,
        "prompt_tokens_details": { "cached_tokens": t.prompt_tokens - t.prompt_computed },
    })
}

/// llama-server's fields, and the share of neurons skipped.
fn timings(summary: &Summary) -> Value {
    let t = &summary.timings;
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let each = |time: Duration, n: usize| milliseconds(time) / n.max(1) as f64;
    json!({
        "cache_n": t.prompt_tokens - t.prompt_computed,
        "prompt_n": t.prompt_computed,
        "prompt_ms": milliseconds(t.prompt_time),
        "prompt_per_token_ms": each(t.prompt_time, t.prompt_computed),
        "prompt_per_second": t.prompt_rate(),
        "predicted_n": t.tokens,
        "predicted_ms": milliseconds(t.step_time),
        "predicted_per_token_ms": each(t.step_time, t.steps),
        "predicted_per_second": t.step_rate(),
        "realised_sparsity": summary.stats.realised_sparsity(),
    })
}
