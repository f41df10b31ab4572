//! Tasks on the command line: both kinds, results that go on, and files that are not what they should be.

mod support;

use std::fs;
use support::{Run, Sandbox};

const QUESTIONS: &str = r#"{"question":"Who was handsome?","choices":["Emma","zqx","the"],"answer":"A"}
{"question":"Who was clever?","choices":["xx","Emma"],"answer":"Emma"}
"#;
const PLAN: &str = "--method m-countdown --sparsity 0.5 --calibration @text";

fn sandbox() -> Sandbox {
    let s = Sandbox::new();
    s.text();
    s.file("questions", QUESTIONS);
    s
}

#[test]
fn choices_are_compared_and_go_on_from_their_results() {
    let s = sandbox();
    let line = format!("eval -m MODEL --choice @questions --results @results {PLAN}");
    let rows = s.run(&format!("{line} --json --limit 1")).json();
    assert_eq!(rows.len(), 2);
    assert_eq!(
        (&rows[0]["task"], &rows[0]["documents"]),
        (&"choice".into(), &1.into())
    );
    let whole = s.run(&format!("{line} --json"));
    let rows = whole.json();
    assert_eq!(
        (&rows[0]["method"], &rows[1]["method"]),
        (&"dense".into(), &"m-countdown".into())
    );
    assert_eq!(
        (&rows[0]["documents"], &rows[0]["agreement"]),
        (&2.into(), &1.0.into())
    );
    assert!(rows[0]["raw"]["mean"].is_f64() && rows[0]["per_char"]["stderr"].is_f64());
    assert!(rows[0]["unconditional"].is_null());
    assert!(rows[1]["realised"].as_f64().unwrap() > 0.3, "{rows:#?}");
    // The first line, and two documents under dense and a plan.
    assert_eq!(
        fs::read_to_string(s.path("results"))
            .unwrap()
            .lines()
            .count(),
        5
    );
    let table = s.run(&line).ok();
    assert!(
        table.starts_with("| method ") && table.contains(" as dense |"),
        "{table}"
    );

    let other =
        format!("eval -m MODEL --choice @questions --results @results {PLAN} --stepping one");
    assert_fails(
        &s.run(&other),
        2,
        "stepping is batched there and onebyone now",
    );
}

