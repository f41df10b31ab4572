//! The report as one page: no scripts, nothing from elsewhere.

use super::{
    plots,
    results::{Phase, Results},
    table::{COLUMNS, cells},
};
use crate::{chart::escape, failure::Result};
use countdown::files;
use std::{fmt::Write as _, io::Write as _, path::Path};

/// The page's file in a report's folder.
pub(super) const FILE: &str = "index.html";

/// Shares of dense FFN bytes at which methods are compared.
const SHARES: [f64; 5] = [0.4, 0.45, 0.5, 0.6, 0.7];

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:2.2rem 0 .4rem}p{max-width:52rem}\
.row{display:flex;flex-wrap:wrap;gap:6px}\
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:12.5px}\
td,th{padding:2px 8px;text-align:right;white-space:nowrap;border-bottom:1px solid #8884}\
td:first-child,th:first-child{text-align:left}.about td{text-align:left;white-space:normal}\
code{font-size:12.5px;overflow-wrap:anywhere}";

/// Writes the page beside and renames it.
pub(super) fn save(results: &Results, folder: &Path) -> Result<()> {
    let page = html(results);
    Ok(files::atomic_write(&folder.join(FILE), |out| {
        out.write_all(page.as_bytes())
    })?)
}

fn html(r: &Results) -> String {
    let title = format!(
        "countdown: methods compared on {}",
        escape(&r.about.model_file)
    );
    let lines = plots::lines(r);
    let mut body = format!("<h1>{title}</h1>{}", about(r));
    let mut section = |heading: &str, words: &str, content: Option<String>| {
        if let Some(content) = content {
            let _ = write!(body, "<h2>{heading}</h2><p>{words}</p>{content}");
        }
    };
    section(
        "Quality against bytes",
        "Perplexity over that of dense, against the FFN bytes that a step reads at the realised sparsity over those of a dense step; lower \
         and further left is better. Solid lines are practical (thresholds fixed beforehand), dashed ones ideal (each token's own k-th \
         score). Rings are the paper's cut where a method has a better one, squares plans from files. An ideal line of a method that \
         would have to predict its signal is a bound: it is drawn as if knowing the signal cost nothing. The file's own dense steps read \
         down as it is stored, sparse ones read it transposed; 16 and 8 bits (1.0625 bytes a weight) are arithmetic with the same \
         sparsity and the same predictors.",
        Some(plots::bytes(&lines)),
    );
    section(
        "At equal bytes",
        "Perplexity over dense of practical plans where they read this share of dense FFN bytes, interpolated between the measured \
         targets; the least of each column is bold.",
        equal_bytes(&lines),
    );
    section(
        "Quality against speed",
        "Practical plans; each ran in turns with dense, medians.",
        plots::speed(&lines),
    );
    if let Some(choices) = &r.choices {
        let words = format!(
            "At target {} on {} tokens as the dense model sees them. The exact choice: of each token the neurons \
             with the largest |s|, as many as the target leaves.",
            choices.target, choices.tokens
        );
        section("Choices, layer by layer", &words, plots::layers(&lines));
        section(
            "Methods that compute their signal, beside the exact choice",
            "Two by two: the share of neurons that each decides otherwise than the exact choice; the pale part is what the other decides rightly.",
            plots::agreement(&choices.pairs),
        );
    }
    section(
        "All rows",
        "KL is the mean divergence from dense in nats, top-1 the share of positions with dense's most likely token, MB/token the \
         weight bytes (10^6) that a step reads, accuracy that of choosing among answers by log-probability.",
        Some(rows(r)),
    );
    section(
        "Runs",
        "What was measured, when and by what.",
        Some(phases(&r.phases)),
    );
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head>\n<body>{body}</body></html>\n"
    )
}

