//! What comes out of the two endpoints for answers.

mod common;

use common::{Setup, start};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";
const AUSTEN: &str = "It is a truth universally acknowledged, that ";

fn with(mut body: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

fn austen(more: Value) -> Value {
    with(
        json!({ "prompt": AUSTEN, "temperature": 0, "max_tokens": 40 }),
        more,
    )
}

fn hello(more: Value) -> Value {
    let messages = json!([{ "role": "user", "content": "Who is Emma?" }]);
    with(
        json!({ "messages": messages, "temperature": 0, "max_tokens": 40 }),
        more,
    )
}

/// The chunks of a stream, without the mark at its end.
#[track_caller]
fn chunks(events: Vec<String>) -> Vec<Value> {
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(last, "[DONE]");
    chunks
        .iter()
        .map(|chunk| serde_json::from_str(chunk).unwrap())
        .collect()
}

fn streamed_text(chunks: &[Value]) -> String {
    let text = |chunk: &Value| {
        let choice = &chunk["choices"][0];
        let text = choice["text"]
            .as_str()
            .or(choice["delta"]["content"].as_str());
        text.unwrap_or_default().to_owned()
    };
    chunks.iter().map(text).collect()
}

#[test]
fn greedy_continuation_is_the_models_own() {
    let server = start(Setup::default());
    let reply = server.post(COMPLETION, &austen(json!({}))).json();
    assert_eq!(reply["object"], "text_completion");
    assert_eq!(reply["choices"][0]["index"], 0);
    // From the fixture's README.
    assert_eq!(
        reply["choices"][0]["text"],
        "she had\nsomething to her the same of the "[..40]
    );
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert_eq!(
        reply["usage"],
        json!({
            "prompt_tokens": 45,
            "completion_tokens": 40,
            "total_tokens": 85,
            "prompt_tokens_details": { "cached_tokens": 0 },
        })
    );
    let timings = &reply["timings"];
    assert_eq!(timings["prompt_n"], 45);
    assert_eq!(timings["predicted_n"], 40);
    for rate in ["prompt_per_second", "predicted_per_second"] {
        assert!(timings[rate].as_f64().unwrap() > 0.0, "{rate}");
    }
    assert_eq!(timings["realised_sparsity"], 0.0);
}

#[test]
fn streams_say_what_whole_answers_say() {
    let server = start(Setup::default());
    for (path, body) in [(COMPLETION, austen(json!({}))), (CHAT, hello(json!({})))] {
        let whole = server.post(path, &body).json();
        let choice = &whole["choices"][0];
        let expected = choice["text"]
            .as_str()
            .or(choice["message"]["content"].as_str());
        let expected = expected.unwrap();
        assert_eq!(expected.len(), 40);

        let stream = with(body, json!({ "stream": true }));
        let plain = chunks(server.stream(path, &stream).events());
        assert_eq!(streamed_text(&plain), expected);
        assert!(plain.len() > 20, "{} chunks are no stream", plain.len());
        assert!(plain.iter().all(|c| c.get("usage").is_none()));
        let (last, others) = plain.split_last().unwrap();
        assert_eq!(last["choices"][0]["finish_reason"], "length");
        assert!(last["timings"]["predicted_per_second"].as_f64().unwrap() > 0.0);
        let open = |c: &Value| c["choices"][0]["finish_reason"].is_null();
        assert!(others.iter().all(open));
        let same = |c: &&Value| c["id"] == last["id"] && c["object"] == last["object"];
        assert!(others.iter().all(|c| same(&c)));

        let counted = with(
            stream,
            json!({ "stream_options": { "include_usage": true } }),
        );
        let counted = chunks(server.stream(path, &counted).events());
        assert_eq!(streamed_text(&counted), expected);
        let (usage, others) = counted.split_last().unwrap();
        assert_eq!(usage["choices"], json!([]));
        for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            assert_eq!(usage["usage"][key], whole["usage"][key], "{key}");
        }
        assert!(
            others
                .iter()
                .all(|c| c["usage"] == Value::Null && c.get("usage").is_some())
        );
    }
}

