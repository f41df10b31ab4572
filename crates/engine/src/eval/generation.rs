//! Answers that the model writes itself, compared with the right ones after extraction.

use super::{
    Accuracy, Neurons, Subject, fill,
    journal::{Journal, Record, Run},
    requests::{self, Line, wrong},
};
use crate::{
    error::{Error, Result},
    generate::{GenerateOptions, Generator},
    sampler::SamplingOptions,
    session::Session,
    sparsity::SparsityPlan,
    tokenizer::{Specials, Tokenizer},
};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Tokens that an answer may have where the file says nothing.
const MAX_TOKENS: usize = 256;
/// A number, as answers to word problems end with; a minus between two operands is no sign.
const NUMBER: &str = r"((?:\B-)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+))";
/// What stands before the answer in GSM8K's own solutions.
const FINAL: &str = "####";
/// What a line must look like.
const FORM: &str = "a line is either a rendered request with request.context, doc_id and label, or has prompt and answer, and as it \
                    likes pattern (a regular expression with one group), stop (a list of texts) and max_tokens";

/// Prompts with the right answers.
///
/// A line has `prompt` and `answer` and may have `pattern`, a regular expression whose one group is the answer where it
/// matches last in the text (by default, the last number); `stop`, texts that end the answer; and `max_tokens` (256 by
/// default). Or it is a rendered request: `request.context`, `label`, `doc_id`, `request.stop_sequences` and
/// `request.generation_kwargs.max_gen_toks`. Plain or gzip.
#[derive(Debug)]
pub struct GenerationTask {
    path: PathBuf,
    hash: String,
    documents: Vec<Document>,
}

#[derive(Debug)]
struct Document {
    id: u64,
    line: usize,
    prompt: String,
    /// Normalised.
    answer: String,
    pattern: Regex,
    stop: Vec<String>,
    max_tokens: usize,
}

/// How to generate.
#[derive(Clone, Debug, Default)]
pub struct GenerationOptions {
    /// Documents at most, from the first on, and at least one; all if `None`.
    pub limit: Option<usize>,
    /// A file that keeps every document's result: a run that is begun again with the same file goes on where it ended.
    pub results: Option<PathBuf>,
}

/// One line of results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GenerationRow {
    /// Always "generate".
    pub task: &'static str,
    /// Dense, or the plan.
    #[serde(flatten)]
    pub subject: Subject,
    /// The sparsity there was in the steps.
    pub realised: f64,
    /// Documents answered.
    pub documents: usize,
    /// Answers that are the right ones.
    pub exact_match: Accuracy,
    /// Tokens an answer has on average.
    pub mean_tokens: f64,
}

/// One document under one plan, as it is kept.
#[derive(Serialize, Deserialize)]
struct Answered {
    doc_id: u64,
    plan: usize,
    text: String,
    answer: Option<String>,
    right: bool,
    tokens: usize,
    kept: u64,
    neurons: u64,
}

impl Record for Answered {
    fn key(&self) -> (u64, usize) {
        (self.doc_id, self.plan)
    }
}

