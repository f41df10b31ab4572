//! Results as tables, JSON and CSV.

use super::rows::{Row, name};
use crate::{
    console::json,
    failure::{Failure, Result},
    load,
    table::{self, Table, csv_line},
};
use countdown::{
    bench::Load,
    sparsity::{Cut, Form},
};
use serde_json::{Map, Value as Json};

/// One table, and one of each profile that was asked for.
pub(super) fn markdown(rows: &[Row]) -> String {
    let has_ffns = rows.iter().any(|r| r.ffn_us.is_some());
    let mut columns = vec![
        "model", "size", "backend", "threads", "test", "method", "cut", "target", "realised",
        "t/s", "median", "GB/s", "share", "ratio", "ceiling",
    ];
    columns.extend(has_ffns.then_some("us a layer"));
    let mut table = Table::new(&columns);
    let number = |n: Option<f64>| n.map_or("-".into(), |n| format!("{n:.2}"));
    for r in rows {
        let mut row = vec![
            r.model_type.clone(),
            table::bytes(r.model_size as f64),
            r.backends.clone(),
            r.n_threads.to_string(),
            test(r),
            method(r),
            r.cut.map_or("-", Cut::name).into(),
            format!("{:.2}", r.target),
            format!("{:.3}", r.realised),
            format!("{:.2} ± {:.2}", r.avg_ts, r.stddev_ts),
            format!("{:.2}", r.median_ts),
            number(r.gb_s),
            r.bandwidth_share
                .map_or("-".into(), |s| format!("{:.0} %", s * 100.0)),
            number(r.ratio),
            number(r.bytes_ceiling),
        ];
        row.extend(has_ffns.then(|| r.ffn_us.map_or("-".into(), |us| format!("{us:.1}"))));
        table.row(row);
    }
    let profiles: String = rows.iter().filter_map(profile).collect();
    format!(
        "{}{profiles}\nbuild: {}\n",
        table.markdown(),
        env!("COUNTDOWN_COMMIT")
    )
}

/// Where the time of a row's token goes, where that was asked for.
fn profile(r: &Row) -> Option<String> {
    let all: f64 = r.profile.iter().map(|p| p.us).sum();
    if r.profile.is_empty() {
        return None;
    }
    let mut table = Table::new(&["part", "calls", "us", "share", "MB", "GB/s"]);
    for p in &r.profile {
        table.row([
            p.part.into(),
            format!("{:.2}", p.calls),
            format!("{:.1}", p.us),
            format!("{:.1} %", p.us / all * 100.0),
            format!("{:.2}", p.bytes / 1e6),
            p.bandwidth().map_or("-".into(), |b| format!("{b:.1}")),
        ]);
    }
    let target = if r.target > 0.0 {
        format!(" {:.2}", r.target)
    } else {
        String::new()
    };
    Some(format!(
        "\n{}{target}, {}, {} threads, a token:\n\n{}",
        method(r),
        test(r),
        r.n_threads,
        table.markdown()
    ))
}

pub(super) fn json_array(rows: &[Row]) -> Result<String> {
    let lines = rows.iter().map(json).collect::<Result<Vec<_>>>()?;
    Ok(format!("[\n  {}\n]\n", lines.join(",\n  ")))
}

/// The same keys as JSON, without the samples, as llama-bench has it.
pub(super) fn csv(rows: &[Row]) -> Result<String> {
    let object = |row: &Row| -> Result<Map<String, Json>> {
        let value = serde_json::to_value(row).map_err(|e| Failure::output(e.into()))?;
        let Json::Object(mut object) = value else {
            return Ok(Map::new());
        };
        object.shift_remove("samples_ns");
        object.shift_remove("samples_ts");
        object.shift_remove("profile");
        Ok(object)
    };
    let objects = rows.iter().map(object).collect::<Result<Vec<_>>>()?;
    let Some(first) = objects.first() else {
        return Ok(String::new());
    };
    let cell = |value: &Json| match value {
        Json::Null => String::new(),
        Json::String(s) => s.clone(),
        other => other.to_string(),
    };
    let header = first.keys().cloned().collect::<Vec<_>>().join(",") + "\n";
    let lines = objects.iter().map(|o| csv_line(o.values().map(cell)));
    Ok(header + &lines.collect::<String>())
}

/// llama-bench's name of a row's test.
fn test(r: &Row) -> String {
    let depth = r.n_depth;
    name(match (r.n_prompt, r.n_gen, r.n_ffn) {
        (n, 0, 0) => Load::Prompt(n),
        (_, tokens, 0) => Load::Steps { tokens, depth },
        (_, _, passes) => Load::Ffns { passes, depth },
    })
}

/// The method with what tells it from others of its name.
fn method(r: &Row) -> String {
    let predictor = r.predictor.as_deref().map(|p| format!(" by {p}"));
    let ideal = match r.form {
        Some(Form::Ideal) => " (ideal)",
        _ => "",
    };
    let layout = match (r.method.as_str(), r.down) {
        ("dense", "transposed") => " (transposed)",
        _ => "",
    };
    let label = format!(
        "{}{}{ideal}{layout}",
        r.method,
        predictor.unwrap_or_default()
    );
    load::with_file(label, r.plan.as_deref())
}
