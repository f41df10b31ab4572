//! Bad input of every kind: exit code 1 or 2, one line that names the cause, one that helps, no panic, nothing left behind.

mod support;

use std::fs;
use support::{Run, Sandbox, byte_llama};

/// What is asked, the exit code, and what the error line must name.
struct Case(&'static str, i32, &'static str);

#[track_caller]
fn assert_fails(run: &Run, code: i32, naming: &str) {
    assert_eq!(run.code, code, "{run:#?}");
    let lines = |start: &str| -> Vec<&str> {
        let lines = run.stderr.lines();
        lines
            .filter(|l| l.trim_start().starts_with(start))
            .collect()
    };
    let [error] = lines("error:")[..] else {
        panic!("not one error line: {run:#?}")
    };
    assert!(error.contains(naming), "{error:?} does not name {naming:?}");
    let [help] = lines("help:")[..] else {
        panic!("not one help line: {run:#?}")
    };
    assert!(help.trim().len() > "help: ".len(), "{help:?}");
    assert!(!run.stderr.contains("panicked"), "{run:#?}");
}

/// A tiny GGUF model.
fn synth(s: &Sandbox) -> Vec<u8> {
    s.run("synth --hidden 64 --inter 96 --layers 2 --heads 4 --vocab 300 --context 64 --type F32 -o @m.gguf").ok();
    fs::read(s.path("m.gguf")).unwrap()
}

/// Runs all cases; none may leave a file behind.
fn check(s: &Sandbox, cases: &[Case]) {
    let before = s.names();
    for Case(line, code, naming) in cases {
        let run = s.run(line);
        assert_fails(&run, *code, naming);
        assert_eq!(run.stdout, "", "{line}");
        assert_eq!(s.names(), before, "{line}");
    }
}

#[test]
fn flags_that_make_no_sense() {
    let s = Sandbox::new();
    s.text();
    check(
        &s,
        &[
            Case("frobnicate", 2, "frobnicate"),
            Case("run -p x", 2, "--model"),
            Case("run -m MODEL", 2, "--prompt"),
            Case("run -m MODEL -p x -f @text", 2, "--file"),
            Case("run -m MODEL -p x --colour on", 2, "--colour"),
            Case("run -hf org/model -p x", 2, "--hf-repo"),
            Case("run -m MODEL -p x -ngl 99", 2, "--n-gpu-layers"),
            Case("run -m MODEL -p x -t 0", 2, "--threads"),
            Case("run -m MODEL -p x --device tpu", 2, "cuda:N"),
            Case("run -m MODEL -p x --device cuda:99", 1, "CUDA"),
            Case("serve -m MODEL --port 99999", 2, "99999"),
            Case("serve -m MODEL --api-key=", 2, "API key"),
            Case("run -m MODEL -p x -t many", 2, "many"),
            Case("run -m MODEL -p x -n -2", 2, "-2"),
            Case("run -m MODEL -p x -b 0", 2, "--batch-size"),
            Case("run -m MODEL -p x --temp -1", 2, "temperature"),
            Case("run -m MODEL -p x --temp NaN", 2, "temperature"),
            Case("run -m MODEL -p x --top-p 1.5", 2, "top-p"),
            Case("run -m MODEL -p x --repeat-penalty 0", 2, "repeat penalty"),
            Case(
                "run -m MODEL -p x --repeat-last-n 99999999999",
                2,
                "--repeat-last-n",
            ),
            Case("run -m MODEL -p x --cache-type q4", 2, "q4"),
            Case("run -m MODEL -p x -c 257", 2, "257"),
            Case("run -m MODEL -p x --sparsity 0.5", 2, "--sparsity"),
            Case("run -m MODEL -p x --method cats", 2, "cats"),
            Case(
                "run -m MODEL -p x --method nonsense --sparsity 0.5",
                2,
                "nonsense",
            ),
            Case("run -m MODEL -p x --method cats --sparsity 1.5", 2, "1.5"),
            Case(
                "run -m MODEL -p x --method cats --sparsity 1",
                2,
                "sparsity 1",
            ),
            Case("run -m MODEL -p x --method cats --sparsity NaN", 2, "NaN"),
            Case("run -m MODEL -p x --method cats --sparsity half", 2, "half"),
            Case(
                "run -m MODEL -p x --method d-countdown --predictor low-rank --sparsity 0.5",
                2,
                "must be trained",
            ),
            Case(
                "run -m MODEL -p x --method cats --predictor copy3 --sparsity 0.5",
                2,
                "computes its signal",
            ),
            Case(
                "run -m MODEL -p x --method d-countdown --predictor planes --sparsity 0.5",
                2,
                "Q8_0",
            ),
            Case(
                "calibrate -m MODEL --method cats --threshold mean --allocation distortion --sparsity 0.5 -o @p",
                2,
                "mean thresholds",
            ),
            Case("run -m MODEL -p x --plan @text --sparsity 0.5", 2, "--plan"),
            Case(
                "calibrate -m MODEL --method dense --sparsity 0.5 -o @p",
                2,
                "dense",
            ),
            Case(
                "calibrate -m MODEL --method cats --sparsity 0.5,0.7 -o @p",
                2,
                "several plans",
            ),
            Case(
                "calibrate -m MODEL --method cats --sparsity 0.5,0.5 -o @p{sparsity}",
                2,
                "several plans",
            ),
            Case("bench -m MODEL -p 0 -n 0", 2, "nothing to measure"),
            Case("bench -m MODEL -r 0", 2, "--repetitions"),
            Case("bench -m MODEL -o xml", 2, "xml"),
            Case("bench -m MODEL -p 512", 2, "512"),
            Case("eval -m MODEL", 2, "--perplexity"),
            Case("eval -m MODEL --perplexity @text --ctx 2", 2, "2"),
            Case("eval -m MODEL --perplexity @text --ctx 512", 2, "512"),
            Case("synth nosuch -o @x.gguf", 2, "nosuch"),
            Case("synth tiny --type Q9 -o @x.gguf", 2, "Q9"),
            Case("synth tiny --type Q3_0 -o @x.gguf", 2, "Q3_0"),
            Case("synth -o @x.gguf", 2, "--hidden"),
            Case("synth tiny --heads 3 -o @x.gguf", 2, "3 heads"),
            Case("completions tcsh", 2, "tcsh"),
        ],
    );
}

