//! `countdown bench`.

mod support;

use support::Sandbox;

#[test]
fn bench_speaks_llama_benchs_formats() {
    let s = Sandbox::new();
    s.text();
    let line = "bench -m MODEL -p 32 -n 8 -d 16 -r 2 -t 1,2 --method dense,m-countdown --sparsity 0.7 --calibration @text";
    let rows = s.run(&format!("{line} -o jsonl")).json();
    // For each number of threads the prompt in both layouts, and the steps dense and sparse.
    assert_eq!(rows.len(), 2 * (2 + 2));
    for row in &rows {
        for key in [
            "build_commit",
            "cpu_info",
            "gpu_info",
            "model_filename",
            "model_type",
            "model_size",
            "model_n_params",
            "n_batch",
            "n_threads",
            "type_k",
            "n_prompt",
            "n_gen",
            "n_depth",
            "test_time",
            "avg_ns",
            "stddev_ns",
            "avg_ts",
            "stddev_ts",
            "method",
            "target",
            "realised",
            "median_ts",
            "ratio",
        ] {
            assert!(!row[key].is_null(), "{key} in {row}");
        }
        assert_eq!(row["samples_ns"].as_array().unwrap().len(), 2);
    }
    let steps: Vec<_> = rows.iter().filter(|r| r["n_gen"] == 8).collect();
    assert_eq!(steps[0]["method"], "dense");
    assert_eq!(steps[0]["ratio"], 1.0);
    assert_eq!(steps[1]["method"], "m-countdown");
    assert!(
        (steps[1]["realised"].as_f64().unwrap() - 0.7).abs() < 0.12,
        "{}",
        steps[1]
    );
    assert!(steps[1]["bytes_ceiling"].as_f64().unwrap() > 1.2);
    assert!(steps[1]["gb_s"].as_f64().unwrap() > 0.0);
    assert!(steps[1]["bandwidth_share"].as_f64().unwrap() > 0.0);
    assert!(steps[1]["profile"].is_null() && rows[0]["bandwidth_share"].is_null());

    let short = "bench -m MODEL -p 0 -n 4 -d 0 -r 1 -t 1";
    let csv = s.run(&format!("{short} -o csv")).ok();
    let fields = |line: &str| line.split(',').count();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(fields(lines[0]), fields(lines[1]), "{csv}");
    let json: serde_json::Value =
        serde_json::from_str(&s.run(&format!("{short} -o json")).ok()).unwrap();
    assert_eq!(json[0]["n_gen"], 4);
    let md = s.run(&format!("{short} -o md")).ok();
    assert!(md.starts_with("| model") && md.contains("tg4"), "{md}");
    assert!(!md.contains("| part"), "{md}");

    let md = s.run(&format!("{short} --profile")).ok();
    for part in ["projections", "attention", "ffn", "head"] {
        assert!(md.contains(&format!("| {part}")), "{md}");
    }
    let profiled = s.run(&format!("{short} --profile -o jsonl")).json();
    let parts = profiled[0]["profile"].as_array().unwrap();
    let sum = |key: &str| parts.iter().map(|p| p[key].as_f64().unwrap()).sum::<f64>();
    let token = 1e6 / profiled[0]["median_ts"].as_f64().unwrap();
    assert!(
        sum("us") <= 1.01 * token && sum("us") > 0.5 * token,
        "{}",
        profiled[0]
    );
    assert!(sum("bytes") > 0.0 && sum("calls") > 4.0);
}

#[test]
fn bench_times_ffns_by_themselves() {
    let s = Sandbox::new();
    s.text();
    let line = "bench -m MODEL -p 0 -n 0 --ffn 6 -d 16,0 -r 2 -t 1 --method dense,m-countdown --sparsity 0.7 --calibration @text";
    let rows = s.run(&format!("{line} -o jsonl")).json();
    assert_eq!(rows.len(), 2 * 2);
    let number = |row: &serde_json::Value, key: &str| row[key].as_f64().unwrap();
    let layers = s.run("inspect MODEL --json").json()[0]["inter"]
        .as_array()
        .unwrap()
        .len();
    for (row, depth) in rows.iter().zip([16, 16, 0, 0]) {
        assert_eq!((&row["n_ffn"], &row["n_gen"]), (&6.into(), &0.into()));
        assert_eq!(row["n_depth"], depth);
        let pass = 1e6 / number(row, "median_ts");
        let layer = number(row, "ffn_us");
        assert!((layer * layers as f64 / pass - 1.0).abs() < 1e-9, "{row}");
        assert!(number(row, "gb_s") > 0.0 && number(row, "bandwidth_share") > 0.0);
    }
    for (dense, sparse) in [(&rows[0], &rows[1]), (&rows[2], &rows[3])] {
        assert_eq!(number(dense, "realised"), 0.0);
        // Of one token, the same in each pass.
        let realised = number(sparse, "realised");
        assert!((0.4..0.9).contains(&realised), "{sparse}");
        // Up is read, and of gate and down the rows that are kept: all the bytes there are.
        let ceiling = 3.0 / (1.0 + 2.0 * (1.0 - realised));
        let off = number(sparse, "bytes_ceiling") / ceiling - 1.0;
        assert!(off.abs() < 0.02, "{sparse}");
    }
    let md = s.run(&format!("{line} --profile")).ok();
    assert!(
        md.contains("ffn6 @ d16") && md.contains("us a layer"),
        "{md}"
    );
}
