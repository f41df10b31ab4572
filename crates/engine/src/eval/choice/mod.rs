//! Choosing among given answers by their log-probability, under dense arithmetic and under plans.

mod task;

pub use task::ChoiceTask;

use super::{
    Accuracy, Neurons, Stepping, Subject,
    divergence::argmax,
    fill,
    journal::{Journal, Record, Run},
    requests::wrong,
};
use crate::{
    backend::{Phase, cpu::kernels},
    error::{Error, Result},
    session::Session,
    sparsity::SparsityPlan,
    tokenizer::{Specials, Tokenizer},
};
use countdown_kernels::cpu::Kernels;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc};
use task::{Candidate, Document};

/// How to score candidates.
#[derive(Clone, Debug, Default)]
pub struct ChoiceOptions {
    /// Documents at most, from the first on, and at least one; all if `None`.
    pub limit: Option<usize>,
    /// How the tokens of a candidate are fed; its first one is always predicted by a single step.
    pub stepping: Stepping,
    /// A file that keeps every document's result: a run that is begun again with the same file goes on where it ended.
    pub results: Option<PathBuf>,
}

/// One line of results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChoiceRow {
    /// Always "choice".
    pub task: &'static str,
    /// Dense, or the plan.
    #[serde(flatten)]
    pub subject: Subject,
    /// The sparsity there was in the steps.
    pub realised: f64,
    /// Documents scored.
    pub documents: usize,
    /// Right by the candidate's log-probability.
    pub raw: Accuracy,
    /// Right by log-probability a token.
    pub per_token: Accuracy,
    /// Right by log-probability a character (Unicode scalar values, a leading blank included).
    pub per_char: Accuracy,
    /// Right by log-probability less that of the candidate without the question, where the task has such requests.
    pub unconditional: Option<Accuracy>,
    /// Share of documents whose raw choice is that of dense; 1 for dense.
    pub agreement: f64,
}

/// One document under one plan, as it is kept.
#[derive(Serialize, Deserialize)]
struct Scores {
    doc_id: u64,
    plan: usize,
    label: usize,
    candidates: Vec<Scored>,
    kept: u64,
    neurons: u64,
}

/// One candidate.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Scored {
    /// In nats. As wide as it is exact, so that a file gives back what was written.
    log_p: f32,
    tokens: usize,
    chars: usize,
}

impl Record for Scores {
    fn key(&self) -> (u64, usize) {
        (self.doc_id, self.plan)
    }
}

/// The tokens of a candidate: those given, and those scored.
struct Tokens {
    context: Vec<u32>,
    continuation: Vec<u32>,
}

