//! Documents with candidates, from rendered requests or from plain questions.

use super::super::requests::{self, Line, wrong};
use crate::error::{Error, Result};
use serde_json::Value;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Documents from this number on are the unconditional forms of those that much before them.
const UNCONDITIONAL: u64 = 1_000_000;
/// What a line must look like.
const FORM: &str = "a line is either a rendered request with request.context, request.continuation, doc_id, idx and label (the \
                    right idx), or has question (or context), choices and answer (index, letter or text)";

/// Questions with candidates of which one is right.
///
/// A line of the file is one candidate of a rendered request: `request.context`, `request.continuation`, `doc_id`, `idx` and
/// `label`, the `idx` that is right. Documents from 1,000,000 on are the same candidates without the question, for
/// normalised scores. Or a line is a whole document: `question` (asked as `Question: ...\nAnswer:`) or `context` (taken as it
/// is), `choices`, and `answer`: an index from 0 on, a letter from A on, or the text of a choice. Plain or gzip.
#[derive(Debug)]
pub struct ChoiceTask {
    pub(super) path: PathBuf,
    pub(super) hash: String,
    pub(super) documents: Vec<Document>,
    /// The unconditional form of each document, or nothing.
    pub(super) unconditional: Vec<Document>,
}

#[derive(Debug)]
pub(super) struct Document {
    pub(super) id: u64,
    /// Where its first candidate stands.
    pub(super) line: usize,
    /// The candidate that is right.
    pub(super) label: usize,
    pub(super) candidates: Vec<Candidate>,
}

#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) context: Arc<str>,
    pub(super) continuation: String,
}

