//! Every command on its happy path.

mod support;

use std::fs;
use support::Sandbox;

const PROMPT: &str = "It is a truth universally acknowledged, that ";

#[test]
fn help_has_examples_everywhere_and_alone_is_no_error() {
    let s = Sandbox::new();
    let alone = s.run("").ok();
    assert!(alone.contains("Usage: countdown") && alone.contains("Examples:"));
    for command in [
        "run",
        "chat",
        "calibrate",
        "inspect",
        "synth",
        "doctor",
        "eval",
        "bench",
        "compare",
        "convert",
        "serve",
        "completions",
    ] {
        assert!(alone.contains(command), "{command} is not listed");
        let help = s.run(&format!("{command} --help")).ok();
        let (_, examples) = help.split_once("Examples:").expect(command);
        let count = examples.matches(&format!("countdown {command}")).count();
        assert!((2..=4).contains(&count), "{command}: {count} examples");
    }
    let methods = s.run("run --help").ok();
    assert!(methods.contains("keeps neurons by |W_up x|"), "{methods}");
    assert!(s.run("--version").ok().starts_with("countdown 0."));
}

#[test]
fn greedy_continuation_is_the_models_own() {
    let s = Sandbox::new();
    let out = support::run(
        s.command("run -m MODEL -n 30 --temp 0")
            .arg("-p")
            .arg(PROMPT),
    );
    assert_eq!(out.stdout, "she had\nsomething to her the s\n");
    assert!(
        out.stderr.contains("CPU") && out.stderr.contains("; dense"),
        "{}",
        out.stderr
    );
    assert!(out.stderr.contains("[ Prompt: "), "{}", out.stderr);
    let quiet = support::run(
        s.command("run -q -m MODEL -n 3 --temp 0")
            .arg("-p")
            .arg(PROMPT),
    );
    assert_eq!(quiet.stderr, "");
}

#[test]
fn prompts_come_from_a_flag_a_file_and_standard_input() {
    let s = Sandbox::new();
    s.file("prompt", format!("{PROMPT}\n"));
    let expected = "she had\n";
    assert_eq!(
        s.run("run -m MODEL -n 7 --temp 0 -f @prompt").ok(),
        expected
    );
    assert_eq!(
        s.feed("run -m MODEL -n 7 --temp 0 -f -", PROMPT).ok(),
        expected
    );
    assert_eq!(
        s.feed("run -m MODEL -n 7 --temp 0 -p -", PROMPT).ok(),
        expected
    );
}

#[test]
fn json_is_one_object_and_stop_texts_end_it() {
    let s = Sandbox::new();
    let lines = s
        .feed("run -m MODEL --temp 0 -r something -p - --json", PROMPT)
        .json();
    let [o] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(o["text"], "she had\n");
    assert_eq!(o["finish_reason"], "stop");
    assert_eq!(o["prompt_tokens"], PROMPT.len());
    assert!(o["plan"].is_null() && o["realised"].is_null());
    assert!(o["timings"]["generation_per_second"].as_f64().unwrap() > 0.0);
}

#[test]
fn the_same_seed_gives_the_same_answer() {
    let s = Sandbox::new();
    let with = |seed: u32| {
        s.run(&format!(
            "run -q -m MODEL -n 40 --temp 1 --seed {seed} -p It"
        ))
        .ok()
    };
    assert_eq!(with(7), with(7));
    assert_ne!(with(7), with(8));
}

#[test]
fn a_full_context_ends_the_answer_or_shifts() {
    let s = Sandbox::new();
    let full = s.run("run -m MODEL --temp 0 -c 24 -n 40 -p Hello");
    assert_eq!(full.code, 1);
    assert!(full.stdout.len() > 15, "the text before is shown: {full:?}");
    assert!(full.stderr.contains("error: ") && full.stderr.contains("--context-shift"));
    let shifted = s.run("run -m MODEL --temp 0 -c 24 -n 40 -p Hello --context-shift");
    assert_eq!(shifted.ok().len(), 41);
}

