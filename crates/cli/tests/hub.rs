//! `-m hf:...` of every command, against a mirror on loopback.

#[path = "../../hub/tests/support/mod.rs"]
mod mirror;
mod support;

use mirror::{File, Mirror};
use support::{Run, Sandbox, byte_llama};

/// A mirror with the trained model of bytes, as a folder and as a GGUF file of 16 bits.
fn start(s: &Sandbox) -> Mirror {
    s.run("convert -m MODEL -o @made.gguf --type F16").ok();
    let read = |name: &str| std::fs::read(byte_llama().join(name)).unwrap();
    let files = vec![
        File::small("config.json", &read("config.json")),
        File::large("model.safetensors", read("model.safetensors")),
        File::large("made-F16.gguf", std::fs::read(s.path("made.gguf")).unwrap()),
    ];
    std::fs::remove_file(s.path("made.gguf")).unwrap();
    Mirror::start(files)
}

fn command(s: &Sandbox, mirror: &Mirror, line: &str) -> assert_cmd::Command {
    let mut command = s.command(line);
    for proxy in [
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
    ] {
        command.env_remove(proxy);
    }
    command
        .env("HF_ENDPOINT", mirror.endpoint())
        .env("HF_HUB_CACHE", s.path("hub"))
        .env("HF_HOME", s.path("home"));
    command
}

fn run(s: &Sandbox, mirror: &Mirror, line: &str) -> Run {
    support::run(&mut command(s, mirror, line))
}

#[test]
fn a_model_is_fetched_once_and_runs_as_if_it_were_here() {
    let s = Sandbox::new();
    let mirror = start(&s);
    let here = s.run("run -m MODEL -p Once -n 20 --temp 0").ok();
    let fetched = run(&s, &mirror, "run -m hf:org/name -p Once -n 20 --temp 0").ok();
    assert_eq!(fetched, here);
    let before = mirror.requests().len();
    assert_eq!(
        run(&s, &mirror, "run -m hf:org/name -p Once -n 20 --temp 0").ok(),
        here
    );
    assert_eq!(mirror.requests().len(), before);
    let inspected = run(&s, &mirror, "inspect hf:org/name --json").json();
    assert_eq!(inspected.len(), 1);
    assert_eq!(mirror.requests().len(), before);
    // What is in the cache needs no network at all.
    let offline = support::run(
        command(&s, &mirror, "inspect hf:org/name")
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_ENDPOINT", "http://127.0.0.1:1"),
    );
    offline.ok();
    let gguf = run(
        &s,
        &mirror,
        "convert -m hf:org/name:F16 -o @copy.gguf --json",
    )
    .json();
    assert_eq!(gguf[0]["bytes_by_type"].as_object().unwrap().len(), 2);
}

#[test]
fn what_keeps_a_model_from_coming_is_said_in_two_lines() {
    let s = Sandbox::new();
    let mirror = start(&s);
    for (model, endpoint, cause, remedy) in [
        ("hf:org/none", None, "not found", "check the names"),
        ("hf:org/name:Q4_0", None, "no file Q4_0", "made-F16.gguf"),
        (
            "hf:org/name",
            Some("http://127.0.0.1:1"),
            "cannot reach",
            "HF_ENDPOINT",
        ),
    ] {
        let mut command = command(&s, &mirror, &format!("inspect {model}"));
        if let Some(endpoint) = endpoint {
            command.env("HF_ENDPOINT", endpoint);
        }
        let failed = support::run(&mut command);
        assert_eq!(failed.code, 1, "{failed:#?}");
        let lines: Vec<&str> = failed.stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{failed:#?}");
        assert!(
            lines[0].contains(cause) && lines[1].contains(remedy),
            "{failed:#?}"
        );
    }
    let wrong = run(&s, &mirror, "inspect hf:a/b/c");
    assert_eq!(wrong.code, 2, "{wrong:#?}");
    assert!(
        wrong.stderr.contains("names no model on the Hub"),
        "{wrong:#?}"
    );
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_named_and_what_came_is_kept() {
    let s = Sandbox::new();
    let mirror = start(&s);
    let script = "trap '' XFSZ; ulimit -f 40; exec \"$0\" \"$@\"";
    let mut sh = assert_cmd::Command::new("sh");
    sh.args(["-c", script])
        .arg(assert_cmd::cargo::cargo_bin!("countdown"))
        .args(["inspect", "hf:org/name"])
        .current_dir(s.path(""))
        .env_remove("http_proxy")
        .env("HF_ENDPOINT", mirror.endpoint())
        .env("HF_HUB_CACHE", s.path("hub"))
        .env("HF_HOME", s.path("home"));
    let failed = support::run(&mut sh);
    assert_eq!(failed.code, 1, "{failed:#?}");
    assert!(
        failed.stderr.contains("cannot write") && failed.stderr.contains("HF_HUB_CACHE"),
        "{failed:#?}"
    );
    run(&s, &mirror, "inspect hf:org/name").ok();
    assert_eq!(mirror.ranges(), [0, 40 * 512]);
}
