//! Results as they come, in a file of JSON lines: one for each document under each plan, so that a run that was killed goes
//! on where it was. The first line says what the results belong to.

use crate::{
    error::{Error, Result},
    model::Model,
    sparsity::SparsityPlan,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::{
    collections::HashMap,
    fs::{File, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// The first key of the first line, and the version of the format.
const MARK: (&str, &str) = ("countdown_results", "1");
/// How often lines are made sure to reach the disk.
const SYNC: Duration = Duration::from_secs(5);

/// What results belong to: names and values.
pub(super) struct Run(Map<String, Value>);

impl Run {
    /// A task, by its kind and the hash of its file, on a model under dense and `plans`.
    pub(super) fn new(task: &str, hash: &str, model: &Model, plans: &[Arc<SparsityPlan>]) -> Run {
        let mut run = Run(Map::new())
            .with(MARK.0, MARK.1)
            .with("task", task)
            .with("task_hash", hash)
            .with("model", &model.fingerprint)
            .with("plans", plans.len());
        for (i, plan) in plans.iter().enumerate() {
            let p = &plan.provenance;
            // The rest of the provenance is too long to be shown, but has to be the same.
            let all = serde_json::to_vec(p).unwrap_or_default();
            let hash = &blake3::hash(&all).to_hex()[..16];
            let name = format!("{} {} {:?} {:?} {hash}", p.method, p.target, p.cut, p.form);
            run = run.with(&format!("plan_{}", i + 1), name.to_lowercase());
        }
        run
    }

    /// Adds a setting that results depend on.
    pub(super) fn with(mut self, name: &str, value: impl ToString) -> Run {
        self.0.insert(name.into(), value.to_string().into());
        self
    }

    /// What differs between this run and that of a file, in words; `None` where nothing does.
    fn difference(&self, other: &Map<String, Value>) -> Option<String> {
        let show = |v: Option<&Value>| match v {
            Some(Value::String(s)) => s.clone(),
            Some(v) => v.to_string(),
            None => "absent".into(),
        };
        let names = self.0.keys().chain(other.keys());
        names
            .filter(|n| self.0.get(*n) != other.get(*n))
            .map(|n| {
                let (theirs, ours) = (show(other.get(n)), show(self.0.get(n)));
                format!("{n} is {theirs} there and {ours} now")
            })
            .next()
    }
}

/// A result that is kept.
pub(super) trait Record: Serialize + DeserializeOwned {
    /// The document's number and the plan's; 0 is dense.
    fn key(&self) -> (u64, usize);
}

/// Results by document and plan, and the file that they are kept in.
pub(super) struct Journal<R> {
    file: Option<Kept>,
    records: HashMap<(u64, usize), R>,
}

struct Kept {
    path: PathBuf,
    file: File,
    synced: Instant,
}

impl<R: Record> Journal<R> {
    /// A journal in `path`, with the results that are there already; without a path, one in memory. A last line that was
    /// not finished is dropped.
    ///
    /// # Errors
    /// [`Error::Input`] for a file of another run or of another kind, or one that is being written;
    /// [`Error::Malformed`] for lines that are none of ours; [`Error::Write`].
    pub(super) fn open(path: Option<&Path>, run: &Run) -> Result<Journal<R>> {
        let Some(path) = path else {
            return Ok(Journal {
                file: None,
                records: HashMap::new(),
            });
        };
        let failed = write_error(path);
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(&failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(refused(path, "is being written by another run"));
            }
            // Not every file system has locks.
            Err(TryLockError::Error(_)) => {}
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(&failed)?;
        let (whole, records) = parse(path, &bytes, run)?;
        file.set_len(whole as u64).map_err(&failed)?;
        file.seek(SeekFrom::Start(whole as u64)).map_err(&failed)?;
        if whole == 0 {
            let header = Value::Object(run.0.clone());
            writeln!(file, "{header}").map_err(&failed)?;
        }
        file.sync_all().map_err(&failed)?;
        Ok(Journal {
            file: Some(Kept {
                path: path.to_owned(),
                file,
                synced: Instant::now(),
            }),
            records,
        })
    }

    /// The result of a document under a plan, if there is one.
    pub(super) fn get(&self, document: u64, plan: usize) -> Option<&R> {
        self.records.get(&(document, plan))
    }

    /// Adds a result.
    pub(super) fn add(&mut self, record: R) -> Result<()> {
        if let Some(kept) = &mut self.file {
            let failed = write_error(&kept.path);
            let mut line = serde_json::to_vec(&record).map_err(|e| failed(e.into()))?;
            line.push(b'\n');
            kept.file.write_all(&line).map_err(&failed)?;
            if kept.synced.elapsed() > SYNC {
                kept.file.sync_data().map_err(&failed)?;
                kept.synced = Instant::now();
            }
        }
        self.records.insert(record.key(), record);
        Ok(())
    }

    /// Makes sure that all has reached the disk.
    pub(super) fn finish(&self) -> Result<()> {
        match &self.file {
            Some(kept) => kept.file.sync_all().map_err(write_error(&kept.path)),
            None => Ok(()),
        }
    }
}

/// The records of a file, and the bytes of it that are whole lines; nothing of either where not even the first line is whole.
#[allow(clippy::type_complexity)] // two results of one parse
fn parse<R: Record>(
    path: &Path,
    bytes: &[u8],
    run: &Run,
) -> Result<(usize, HashMap<(u64, usize), R>)> {
    let mark = format!("{{\"{}\":", MARK.0);
    let n = bytes.len().min(mark.len());
    if bytes[..n] != mark.as_bytes()[..n] {
        return Err(refused(path, "is no file of results"));
    }
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let mut records = HashMap::new();
    for (i, line) in bytes[..whole].split_inclusive(|b| *b == b'\n').enumerate() {
        let malformed = |e: serde_json::Error| Error::Malformed {
            path: path.to_owned(),
            cause: format!("line {} is no result: {e}", i + 1),
        };
        if i == 0 {
            let header: Map<String, Value> = serde_json::from_slice(line).map_err(malformed)?;
            if let Some(difference) = run.difference(&header) {
                let cause = format!("holds the results of another run: {difference}");
                return Err(refused(path, &cause));
            }
            continue;
        }
        let record: R = serde_json::from_slice(line).map_err(malformed)?;
        records.insert(record.key(), record);
    }
    Ok((whole, records))
}

fn refused(path: &Path, cause: &str) -> Error {
    Error::Input {
        cause: format!("{} {cause}", path.display()),
        remedy: "give another file for the results, or repeat the run that this one belongs to"
            .into(),
    }
}

fn write_error(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Write {
        path: path.clone(),
        source,
    }
}