#[test]
fn a_plan_is_fitted_once_cached_and_fitted_again_when_damaged() {
    let s = Sandbox::new();
    s.text();
    let line =
        "run -m MODEL -n 20 --temp 0 -p It --method m-countdown --sparsity 0.7 --calibration @text";
    let first = s.run(line);
    assert!(
        first.stderr.contains("calibrating m-countdown 0.7 on"),
        "{first:?}"
    );
    assert!(
        first
            .stderr
            .contains("plan m-countdown 0.70 (signed cut, practical)")
    );
    assert!(first.stderr.contains("sparsity realised 0."));
    let folder = fs::read_dir(s.path("cache/plans"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let plans: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    let [plan] = &plans[..] else {
        panic!("{plans:?}")
    };
    let name = plan.file_name().unwrap().to_str().unwrap();
    assert!(
        name.starts_with("m-countdown-signed-practical-0.7-"),
        "{name}"
    );

    let second = s.run(line);
    assert!(!second.stderr.contains("calibrating"), "{second:?}");
    assert_eq!(first.stdout, second.stdout);

    let whole = fs::read(plan).unwrap();
    fs::write(plan, &whole[..whole.len() / 2]).unwrap();
    let third = s.run(line);
    assert!(
        third.stderr.contains("is damaged and fitted again"),
        "{third:?}"
    );
    assert_eq!(first.stdout, third.stdout);
    assert_eq!(fs::read(plan).unwrap(), whole);
}

#[test]
fn a_cache_that_cannot_be_written_is_a_warning() {
    let s = Sandbox::new();
    s.text();
    s.file("cache", "in the way");
    let run =
        s.run("run -m MODEL -n 5 --temp 0 -p It --method cats --sparsity 0.5 --calibration @text");
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stderr.contains("warning: cannot write") && run.stderr.contains("cache"));
    assert!(run.stderr.contains("plan cats 0.50"));
}

#[test]
fn the_built_in_text_serves_where_none_is_given() {
    let s = Sandbox::new();
    let run = s.run("run -m MODEL -n 5 --temp 0 -p It --method m-countdown --sparsity 0.7");
    assert!(
        run.stderr.contains("on the built-in text; cached in"),
        "{run:?}"
    );
    assert_eq!(run.code, 0);
}

#[test]
fn calibrate_writes_plans_that_run_and_inspect_read() {
    let s = Sandbox::new();
    s.text();
    let rows = s
        .run("calibrate -m MODEL --method m-countdown --sparsity 0.5,0.9 --text @text -o @plan-{sparsity}.safetensors --json")
        .json();
    assert_eq!(rows.len(), 2);
    for (row, target) in rows.iter().zip([0.5, 0.9]) {
        let realised = row["realised"].as_f64().unwrap();
        assert_eq!(row["target"], target);
        assert!((realised - target).abs() < 0.05, "{row}");
        assert!(s.path(&format!("plan-{target}.safetensors")).exists());
    }
    let run = s.run("run -m MODEL -n 20 --temp 0 -p It --plan @plan-0.9.safetensors --json");
    let o = &run.json()[0];
    assert_eq!(o["plan"]["method"], "m-countdown");
    assert!((o["realised"].as_f64().unwrap() - 0.9).abs() < 0.1, "{o}");

    let text = s.run("inspect @plan-0.5.safetensors").ok();
    assert!(
        text.contains("m-countdown 0.5") && text.contains("threshold"),
        "{text}"
    );
    let json = &s.run("inspect @plan-0.5.safetensors --json").json()[0];
    assert_eq!(json["kind"], "plan");
    assert_eq!(json["layers"].as_array().unwrap().len(), 4);
    assert_eq!(
        s.names(),
        ["plan-0.5.safetensors", "plan-0.9.safetensors", "text"]
    );
}

#[test]
fn an_ideal_plan_without_constants_needs_no_text() {
    let s = Sandbox::new();
    let run =
        s.run("run -m MODEL -n 20 --temp 0 -p It --method d-countdown --sparsity 0.7 --ideal");
    assert_eq!(run.code, 0, "{run:?}");
    assert!(!run.stderr.contains("calibrating") && run.stderr.contains("ideal"));
    assert!(run.stderr.contains("sparsity realised 0.70"), "{run:?}");
    assert!(s.names().is_empty(), "nothing to cache");
}

#[test]
fn inspect_shows_a_model_and_what_could_be_saved() {
    let s = Sandbox::new();
    let text = s.run("inspect MODEL --tensors").ok();
    for part in [
        "family        llama",
        "parameters    430.94 K",
        "m-countdown",
        "model.embed_tokens.weight",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = &s.run("inspect MODEL --json").json()[0];
    assert_eq!(json["hidden"], 96);
    // F32: what M saves at 0.5 is half of gate and down.
    let bytes = json["bytes_per_token"].as_f64().unwrap();
    let saving = |method: &str, sparsity: f64| {
        let savings = json["savings"].as_array().unwrap();
        let row = savings
            .iter()
            .find(|r| r["method"] == method && r["sparsity"] == sparsity);
        row.unwrap()["bytes_per_token"].as_f64().unwrap()
    };
    let matrix = (4 * 96 * 256 * 4) as f64;
    assert!((bytes - saving("m-countdown", 0.5) - matrix).abs() < 1.0);
    // D saves half of all three, and reads copies of gate and up in 4.5 bits.
    let saved = 1.5 * matrix - 2.0 * matrix * 4.5 / 32.0;
    assert!((bytes - saving("d-countdown by copy4", 0.5) - saved).abs() < 1.0);
}

#[test]
fn eval_compares_methods_with_dense() {
    let s = Sandbox::new();
    s.text();
    s.file("eval", &countdown::CALIBRATION_TEXT[20_000..23_000]);
    let rows = s
        .run("eval -m MODEL --perplexity @eval --ctx 128 --chunks 4 --method cats,m-countdown --sparsity 0.6 --calibration @text --both --json")
        .json();
    assert_eq!(rows.len(), 5);
    let dense = rows[0]["perplexity"].as_f64().unwrap();
    assert_eq!(rows[0]["method"], "dense");
    assert_eq!(rows[0]["kl"], 0.0);
    for row in &rows {
        for key in [
            "task",
            "method",
            "target",
            "realised",
            "tokens",
            "perplexity",
            "kl",
            "top1",
        ] {
            assert!(!row[key].is_null(), "{key} in {row}");
        }
        assert_eq!(row["tokens"], 4 * 63);
    }
    for row in &rows[1..] {
        assert!(
            (row["realised"].as_f64().unwrap() - 0.6).abs() < 0.06,
            "{row}"
        );
        let ratio = row["perplexity"].as_f64().unwrap() / dense;
        assert!((0.9..1.6).contains(&ratio), "{row}");
        assert!(row["kl"].as_f64().unwrap() > 0.0);
    }
    let line = "eval -m MODEL --perplexity @eval --ctx 128 --chunks 2 --method m-countdown --sparsity 0.6 --calibration @text --json";
    let one = s.run(line).json();
    let batched = s.run(&format!("{line} --stepping batched")).json();
    let perplexity = |rows: &[serde_json::Value]| rows[1]["perplexity"].as_f64().unwrap();
    assert!((perplexity(&one) / perplexity(&batched) - 1.0).abs() < 1e-3);
    let table = s
        .run("eval -m MODEL --perplexity @eval -c 128 --chunks 1")
        .ok();
    assert_eq!(table.lines().count(), 3, "{table}");
}

#[test]
fn a_synthetic_model_runs() {
    let s = Sandbox::new();
    let o = &s.run("synth tiny --type Q8_0 -o @tiny.gguf --json").json()[0];
    assert!(o["parameters"].as_u64().unwrap() > 1_000_000);
    let run = s.run("run -m @tiny.gguf -n 4 -p Hello --json").json();
    assert_eq!(run[0]["tokens"].as_array().unwrap().len(), 4);
    let own = s.run(
        "synth --hidden 64 --inter 96 --layers 2 --heads 4 --vocab 300 --type F16 -o @own.gguf",
    );
    assert_eq!(own.code, 0, "{own:?}");
    let inspected = &s.run("inspect @own.gguf --json").json()[0];
    assert_eq!(inspected["inter"], serde_json::json!([96, 96]));
    assert!(s.run("synth --list").ok().contains("llama-3.2-1b"));
}

#[test]
fn doctor_reports_and_says_what_is_forced() {
    let s = Sandbox::new();
    let o = &s.run("doctor --json").json()[0];
    assert!(o["physical_cores"].as_u64().unwrap() >= 1);
    assert_eq!(o["cache_folder"], s.path("cache").to_str().unwrap());
    assert_eq!(o["cache_writable"], true);
    let forced = support::run(s.command("doctor").env("COUNTDOWN_ISA", "scalar")).ok();
    assert!(forced.contains("in use            scalar"), "{forced}");
    assert!(s.names().is_empty(), "it leaves nothing behind");
}

#[test]
fn completions_name_the_commands() {
    let s = Sandbox::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(
            s.run(&format!("completions {shell}"))
                .ok()
                .contains("calibrate"),
            "{shell}"
        );
    }
}

const TEMPLATE: &str =
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: ";

#[test]
fn a_conversation_from_standard_input() {
    let s = Sandbox::new();
    s.file("template", TEMPLATE);
    let line = "chat -m MODEL --chat-template-file @template --temp 0 -n 12 -r user:";
    let chat = s.feed(
        line,
        "Hello\nHow are\\\nyou?\n/clear\nHello\n/exit\nnever\n",
    );
    assert_eq!(chat.code, 0, "{chat:?}");
    // Three answers, and the one after /clear is the first again.
    assert_eq!(chat.stderr.matches("[ Prompt: ").count(), 3, "{chat:?}");
    let first = s.run(&format!("{line} -p Hello -st")).ok();
    assert!(
        chat.stdout.starts_with(&first) && chat.stdout.ends_with(&first),
        "{chat:?}"
    );
    assert!(chat.stdout.len() > 2 * first.len());
    let long = "x".repeat(300);
    let told = s.run(&format!("{line} -p Hello -st -sys {long}"));
    assert!(
        told.stderr.contains("do not fit the context"),
        "the system prompt counts: {told:?}"
    );
}

#[test]
fn the_models_own_chat_template_is_found() {
    let s = Sandbox::new();
    let model = s.copy_model("model");
    fs::write(model.join("chat_template.jinja"), TEMPLATE).unwrap();
    let own = s.run("chat -m @model --temp 0 -n 12 -p Hello -st").ok();
    s.file("template", TEMPLATE);
    let given = s.run("chat -m MODEL --chat-template-file @template --temp 0 -n 12 -p Hello -st");
    assert_eq!(own, given.ok());
}

#[test]
fn old_turns_are_dropped_where_the_context_may_shift() {
    let s = Sandbox::new();
    s.file("template", TEMPLATE);
    let turns = "Hello there, my friend\n".repeat(6);
    let line = "chat -m MODEL --chat-template-file @template --temp 0 -n 8 -c 120";
    let full = s.feed(line, &turns);
    assert_eq!(full.code, 1, "{full:?}");
    assert!(
        full.stderr.contains("do not fit the context of 120"),
        "{full:?}"
    );
    let shifted = s.feed(&format!("{line} --context-shift"), &turns);
    assert_eq!(shifted.code, 0, "{shifted:?}");
    assert_eq!(shifted.stderr.matches("[ Prompt: ").count(), 6);
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_the_answer_and_still_prints_the_figures() {
    use std::{
        io::Read,
        process::{Command, Stdio},
    };
    let mut child = Command::new(assert_cmd::cargo::cargo_bin!("countdown"))
        .args(["run", "--context-shift", "-p", "It is", "-m"])
        .arg(support::byte_llama())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    // The answer has begun, and would never end.
    stdout.read_exact(&mut [0; 20]).unwrap();
    let reader = std::thread::spawn(move || stdout.read_to_end(&mut Vec::new()));
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    let output = child.wait_with_output().unwrap();
    reader.join().unwrap().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(
        stderr.contains("[ Prompt: ") && stderr.contains("Generation: "),
        "{stderr}"
    );
}

#[cfg(unix)]
#[test]
fn serve_answers_until_it_is_told_to_stop() {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::TcpStream,
        process::{Command, Stdio},
    };
    let s = Sandbox::new();
    s.text();
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("countdown"));
    command
        .args([
            "serve",
            "--port",
            "0",
            "--alias",
            "bytes",
            "--method",
            "cats",
            "--sparsity",
            "0.5",
        ])
        .arg("--calibration")
        .arg(s.path("text"))
        .arg("-m")
        .arg(support::byte_llama())
        .env("COUNTDOWN_CACHE", s.path("cache"))
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut log = String::new();
    let address = loop {
        let mut line = String::new();
        assert!(
            stderr.read_line(&mut line).unwrap() > 0,
            "ended early: {log}"
        );
        log.push_str(&line);
        if let Some(address) = line.trim().strip_prefix("listening on http://") {
            break address.to_owned();
        }
    };
    assert!(
        log.contains("plan cats 0.50") && log.contains("no chat template"),
        "{log}"
    );
    let ask = |request: String| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let get = |path: &str| {
        ask(format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        ))
    };
    assert!(get("/health").starts_with("HTTP/1.1 200"));
    assert!(get("/v1/models").contains("\"bytes\""));
    let body = r#"{"prompt": "It is a truth universally acknowledged, that ", "max_tokens": 5, "temperature": 0}"#;
    let answer = ask(format!(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("\"text\":"),
        "{answer}"
    );
    let kill = Command::new("kill").arg(child.id().to_string()).status();
    assert!(kill.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