#[test]
fn files_that_are_not_there_or_not_what_they_should_be() {
    let s = Sandbox::new();
    s.text();
    s.file("empty", "");
    s.file("short", "too short");
    s.file("latin1", b"caf\xe9");
    s.file("zip", b"PK\x03\x04 and so on");
    fs::create_dir(s.path("folder")).unwrap();
    check(
        &s,
        &[
            Case("run -m @nowhere -p x", 1, "nowhere"),
            Case("run -m @folder -p x", 1, "folder"),
            Case("run -m @empty -p x", 1, "empty"),
            Case("run -m @text -p x", 1, "text"),
            Case("run -m @zip -p x", 1, "zip"),
            Case("run -m /dev/null -p x", 1, "/dev/null"),
            Case("run -m MODEL -f @nowhere", 1, "nowhere"),
            Case("run -m MODEL -f @folder", 1, "folder"),
            Case("run -m MODEL -f @latin1", 1, "latin1"),
            Case("run -m MODEL -f @empty", 2, "prompt is empty"),
            Case("run -m MODEL -f @text", 1, "do not fit the context of 256"),
            Case("chat -m MODEL -p x -st", 1, "no chat template"),
            Case(
                "chat -m MODEL -p x -st --chat-template-file @nowhere",
                1,
                "nowhere",
            ),
            Case(
                "eval -m MODEL --perplexity @short --ctx 64",
                2,
                "less than one chunk",
            ),
            Case("eval -m MODEL --perplexity @folder --ctx 64", 1, "folder"),
            Case(
                "calibrate -m MODEL --method cats --sparsity 0.5 --text @text --device cuda:99 -o @p",
                1,
                "CUDA",
            ),
            Case(
                "train -m MODEL --predictor low-rank --rank 8 --sparsity 0.5 --text @text --device cuda:99 -o @p",
                1,
                "CUDA",
            ),
            Case(
                "calibrate -m MODEL --method cats --sparsity 0.5 --text @short -o @p",
                2,
                "9 tokens",
            ),
            Case(
                "calibrate -m MODEL --method cats --sparsity 0.5 --text @text -o @nowhere/p",
                1,
                "nowhere",
            ),
            Case(
                "calibrate -m MODEL --method cats --sparsity 0.5 --text @text -o @folder",
                1,
                "folder",
            ),
            Case(
                "calibrate -m MODEL --method cats --sparsity 0.5 --text @text -o /dev/full",
                1,
                "/dev/full",
            ),
            Case("synth tiny -o @nowhere/x.gguf", 1, "nowhere"),
            Case("inspect @nowhere", 1, "nowhere"),
            Case("inspect @text", 1, "text"),
            Case("run -m MODEL -p x --plan @nowhere", 1, "nowhere"),
            Case("run -m MODEL -p x --plan @text", 1, "text"),
            Case("run -m MODEL -p x --plan @empty", 1, "empty"),
        ],
    );
    for flag in ["-p=", "--prompt="] {
        assert_fails(
            &s.run(&format!("run -m MODEL {flag}")),
            2,
            "prompt is empty",
        );
    }
    assert_fails(&s.feed("run -m MODEL -p -", ""), 2, "prompt is empty");
    // Errors are lines for people where a program reads the results, too.
    assert_fails(&s.run("run -m @nowhere -p x --json"), 1, "nowhere");
    assert_fails(&s.run("inspect @nowhere --json"), 1, "nowhere");
}