/// Scores every candidate of a task densely and under every plan; dense is the first row. `progress(done, all)` counts
/// documents, unconditional ones apart, times rows. The session is left empty and dense.
///
/// A context is a prompt, and so dense, but for its last token: that one is a step, so that the candidate's first token is
/// predicted under the plan as all others are. Texts are tokenised as lm-evaluation-harness does it: context and candidate
/// as one text, blanks that end the context belonging to the candidate; an empty context is the model's BOS, or EOS. What
/// does not fit the session's context loses tokens from the left. What documents have in common at their beginning is
/// computed once.
///
/// # Errors
/// [`Error::Input`] with the line of a candidate that has no tokens, or more than the context holds, and for a results file
/// of another run; plans that do not fit, and whatever running the model or writing results gives.
pub fn choice(
    session: &mut Session,
    tokenizer: &Tokenizer,
    task: &ChoiceTask,
    plans: &[Arc<SparsityPlan>],
    options: &ChoiceOptions,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<ChoiceRow>> {
    for plan in plans {
        session.set_plan(Some(plan.clone()))?;
    }
    session.set_plan(None)?;
    session.reset();
    let run = Run::new("choice", &task.hash, session.model(), plans)
        .with("context", session.context())
        .with("stepping", format!("{:?}", options.stepping).to_lowercase());
    let mut journal = Journal::open(options.results.as_deref(), &run)?;
    let subjects: Vec<Option<&Arc<SparsityPlan>>> = std::iter::once(None)
        .chain(plans.iter().map(Some))
        .collect();
    let limit = options.limit.unwrap_or(usize::MAX).max(1);
    let limited = |documents: &[Document]| documents.len().min(limit);
    let documents = &task.documents[..limited(&task.documents)];
    let unconditional = &task.unconditional[..limited(&task.unconditional)];
    let mut scorer = Scorer {
        session,
        tokenizer,
        kernels: kernels()?,
        stepping: options.stepping,
    };
    let all = (documents.len() + unconditional.len()) * subjects.len();
    let mut done = 0;
    for document in documents.iter().chain(unconditional) {
        let missing: Vec<usize> = (0..subjects.len())
            .filter(|&plan| journal.get(document.id, plan).is_none())
            .collect();
        let texts = document.candidates.iter();
        let tokens: Vec<Tokens> = match missing.is_empty() {
            true => Vec::new(),
            false => texts
                .map(|c| scorer.encode(c).map_err(|e| at_line(task, document, e)))
                .collect::<Result<_>>()?,
        };
        let plans: Vec<_> = missing.iter().map(|&plan| subjects[plan]).collect();
        let scores = scorer.score(&tokens, &plans)?;
        for (plan, (log_p, neurons)) in missing.into_iter().zip(scores) {
            let parts = log_p.iter().zip(&tokens).zip(&document.candidates);
            journal.add(Scores {
                doc_id: document.id,
                plan,
                label: document.label,
                candidates: parts
                    .map(|((log_p, tokens), candidate)| Scored {
                        log_p: *log_p as f32,
                        tokens: tokens.continuation.len(),
                        chars: candidate.continuation.chars().count(),
                    })
                    .collect(),
                kept: neurons.kept,
                neurons: neurons.all,
            })?;
        }
        done += subjects.len();
        progress(done, all);
    }
    journal.finish()?;
    session.reset();
    let row = |(plan, subject): (usize, &Option<&Arc<SparsityPlan>>)| {
        Tally::new(task, &journal, plan, documents, unconditional)
            .map(|tally| tally.row(Subject::of(subject.map(|p| &**p))))
    };
    subjects.iter().enumerate().map(row).collect()
}

/// Names the document that an error of a candidate is about.
fn at_line(task: &ChoiceTask, document: &Document, e: Error) -> Error {
    wrong(
        &task.path,
        document.line,
        format_args!("document {}: {e}", document.id),
        &e.remedy(),
    )
}

struct Scorer<'a> {
    session: &'a mut Session,
    tokenizer: &'a Tokenizer,
    kernels: &'static Kernels,
    stepping: Stepping,
}

impl Scorer<'_> {
    fn encode(&self, candidate: &Candidate) -> Result<Tokens> {
        let t = self.tokenizer;
        let encode = |text: &str| t.encode(text, Specials::Parse);
        let context = candidate.context.trim_end();
        let blanks = &candidate.context[context.len()..];
        let continuation = format!("{blanks}{}", candidate.continuation);
        let (mut tokens, scored): (Vec<u32>, Vec<u32>) = if context.is_empty() {
            let opening = t.bos().or(t.eos());
            (opening.into_iter().collect(), encode(&continuation)?)
        } else {
            let alone = encode(context)?;
            let both = encode(&format!("{context}{continuation}"))?;
            let scored = match both.get(alone.len()..) {
                Some(rest) if !rest.is_empty() => rest.to_vec(),
                // The two merge so that nothing is left: the candidate stands for itself.
                _ => encode(&continuation)?,
            };
            let opening = t.bos().filter(|_| t.adds_bos());
            (opening.into_iter().chain(alone).collect(), scored)
        };
        if tokens.is_empty() || scored.is_empty() {
            let what = match tokens.is_empty() {
                true => "the context has no tokens, and the model has no token to open a text",
                false => "a candidate has no tokens",
            };
            return Err(Error::Input {
                cause: what.into(),
                remedy: "give a context and a candidate that the model has tokens for".into(),
            });
        }
        // The last token is predicted, not fed.
        let limit = self.session.context();
        if scored.len() > limit {
            return Err(Error::Input {
                cause: format!(
                    "a candidate of {} tokens does not fit the context of {limit}",
                    scored.len()
                ),
                remedy: "raise the context (-c), or leave the document out".into(),
            });
        }
        let surplus = (tokens.len() + scored.len()).saturating_sub(limit + 1);
        tokens.drain(..surplus);
        Ok(Tokens {
            context: tokens,
            continuation: scored,
        })
    }

    /// The log-probabilities of all candidates under each plan, and the neurons that it took.
    fn score(
        &mut self,
        candidates: &[Tokens],
        plans: &[Option<&Arc<SparsityPlan>>],
    ) -> Result<Vec<(Vec<f64>, Neurons)>> {
        let mut scores = vec![(Vec::new(), Neurons::default()); plans.len()];
        for group in candidates.chunk_by(|a, b| a.context == b.context) {
            let Some((last, prompt)) = group[0].context.split_last() else {
                continue;
            };
            fill(self.session, prompt)?;
            for (plan, (log_p, neurons)) in plans.iter().zip(&mut scores) {
                self.session.set_plan(plan.cloned())?;
                let before = Neurons::so_far(self.session);
                self.session.truncate(prompt.len());
                let logits = self.session.feed(&[*last], Phase::Decode)?.all()?;
                let log_sum = self.kernels.log_sum_exp(logits);
                let first = |c: &Tokens| f64::from(logits[c.continuation[0] as usize]) - log_sum;
                let firsts: Vec<f64> = group.iter().map(first).collect();
                for (candidate, first) in group.iter().zip(firsts) {
                    self.session.truncate(prompt.len() + 1);
                    log_p.push(first + self.rest(&candidate.continuation)?);
                }
                *neurons += Neurons::so_far(self.session) - before;
            }
            // Nothing that was computed under a plan is part of another document's prompt.
            self.session.truncate(prompt.len());
            self.session.set_plan(None)?;
        }
        Ok(scores)
    }

    /// The log-probability of all tokens but the first.
    fn rest(&mut self, continuation: &[u32]) -> Result<f64> {
        let (fed, targets) = (&continuation[..continuation.len() - 1], &continuation[1..]);
        if fed.is_empty() {
            return Ok(0.0);
        }
        let mut sum = 0.0;
        let kernels = self.kernels;
        let mut add = |j: usize, logits: &[f32]| {
            sum += f64::from(logits[targets[j] as usize]) - kernels.log_sum_exp(logits);
        };
        match self.stepping {
            Stepping::Batched => self.session.score(fed, Phase::Decode, add)?,
            Stepping::OneByOne => {
                for (j, token) in fed.iter().enumerate() {
                    add(j, self.session.feed(&[*token], Phase::Decode)?.all()?);
                }
            }
        }
        Ok(sum)
    }
}

