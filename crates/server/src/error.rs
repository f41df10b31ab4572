//! Errors in OpenAI's shape.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use countdown::Error;
use serde_json::{Value, json};

/// An answer that says what was wrong with a request, or with the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// For people: what is wrong and what to do.
    pub(crate) message: String,
    /// The field of the request at fault.
    pub(crate) param: Option<String>,
    /// For programs.
    pub(crate) code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            message: message.into(),
            param: None,
            code,
        }
    }

    /// The request as a whole cannot be understood.
    pub(crate) fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, None, message)
    }

    /// A field has a value that it cannot have; `expected` completes the sentence "`field` must be ...".
    pub(crate) fn invalid(param: impl Into<String>, expected: &str) -> ApiError {
        let param = param.into();
        ApiError {
            message: format!("`{param}` must be {expected}"),
            param: Some(param),
            ..ApiError::new(StatusCode::BAD_REQUEST, Some("invalid_value"), "")
        }
    }

    /// A field asks for what this server cannot do.
    pub(crate) fn unsupported(param: impl Into<String>) -> ApiError {
        let param = param.into();
        ApiError {
            message: format!("`{param}` is not supported by this server: leave it out"),
            param: Some(param),
            ..ApiError::new(StatusCode::BAD_REQUEST, Some("unsupported_parameter"), "")
        }
    }

    /// A field is missing.
    pub(crate) fn missing(param: &str) -> ApiError {
        ApiError {
            param: Some(param.into()),
            ..ApiError::new(
                StatusCode::BAD_REQUEST,
                Some("missing_required_parameter"),
                format!("`{param}` is missing"),
            )
        }
    }

    /// A prompt of `needed` tokens in a context of `limit`.
    pub(crate) fn too_long(needed: usize, limit: usize) -> ApiError {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            Some("context_length_exceeded"),
            format!(
                "the prompt has {needed} tokens, but the context holds {limit}: shorten it, or start the server with a larger context"
            ),
        )
    }

    /// The API key is missing or wrong.
    pub(crate) fn unauthorized() -> ApiError {
        ApiError::new(
            StatusCode::UNAUTHORIZED,
            Some("invalid_api_key"),
            "the API key is missing or wrong: send `Authorization: Bearer KEY`",
        )
    }

    /// There is nothing at this path.
    pub(crate) fn not_found(path: &str) -> ApiError {
        ApiError::new(
            StatusCode::NOT_FOUND,
            Some("unknown_url"),
            format!("there is nothing at {path}"),
        )
    }

    /// The path is right, the method is not.
    pub(crate) fn method_not_allowed(method: &str, path: &str) -> ApiError {
        ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            Some("method_not_allowed"),
            format!("{path} does not answer {method}"),
        )
    }

    /// The body did not come in time.
    pub(crate) fn timeout() -> ApiError {
        ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            Some("request_timeout"),
            "the request's body did not come in time",
        )
    }

    /// The body is larger than `limit` bytes.
    pub(crate) fn too_large(limit: usize) -> ApiError {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Some("request_too_large"),
            format!("the request's body is larger than {limit} bytes"),
        )
    }

    /// As many requests wait as may.
    pub(crate) fn queue_full() -> ApiError {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Some("queue_full"),
            "too many requests are waiting: try again later",
        )
    }

    /// The engine ended, or is about to.
    pub(crate) fn stopped() -> ApiError {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Some("stopped"),
            "the server is stopping",
        )
    }

    /// The body of the answer.
    pub(crate) fn to_json(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::SERVICE_UNAVAILABLE => "unavailable_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        })
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> ApiError {
        match error {
            Error::ContextFull { needed, limit } => ApiError::too_long(needed, limit),
            Error::Input { cause, remedy } => ApiError::bad_request(format!("{cause}: {remedy}")),
            Error::Template(_) => ApiError {
                param: Some("messages".into()),
                ..ApiError::bad_request(error.to_string())
            },
            error => ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                Some("engine_error"),
                format!("{error}: {}", error.remedy()),
            ),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        let extra = match self.status {
            StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Bearer")),
            // Seconds; how long an answer takes is not known beforehand.
            StatusCode::SERVICE_UNAVAILABLE => Some((header::RETRY_AFTER, "1")),
            _ => None,
        };
        if let Some((name, value)) = extra {
            response
                .headers_mut()
                .insert(name, HeaderValue::from_static(value));
        }
        response
    }
}