#[test]
fn damaged_gguf_files() {
    let s = Sandbox::new();
    let whole = synth(&s);
    let write = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        s.file(name, bytes);
    };
    let tensor = whole
        .windows(17)
        .position(|w| w == b"token_embd.weight")
        .unwrap();
    // After the name: number of dimensions (4 bytes), two dimensions, type, offset.
    let (dimension, dtype, offset) = (tensor + 21, tensor + 37, tensor + 41);
    write("magic", &|b| b[..4].copy_from_slice(b"GGML"));
    write("version", &|b| b[4] = 99);
    write("tensors", &|b| b[8..16].fill(0x7f));
    write("keys", &|b| b[16..24].fill(0x7f));
    for (name, length) in [
        ("cut1", 3),
        ("cut2", 10),
        ("cut3", 23),
        ("cut4", 60),
        ("cut5", tensor - 4),
        ("cut6", tensor + 22),
        ("cut7", whole.len() / 2),
        ("cut8", whole.len() - 1),
    ] {
        write(name, &|b| b.truncate(length));
    }
    write("shape", &|b| b[dimension] ^= 1);
    write("huge", &|b| b[dimension..dimension + 8].fill(0x7f));
    write("type", &|b| b[dtype] = 77);
    write("beyond", &|b| b[offset + 6] = 1);
    write("overlap", &|b| {
        // The second tensor claims the place of the first.
        let next = tensor + 49;
        let length = usize::from(b[next]);
        let at = next + 8 + length + 4;
        let dims = usize::from(b[next + 8 + length]);
        let at = at + 8 * dims + 4;
        b[at..at + 8].fill(0);
    });
    write("name", &|b| b[tensor] = b'x');
    let names = [
        "magic", "version", "tensors", "keys", "cut1", "cut2", "cut3", "cut4", "cut5", "cut6",
        "cut7", "cut8", "shape", "huge", "type", "beyond", "overlap", "name",
    ];
    let before = s.names();
    for name in names {
        for command in [
            "run -p x -m",
            "inspect",
            "calibrate --method cats --sparsity 0.5 -o @p -m",
        ] {
            assert_fails(&s.run(&format!("{command} @{name}")), 1, name);
        }
    }
    assert_eq!(s.names(), before);
}

