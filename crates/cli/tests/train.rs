//! `countdown train`: what it writes, that it survives being killed, what it refuses.

mod support;

use std::{
    fs,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};
use support::{Run, Sandbox, byte_llama};

const SHORT: &str = "--rank 16 --epochs 2 --batch 512 --sparsity 0.7 -t 2 --text @text";

#[track_caller]
fn assert_fails(run: &Run, code: i32, naming: &[&str]) {
    assert_eq!(run.code, code, "{run:#?}");
    assert!(naming.iter().all(|n| run.stderr.contains(n)), "{run:#?}");
    assert!(
        run.stderr.contains("help:") && !run.stderr.contains("panicked"),
        "{run:#?}"
    );
}

#[test]
fn a_plan_a_report_and_a_chart_and_nothing_else() {
    let s = Sandbox::new();
    s.text();
    let line = format!(
        "train -m MODEL --predictor low-rank {SHORT} -o @plan --json @report.json --svg @report.svg"
    );
    let run = s.run(&line);
    assert!(run.stderr.contains("layer 4 of 4"), "{run:#?}");
    let table = run.ok();
    assert!(
        table.contains("recall") && table.contains("low-rank-16 at 0.7: realised"),
        "{table}"
    );
    assert_eq!(s.names(), ["plan", "report.json", "report.svg", "text"]);

    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(s.path("report.json")).unwrap()).unwrap();
    assert_eq!(report["run"]["predictor"], "low-rank-16");
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    for layer in layers {
        let loss = |i: usize| layer["losses"][i]["held_out"].as_f64().unwrap();
        assert!(
            loss(2) < loss(0) && loss(2) < layer["chance"].as_f64().unwrap(),
            "{layer}"
        );
        assert!(
            layer["quality"]["recall"].as_f64().unwrap() > 0.4,
            "{layer}"
        );
    }
    let svg = fs::read_to_string(s.path("report.svg")).unwrap();
    // One document that stands by itself: four charts of ten lines together, a mark a layer on each.
    assert!(svg.starts_with("<svg ") && svg.contains("xmlns=") && !svg.contains("href"));
    assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
    assert_eq!(svg.matches("class=\"t\"").count(), 4);
    assert_eq!(svg.matches("<polyline").count(), 10);
    assert_eq!(svg.matches("<title>").count(), 10 * layers.len());
    assert!(svg.contains("low-rank-16 at 0.7: held-out loss") && !svg.contains("NaN"));

    let answer = s.run("run -m MODEL --plan @plan -p abc -n 4 --temp 0");
    assert!(answer.stderr.contains("low-rank-16"), "{answer:#?}");
    answer.ok();
}

#[test]
fn a_copy_is_not_trained_but_gives_a_plan_too() {
    let s = Sandbox::new();
    s.text();
    let line = s
        .run("train -m MODEL --predictor copy4 --sparsity 0.5 --text @text -o @plan")
        .ok();
    assert!(line.contains("copy4 at 0.5: realised 0."), "{line}");
    assert_eq!(s.names(), ["plan", "text"]);
}

#[test]
fn killed_in_the_middle_it_comes_to_the_same_plan() {
    let s = Sandbox::new();
    s.text();
    let line = |output: &str| format!("train -m MODEL --predictor low-rank {SHORT} -o @{output}");
    s.run(&line("whole")).ok();

    let binary = assert_cmd::cargo::cargo_bin!("countdown");
    let mut child = std::process::Command::new(binary)
        .current_dir(s.path(""))
        .arg("train")
        .arg("-m")
        .arg(byte_llama())
        .args(["--predictor", "low-rank", "-o", "killed"])
        .args(SHORT.replace('@', "").split_whitespace())
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let finished = s.path("killed.training/layer-001.safetensors");
    let began = Instant::now();
    while !finished.exists() && child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(60));
        sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        !s.path("killed").exists(),
        "it was finished before it was killed"
    );

    let written = fs::metadata(&finished).unwrap().modified().unwrap();
    s.run(&format!("{} --resume @killed.training", line("killed")))
        .ok();
    assert_eq!(
        fs::read(s.path("killed")).unwrap(),
        fs::read(s.path("whole")).unwrap()
    );
    // The layer that was finished was not trained again.
    assert_eq!(
        fs::metadata(&finished).unwrap().modified().unwrap(),
        written
    );

    let other = s.run(&format!(
        "{} --resume @killed.training --seed 7",
        line("other")
    ));
    assert_fails(
        &other,
        2,
        &["killed.training", "seed is 1 there and 7 here"],
    );
}

