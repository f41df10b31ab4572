//! `countdown eval --choice`.

use super::{EvalArgs, Measured, Row, SUBJECT, accuracy_cell, show, subject_cells};
use crate::{console::Console, failure::Result, load, progress::Progress, table::Table};
use countdown::eval::{ChoiceOptions, ChoiceRow, ChoiceTask, Stepping, choice};
use std::path::Path;

pub(super) fn run(console: &Console, args: &EvalArgs, task: &Path) -> Result<()> {
    let task = ChoiceTask::open(task)?;
    if let Some(results) = &args.results {
        load::check_writable(results)?;
    }
    let options = ChoiceOptions {
        limit: args.limit,
        stepping: args.stepping.unwrap_or(Stepping::Batched),
        results: args.results.clone(),
    };
    let mut m = Measured::open(console, args, args.ctx)?;
    let rows = {
        let bar = Progress::bar(console, "scoring");
        let update = |done, all| bar.update(done, all);
        choice(
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

fn table(rows: &[Row<ChoiceRow>]) -> String {
    let own = [
        "documents",
        "raw",
        "per token",
        "per char",
        "unconditional",
        "as dense",
    ];
    let mut table = Table::new(&[&SUBJECT[..], &own].concat());
    for Row { result: r, plan } in rows {
        let own = [
            r.documents.to_string(),
            accuracy_cell(r.raw),
            accuracy_cell(r.per_token),
            accuracy_cell(r.per_char),
            r.unconditional.map_or("-".into(), accuracy_cell),
            format!("{:.3}", r.agreement),
        ];
        table.row(
            subject_cells(&r.subject, r.realised, plan.as_deref())
                .into_iter()
                .chain(own),
        );
    }
    table.markdown()
}
