//! `countdown eval --generate`.

use super::{EvalArgs, Measured, Row, SUBJECT, accuracy_cell, show, subject_cells};
use crate::{console::Console, failure::Result, load, progress::Progress, table::Table};
use countdown::eval::{GenerationOptions, GenerationRow, GenerationTask, generation};
use std::path::Path;

pub(super) fn run(console: &Console, args: &EvalArgs, task: &Path) -> Result<()> {
    let task = GenerationTask::open(task)?;
    if let Some(results) = &args.results {
        load::check_writable(results)?;
    }
    let options = GenerationOptions {
        limit: args.limit,
        results: args.results.clone(),
    };
    let mut m = Measured::open(console, args, args.ctx)?;
    let rows = {
        let bar = Progress::bar(console, "answering");
        let update = |done, all| bar.update(done, all);
        generation(
            &mut m.session,
            &m.tokenizer,
            &task,
            &m.plans,
            &options,
            update,
        )?
    };
    show(args, rows, table)
}

fn table(rows: &[Row<GenerationRow>]) -> String {
    let own = ["documents", "exact match", "tokens"];
    let mut table = Table::new(&[&SUBJECT[..], &own].concat());
    for Row { result: r, plan } in rows {
        let own = [
            r.documents.to_string(),
            accuracy_cell(r.exact_match),
            format!("{:.1}", r.mean_tokens),
        ];
        table.row(
            subject_cells(&r.subject, r.realised, plan.as_deref())
                .into_iter()
                .chain(own),
        );
    }
    table.markdown()
}