#[test]
fn damaged_hugging_face_folders() {
    let s = Sandbox::new();
    let folder = |name: &str, change: &dyn Fn(&mut serde_json::Value, &mut Vec<u8>)| {
        let path = s.copy_model(name);
        let mut config =
            serde_json::from_slice(&fs::read(path.join("config.json")).unwrap()).unwrap();
        let mut weights = fs::read(path.join("model.safetensors")).unwrap();
        change(&mut config, &mut weights);
        fs::write(path.join("config.json"), config.to_string()).unwrap();
        fs::write(path.join("model.safetensors"), weights).unwrap();
    };
    folder("family", &|c, _| c["model_type"] = "mamba".into());
    folder("layers", &|c, _| c["num_hidden_layers"] = 5.into());
    folder("fewer", &|c, _| c["num_hidden_layers"] = 3.into());
    folder("heads", &|c, _| c["num_attention_heads"] = 5.into());
    folder("zero", &|c, _| c["hidden_size"] = 0.into());
    folder("type", &|c, _| c["hidden_size"] = "wide".into());
    folder("words", &|c, _| {
        c.as_object_mut().unwrap().remove("tokenizer");
    });
    folder("cut", &|_, w| w.truncate(w.len() / 2));
    folder("header", &|_, w| w[..8].fill(0xff));
    check(
        &s,
        &[
            Case("run -p x -m @family", 1, "mamba"),
            Case("run -p x -m @layers", 1, "layers.4"),
            Case("run -p x -m @fewer", 1, "layers.3"),
            Case("run -p x -m @heads", 1, "heads"),
            Case("run -p x -m @zero", 1, "hidden_size"),
            Case("run -p x -m @type", 1, "hidden_size"),
            Case("run -p x -m @words", 1, "tokenizer"),
            Case("run -p x -m @cut", 1, "model.safetensors"),
            Case("run -p x -m @header", 1, "model.safetensors"),
        ],
    );
}