#[test]
fn what_makes_no_sense_is_refused_and_leaves_nothing() {
    let s = Sandbox::new();
    s.text();
    s.file("short", "too short");
    let cases: [(&str, i32, &[&str]); 12] = [
        (
            "--predictor low-rank --rank 97 --sparsity 0.7 --text @text -o @p",
            2,
            &["rank 97", "96"],
        ),
        (
            "--predictor low-rank --sparsity 0.7 --text @short -o @p --rank 8",
            2,
            &["9 tokens"],
        ),
        (
            "--predictor low-rank --sparsity 0.7 --text @none -o @p",
            1,
            &["none"],
        ),
        (
            "--predictor low-rank --sparsity 1 --text @text -o @p",
            2,
            &["1"],
        ),
        (
            "--predictor low-rank --sparsity 0.7 --text @text -o @no/p",
            1,
            &["no/p"],
        ),
        (
            "--predictor low-rank --sparsity 0.7 --text @text -o @p --svg @no/q",
            1,
            &["no/q"],
        ),
        (
            "--predictor product --target dejavu --rank 8 --sparsity 0.7 --text @text -o @p",
            2,
            &["dejavu"],
        ),
        (
            "--predictor low-rank --target cats --rank 8 --sparsity 0.7 --text @text -o @p",
            2,
            &["cats"],
        ),
        (
            "--predictor low-rank --type Q8_0 --rank 8 --sparsity 0.7 --text @text -o @p",
            2,
            &["rank 8", "blocks of 32", "F16"],
        ),
        (
            "--predictor copy3 --type F16 --sparsity 0.7 --text @text -o @p",
            2,
            &["copy3", "--type"],
        ),
        (
            "--predictor copy3 --sparsity 0.7 --text @text -o @p --json @r",
            2,
            &["copy3", "--json"],
        ),
        (
            "--predictor low-rank --memory 0 --rank 8 --sparsity 0.7 --text @text -o @p",
            2,
            &["--memory"],
        ),
    ];
    for (line, code, naming) in cases {
        assert_fails(&s.run(&format!("train -m MODEL {line}")), code, naming);
        assert_eq!(s.names(), ["short", "text"], "{line}");
    }
}

/// What a run on a full disk left: nothing but what a later one goes on from.
#[cfg(unix)]
#[track_caller]
fn assert_stopped(s: &Sandbox, run: &Run, naming: &str) {
    assert_fails(run, 1, &["cannot write", naming, "disk has room"]);
    assert!(!s.path("p").exists(), "{run:#?}");
    let state = fs::read_dir(s.path("p.training")).unwrap();
    for file in state.map(|e| e.unwrap().file_name().into_string().unwrap()) {
        assert!(
            file == "run.json" || file.ends_with(".safetensors"),
            "{file}"
        );
    }
}

#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_in_the_middle_of_a_layer_loses_no_epoch() {
    let s = Sandbox::new();
    s.file("text", &countdown::CALIBRATION_TEXT[..2200]);
    let line = |output: &str| {
        format!(
            "train -m MODEL --predictor low-rank --rank 8 --epochs 24 --batch 512 --sparsity 0.7 -t 2 --text @text -o @{output}"
        )
    };
    s.run(&format!("{} --resume @whole.training", line("whole")))
        .ok();
    // The state grows by its losses, some seventy bytes an epoch: it is too large some time after the sixth.
    let state = fs::metadata(s.path("whole.training/epoch.safetensors")).unwrap();
    let full = s.run_on_a_full_disk(state.len() / 512 - 1, &line("p"));
    assert_stopped(&s, &full, "p.training/epoch.safetensors");
    assert!(s.path("p.training/epoch.safetensors").exists());

    let resumed = s.run(&line("p"));
    let first = resumed.stderr.split("layer 1 of 4, epoch ").nth(1);
    let epoch = first.and_then(|rest| rest.split(',').next()).unwrap();
    assert!(epoch.parse::<u32>().unwrap() > 6, "{resumed:#?}");
    resumed.ok();
    assert_eq!(
        fs::read(s.path("p")).unwrap(),
        fs::read(s.path("whole")).unwrap()
    );
    assert!(!s.path("p.training").exists());
}

#[cfg(unix)]
#[test]
fn whatever_a_full_disk_stops_is_done_by_the_next_run() {
    let s = Sandbox::new();
    s.file("text", &countdown::CALIBRATION_TEXT[..2200]);
    let line = |output: &str, more: &str| {
        format!(
            "train -m MODEL --predictor low-rank --rank 8 --epochs 0 --sparsity 0.7 -t 2 --text @text -o @{output} {more}"
        )
    };
    s.run(&line("whole", "")).ok();
    let plan = fs::read(s.path("whole")).unwrap();
    // The plan has all layers and is the largest file, but for inputs that do not fit memory.
    for (more, blocks, naming) in [
        ("", 1, "p.training/"),
        ("--memory 0.0013", 100, "p.training/inputs"),
        ("", plan.len() as u64 / 512 - 1, "/p: "),
    ] {
        let full = s.run_on_a_full_disk(blocks, &line("p", more));
        assert_stopped(&s, &full, naming);
        s.run(&line("p", more)).ok();
        assert_eq!(fs::read(s.path("p")).unwrap(), plan, "{naming}");
        assert_eq!(s.names(), ["p", "text", "whole"]);
        fs::remove_file(s.path("p")).unwrap();
    }
}