fn about(r: &Results) -> String {
    let (s, a) = (&r.settings, &r.about);
    let tokens = r.rows.first().map_or(0, |row| row.tokens);
    let text = |about: &super::results::TextAbout, hash: &str| {
        format!("{}, {} tokens, BLAKE3 {hash}", about.name, about.tokens)
    };
    let mut facts = vec![
        (
            "model",
            format!("{}: {}, weights {}", a.model_file, a.model, a.weights),
        ),
        ("fingerprint", s.model.clone()),
        ("text scored", text(&a.text, &s.text)),
        (
            "how",
            format!(
                "chunks of {} tokens, {} at most, the second half of each scored ({tokens} tokens), fed {}",
                s.ctx, s.chunks, s.stepping
            ),
        ),
        ("plans fitted on", text(&a.calibration, &s.calibration)),
        (
            "fit",
            format!(
                "{:?} thresholds, {:?} inputs, {:?} allocation",
                s.fit.threshold, s.fit.inputs, s.fit.allocation
            )
            .to_lowercase(),
        ),
    ];
    if let Some(task) = r.rows.iter().find_map(|row| row.accuracy.as_ref()) {
        let s = &task.settings;
        let what = format!("{}, {} documents, BLAKE3 {}", s.name, s.documents, s.hash);
        facts.push(("questions", what));
    }
    if let Some(last) = r.phases.last() {
        facts.push(("machine", format!("{}; {}", last.cpu, last.device)));
        facts.push(("countdown", format!("{} ({})", last.version, last.commit)));
        facts.push(("finished", last.finished.clone()));
    }
    let row = |(name, value): &(&str, String)| {
        format!("<tr><td>{name}</td><td>{}</td></tr>", escape(value))
    };
    let rows: String = facts.iter().map(row).collect();
    format!("<table class=\"about\">{rows}</table>")
}

/// A table; cells are HTML.
fn table<R: AsRef<[String]>>(header: &[String], rows: impl Iterator<Item = R>) -> String {
    let cells = |tag: &str, cells: &[String]| {
        let cell = |c: &String| format!("<{tag}>{c}</{tag}>");
        format!("<tr>{}</tr>", cells.iter().map(cell).collect::<String>())
    };
    let body: String = rows.map(|r| cells("td", r.as_ref()) + "\n").collect();
    format!(
        "<div class=\"wide\"><table>{}\n{body}</table></div>",
        cells("th", header)
    )
}

fn rows(r: &Results) -> String {
    let header = COLUMNS.map(str::to_owned);
    table(
        &header,
        r.rows.iter().map(|row| cells(row).map(|c| escape(&c))),
    )
}

/// Practical lines at equal bytes; nothing where no line has two targets.
fn equal_bytes(lines: &[plots::Line<'_>]) -> Option<String> {
    let columns: Vec<_> = plots::WEIGHT_TYPES
        .iter()
        .flat_map(|(name, share)| SHARES.map(|wanted| (*name, *share, wanted)))
        .collect();
    let figures: Vec<(&str, Vec<Option<f64>>)> = plots::practical(lines)
        .map(|line| {
            let at = columns
                .iter()
                .map(|(_, share, wanted)| plots::at_share(line, *share, *wanted));
            (&line.name[..], at.collect())
        })
        .collect();
    if figures.iter().all(|(_, at)| at.iter().all(Option::is_none)) {
        return None;
    }
    let least = |column: usize| {
        let all = figures.iter().filter_map(|(_, at)| at[column]);
        all.fold(f64::INFINITY, f64::min)
    };
    let header: Vec<String> = std::iter::once("method".to_owned())
        .chain(columns.iter().map(|(name, _, wanted)| {
            let short = name.trim_start_matches("the ").replace(" weights", "");
            format!("{short} {:.0}%", wanted * 100.0)
        }))
        .collect();
    let row = |(name, at): &(&str, Vec<Option<f64>>)| -> Vec<String> {
        let cell = |(column, ratio): (usize, &Option<f64>)| match ratio {
            Some(r) if *r <= least(column) => format!("<b>{r:.3}</b>"),
            Some(r) => format!("{r:.3}"),
            None => String::new(),
        };
        let cells = at.iter().enumerate().map(cell);
        std::iter::once(escape(name)).chain(cells).collect()
    };
    Some(table(&header, figures.iter().map(row)))
}

fn phases(phases: &[Phase]) -> String {
    let header = ["phase", "finished", "seconds", "countdown", "command"].map(str::to_owned);
    let row = |p: &Phase| {
        [
            escape(&p.name),
            escape(&p.finished),
            format!("{:.0}", p.seconds),
            escape(&format!("{} ({})", p.version, p.commit)),
            format!("<code>{}</code>", escape(&p.command)),
        ]
    };
    table(&header, phases.iter().map(row))
}