#[test]
fn weights_that_are_not_numbers() {
    let s = Sandbox::new();
    let nan = |name: &str, tensor: &str| {
        let path = s.copy_model(name).join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let names: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let start = names[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        let at = 8 + header + start;
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(path, bytes).unwrap();
    };
    nan("gate", "model.layers.1.mlp.gate_proj.weight");
    nan("norm", "model.layers.1.input_layernorm.weight");
    s.text();
    check(
        &s,
        &[
            Case("run -m @gate -p x", 1, "not finite"),
            Case(
                "run -m @norm -p x",
                1,
                "model.layers.1.input_layernorm.weight",
            ),
            Case("eval -m @gate --perplexity @text --ctx 64", 1, "not finite"),
        ],
    );
}

#[test]
fn plans_that_do_not_fit_or_are_damaged() {
    let s = Sandbox::new();
    s.text();
    synth(&s);
    s.run("calibrate -m MODEL --method m-countdown --sparsity 0.7 --text @text -o @plan")
        .ok();
    let whole = fs::read(s.path("plan")).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for (name, length) in [
        ("cut1", 4),
        ("cut2", 8 + header / 2),
        ("cut3", whole.len() - 1),
    ] {
        s.file(name, &whole[..length]);
    }
    s.file(
        "other",
        fs::read(byte_llama().join("model.safetensors")).unwrap(),
    );
    let versioned = String::from_utf8_lossy(&whole[8..8 + header]).contains(r#"\"version\":2"#);
    assert!(versioned, "the header is not what this test changes");
    let changed = |name: &str, from: &[u8], to: &[u8]| {
        assert_eq!(from.len(), to.len());
        let at = whole.windows(from.len()).position(|w| w == from).unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        s.file(name, bytes);
    };
    changed("version", br#"\"version\":2"#, br#"\"version\":7"#);
    changed("target", br#"\"target\":0.7"#, br#"\"target\":9.7"#);
    let fingerprint = {
        let o = &s.run("inspect @m.gguf --json").json()[0];
        o["fingerprint"].as_str().unwrap().to_owned()
    };
    let run = s.run("run -m @m.gguf -p x --plan @plan");
    assert_fails(&run, 1, &fingerprint);
    assert_fails(&run, 1, "b768fa2466fcca595455d83759cc1e81");
    check(
        &s,
        &[
            Case("run -m MODEL -p x --plan @cut1", 1, "cut1"),
            Case("run -m MODEL -p x --plan @cut2", 1, "cut2"),
            Case("run -m MODEL -p x --plan @cut3", 1, "cut3"),
            Case("run -m MODEL -p x --plan @other", 1, "no plan"),
            Case("run -m MODEL -p x --plan @version", 1, "version 7"),
            Case("run -m MODEL -p x --plan @target", 2, "9.7"),
            Case(
                "eval -m @m.gguf --perplexity @text --ctx 64 --plan @plan",
                1,
                "plan was made for",
            ),
            Case(
                "bench -m @m.gguf -p 0 -n 4 -d 0 --plan @plan",
                1,
                "plan was made for",
            ),
        ],
    );
}

#[test]
fn a_port_that_is_taken() {
    let s = Sandbox::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let run = s.run(&format!("serve -m MODEL --port {port}"));
    assert_fails(&run, 1, &format!("127.0.0.1:{port}"));
    assert_fails(
        &s.run("serve -m MODEL --host no.such.host.invalid"),
        1,
        "no.such.host.invalid",
    );
}

#[test]
fn an_instruction_set_that_the_cpu_lacks() {
    let s = Sandbox::new();
    let run = support::run(s.command("run -m MODEL -p x").env("COUNTDOWN_ISA", "amx9"));
    assert_fails(&run, 1, "amx9");
}

#[cfg(unix)]
mod streams {
    use super::*;
    use std::process::{Command, Stdio};

    fn countdown(s: &Sandbox) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("countdown"));
        command.env("COUNTDOWN_CACHE", s.path("cache"));
        command
    }

    #[test]
    fn a_reader_that_went_away_is_a_success() {
        let s = Sandbox::new();
        let model = byte_llama();
        let model = model.to_str().unwrap();
        let lines: [&[&str]; 4] = [
            &[
                "run",
                "-m",
                model,
                "-p",
                "It is",
                "--context-shift",
                "-n",
                "100000",
            ],
            &["inspect", model],
            &["completions", "bash"],
            &["--help"],
        ];
        for line in lines {
            let mut child = countdown(&s)
                .args(line)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            drop(child.stdout.take());
            let output = child.wait_with_output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(0), "{line:?}: {stderr}");
            assert!(
                !stderr.contains("error") && !stderr.contains("panicked"),
                "{stderr}"
            );
        }
    }

    #[cfg(target_os = "linux")] // which has /dev/full
    #[test]
    fn standard_output_on_a_full_disk_is_an_error() {
        let s = Sandbox::new();
        let full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let output = countdown(&s)
            .args(["run", "-p", "It is", "-n", "5", "-m"])
            .arg(byte_llama())
            .stdout(full)
            .output()
            .unwrap();
        let run = Run {
            code: output.status.code().unwrap(),
            stdout: String::new(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        assert_fails(&run, 1, "standard output");
    }

    #[test]
    fn a_closed_standard_error_is_no_panic() {
        let s = Sandbox::new();
        let script = r#""$0" run -m "$1" -p It -n 3 --temp 0 2>&-"#;
        let output = Command::new("bash")
            .args(["-c", script])
            .arg(assert_cmd::cargo::cargo_bin!("countdown"))
            .arg(byte_llama())
            .env("COUNTDOWN_CACHE", s.path("cache"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(output.stdout.len(), 4);
    }

    #[test]
    fn a_full_disk_leaves_no_half_written_file() {
        let s = Sandbox::new();
        s.text();
        s.file("old", "what was there before");
        let before = s.names();
        for name in ["plan", "old"] {
            let line = format!(
                "calibrate -m MODEL --method m-countdown --sparsity 0.7 --text @text -o @{name}"
            );
            assert_fails(&s.run_on_a_full_disk(2, &line), 1, name);
        }
        assert_fails(
            &s.run_on_a_full_disk(2, "synth tiny -o @x.gguf"),
            1,
            "x.gguf",
        );
        assert_eq!(s.names(), before);
        assert_eq!(fs::read(s.path("old")).unwrap(), b"what was there before");
    }

    #[test]
    fn a_full_disk_under_the_cache_is_a_warning() {
        let s = Sandbox::new();
        s.text();
        let run = s.run_on_a_full_disk(
            2,
            "run -m MODEL -p It -n 3 --temp 0 --method cats --sparsity 0.5 --calibration @text",
        );
        assert_eq!(run.code, 0, "{run:?}");
        assert!(run.stderr.contains("warning: cannot write"), "{run:?}");
        for folder in fs::read_dir(s.path("cache/plans")).unwrap() {
            assert_eq!(fs::read_dir(folder.unwrap().path()).unwrap().count(), 0);
        }
    }
}
