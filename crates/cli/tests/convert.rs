//! `countdown convert`: what it says, what it refuses, and that a converted model answers as before.

mod support;

use support::Sandbox;

const PROMPT: &str = "run -p Once -n 20 --temp 0 -m";

#[test]
fn a_model_answers_the_same_in_another_format() {
    let s = Sandbox::new();
    let original = s.run(&format!("{PROMPT} MODEL")).ok();
    let report = s.run("convert -m MODEL -o @folder --json").json();
    assert_eq!(report[0]["requantised"], false);
    assert_eq!(report[0]["fallbacks"], 0);
    let copy = s.run("inspect @folder --json").json();
    assert_eq!(
        copy[0]["fingerprint"],
        s.run("inspect MODEL --json").json()[0]["fingerprint"]
    );
    assert!(original.len() > 20);
}

#[test]
fn a_random_model_goes_through_every_step() {
    let s = Sandbox::new();
    // Without padding tokens, for which tokenizer.json has no word.
    s.run("synth tiny --vocab 258 --type F16 -o @a.gguf").ok();
    let original = s.run(&format!("{PROMPT} @a.gguf")).ok();
    s.run("convert -m @a.gguf -o @b").ok();
    assert_eq!(s.run(&format!("{PROMPT} @b")).ok(), original);
    s.run("convert -m @b -o @c.gguf").ok();
    assert_eq!(s.run(&format!("{PROMPT} @c.gguf")).ok(), original);
    let told = s.run("convert -m @c.gguf -o @d.gguf --type q8_0").ok();
    assert!(told.contains("Q8_0") && told.contains("F32"), "{told}");
    let twice = s.run("convert -m @d.gguf -o @e.gguf --type Q4_0");
    assert!(twice.stderr.contains("quantised before"), "{twice:#?}");
    twice.ok();
    let refused = s.run("convert -m @a.gguf -o @e.gguf");
    assert_eq!(refused.code, 2, "{refused:#?}");
    assert!(refused.stderr.contains("--force"), "{refused:#?}");
    s.run("convert -m @a.gguf -o @e.gguf --force").ok();
    let fingerprint = |name: &str| {
        let model = s.run(&format!("inspect @{name} --json")).json();
        model[0]["fingerprint"].clone()
    };
    assert_eq!(fingerprint("e.gguf"), fingerprint("a.gguf"));
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let s = Sandbox::new();
    s.run("synth tiny --type Q8_0 -o @a.gguf").ok();
    let before = s.names();
    for (line, code, naming) in [
        ("convert -m @a.gguf -o @b", 2, "cannot hold Q8_0"),
        (
            "convert -m @a.gguf -o @b.safetensors",
            2,
            "one file of a folder",
        ),
        ("convert -m @a.gguf -o @none/b.gguf", 1, "cannot write"),
        ("convert -m @none.gguf -o @b.gguf", 1, "cannot read"),
        ("convert -m @a.gguf -o @b.gguf --type Q9", 2, "Q9"),
    ] {
        let run = s.run(line);
        assert_eq!(run.code, code, "{run:#?}");
        assert!(run.stderr.contains(naming), "{run:#?}");
        assert_eq!(s.names(), before, "{line}");
    }
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_what_was_there() {
    let s = Sandbox::new();
    s.run("synth tiny --type F16 -o @a.gguf").ok();
    s.file("b.gguf", "old");
    for out in ["b.gguf", "c"] {
        let run = s.run_on_a_full_disk(100, &format!("convert -m @a.gguf -o @{out} --force"));
        assert_eq!(run.code, 1, "{run:#?}");
        assert!(run.stderr.contains("cannot write"), "{run:#?}");
        assert_eq!(s.names(), ["a.gguf", "b.gguf"]);
    }
    assert_eq!(std::fs::read(s.path("b.gguf")).unwrap(), b"old");
}
