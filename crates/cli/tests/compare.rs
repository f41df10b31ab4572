//! `countdown compare`: one report of all methods, that goes on where it was interrupted.

mod support;

use serde_json::Value;
use std::fs;
use support::Sandbox;

/// Settings that take a second, but for speed.
const TINY: &str =
    "compare -q -m MODEL --text @eval --calibration @text -c 64 --chunks 2 -o @report";

fn sandbox() -> Sandbox {
    let s = Sandbox::new();
    s.text();
    s.file("eval", &countdown::CALIBRATION_TEXT[20_000..20_600]);
    s
}

fn results(s: &Sandbox) -> Value {
    serde_json::from_slice(&fs::read(s.path("report/results.json")).unwrap()).unwrap()
}

fn rows(results: &Value) -> &Vec<Value> {
    results["rows"].as_array().unwrap()
}

/// The row of a method, predictor, cut and form at a target.
#[track_caller]
fn row<'a>(results: &'a Value, key: [&str; 4], target: f64) -> &'a Value {
    let is = |r: &&Value| {
        let names = ["method", "predictor", "cut", "form"].map(|k| r[k].as_str().unwrap_or("-"));
        names == key && r["target"] == target
    };
    rows(results)
        .iter()
        .find(is)
        .unwrap_or_else(|| panic!("{key:?} {target}"))
}

fn number(row: &Value, path: &str) -> f64 {
    row.pointer(path).unwrap().as_f64().unwrap()
}

