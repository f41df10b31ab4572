//! What the server refuses, and how.

mod common;

use common::{Setup, read, start};
use countdown_server::{ServeError, ServeOptions};
use serde_json::{Value, json};
use std::io::{Read, Write};

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";

#[test]
fn bad_fields_are_named() {
    let server = start(Setup::default());
    let invalid = Some("invalid_value");
    let unsupported = Some("unsupported_parameter");
    let missing = Some("missing_required_parameter");
    let fields = [
        (json!({ "temperature": "hot" }), "temperature", invalid),
        (json!({ "temperature": -0.1 }), "temperature", invalid),
        (json!({ "temperature": 1e300 }), "temperature", invalid),
        (json!({ "top_p": 1.5 }), "top_p", invalid),
        (json!({ "top_k": -2 }), "top_k", invalid),
        (json!({ "top_k": 1.5 }), "top_k", invalid),
        (json!({ "min_p": -1 }), "min_p", invalid),
        (json!({ "repeat_penalty": 0 }), "repeat_penalty", invalid),
        (json!({ "repeat_last_n": -1 }), "repeat_last_n", invalid),
        (json!({ "seed": "lucky" }), "seed", invalid),
        (json!({ "seed": u64::MAX }), "seed", invalid),
        (json!({ "max_tokens": -2 }), "max_tokens", invalid),
        (json!({ "max_tokens": "ten" }), "max_tokens", invalid),
        (
            json!({ "max_completion_tokens": [1] }),
            "max_completion_tokens",
            invalid,
        ),
        (json!({ "stop": 1 }), "stop", invalid),
        (json!({ "stop": ["a", 1] }), "stop", invalid),
        (json!({ "stop": vec!["a"; 17] }), "stop", invalid),
        (json!({ "stream": "yes" }), "stream", invalid),
        (json!({ "stream_options": true }), "stream_options", invalid),
        (
            json!({ "stream_options": { "include_usage": 1 } }),
            "stream_options.include_usage",
            invalid,
        ),
        (
            json!({ "stream_options": { "colour": 1 } }),
            "stream_options.colour",
            unsupported,
        ),
        (json!({ "model": 3 }), "model", invalid),
        (json!({ "n": 2 }), "n", unsupported),
        (json!({ "n": 0 }), "n", unsupported),
        (json!({ "best_of": 2 }), "best_of", unsupported),
        (json!({ "logprobs": true }), "logprobs", unsupported),
        (json!({ "logprobs": 0 }), "logprobs", unsupported),
        (json!({ "top_logprobs": 5 }), "top_logprobs", unsupported),
        (
            json!({ "logit_bias": { "7": -100 } }),
            "logit_bias",
            unsupported,
        ),
        (
            json!({ "presence_penalty": 0.5 }),
            "presence_penalty",
            unsupported,
        ),
        (
            json!({ "frequency_penalty": 0.5 }),
            "frequency_penalty",
            unsupported,
        ),
        (
            json!({ "tools": [{ "type": "function" }] }),
            "tools",
            unsupported,
        ),
        (
            json!({ "tool_choice": "required" }),
            "tool_choice",
            unsupported,
        ),
        (
            json!({ "functions": [{ "name": "f" }] }),
            "functions",
            unsupported,
        ),
        (
            json!({ "response_format": { "type": "json_object" } }),
            "response_format",
            unsupported,
        ),
        (
            json!({ "modalities": ["text", "audio"] }),
            "modalities",
            unsupported,
        ),
        (
            json!({ "grammar": "root ::= [a-z]" }),
            "grammar",
            unsupported,
        ),
        (json!({ "echo": true }), "echo", unsupported),
        (json!({ "suffix": "end" }), "suffix", unsupported),
        (json!({ "mirostat": 2 }), "mirostat", unsupported),
        (json!({ "what is this": true }), "what is this", unsupported),
    ];
    let bodies = [
        (
            CHAT,
            json!({ "messages": [{ "role": "user", "content": "a" }], "max_tokens": 1 }),
        ),
        (COMPLETION, json!({ "prompt": "a", "max_tokens": 1 })),
    ];
    for (path, sound) in &bodies {
        for (bad, param, code) in &fields {
            let mut body = sound.clone();
            body.as_object_mut()
                .unwrap()
                .extend(bad.as_object().unwrap().clone());
            let error = server.post(path, &body).error();
            assert_eq!(
                error,
                (400, Some((*param).into()), code.map(Into::into)),
                "{bad}"
            );
        }
        assert_eq!(server.post(path, sound).status, 200);
    }

    let message =
        |message: Value| json!({ "messages": [{ "role": "user", "content": "a" }, message] });
    let part = |part: Value| {
        message(json!({ "role": "user", "content": [{ "type": "text", "text": "a" }, part] }))
    };
    for (path, body, param, code) in [
        (CHAT, json!({}), "messages", missing),
        (CHAT, json!({ "messages": null }), "messages", missing),
        (CHAT, json!({ "messages": [] }), "messages", invalid),
        (CHAT, json!({ "messages": "hello" }), "messages", invalid),
        (CHAT, message(json!("hello")), "messages[1]", invalid),
        (
            CHAT,
            message(json!({ "content": "a" })),
            "messages[1].role",
            missing,
        ),
        (
            CHAT,
            message(json!({ "role": 1, "content": "a" })),
            "messages[1].role",
            invalid,
        ),
        (
            CHAT,
            message(json!({ "role": "user" })),
            "messages[1].content",
            missing,
        ),
        (
            CHAT,
            message(json!({ "role": "user", "content": 5 })),
            "messages[1].content",
            invalid,
        ),
        (
            CHAT,
            message(json!({ "role": "user", "content": "a", "name": "Bob" })),
            "messages[1].name",
            unsupported,
        ),
        (
            CHAT,
            message(json!({ "role": "assistant", "content": "a", "tool_calls": [{}] })),
            "messages[1].tool_calls",
            unsupported,
        ),
        (CHAT, part(json!("a")), "messages[1].content[1]", invalid),
        (
            CHAT,
            part(json!({ "type": "text" })),
            "messages[1].content[1].text",
            missing,
        ),
        (
            CHAT,
            part(json!({ "type": "image_url", "image_url": {} })),
            "messages[1].content[1].type",
            invalid,
        ),
        (
            CHAT,
            message(json!({ "role": "alien", "content": "a" })),
            "messages",
            None,
        ),
        (COMPLETION, json!({}), "prompt", missing),
        (COMPLETION, json!({ "prompt": 1 }), "prompt", invalid),
        (COMPLETION, json!({ "prompt": "" }), "prompt", invalid),
        (COMPLETION, json!({ "prompt": [] }), "prompt", invalid),
        (
            COMPLETION,
            json!({ "prompt": ["a", "b"] }),
            "prompt",
            invalid,
        ),
        (COMPLETION, json!({ "prompt": [1, -1] }), "prompt", invalid),
        (COMPLETION, json!({ "prompt": [1, 256] }), "prompt", invalid),
        (
            COMPLETION,
            json!({ "prompt": [1, 1e30] }),
            "prompt",
            invalid,
        ),
    ] {
        let error = server.post(path, &body).error();
        assert_eq!(
            error,
            (400, Some(param.into()), code.map(Into::into)),
            "{body}"
        );
    }
    assert_eq!(server.metric("requests_total{outcome=\"failed\"}"), 0.0);
}