impl GenerationTask {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Input`] with the line and the field for one that is missing or impossible, and for a file without documents;
    /// [`Error::Read`]; [`Error::Malformed`] for what is no JSON, or expands beyond 1 GiB.
    pub fn open(path: &Path) -> Result<GenerationTask> {
        let mut documents: Vec<Document> = Vec::new();
        let hash = requests::read(path, FORM, |line| {
            let last = documents.last().map(|d| &d.pattern);
            documents.push(Document::read(&line, last)?);
            Ok(())
        })?;
        if documents.is_empty() {
            return Err(requests::empty(path, FORM));
        }
        let mut seen = std::collections::HashSet::new();
        if let Some(d) = documents.iter().find(|d| !seen.insert(d.id)) {
            let cause = format!("document {} is there already", d.id);
            return Err(wrong(path, d.line, cause, FORM));
        }
        Ok(GenerationTask {
            path: path.to_owned(),
            hash,
            documents,
        })
    }

    /// How many documents there are.
    pub fn documents(&self) -> usize {
        self.documents.len()
    }
}

impl Document {
    /// Reads a line; `pattern` is that of the line before, to be shared.
    fn read(line: &Line<'_>, pattern: Option<&Regex>) -> Result<Document> {
        let rendered = line.get("request").is_some();
        let (prompt, answer, stop, max_tokens) = match rendered {
            true => (
                "request.context",
                "label",
                "request.stop_sequences",
                "request.generation_kwargs.max_gen_toks",
            ),
            false => ("prompt", "answer", "stop", "max_tokens"),
        };
        if let Some(Value::String(kind)) = line.get("request_type")
            && !kind.starts_with("generate_until")
        {
            return Err(Error::Input {
                remedy: "use --choice for this file".into(),
                cause: line
                    .wrong("the request is for a log-probability, not for a text")
                    .to_string(),
            });
        }
        let right = match line.need(answer)? {
            Value::String(text) => normalised(text),
            Value::Number(n) => normalised(&n.to_string()),
            _ => {
                let cause = format!("field \"{answer}\" is neither a text nor a number");
                return Err(line.wrong(cause));
            }
        };
        if right.is_empty() {
            return Err(line.wrong(format_args!("field \"{answer}\" is empty")));
        }
        let wanted = match line.get("pattern") {
            Some(_) => line.text("pattern")?,
            None => NUMBER,
        };
        let pattern = match pattern {
            Some(same) if same.as_str() == wanted => same.clone(),
            _ => compile(line, wanted)?,
        };
        let stop = match line.get(stop) {
            Some(_) => line.texts(stop)?,
            None => Vec::new(),
        };
        if stop.iter().any(String::is_empty) {
            return Err(line.wrong("a stop text is empty"));
        }
        let max_tokens = line.opt_number(max_tokens)?;
        let document = Document {
            id: match rendered {
                true => line.number("doc_id")?,
                false => line.number as u64 - 1,
            },
            line: line.number,
            prompt: line.text(prompt)?.into(),
            answer: right,
            pattern,
            stop,
            max_tokens: max_tokens.map_or(MAX_TOKENS, |n| usize::try_from(n).unwrap_or(usize::MAX)),
        };
        match (document.prompt.is_empty(), document.max_tokens) {
            (true, _) => Err(line.wrong(format_args!("field \"{prompt}\" is empty"))),
            (_, 0) => Err(line.wrong("an answer of 0 tokens can only be wrong")),
            _ => Ok(document),
        }
    }

    /// The answer that a text gives, normalised.
    fn extract(&self, text: &str) -> Option<String> {
        let last = self.pattern.captures_iter(text).last()?;
        last.get(1).map(|answer| normalised(answer.as_str()))
    }
}

fn compile(line: &Line<'_>, pattern: &str) -> Result<Regex> {
    let compiled = Regex::new(pattern).map_err(|e| {
        let reason = e.to_string();
        let reason = reason.lines().last().unwrap_or_default().to_owned();
        line.wrong(format_args!(
            "pattern \"{pattern}\" cannot be used: {reason}"
        ))
    })?;
    match compiled.captures_len() {
        2 => Ok(compiled),
        n => Err(line.wrong(format_args!(
            "pattern \"{pattern}\" has {} groups, but one is needed",
            n - 1
        ))),
    }
}

/// An answer without what numbers are decorated with: thousands separators, a dollar sign, a full stop; of a worked solution,
/// what follows `####`.
fn normalised(answer: &str) -> String {
    let answer = answer.rsplit(FINAL).next().unwrap_or(answer);
    let bare = answer.replace([',', '$'], "");
    let bare = bare.trim();
    bare.strip_suffix('.').unwrap_or(bare).to_owned()
}

/// Lets the model answer every prompt, always with the most likely token, densely and under every plan; dense is the first
/// row. `progress(done, all)` counts documents times rows. The session is left empty and dense.
///
/// A prompt is dense but for its last token: that one is a step, so that the answer's first token is predicted under the plan
/// as all others are. A prompt that leaves too little of the context for its answer loses tokens from the left, as in lm-evaluation-harness.
///
/// # Errors
/// [`Error::Input`] with the line of a document whose answer alone may fill the context or whose prompt has no tokens, and
/// for a results file of another run; plans that do not fit, and whatever running the model or writing results gives.
pub fn generation(
    session: &mut Session,
    tokenizer: &Tokenizer,
    task: &GenerationTask,
    plans: &[Arc<SparsityPlan>],
    options: &GenerationOptions,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<GenerationRow>> {
    for plan in plans {
        session.set_plan(Some(plan.clone()))?;
    }
    session.set_plan(None)?;
    session.reset();
    let run =
        Run::new("generate", &task.hash, session.model(), plans).with("context", session.context());
    let mut journal: Journal<Answered> = Journal::open(options.results.as_deref(), &run)?;
    let subjects: Vec<Option<&Arc<SparsityPlan>>> = std::iter::once(None)
        .chain(plans.iter().map(Some))
        .collect();
    let limit = options.limit.unwrap_or(usize::MAX).max(1);
    let documents = &task.documents[..task.documents.len().min(limit)];
    let mut sums = vec![(0, 0, Neurons::default()); subjects.len()];
    let all = documents.len() * subjects.len();
    let mut done = 0;
    for document in documents {
        for (i, (plan, sums)) in subjects.iter().zip(&mut sums).enumerate() {
            if journal.get(document.id, i).is_none() {
                let prompt = prompt(session, tokenizer, task, document)?;
                journal.add(answer(session, tokenizer, document, prompt, (i, *plan))?)?;
            }
            if let Some(a) = journal.get(document.id, i) {
                sums.0 += usize::from(a.right);
                sums.1 += a.tokens;
                sums.2 += Neurons {
                    kept: a.kept,
                    all: a.neurons,
                };
            }
            done += 1;
            progress(done, all);
        }
    }
    journal.finish()?;
    session.reset();
    let n = documents.len();
    let rows = subjects.iter().zip(sums);
    Ok(rows
        .map(|(plan, (right, tokens, neurons))| GenerationRow {
            task: "generate",
            subject: Subject::of(plan.map(|p| &**p)),
            realised: neurons.realised(),
            documents: n,
            exact_match: Accuracy::of(right, n),
            mean_tokens: tokens as f64 / n as f64,
        })
        .collect())
}

/// The tokens of a prompt.
struct Prompt {
    /// All but the last.
    before: Vec<u32>,
    last: u32,
}

/// A document's prompt, as much of it as leaves room for the answer.
fn prompt(
    session: &Session,
    tokenizer: &Tokenizer,
    task: &GenerationTask,
    document: &Document,
) -> Result<Prompt> {
    let context = session.context();
    let room = context.saturating_sub(document.max_tokens);
    if room == 0 {
        let cause = format!(
            "an answer of {} tokens leaves no room for a prompt in the context of {context}",
            document.max_tokens
        );
        let remedy = "raise the context (-c), or lower max_tokens";
        return Err(wrong(&task.path, document.line, cause, remedy));
    }
    let opening = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let mut tokens: Vec<u32> = opening.into_iter().collect();
    tokens.extend(tokenizer.encode(&document.prompt, Specials::Parse)?);
    tokens.drain(..tokens.len().saturating_sub(room));
    match tokens.pop() {
        Some(last) => Ok(Prompt {
            before: tokens,
            last,
        }),
        None => {
            let remedy = "give a text that the model has tokens for";
            Err(wrong(
                &task.path,
                document.line,
                "the prompt has no tokens",
                remedy,
            ))
        }
    }
}

fn answer(
    session: &mut Session,
    tokenizer: &Tokenizer,
    document: &Document,
    prompt: Prompt,
    (i, plan): (usize, Option<&Arc<SparsityPlan>>),
) -> Result<Answered> {
    fill(session, &prompt.before)?;
    session.set_plan(plan.cloned())?;
    let before = Neurons::so_far(session);
    let options = GenerateOptions {
        max_tokens: Some(document.max_tokens),
        stop: document.stop.clone(),
        sampling: SamplingOptions::greedy(),
        ..GenerateOptions::default()
    };
    let mut generator = Generator::after_step(session, tokenizer, prompt.last, options)?;
    let text: String = generator.by_ref().collect::<Result<_>>()?;
    let tokens = generator.tokens().len();
    drop(generator);
    let neurons = Neurons::so_far(session) - before;
    // Nothing that was computed under a plan is part of another document's prompt.
    session.truncate(prompt.before.len());
    session.set_plan(None)?;
    let answer = document.extract(&text);
    Ok(Answered {
        doc_id: document.id,
        plan: i,
        right: answer.as_ref() == Some(&document.answer),
        text,
        answer,
        tokens,
        kept: neurons.kept,
        neurons: neurons.all,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_the_last_number_without_its_decoration() {
        let pattern = Regex::new(NUMBER).unwrap();
        let document = |answer: &str| Document {
            id: 0,
            line: 1,
            prompt: "x".into(),
            answer: normalised(answer),
            pattern: pattern.clone(),
            stop: Vec::new(),
            max_tokens: 1,
        };
        for (text, answer) in [
            ("She makes 9 * 2 = $18 every day.", "18"),
            ("So the answer is $1,234,567.", "1234567"),
            ("it falls to -5.", "-5"),
            ("it falls to -$5", "-5"),
            ("16 - 3-4", "4"),
            ("about .5", ".5"),
            ("12.50 of them", "12.50"),
            ("1, 2, and 3, then.", "3"),
            ("-7", "-7"),
        ] {
            assert_eq!(
                document("1").extract(text).as_deref(),
                Some(answer),
                "{text}"
            );
        }
        assert_eq!(document("1").extract("no idea"), None);
        assert_eq!(normalised("Worked: 3,000 + 1\n#### 3,001"), "3001");
    }
}