#[test]
fn chat_has_openais_shape() {
    let server = start(Setup::default());
    let whole = server.post(CHAT, &hello(json!({}))).json();
    assert_eq!(whole["object"], "chat.completion");
    assert!(whole["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(whole["choices"][0]["message"]["role"], "assistant");
    // ChatML around the question, a token a byte.
    let prompt = "<|im_start|>user\nWho is Emma?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(whole["usage"]["prompt_tokens"], prompt.len());
    let chunks = chunks(
        server
            .stream(CHAT, &hello(json!({ "stream": true })))
            .events(),
    );
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({ "role": "assistant", "content": "" })
    );
    assert_eq!(chunks.last().unwrap()["choices"][0]["delta"], json!({}));
}

#[test]
fn every_model_name_means_the_one_model() {
    let server = start(Setup::default());
    for name in [json!("gpt-4o"), json!("byte-llama"), json!(null)] {
        let reply = server.post(
            COMPLETION,
            &austen(json!({ "model": name, "max_tokens": 1 })),
        );
        assert_eq!(
            (reply.status, &reply.json()["model"]),
            (200, &json!("byte-llama"))
        );
    }
}

#[test]
fn stop_texts_end_answers_and_are_never_sent() {
    let server = start(Setup::default());
    for (stop, text) in [
        (json!("thing"), "she had\nsome"),
        (json!(["nothing like it", "d\nso"]), "she ha"),
        (json!(["she"]), ""),
        (json!(["", "her"]), "she had\nsomething to "),
    ] {
        let body = austen(json!({ "stop": stop }));
        let whole = server.post(COMPLETION, &body).json();
        assert_eq!(whole["choices"][0]["text"], text, "{stop}");
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
        let chunks = chunks(
            server
                .stream(COMPLETION, &with(body, json!({ "stream": true })))
                .events(),
        );
        assert_eq!(streamed_text(&chunks), text, "{stop}");
        assert_eq!(
            chunks.last().unwrap()["choices"][0]["finish_reason"],
            "stop"
        );
    }
    // A stop text that is only begun when the answer ends is part of the answer.
    let body = austen(json!({ "stop": "she had no", "max_tokens": 7 }));
    let whole = server.post(COMPLETION, &body).json();
    assert_eq!(whole["choices"][0]["text"], "she had");
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
}

#[test]
fn same_seed_same_answer_and_whole_characters() {
    let server = start(Setup::default());
    let wild = json!({
        "prompt": "snow ☃ \u{1d11e} und Käse: ", "max_tokens": 150, "seed": 7,
        "temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 3.0,
        "repeat_last_n": 256,
    });
    let texts: Vec<String> = (0..2)
        .map(|_| {
            let whole = server.post(COMPLETION, &wild).json();
            assert_eq!(
                whole["usage"]["prompt_tokens"],
                "snow ☃ \u{1d11e} und Käse: ".len()
            );
            whole["choices"][0]["text"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(texts[0], texts[1]);
    // A model that may not repeat itself comes to bytes that make no characters: both put the same marks in their place.
    assert!(texts[0].contains('\u{fffd}'), "{}", texts[0]);
    let streamed = chunks(
        server
            .stream(COMPLETION, &with(wild.clone(), json!({ "stream": true })))
            .events(),
    );
    assert_eq!(streamed_text(&streamed), texts[0]);
    let other = server
        .post(COMPLETION, &with(wild, json!({ "seed": 8 })))
        .json();
    assert_ne!(other["choices"][0]["text"], texts[0]);
}

#[test]
fn sampling_fields_reach_the_sampler() {
    let server = start(Setup::default());
    let text = |more: Value| {
        let hot =
            austen(json!({ "temperature": 2.0, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 1 }));
        let reply = server.post(COMPLETION, &with(hot, more)).json();
        reply["choices"][0]["text"].clone()
    };
    let greedy = text(json!({ "temperature": 0 }));
    assert_ne!(text(json!({})), greedy);
    for one_left in [
        json!({ "top_k": 1 }),
        json!({ "top_p": 0.0 }),
        json!({ "min_p": 1.0 }),
    ] {
        assert_eq!(text(one_left.clone()), greedy, "{one_left}");
    }
    let penalised = json!({ "temperature": 0, "repeat_penalty": 1.5 });
    assert_ne!(text(penalised.clone()), greedy);
    assert_eq!(text(with(penalised, json!({ "repeat_last_n": 0 }))), greedy);
    // More to look back on than there can be.
    let long = json!({ "temperature": 0, "repeat_penalty": 1.5, "repeat_last_n": i64::MAX });
    assert_ne!(text(long), greedy);
}

#[test]
fn limits_on_tokens() {
    let server = start(Setup::default());
    let tokens = |more: Value| {
        let reply = server.post(COMPLETION, &austen(more)).json();
        assert_eq!(reply["choices"][0]["finish_reason"], "length");
        reply["usage"]["completion_tokens"].as_u64().unwrap()
    };
    assert_eq!(tokens(json!({ "max_tokens": 0 })), 0);
    assert_eq!(tokens(json!({ "max_tokens": 1 })), 1);
    assert_eq!(
        tokens(json!({ "max_tokens": 3, "max_completion_tokens": 2 })),
        2
    );
    // Without a limit the context ends the answer; its last token needs no place there.
    let room = 256 - AUSTEN.len() as u64 + 1;
    for none in [json!(null), json!(-1), json!(1_000_000)] {
        assert_eq!(tokens(json!({ "max_tokens": none })), room);
    }
}

#[test]
fn prompts_as_long_as_the_context() {
    let server = start(Setup::default());
    let post = |n: usize| {
        server.post(
            COMPLETION,
            &json!({ "prompt": "a".repeat(n), "temperature": 0 }),
        )
    };
    let full = post(256).json();
    assert_eq!(full["usage"]["completion_tokens"], 1);
    let (status, _, code) = post(257).error();
    assert_eq!(
        (status, code.as_deref()),
        (400, Some("context_length_exceeded"))
    );
    // In a stream too, the status tells.
    let body = json!({ "prompt": "a".repeat(257), "stream": true });
    assert_eq!(server.post(COMPLETION, &body).status, 400);
}

#[test]
fn prompts_are_text_or_tokens_and_contents_text_or_parts() {
    let server = start(Setup::default());
    let completion = |prompt: Value| {
        let reply = server
            .post(COMPLETION, &austen(json!({ "prompt": prompt })))
            .json();
        reply["choices"][0]["text"].clone()
    };
    let text = completion(json!(AUSTEN));
    assert_eq!(completion(json!([AUSTEN])), text);
    assert_eq!(completion(json!(AUSTEN.as_bytes())), text);

    let chat = |content: Value| {
        let messages = json!([{ "role": "user", "content": content, "tool_calls": null }]);
        let reply = server
            .post(CHAT, &hello(json!({ "messages": messages })))
            .json();
        (
            reply["usage"]["prompt_tokens"].clone(),
            reply["choices"][0]["message"]["content"].clone(),
        )
    };
    let part = |text: &str| json!({ "type": "text", "text": text });
    assert_eq!(
        chat(json!([part("One."), part("Two.")])),
        chat(json!("One.\nTwo."))
    );
    let roles = |role: &str| {
        let messages = json!([{ "role": role, "content": "Be brief." }]);
        server
            .post(CHAT, &hello(json!({ "messages": messages })))
            .json()["choices"]
            .clone()
    };
    assert_eq!(roles("developer"), roles("system"));
}

#[test]
fn the_cache_serves_the_next_turn() {
    let server = start(Setup::default());
    let first = server.post(CHAT, &hello(json!({}))).json();
    let again = server.post(CHAT, &hello(json!({}))).json();
    assert_eq!(first["choices"], again["choices"]);
    let prompt = first["usage"]["prompt_tokens"].as_u64().unwrap();
    let cached = |reply: &Value| {
        reply["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    assert_eq!((cached(&first), cached(&again)), (0, prompt - 1));
    assert_eq!(again["timings"]["cache_n"], prompt - 1);
    assert_eq!(again["timings"]["prompt_n"], 1);
    // A question that could not be answered costs nothing of it.
    assert_eq!(
        server
            .post(
                CHAT,
                &json!({ "messages": [{ "role": "alien", "content": "" }] })
            )
            .status,
        400
    );
    assert_eq!(
        cached(&server.post(CHAT, &hello(json!({}))).json()),
        prompt - 1
    );
}

#[test]
fn long_prompts_are_computed_in_parts_with_the_same_result() {
    let server = start(Setup::slow());
    let prompt = "All happy families are alike. ".repeat(40);
    let body = |n: usize| json!({ "prompt": prompt[..n], "temperature": 0, "max_tokens": 16 });
    let whole = server.post(COMPLETION, &body(1200)).json();
    assert_eq!(whole["timings"]["prompt_n"], 1200);
    // The same prompt in two requests.
    let other = start(Setup::slow());
    other.post(COMPLETION, &body(700));
    let rest = other.post(COMPLETION, &body(1200)).json();
    assert_eq!(rest["choices"], whole["choices"]);
    assert_eq!(rest["timings"]["prompt_n"], 500);
    assert_eq!(rest["usage"]["prompt_tokens"], 1200);
}

#[test]
fn realised_sparsity_is_told() {
    let server = start(Setup {
        sparsity: Some(0.5),
        ..Setup::default()
    });
    let reply = server.post(COMPLETION, &austen(json!({}))).json();
    assert_eq!(reply["timings"]["realised_sparsity"], 0.5);
    assert_eq!(server.metric("realised_sparsity"), 0.5);
    // 39 steps, 4 layers of 256 neurons.
    assert_eq!(server.metric("neurons_total"), 39.0 * 4.0 * 256.0);
    assert_eq!(server.metric("neurons_computed_total"), 39.0 * 4.0 * 128.0);
    let model = &server.get("/v1/models").json()["data"][0];
    assert_eq!(
        model["meta"]["sparsity"],
        json!({ "method": "m-countdown", "target": 0.5 })
    );
}

#[test]
fn without_a_template_there_is_no_chat() {
    let server = start(Setup {
        template: None,
        ..Setup::default()
    });
    let reply = server.post(CHAT, &hello(json!({})));
    assert_eq!(reply.status, 400);
    assert!(
        reply.json()["error"]["message"]
            .as_str()
            .unwrap()
            .contains("/v1/completions")
    );
    assert_eq!(server.post(COMPLETION, &austen(json!({}))).status, 200);
}