/// Right choices under one plan.
#[derive(Default)]
struct Tally {
    documents: usize,
    raw: usize,
    per_token: usize,
    per_char: usize,
    unconditional: Option<usize>,
    as_dense: usize,
    neurons: Neurons,
}

impl Tally {
    fn new(
        task: &ChoiceTask,
        journal: &Journal<Scores>,
        plan: usize,
        documents: &[Document],
        unconditional: &[Document],
    ) -> Result<Tally> {
        let scores = |document: &Document, plan| {
            let found = journal.get(document.id, plan);
            found
                .filter(|s| s.candidates.len() == document.candidates.len())
                .ok_or_else(|| {
                    let cause = format_args!("document {} has no sound result", document.id);
                    let remedy = "the file of results was changed: give another one";
                    wrong(&task.path, document.line, cause, remedy)
                })
        };
        let best = |s: &Scores, by: &dyn Fn(usize, Scored) -> f64| {
            let values = s.candidates.iter().enumerate();
            argmax(&values.map(|(i, &c)| by(i, c)).collect::<Vec<f64>>())
        };
        let raw = |_, c: Scored| f64::from(c.log_p);
        let mut tally = Tally {
            documents: documents.len(),
            unconditional: (!unconditional.is_empty()).then_some(0),
            ..Tally::default()
        };
        for (i, document) in documents.iter().enumerate() {
            let s = scores(document, plan)?;
            let right = |chosen| usize::from(chosen == document.label);
            let chosen = best(s, &raw);
            tally.raw += right(chosen);
            tally.per_token += right(best(s, &|_, c| f64::from(c.log_p) / c.tokens as f64));
            tally.per_char += right(best(s, &|_, c| f64::from(c.log_p) / c.chars as f64));
            tally.as_dense += usize::from(chosen == best(scores(document, 0)?, &raw));
            tally.count(s);
            if let (Some(sum), Some(other)) = (&mut tally.unconditional, unconditional.get(i)) {
                let other = &scores(other, plan)?.candidates;
                *sum += right(best(s, &|i, c| {
                    f64::from(c.log_p) - f64::from(other[i].log_p)
                }));
            }
        }
        for document in unconditional {
            tally.count(scores(document, plan)?);
        }
        Ok(tally)
    }

    fn count(&mut self, s: &Scores) {
        self.neurons += Neurons {
            kept: s.kept,
            all: s.neurons,
        };
    }

    fn row(&self, subject: Subject) -> ChoiceRow {
        let n = self.documents;
        ChoiceRow {
            task: "choice",
            subject,
            realised: self.neurons.realised(),
            documents: n,
            raw: Accuracy::of(self.raw, n),
            per_token: Accuracy::of(self.per_token, n),
            per_char: Accuracy::of(self.per_char, n),
            unconditional: self.unconditional.map(|right| Accuracy::of(right, n)),
            agreement: self.as_dense as f64 / n as f64,
        }
    }
}