#[test]
fn answers_are_generated_and_compared() {
    let s = sandbox();
    s.file("prompts", r#"{"prompt":"It is a truth universally acknowledged, that ","answer":"something","pattern":"had\\s+(\\w+)","max_tokens":20}"#);
    let line = format!("eval -m MODEL --generate @prompts {PLAN}");
    let rows = s.run(&format!("{line} --json")).json();
    assert_eq!(rows[0]["exact_match"]["mean"], 1.0);
    assert_eq!(rows[0]["mean_tokens"], 20.0);
    assert!(rows[1]["realised"].as_f64().unwrap() > 0.3, "{rows:#?}");
    assert!(s.run(&line).ok().contains("exact match"));
}

#[track_caller]
fn assert_fails(run: &Run, code: i32, naming: &str) {
    assert_eq!(run.code, code, "{run:#?}");
    assert!(
        run.stderr.contains("error:") && run.stderr.contains("help:"),
        "{run:#?}"
    );
    assert!(
        run.stderr.contains(naming),
        "{naming:?} is not named: {run:#?}"
    );
    assert!(!run.stderr.contains("panicked"), "{run:#?}");
    assert_eq!(run.stdout, "");
}

#[test]
fn flags_that_make_no_sense() {
    let s = sandbox();
    for (line, naming) in [
        (
            "eval -m MODEL --choice @questions --perplexity @text",
            "--perplexity",
        ),
        (
            "eval -m MODEL --choice @questions --generate @questions",
            "--generate",
        ),
        ("eval -m MODEL --choice @questions --limit 0", "--limit"),
        ("eval -m MODEL --choice @questions --chunks 3", "--chunks"),
        ("eval -m MODEL --perplexity @text --results @r", "--results"),
        ("eval -m MODEL --perplexity @text --limit 3", "--limit"),
        (
            "eval -m MODEL --generate @questions --stepping one",
            "--stepping",
        ),
        ("eval -m MODEL --choice @questions -c 512", "512"),
    ] {
        assert_fails(&s.run(line), 2, naming);
    }
    for (line, naming) in [
        ("eval -m MODEL --choice @nowhere", "nowhere"),
        (
            "eval -m MODEL --choice @questions --results @no/folder/r",
            "folder",
        ),
    ] {
        assert_fails(&s.run(line), 1, naming);
    }
}

/// A rendered request with these values.
fn request(doc: &str, idx: &str, label: &str, continuation: &str) -> String {
    format!(
        r#"{{"request":{{"context":"c","continuation":{continuation}}},"doc_id":{doc},"idx":{idx},"label":{label}}}"#
    )
}

#[test]
fn choice_files_that_cannot_be() {
    let s = sandbox();
    let pair = |doc: &str, label: &str| {
        format!(
            "{}\n{}\n",
            request(doc, "0", label, "\"a\""),
            request(doc, "1", label, "\"b\"")
        )
    };
    let good = pair("0", "0");
    let cases: Vec<(String, i32, &str)> = vec![
        (String::new(), 2, "has no documents"),
        ("\n\n".into(), 2, "has no documents"),
        (format!("{good}{{\n"), 1, "line 3 is not JSON"),
        (
            format!("{good}{{}}\n"),
            2,
            "line 3: field \"question\" or \"context\" is missing",
        ),
        (
            r#"{"question":"q","answer":0}"#.into(),
            2,
            "line 1: field \"choices\" is missing",
        ),
        (
            r#"{"question":"q","choices":["a",2],"answer":0}"#.into(),
            2,
            "\"choices\" is not a list of texts",
        ),
        (
            r#"{"question":"q","choices":["a","b"]}"#.into(),
            2,
            "line 1: field \"answer\" is missing",
        ),
        (
            r#"{"question":"q","choices":["a","b"],"answer":2}"#.into(),
            2,
            "label 2 of document 0 is out of range",
        ),
        (
            r#"{"question":"q","choices":["a","b"],"answer":"C"}"#.into(),
            2,
            "label 2 of document 0 is out of range",
        ),
        (
            r#"{"question":"q","choices":["a","b"],"answer":-1}"#.into(),
            2,
            "\"answer\" is not a whole number",
        ),
        (
            r#"{"question":"q","choices":["a","b"],"answer":"x"}"#.into(),
            2,
            "answer \"x\" is neither",
        ),
        (
            r#"{"question":"q","choices":["a",""],"answer":0}"#.into(),
            2,
            "line 1: choice 1 is empty",
        ),
        (
            r#"{"question":"q","choices":["a"],"answer":0}"#.into(),
            2,
            "1 candidates; two are the least",
        ),
        (
            r#"{"question":3,"choices":["a","b"],"answer":0}"#.into(),
            2,
            "\"question\" is not a text",
        ),
        (
            r#"{"request":{"context":"c"},"doc_id":0,"idx":0,"label":0}"#.into(),
            2,
            "\"request.continuation\" is missing",
        ),
        (
            request("0", "0", "0", "\"\""),
            2,
            "line 1: field \"request.continuation\" is empty",
        ),
        (
            request("0", "0", "\"A\"", "\"a\""),
            2,
            "line 1: field \"label\" is not a whole number",
        ),
        (pair("0", "2"), 2, "label 2 of document 0 is out of range"),
        (
            format!("{good}{}", request("0", "1", "0", "\"c\"")),
            2,
            "two candidates with idx 1",
        ),
        (
            format!("{good}{}", request("0", "9", "0", "\"c\"")),
            2,
            "no candidate with idx 2",
        ),
        (
            format!("{good}{}", request("0", "2", "1", "\"c\"")),
            2,
            "line 3: label is 1, but 0",
        ),
        (
            format!("{good}{}", pair("1000001", "0")),
            2,
            "has no unconditional form",
        ),
        (
            format!("{good}{}{}", pair("1000000", "0"), pair("1000001", "0")),
            2,
            "of a document that is not there",
        ),
        (
            format!(
                "{good}{}",
                r#"{"request_type":"generate_until","request":{"context":"c"}}"#
            ),
            2,
            "--generate",
        ),
    ];
    for (content, code, naming) in cases {
        s.file("task", &content);
        assert_fails(&s.run("eval -m MODEL --choice @task"), code, naming);
    }
    s.file("task", [0x1f, 0x8b, 8, 0, 1, 2, 3]);
    assert_fails(&s.run("eval -m MODEL --choice @task"), 1, "no sound gzip");
}

#[test]
fn generation_files_that_cannot_be() {
    let s = sandbox();
    for (content, naming) in [
        ("", "has no documents"),
        (r#"{"prompt":"p"}"#, "line 1: field \"answer\" is missing"),
        (r#"{"answer":"p"}"#, "line 1: field \"prompt\" is missing"),
        (r#"{"prompt":"","answer":"p"}"#, "field \"prompt\" is empty"),
        (
            r#"{"prompt":"p","answer":"$"}"#,
            "field \"answer\" is empty",
        ),
        (
            r#"{"prompt":"p","answer":[1]}"#,
            "\"answer\" is neither a text nor a number",
        ),
        (
            r#"{"prompt":"p","answer":1,"pattern":"("}"#,
            "pattern \"(\" cannot be used",
        ),
        (
            r#"{"prompt":"p","answer":1,"pattern":"a"}"#,
            "has 0 groups, but one is needed",
        ),
        (
            r#"{"prompt":"p","answer":1,"stop":"x"}"#,
            "\"stop\" is not a list of texts",
        ),
        (
            r#"{"prompt":"p","answer":1,"stop":[""]}"#,
            "a stop text is empty",
        ),
        (r#"{"prompt":"p","answer":1,"max_tokens":0}"#, "0 tokens"),
        (
            r#"{"prompt":"p","answer":1,"max_tokens":300}"#,
            "leaves no room for a prompt",
        ),
        (
            r#"{"request_type":"loglikelihood","request":{"context":"c"},"doc_id":0}"#,
            "--choice",
        ),
    ] {
        s.file("task", content);
        assert_fails(&s.run("eval -m MODEL --generate @task"), 2, naming);
    }
}