impl ChoiceTask {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Input`] with the line and the field for one that is missing or impossible, and for a file without documents;
    /// [`Error::Read`]; [`Error::Malformed`] for what is no JSON, or expands beyond 1 GiB.
    pub fn open(path: &Path) -> Result<ChoiceTask> {
        let mut reader = Reader::default();
        let hash = requests::read(path, FORM, |line| reader.take(&line))?;
        let (documents, mut unconditional) = reader.documents(path)?;
        if documents.is_empty() {
            return Err(requests::empty(path, FORM));
        }
        pair(path, &documents, &mut unconditional)?;
        Ok(ChoiceTask {
            path: path.to_owned(),
            hash,
            documents,
            unconditional,
        })
    }

    /// How many documents there are.
    pub fn documents(&self) -> usize {
        self.documents.len()
    }
}

/// Brings unconditional documents into the order of those they belong to.
fn pair(path: &Path, documents: &[Document], unconditional: &mut Vec<Document>) -> Result<()> {
    if unconditional.is_empty() {
        return Ok(());
    }
    let mut by_id: HashMap<u64, Document> = std::mem::take(unconditional)
        .into_iter()
        .map(|d| (d.id, d))
        .collect();
    for d in documents {
        let id = d.id + UNCONDITIONAL;
        let Some(other) = by_id.remove(&id) else {
            let cause = format!("document {} has no unconditional form (doc_id {id})", d.id);
            return Err(wrong(path, d.line, cause, FORM));
        };
        if other.candidates.len() != d.candidates.len() {
            let (n, m) = (other.candidates.len(), d.candidates.len());
            let cause = format!(
                "document {id} has {n} candidates, but document {} has {m}",
                d.id
            );
            return Err(wrong(path, other.line, cause, FORM));
        }
        unconditional.push(other);
    }
    match by_id.values().min_by_key(|d| d.line) {
        Some(d) => {
            let cause = format!(
                "document {} is the unconditional form of a document that is not there",
                d.id
            );
            Err(wrong(path, d.line, cause, FORM))
        }
        None => Ok(()),
    }
}

/// Gathers candidates into documents, in the order in which documents begin.
#[derive(Default)]
struct Reader {
    documents: Vec<Unsorted>,
    by_id: HashMap<u64, usize>,
    context: Option<Arc<str>>,
}

struct Unsorted {
    id: u64,
    line: usize,
    label: u64,
    candidates: Vec<(u64, Candidate)>,
}

impl Reader {
    fn take(&mut self, line: &Line<'_>) -> Result<()> {
        match line.get("request") {
            Some(_) => self.take_rendered(line),
            None => self.take_plain(line),
        }
    }

    fn take_rendered(&mut self, line: &Line<'_>) -> Result<()> {
        if let Some(Value::String(kind)) = line.get("request_type")
            && kind.starts_with("generate_until")
        {
            return Err(Error::Input {
                remedy: "use --generate for this file".into(),
                cause: line
                    .wrong("the request is for a text, not for a choice")
                    .to_string(),
            });
        }
        let candidate = Candidate {
            context: self.shared(line.text("request.context")?),
            continuation: line.text("request.continuation")?.into(),
        };
        if candidate.continuation.is_empty() {
            return Err(line.wrong("field \"request.continuation\" is empty"));
        }
        let (id, idx, label) = (
            line.number("doc_id")?,
            line.number("idx")?,
            line.number("label")?,
        );
        let at = *self.by_id.entry(id).or_insert(self.documents.len());
        if at == self.documents.len() {
            self.documents.push(Unsorted {
                id,
                line: line.number,
                label,
                candidates: Vec::new(),
            });
        }
        let document = &mut self.documents[at];
        if document.label != label {
            let cause = format!(
                "label is {label}, but {} in other lines of document {id}",
                document.label
            );
            return Err(line.wrong(cause));
        }
        document.candidates.push((idx, candidate));
        Ok(())
    }

    fn take_plain(&mut self, line: &Line<'_>) -> Result<()> {
        let context = match (line.get("context"), line.get("question")) {
            (Some(_), _) => line.text("context")?.to_owned(),
            (None, Some(_)) => format!("Question: {}\nAnswer:", line.text("question")?),
            (None, None) => return Err(line.wrong("field \"question\" or \"context\" is missing")),
        };
        let choices = line.texts("choices")?;
        if let Some(i) = choices.iter().position(String::is_empty) {
            return Err(line.wrong(format_args!("choice {i} is empty")));
        }
        let label = answer(line, &choices)?;
        let parted = context.is_empty() || context.ends_with(char::is_whitespace);
        let context = self.shared(&context);
        let candidates = choices.into_iter().map(|choice| Candidate {
            context: context.clone(),
            continuation: match parted || choice.starts_with(char::is_whitespace) {
                true => choice,
                false => format!(" {choice}"),
            },
        });
        // Lines are their own numbers; rendered requests in the same file would have others.
        let id = line.number as u64 - 1;
        if self.by_id.insert(id, self.documents.len()).is_some() {
            return Err(line.wrong("the file mixes rendered requests with plain questions"));
        }
        self.documents.push(Unsorted {
            id,
            line: line.number,
            label,
            candidates: (0..).zip(candidates).collect(),
        });
        Ok(())
    }

    /// The text of a context, shared with the line before if it is the same.
    fn shared(&mut self, context: &str) -> Arc<str> {
        match &self.context {
            Some(same) if **same == *context => same.clone(),
            _ => self.context.insert(context.into()).clone(),
        }
    }

    /// The documents, and apart from them the unconditional ones.
    fn documents(self, path: &Path) -> Result<(Vec<Document>, Vec<Document>)> {
        let mut documents = Vec::with_capacity(self.documents.len());
        let mut unconditional = Vec::new();
        for mut d in self.documents {
            let refuse = |cause: String| Err(wrong(path, d.line, cause, FORM));
            d.candidates.sort_by_key(|(idx, _)| *idx);
            let n = d.candidates.len();
            let misplaced = (0..).zip(&d.candidates).find(|(i, (idx, _))| i != idx);
            if let Some((i, (idx, _))) = misplaced {
                return refuse(match *idx > i {
                    true => format!("document {} has no candidate with idx {i}", d.id),
                    false => format!("document {} has two candidates with idx {idx}", d.id),
                });
            }
            if n < 2 {
                return refuse(format!(
                    "document {} has {n} candidates; two are the least to choose from",
                    d.id
                ));
            }
            if d.label >= n as u64 {
                return refuse(format!(
                    "label {} of document {} is out of range: it has {n} candidates",
                    d.label, d.id
                ));
            }
            let which = match d.id < UNCONDITIONAL {
                true => &mut documents,
                false => &mut unconditional,
            };
            which.push(Document {
                id: d.id,
                line: d.line,
                label: d.label as usize,
                candidates: d.candidates.into_iter().map(|(_, c)| c).collect(),
            });
        }
        Ok((documents, unconditional))
    }
}

/// The right choice: by its number, its text or its letter.
fn answer(line: &Line<'_>, choices: &[String]) -> Result<u64> {
    let text = match line.need("answer")? {
        Value::Number(_) => return line.number("answer"),
        Value::String(text) => text,
        _ => return Err(line.wrong("field \"answer\" is neither a number nor a text")),
    };
    if let Some(i) = choices.iter().position(|c| c == text) {
        return Ok(i as u64);
    }
    match text.as_bytes() {
        [letter @ b'A'..=b'Z'] => Ok(u64::from(letter - b'A')),
        _ => Err(line.wrong(format_args!(
            "answer \"{text}\" is neither a choice nor a letter"
        ))),
    }
}
