//! Several clients at once, and clients that go away.

mod common;

use common::{Server, Setup, read, start};
use countdown_server::ServeOptions;
use serde_json::{Value, json};
use std::net::TcpStream;

const COMPLETION: &str = "/v1/completions";
const CANCELLED: &str = "requests_total{outcome=\"cancelled\"}";
const COMPLETED: &str = "requests_total{outcome=\"completed\"}";

fn slow(queue: usize) -> Server {
    start(Setup {
        options: ServeOptions {
            port: 0,
            queue,
            ..ServeOptions::new("byte-llama")
        },
        ..Setup::slow()
    })
}

/// Thousands of tokens.
fn long(stream: bool) -> Value {
    json!({ "prompt": "Long ago, ", "temperature": 0, "stream": stream })
}

fn short() -> Value {
    json!({ "prompt": "Once ", "temperature": 0, "max_tokens": 2 })
}

fn send(server: &Server, body: &Value) -> TcpStream {
    server.send("POST", COMPLETION, &[], body.to_string().as_bytes())
}

#[test]
fn who_goes_away_stops_the_work() {
    let server = slow(4);
    // In the middle of a stream.
    let mut stream = server.stream(COMPLETION, &long(true));
    stream.event().unwrap();
    stream.event().unwrap();
    drop(stream);
    server.wait_for(CANCELLED, 1.0);
    // While waiting for a whole answer.
    let waiting = send(&server, &long(false));
    server.wait_for("requests_processing", 1.0);
    drop(waiting);
    server.wait_for(CANCELLED, 2.0);
    server.wait_for("requests_processing", 0.0);
    let tokens = server.metric("predicted_tokens_total");
    assert!(tokens < 16000.0, "{tokens} tokens for nobody");
    // The engine goes on.
    assert_eq!(server.post(COMPLETION, &short()).status, 200);
    assert_eq!(server.metric(COMPLETED), 1.0);
}

#[test]
fn a_full_queue_refuses() {
    let server = slow(1);
    let running = server.stream(COMPLETION, &long(true));
    let waiting = send(&server, &short());
    server.wait_for("requests_queued", 1.0);
    let refused = server.post(COMPLETION, &short());
    assert_eq!(refused.error(), (503, None, Some("queue_full".into())));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(server.metric("requests_total{outcome=\"rejected\"}"), 1.0);
    // What needs no engine is answered all the same.
    assert_eq!(server.get("/health").status, 200);
    drop(running);
    assert_eq!(read(waiting).status, 200);
}

#[test]
fn who_stops_waiting_gives_up_the_place() {
    let server = slow(1);
    let running = server.stream(COMPLETION, &long(true));
    let impatient = send(&server, &short());
    server.wait_for("requests_queued", 1.0);
    drop(impatient);
    server.wait_for("requests_queued", 0.0);
    let patient = send(&server, &short());
    server.wait_for("requests_queued", 1.0);
    drop(running);
    assert_eq!(read(patient).status, 200);
    server.wait_for(CANCELLED, 2.0);
}

#[test]
fn without_a_queue_one_is_served() {
    let server = slow(0);
    assert_eq!(server.post(COMPLETION, &short()).status, 200);
    let running = server.stream(COMPLETION, &long(true));
    assert_eq!(server.post(COMPLETION, &short()).status, 503);
    drop(running);
    server.wait_for("requests_processing", 0.0);
    assert_eq!(server.post(COMPLETION, &short()).status, 200);
}

#[test]
fn all_who_wait_are_answered_alike() {
    let server = slow(16);
    let clients: Vec<TcpStream> = (0..12).map(|_| send(&server, &short())).collect();
    let texts: Vec<Value> = clients
        .into_iter()
        .map(|client| read(client).json()["choices"].clone())
        .collect();
    assert!(texts.iter().all(|text| *text == texts[0]));
    assert_eq!(server.metric(COMPLETED), 12.0);
}

#[test]
fn metrics_count() {
    let server = slow(4);
    for name in [
        "prompt_tokens_total",
        "predicted_tokens_total",
        "realised_sparsity",
        "drawn_from_all_logits_total",
        COMPLETED,
    ] {
        assert_eq!(server.metric(name), 0.0, "{name}");
    }
    server.post(COMPLETION, &short());
    server.post(COMPLETION, &short());
    server.post(COMPLETION, &json!({ "prompt": 5 }));
    assert_eq!(server.metric(COMPLETED), 2.0);
    assert_eq!(server.metric("requests_total{outcome=\"invalid\"}"), 1.0);
    assert_eq!(server.metric("prompt_tokens_total"), 10.0);
    // All but the last of the second prompt were in the cache.
    assert_eq!(server.metric("prompt_computed_tokens_total"), 6.0);
    assert_eq!(server.metric("predicted_tokens_total"), 4.0);
    assert!(server.metric("prompt_seconds_total") > 0.0);
    assert!(server.metric("predicted_seconds_total") > 0.0);
    assert_eq!(server.metric("realised_sparsity"), 0.0);
    let reply = server.get("/metrics");
    assert!(
        reply
            .header("content-type")
            .unwrap()
            .starts_with("text/plain")
    );
    for line in reply.body.lines() {
        assert!(
            line.starts_with("# HELP countdown_")
                || line.starts_with("# TYPE countdown_")
                || line.starts_with("countdown_")
        );
    }
}
