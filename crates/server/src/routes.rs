//! The paths.

use crate::{
    ServeOptions,
    api::{self, Delivery, FinalUsage, Request},
    engine_thread::{Answer, Engine, Event},
    error::ApiError,
    metrics::Outcome,
    reply::{Reply, Style, unix_time},
};
use axum::{
    Json, Router,
    body::{Body, Bytes, HttpBody},
    extract::{DefaultBodyLimit, FromRequest, Request as HttpRequest, State},
    http::{Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::stream;
use serde_json::{Value, json};
use std::{convert::Infallible, sync::Arc, time::Duration};

/// Largest body, in bytes: several times the text that the longest contexts hold.
const MAX_BODY: usize = 8 << 20;
/// In which a body must have come.
const BODY_TIME: Duration = Duration::from_secs(30);
/// After so long a silence in a stream, a comment tells clients and proxies that the answer is still being worked on.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Clone)]
struct App {
    engine: Engine,
    model: Arc<str>,
    key: Option<Arc<str>>,
    /// Seconds since 1970.
    started: u64,
}

/// The server's paths over a running engine.
pub fn router(engine: Engine, options: &ServeOptions) -> Router {
    let app = App {
        engine,
        model: options.model_name.as_str().into(),
        key: options.api_key.as_deref().map(Into::into),
        started: unix_time().as_secs(),
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .route_layer(middleware::from_fn_with_state(app.clone(), authorize))
        // Open to whoever watches over the server.
        .route("/health", get(health))
        .fallback(async |uri: Uri| ApiError::not_found(uri.path()))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            ApiError::method_not_allowed(method.as_str(), uri.path())
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(app)
}

async fn authorize(
    State(app): State<App>,
    request: HttpRequest,
    next: Next,
) -> Result<Response, ApiError> {
    if let Some(key) = &app.key {
        let given = request.headers().get(header::AUTHORIZATION);
        if !given.is_some_and(|value| is_bearer(value.as_bytes(), key.as_bytes())) {
            return Err(ApiError::unauthorized());
        }
    }
    Ok(next.run(request).await)
}

/// Whether a header is `Bearer KEY`. Takes as long for a wrong key as for the right one.
fn is_bearer(header: &[u8], key: &[u8]) -> bool {
    let Some((scheme, given)) = header.split_at_checked("Bearer ".len()) else {
        return false;
    };
    let given = given.trim_ascii();
    let differing = given.iter().zip(key).fold(0, |bits, (a, b)| bits | (a ^ b));
    scheme.eq_ignore_ascii_case(b"Bearer ") && given.len() == key.len() && differing == 0
}

async fn health(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    if !app.engine.is_open() {
        return Err(ApiError::stopped());
    }
    Ok(Json(json!({ "status": "ok" })))
}

async fn metrics(State(app): State<App>) -> Response {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.engine.metrics_text()).into_response()
}

async fn models(State(app): State<App>) -> Json<Value> {
    Json(json!({
        "object": "list",
        "data": [{
            "id": &*app.model,
            "object": "model",
            "created": app.started,
            "owned_by": "countdown",
            "meta": app.engine.description(),
        }],
    }))
}

async fn chat(State(app): State<App>, request: HttpRequest) -> Result<Response, ApiError> {
    answer(app, Style::Chat, request).await
}

async fn completion(State(app): State<App>, request: HttpRequest) -> Result<Response, ApiError> {
    answer(app, Style::Completion, request).await
}

async fn answer(app: App, style: Style, request: HttpRequest) -> Result<Response, ApiError> {
    let (request, delivery) = read(style, request)
        .await
        .inspect_err(|_| app.engine.metrics().count(Outcome::Invalid, 1))?;
    let mut answer = app.engine.submit(request)?;
    // The status is not known before the engine has seen the request.
    answer.begun().await?;
    let reply = Reply::new(style, app.model);
    match delivery {
        Delivery::Whole => whole(answer, &reply).await,
        Delivery::Stream(usage) => Ok(stream(answer, reply, usage)),
    }
}

async fn read(style: Style, request: HttpRequest) -> Result<(Request, Delivery), ApiError> {
    // A body that says beforehand how large it is need not be waited for.
    if request.body().size_hint().lower() > MAX_BODY as u64 {
        return Err(ApiError::too_large(MAX_BODY));
    }
    let body = tokio::time::timeout(BODY_TIME, Bytes::from_request(request, &()))
        .await
        .map_err(|_| ApiError::timeout())?
        .map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(MAX_BODY),
            _ => ApiError::bad_request("the body could not be read"),
        })?;
    match style {
        Style::Chat => api::chat(&body),
        Style::Completion => api::completion(&body),
    }
}

async fn whole(mut answer: Answer, reply: &Reply) -> Result<Response, ApiError> {
    let mut text = String::new();
    loop {
        match answer.next().await? {
            Event::Started => {}
            Event::Text(piece) => text.push_str(&piece),
            Event::Finished(finish, summary) => {
                return Ok(Json(reply.whole(&text, finish, &summary)).into_response());
            }
        }
    }
}

/// A stream of server-sent events.
fn stream(answer: Answer, reply: Reply, usage: FinalUsage) -> Response {
    let chunks = Chunks {
        answer,
        reply,
        usage,
        over: false,
    };
    let body = stream::unfold(chunks, |mut chunks| async move {
        let text = chunks.next().await?;
        Some((Ok::<_, Infallible>(text), chunks))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Body::from_stream(body)).into_response()
}

struct Chunks {
    answer: Answer,
    reply: Reply,
    usage: FinalUsage,
    over: bool,
}

impl Chunks {
    /// What is to be sent next; `None` when everything has been.
    async fn next(&mut self) -> Option<String> {
        if self.over {
            return None;
        }
        let Ok(event) = tokio::time::timeout(KEEP_ALIVE, self.answer.next()).await else {
            return Some(": still working\n\n".into());
        };
        self.over = matches!(event, Ok(Event::Finished(..)) | Err(_));
        Some(match event {
            Ok(Event::Started) => self.chunk(self.reply.opening()),
            Ok(Event::Text(text)) => self.chunk(self.reply.piece(&text)),
            Ok(Event::Finished(finish, summary)) => {
                let mut text = self.chunk(self.reply.closing(finish, &summary));
                if self.usage == FinalUsage::Include {
                    text += &data(&self.reply.usage(&summary));
                }
                text + "data: [DONE]\n\n"
            }
            // The status has been sent: the error is the last event.
            Err(error) => data(&error.to_json()),
        })
    }

    /// Where counts come at the end, all other chunks say that they have none.
    fn chunk(&self, mut chunk: Value) -> String {
        if self.usage == FinalUsage::Include {
            chunk["usage"] = Value::Null;
        }
        data(&chunk)
    }
}

/// One event. JSON of `serde_json` has no line breaks.
fn data(json: &Value) -> String {
    format!("data: {json}\n\n")
}
