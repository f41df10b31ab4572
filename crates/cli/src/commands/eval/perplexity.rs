//! `countdown eval --perplexity`.

use super::{EvalArgs, Measured, Row, SUBJECT, show, subject_cells};
use crate::{console::Console, failure::Result, load, progress::Progress, table::Table};
use countdown::eval::{PerplexityOptions, PerplexityRow, Stepping, perplexity};
use std::path::Path;

/// Tokens a chunk, where none are asked for: as in llama.cpp's tool.
const CHUNK: usize = 512;

pub(super) fn run(console: &Console, args: &EvalArgs, text: &Path) -> Result<()> {
    let text = load::text_file(text)?;
    let options = PerplexityOptions {
        ctx: args.ctx.unwrap_or(CHUNK),
        chunks: args.chunks,
        stepping: args.stepping.unwrap_or(Stepping::OneByOne),
        threads: args.compute.threads(),
    };
    let mut m = Measured::open(console, args, Some(options.ctx))?;
    let tokens = load::text_tokens(&m.tokenizer, &text)?;
    let opening = load::opening(&m.tokenizer);
    let rows = {
        let bar = Progress::bar(console, "scoring");
        let update = |done, all| bar.update(done, all);
        perplexity(&mut m.session, &tokens, opening, &m.plans, &options, update)?
    };
    show(args, rows, table)
}

fn table(rows: &[Row<PerplexityRow>]) -> String {
    let measured = ["tokens", "perplexity", "+-", "ratio", "KL", "top-1"];
    let mut table = Table::new(&[&SUBJECT[..], &measured].concat());
    let dense = rows.first().map_or(1.0, |r| r.result.perplexity);
    for Row { result: r, plan } in rows {
        let cells = [
            r.tokens.to_string(),
            format!("{:.4}", r.perplexity),
            format!("{:.4}", r.stderr),
            format!("{:.3}", r.perplexity / dense),
            format!("{:.4}", r.kl),
            format!("{:.3}", r.top1),
        ];
        let subject = subject_cells(&r.subject, r.realised, plan.as_deref());
        table.row(subject.into_iter().chain(cells));
    }
    table.markdown()
}
