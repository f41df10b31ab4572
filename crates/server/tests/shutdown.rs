//! The end. Signals reach the whole process: this file must have one test only.

#![cfg(unix)]

mod common;

use common::{Setup, read, start};
use serde_json::json;
use std::{
    net::TcpStream,
    process::Command,
    time::{Duration, Instant},
};

#[test]
fn a_signal_lets_the_present_answer_end() {
    let server = start(Setup::slow());
    let body =
        json!({ "prompt": "Long ago, ", "temperature": 0, "max_tokens": 2000, "stream": true });
    let mut running = server.stream("/v1/completions", &body);
    running.event().unwrap();
    let waiting = server.send("POST", "/v1/completions", &[], body.to_string().as_bytes());
    server.wait_for("requests_queued", 1.0);

    // Somebody who never finishes a request holds up nobody.
    let _half = server.connect(b"GET /heal");

    let pid = std::process::id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    // Who waits is told at once; who is being served gets everything.
    assert_eq!(read(waiting).error(), (503, None, Some("stopped".into())));
    let events = running.events();
    assert_eq!(events.last().unwrap(), "[DONE]");
    let last: serde_json::Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(last["timings"]["predicted_n"], 2000);
    let answered = Instant::now();
    server.thread.join().unwrap().unwrap();
    assert!(answered.elapsed() < Duration::from_secs(20));
    assert!(TcpStream::connect(server.address).is_err());
}