#[test]
fn one_command_compares_everything() {
    let s = sandbox();
    let table = s
        .run(&format!("{TINY} --sparsity 0.5,0.7 --steps 4 -d 8 -r 1"))
        .ok();
    let r = results(&s);
    // CATS and M in two cuts and forms; D in two cuts, S and Deja Vu in one, by three copies and exact.
    assert_eq!(rows(&r).len(), 1 + 2 * (4 + 4 + 8 + 4 + 4));
    assert_eq!(table.lines().count(), 2 + rows(&r).len());
    let dense = &rows(&r)[0];
    assert_eq!(
        (dense["method"].as_str(), number(dense, "/ratio")),
        (Some("dense"), 1.0)
    );
    for sparse in &rows(&r)[1..] {
        assert!(
            (number(sparse, "/realised") - number(sparse, "/target")).abs() < 0.12,
            "{sparse}"
        );
        assert!((0.9..2.0).contains(&number(sparse, "/ratio")), "{sparse}");
        assert_eq!(sparse["tokens"], 2 * 31);
        let is_practical = sparse["form"] == "practical";
        assert_eq!(sparse["speed"].is_object(), is_practical, "{sparse}");
        assert_eq!(
            sparse["layers"].is_array(),
            sparse["target"] == 0.7,
            "{sparse}"
        );
    }

    // Bytes of weights of 16 bits are those of the paper's arithmetic.
    let m = row(&r, ["m-countdown", "-", "signed", "practical"], 0.7);
    let kept = |r: &Value| 1.0 - number(r, "/realised");
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
    close(
        number(m, "/ffn_share/bits16"),
        1.0 / 3.0 + 2.0 / 3.0 * kept(m),
    );
    let d = row(&r, ["d-countdown", "copy3", "neuron", "practical"], 0.7);
    close(
        number(d, "/ffn_share/bits16"),
        2.0 / 3.0 * 3.5 / 16.0 + kept(d),
    );
    close(
        number(d, "/ffn_share/bits8"),
        2.0 / 3.0 * 3.5 / 8.5 + kept(d),
    );
    let bound = row(&r, ["d-countdown", "-", "layer", "ideal"], 0.7);
    close(number(bound, "/ffn_share/file"), kept(bound));
    // The model is F32, so a row of down is the same in both layouts.
    let ffn = f64::from(3 * 4 * 96 * 256 * 4);
    let saved = number(dense, "/bytes_per_token") - number(bound, "/bytes_per_token");
    assert!((saved - ffn * (1.0 - kept(bound))).abs() < 1.0);

    // S by a copy is D by the same copy with its neurons' norms: measured once.
    let twin = row(&r, ["s-countdown", "copy3", "neuron", "practical"], 0.7);
    assert_eq!(twin["same_as"], "d-countdown");
    assert_eq!(twin["perplexity"], d["perplexity"]);

    assert_eq!(r["choices"]["target"], 0.7);
    for layer in bound["layers"].as_array().unwrap() {
        assert_eq!(
            (number(layer, "/recall"), number(layer, "/precision")),
            (1.0, 1.0)
        );
    }
    let pairs = r["choices"]["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 4, "two cuts, two forms");
    for side in ["kept", "dropped"] {
        let wrong = number(&pairs[0], &format!("/{side}/wrong/0"));
        assert!(wrong > 0.0 && wrong < 0.7, "{pairs:?}");
    }

    let page = fs::read_to_string(s.path("report/index.html")).unwrap();
    assert!(page.len() < 1 << 20, "{}", page.len());
    assert!(page.matches("<svg class").count() >= 10);
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    for (absent, why) in [
        ("<script", "no scripts"),
        ("href", "no links"),
        ("src=", "nothing from elsewhere"),
        ("NaN", "numbers are numbers"),
    ] {
        assert!(!page.contains(absent), "{why}");
    }
    let hash = r["settings"]["text"].as_str().unwrap();
    assert!(page.contains(hash) && page.contains("prefers-color-scheme:dark"));
}

#[test]
fn a_run_goes_on_where_it_was_interrupted_and_takes_more() {
    let s = sandbox();
    let line =
        format!("{TINY} --method cats,m-countdown --cut signed --sparsity 0.5,0.8 --steps 0");
    s.run(&line).ok();
    let whole = results(&s);
    assert_eq!(rows(&whole).len(), 1 + 2 * 2 * 2);
    let phases = |r: &Value| -> Vec<String> {
        let all = r["phases"].as_array().unwrap().iter();
        all.map(|p| p["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        phases(&whole),
        ["quality 0.5", "quality 0.8", "choices 0.8"]
    );
    s.run(&line).ok();
    assert_eq!(results(&s), whole, "nothing is measured twice");

    // As if it had been interrupted in the second phase.
    let mut part = whole.clone();
    part["rows"]
        .as_array_mut()
        .unwrap()
        .retain(|r| r["target"] != 0.8);
    part["phases"].as_array_mut().unwrap().truncate(1);
    part["choices"] = Value::Null;
    fs::write(s.path("report/results.json"), part.to_string()).unwrap();
    fs::remove_file(s.path("report/index.html")).unwrap();
    s.run(&line).ok();
    let again = results(&s);
    assert_eq!(phases(&again), phases(&whole));
    assert_eq!(again["rows"], whole["rows"]);
    assert_eq!(again["choices"], whole["choices"]);
    assert!(s.path("report/index.html").exists());

    // A plan from a file joins them.
    s.run("calibrate -m MODEL --text @text --method d-countdown --predictor copy4 --sparsity 0.8 -o @p.safetensors").ok();
    s.run(&format!("{TINY} --method m-countdown --cut layer --sparsity 0.8 --steps 2 -d 0 -r 1 --plan @p.safetensors")).ok();
    let more = results(&s);
    assert_eq!(rows(&more).len(), rows(&whole).len() + 2 + 1);
    let given = row(&more, ["d-countdown", "copy4", "neuron", "practical"], 0.8);
    assert_eq!(given["plan"]["name"], "p.safetensors");
    assert!(number(given, "/speed/rate") > 0.0 && given["layers"].is_array());
    let before = row(&whole, ["cats", "-", "signed", "ideal"], 0.5);
    assert_eq!(row(&more, ["cats", "-", "signed", "ideal"], 0.5), before);
}

#[test]
fn what_cannot_be_compared_is_refused_before_any_work() {
    let s = sandbox();
    s.file("short", "too short");
    s.file("file", "x");
    fs::create_dir(s.path("other")).unwrap();
    s.file("other/x", "x");
    s.run(&format!("{TINY} --method cats --sparsity 0.5 --steps 0"))
        .ok();
    let foreign = s.copy_model("foreign").join("model.safetensors");
    let mut weights = fs::read(&foreign).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    fs::write(foreign, weights).unwrap();
    s.run("calibrate -m @foreign --text @text --method cats --sparsity 0.5 -o @foreign.plan")
        .ok();
    let before = (s.names(), results(&s));
    let base = "compare -m MODEL --calibration @text -c 64 --chunks 1";
    for (flags, code, naming) in [
        ("--text @nowhere -o @r", 1, "nowhere"),
        ("--text @short -o @r", 2, "9 tokens"),
        ("--text @text -o @r", 2, "the one that plans are fitted on"),
        ("-o @r", 2, "--text"),
        ("--text @eval", 2, "--output"),
        ("--text @eval -o @file", 1, "file"),
        ("--text @eval -o @no/where", 1, "where"),
        ("--text @eval -o @other", 2, "no comparison"),
        ("--text @eval -o @report", 2, "chunks differs"),
        ("--text @eval -o @r --method dense", 2, "nothing to compare"),
        ("--text @eval -o @r --sparsity 1.5", 2, "1.5"),
        (
            "--text @eval -o @r --predictor low-rank",
            2,
            "must be trained",
        ),
        ("--text @eval -o @r --steps 400", 2, "400 steps"),
        (
            "--text @eval -o @r --plan @foreign.plan",
            1,
            "made for model",
        ),
        ("--text @eval -o @r --plan @none", 1, "none"),
    ] {
        let run = s.run(&format!("{base} {flags}"));
        assert_eq!(run.code, code, "{flags}: {run:#?}");
        let errors: Vec<&str> = run
            .stderr
            .lines()
            .filter(|l| l.starts_with("error:"))
            .collect();
        assert!(
            errors.len() == 1 && errors[0].contains(naming),
            "{flags}: {run:#?}"
        );
        assert!(run.stderr.contains("help: ") && !run.stderr.contains("panicked"));
        assert_eq!((s.names(), results(&s)), before, "{flags}");
    }
}

#[test]
fn rows_name_the_file_of_their_plan() {
    let s = Sandbox::new();
    s.text();
    s.run("calibrate -m MODEL --method m-countdown --sparsity 0.5,0.9 --text @text -o @plan-{sparsity}.safetensors")
        .ok();
    let plans = [0.5, 0.9].map(|t| s.path(&format!("plan-{t}.safetensors")));
    let plans = format!("--plan {},{}", plans[0].display(), plans[1].display());
    let eval = format!("eval -m MODEL --perplexity @text --ctx 64 --chunks 1 {plans}");
    let bench = format!("bench -m MODEL -p 0 -n 2 -r 1 --method dense {plans}");
    let json = [
        s.run(&format!("{eval} --json")).json(),
        s.run(&format!("{bench} -o jsonl")).json(),
    ];
    for rows in json {
        assert_eq!(rows.len(), 3);
        assert!(rows[0]["plan"].is_null());
        for (row, target) in rows[1..].iter().zip([0.5, 0.9]) {
            let file = row["plan"].as_str().unwrap();
            assert!(file.ends_with(&format!("plan-{target}.safetensors")));
            assert_eq!(row["target"], target);
        }
    }
    for command in [eval, bench] {
        let table = s.run(&command).ok();
        assert!(
            table.contains("m-countdown (plan-0.9.safetensors)"),
            "{table}"
        );
    }
}
