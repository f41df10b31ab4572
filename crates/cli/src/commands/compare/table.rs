//! The rows as a table, for the terminal and the page.

use super::results::Row;
use crate::{load::form_name, table::Table};
use countdown::sparsity::Cut;

/// The columns.
pub(super) const COLUMNS: [&str; 18] = [
    "method",
    "cut",
    "form",
    "target",
    "realised",
    "perplexity",
    "±",
    "ratio",
    "KL",
    "top-1",
    "MB/token",
    "FFN",
    "FFN 16-bit",
    "FFN 8-bit",
    "accuracy",
    "tok/s",
    "speed-up",
    "from",
];

/// The cells of a row.
pub(super) fn cells(r: &Row) -> [String; COLUMNS.len()] {
    let percent = |share: f64| format!("{:.1}%", share * 100.0);
    let from = match (&r.same_as, &r.key.plan) {
        (Some(other), _) => format!("as {other}"),
        (None, Some(plan)) => plan.name.clone(),
        (None, None) => String::new(),
    };
    [
        r.key.label(),
        r.key.cut.map_or("-", Cut::name).into(),
        r.key.form.map_or("-", form_name).into(),
        format!("{:.2}", r.key.target),
        format!("{:.3}", r.realised),
        format!("{:.3}", r.perplexity),
        format!("{:.3}", r.stderr),
        format!("{:.3}", r.ratio),
        format!("{:.4}", r.kl),
        format!("{:.3}", r.top1),
        format!("{:.1}", r.bytes_per_token / 1e6),
        percent(r.ffn_share.file),
        percent(r.ffn_share.bits16),
        percent(r.ffn_share.bits8),
        r.accuracy
            .as_ref()
            .map_or("-".into(), |a| format!("{:.3} ± {:.3}", a.raw, a.stderr)),
        r.speed.map_or("-".into(), |s| format!("{:.2}", s.rate)),
        r.speed.map_or("-".into(), |s| format!("{:.2}", s.ratio)),
        from,
    ]
}

/// All rows as Markdown.
pub(super) fn markdown(rows: &[Row]) -> String {
    let mut table = Table::new(&COLUMNS);
    rows.iter().for_each(|r| table.row(cells(r)));
    table.markdown()
}