#[test]
fn fields_that_ask_for_nothing_are_allowed() {
    let server = start(Setup::default());
    let body = json!({
        "prompt": "a", "max_tokens": 1, "n": 1, "best_of": 1, "logprobs": null, "top_logprobs": 0, "logit_bias": {},
        "presence_penalty": 0, "frequency_penalty": 0.0, "tools": [], "tool_choice": "auto", "suffix": "", "echo": false,
        "response_format": { "type": "text" }, "modalities": ["text"], "user": "me", "metadata": { "a": "b" }, "store": true,
        "stream_options": null, "stop": null, "seed": -1, "temperature": null, "grammar": "",
    });
    assert_eq!(server.post(COMPLETION, &body).status, 200);
}

#[test]
fn no_body_is_too_strange() {
    let server = start(Setup::default());
    let sound = json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": "é\u{0}\u{1d11e}" }] }],
        "max_tokens": 1, "stop": ["a"], "stream_options": { "include_usage": true } })
    .to_string()
    .into_bytes();
    assert_eq!(server.post_bytes(CHAT, &sound).status, 200);
    // Cut off anywhere.
    for end in 0..sound.len() {
        assert_eq!(server.post_bytes(CHAT, &sound[..end]).error().0, 400);
    }
    // With any one byte gone or wrong: whatever it then is, the server answers and lives on.
    for at in 0..sound.len() {
        for byte in [0, b'"', b'[', b'9', 0xff] {
            let mut body = sound.clone();
            body[at] = byte;
            let status = server.post_bytes(CHAT, &body).status;
            assert!(matches!(status, 200 | 400), "{status}");
        }
    }
    for body in ["null", "[]", "1e999", "\"a\"", "{}", "{\"a\"", "\u{feff}{}"] {
        assert_eq!(
            server.post_bytes(CHAT, body.as_bytes()).error().0,
            400,
            "{body}"
        );
    }
    let deep = "[".repeat(1 << 20);
    assert_eq!(server.post_bytes(CHAT, deep.as_bytes()).error().0, 400);
    assert_eq!(server.metric("requests_total{outcome=\"failed\"}"), 0.0);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn wrong_paths_methods_and_sizes() {
    let server = start(Setup::default());
    let reply = server.get("/v1/nothing?here");
    assert_eq!(reply.error(), (404, None, Some("unknown_url".into())));
    let reply = server.get(CHAT);
    assert_eq!(
        reply.error(),
        (405, None, Some("method_not_allowed".into()))
    );
    assert_eq!(reply.header("allow"), Some("POST"));
    assert_eq!(server.post("/health", &json!({})).error().0, 405);

    let head = |length: &str| {
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        read(server.connect(head.as_bytes()))
    };
    assert_eq!(
        head("99000000").error(),
        (413, None, Some("request_too_large".into()))
    );
    // One that does not say, but is.
    let chunk = [b"80000\r\n", &[b' '; 0x80000][..], b"\r\n"].concat();
    let start = format!("POST {CHAT} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut stream = server.connect(start.as_bytes());
    let sender = stream.try_clone().unwrap();
    std::thread::spawn(move || while (&sender).write_all(&chunk).is_ok() {});
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 413");
    // Not HTTP at all.
    let reply = read(server.connect(b"\x16\x03\x01 hello\r\n\r\n"));
    assert_eq!(reply.status, 400);
    assert_eq!(server.get("/health").json(), json!({ "status": "ok" }));
}

#[test]
fn the_key_opens_all_but_health() {
    let server = start(Setup {
        options: ServeOptions {
            port: 0,
            api_key: Some("open-sesame".into()),
            ..ServeOptions::new("byte-llama")
        },
        ..Setup::default()
    });
    for path in ["/v1/models", "/metrics"] {
        let reply = server.get(path);
        assert_eq!(reply.error(), (401, None, Some("invalid_api_key".into())));
        assert_eq!(reply.json()["error"]["type"], "authentication_error");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        for (wrong, key) in [
            "Bearer",
            "Bearer ",
            "Bearer open-sesam",
            "Bearer open-sesamee",
            "Bearer open-sesamE",
            "Basic open-sesame",
            "open-sesame",
        ]
        .iter()
        .enumerate()
        {
            let reply = server.request("GET", path, &[&format!("Authorization: {key}")], b"");
            assert_eq!(reply.status, 401, "{wrong}: {key}");
        }
        for right in ["Bearer open-sesame", "bearer  open-sesame"] {
            let reply = server.request("GET", path, &[&format!("Authorization: {right}")], b"");
            assert_eq!(reply.status, 200, "{right}");
        }
    }
    assert_eq!(server.post(CHAT, &json!({})).status, 401);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn servers_that_cannot_be() {
    let attempt = |options: ServeOptions| {
        let setup = Setup {
            options,
            ..Setup::default()
        };
        common::serve_to_the_end(setup).unwrap_err()
    };
    let taken = start(Setup::default());
    let options = ServeOptions {
        port: taken.address.port(),
        ..ServeOptions::new("byte-llama")
    };
    let error = attempt(options.clone());
    assert!(matches!(error, ServeError::Listen { .. }), "{error}");
    assert!(
        error.to_string().contains(&taken.address.to_string()),
        "{error}"
    );
    let error = attempt(ServeOptions {
        port: 0,
        api_key: Some(String::new()),
        ..options
    });
    assert!(matches!(error, ServeError::EmptyKey));
}
