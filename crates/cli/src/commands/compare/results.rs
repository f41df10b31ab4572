//! What is measured, row by row, and the file that keeps it.

use super::bytes::Shares;
use crate::failure::{Failure, Result};
use countdown::{
    Error, Fit,
    eval::{LayerAgreement, PairAgreement, PerplexityRow},
    files,
    sparsity::{Cut, Form},
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The file of results in a report's folder.
const FILE: &str = "results.json";
/// The version of its format.
const VERSION: u32 = 1;

/// A report's numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Results {
    pub(super) countdown_comparison: u32,
    /// What rows depend on; a folder holds one of these.
    pub(super) settings: Settings,
    pub(super) about: About,
    /// What was measured when.
    pub(super) phases: Vec<Phase>,
    /// Dense first.
    pub(super) rows: Vec<Row>,
    pub(super) choices: Option<Choices>,
}

/// What rows depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Settings {
    /// The weights' fingerprint.
    pub(super) model: String,
    /// BLAKE3 of the text scored.
    pub(super) text: String,
    /// BLAKE3 of the text that plans were fitted on.
    pub(super) calibration: String,
    pub(super) ctx: usize,
    pub(super) chunks: usize,
    pub(super) stepping: String,
    pub(super) fit: Fit,
}

/// What people want to know beside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct About {
    pub(super) model: String,
    pub(super) model_file: String,
    pub(super) weights: String,
    pub(super) text: TextAbout,
    pub(super) calibration: TextAbout,
}

/// A text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TextAbout {
    pub(super) name: String,
    pub(super) tokens: usize,
}

/// A piece of work that was finished.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Phase {
    pub(super) name: String,
    pub(super) finished: String,
    pub(super) seconds: f64,
    pub(super) command: String,
    pub(super) version: String,
    pub(super) commit: String,
    pub(super) cpu: String,
    pub(super) device: String,
}

/// What makes a row one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Key {
    pub(super) method: String,
    pub(super) predictor: Option<String>,
    pub(super) cut: Option<Cut>,
    pub(super) form: Option<Form>,
    pub(super) target: f64,
    /// The plan's file, where it came from one.
    pub(super) plan: Option<PlanFile>,
}

/// A plan that was given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct PlanFile {
    pub(super) name: String,
    /// BLAKE3 of its bytes.
    pub(super) hash: String,
}

/// A row of results.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Row {
    #[serde(flatten)]
    pub(super) key: Key,
    /// The method whose row this is, too: both keep the same neurons.
    pub(super) same_as: Option<String>,
    pub(super) realised: f64,
    pub(super) tokens: usize,
    pub(super) perplexity: f64,
    pub(super) stderr: f64,
    /// Perplexity over that of dense.
    pub(super) ratio: f64,
    pub(super) kl: f64,
    pub(super) top1: f64,
    /// Weight bytes that a step reads of the file.
    pub(super) bytes_per_token: f64,
    /// Bytes of the predictors, which every step reads.
    pub(super) predictor_bytes: usize,
    /// FFN bytes that a step reads over those of a dense one.
    pub(super) ffn_share: Shares,
    pub(super) speed: Option<Speed>,
    #[serde(default)]
    pub(super) accuracy: Option<TaskAccuracy>,
    /// Layer by layer against the exact choice, at one target.
    pub(super) layers: Option<Vec<LayerAgreement>>,
}

/// How often answers were chosen rightly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct TaskAccuracy {
    pub(super) settings: TaskSettings,
    /// By log-probability, and its standard error.
    pub(super) raw: f64,
    pub(super) stderr: f64,
    /// By log-probability a character.
    pub(super) per_char: f64,
    /// Share of documents whose choice is that of dense.
    pub(super) agreement: f64,
    /// Sparsity in these steps.
    pub(super) realised: f64,
}

/// What accuracy depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TaskSettings {
    pub(super) name: String,
    /// BLAKE3 of the file.
    pub(super) hash: String,
    pub(super) documents: usize,
}

/// How fast steps were.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Speed {
    pub(super) settings: SpeedSettings,
    /// The median of the runs, tokens a second.
    pub(super) rate: f64,
    /// Over the median of dense, which ran in turns with it.
    pub(super) ratio: f64,
    /// Sparsity in these steps.
    pub(super) realised: f64,
}

/// What speed depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SpeedSettings {
    pub(super) steps: usize,
    pub(super) depth: usize,
    pub(super) repetitions: usize,
    pub(super) threads: usize,
}

/// Choices against the exact choice at one target; the plans' own layers stand in their rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Choices {
    pub(super) target: f64,
    pub(super) tokens: usize,
    /// Methods that compute their signal, two by two beside the exact choice.
    pub(super) pairs: Vec<Pair>,
}

/// Two methods, alike in cut and form.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Pair {
    pub(super) first: String,
    pub(super) second: String,
    pub(super) cut: Cut,
    pub(super) form: Form,
    #[serde(flatten)]
    pub(super) agreement: PairAgreement,
}

impl Key {
    /// The dense row's.
    pub(super) fn dense() -> Key {
        Key {
            method: "dense".into(),
            predictor: None,
            cut: None,
            form: None,
            target: 0.0,
            plan: None,
        }
    }

    /// The method and its predictor, for people.
    pub(super) fn label(&self) -> String {
        match &self.predictor {
            Some(predictor) => format!("{} by {predictor}", self.method),
            None => self.method.clone(),
        }
    }
}

impl Row {
    /// A row whose quality is known, and nothing else.
    pub(super) fn new(key: Key, from: &PerplexityRow, dense: f64) -> Row {
        Row {
            key,
            same_as: None,
            realised: from.realised,
            tokens: from.tokens,
            perplexity: from.perplexity,
            stderr: from.stderr,
            ratio: from.perplexity / dense,
            kl: from.kl,
            top1: from.top1,
            bytes_per_token: 0.0,
            predictor_bytes: 0,
            ffn_share: Shares {
                file: 1.0,
                bits16: 1.0,
                bits8: 1.0,
            },
            speed: None,
            accuracy: None,
            layers: None,
        }
    }
}

impl Results {
    pub(super) fn new(settings: Settings, about: About) -> Results {
        Results {
            countdown_comparison: VERSION,
            settings,
            about,
            phases: Vec::new(),
            rows: Vec::new(),
            choices: None,
        }
    }

    /// The row of a key, if it was measured.
    pub(super) fn row(&self, key: &Key) -> Option<&Row> {
        self.rows.iter().find(|r| r.key == *key)
    }

    /// The same to change.
    pub(super) fn row_mut(&mut self, key: &Key) -> Option<&mut Row> {
        self.rows.iter_mut().find(|r| r.key == *key)
    }

    /// Goes on with what `folder` holds of the same settings, or begins.
    ///
    /// # Errors
    /// A folder that holds something else, or the results of other settings, by name.
    pub(super) fn resume(folder: &Path, settings: Settings, about: About) -> Result<Results> {
        let path = folder.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                check_empty(folder)?;
                return Ok(Results::new(settings, about));
            }
            Err(source) => return Err(Error::Read { path, source }.into()),
        };
        let old: Results = serde_json::from_slice(&bytes).map_err(|e| {
            Failure::input(
                format!("{} is no file of results: {e}", path.display()),
                "give another folder with -o",
            )
        })?;
        let changed = differences(&old.settings, &settings);
        if old.countdown_comparison != VERSION || !changed.is_empty() {
            return Err(Failure::input(
                format!(
                    "{} holds another comparison: {} {}",
                    folder.display(),
                    if changed.is_empty() {
                        "format".into()
                    } else {
                        changed.join(", ")
                    },
                    if changed.len() > 1 {
                        "differ"
                    } else {
                        "differs"
                    }
                ),
                "give another folder with -o, or the settings of that comparison",
            ));
        }
        Ok(Results { about, ..old })
    }

    /// Writes the file beside and renames it; makes the folder if it is not there.
    pub(super) fn save(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).map_err(|source| Error::Write {
            path: folder.to_owned(),
            source,
        })?;
        let write =
            |out: &mut io::BufWriter<fs::File>| Ok(serde_json::to_writer_pretty(out, self)?);
        Ok(files::atomic_write(&folder.join(FILE), write)?)
    }
}

/// Refuses a path that is no folder, lies in none, or is a folder of something else.
fn check_empty(folder: &Path) -> Result<()> {
    let unusable = |source: io::Error| Error::Write {
        path: folder.to_owned(),
        source,
    };
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Failure::input(
                format!("{} holds files that are no comparison", folder.display()),
                "give a new or an empty folder with -o",
            )),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let parent = match folder.parent() {
                Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
                _ => PathBuf::from("."),
            };
            match fs::metadata(parent) {
                Ok(m) if m.is_dir() => Ok(()),
                Ok(_) => Err(unusable(io::ErrorKind::NotADirectory.into()).into()),
                Err(e) => Err(unusable(e).into()),
            }
        }
        Err(e) => Err(unusable(e).into()),
    }
}

/// The names of the settings that are not the same.
fn differences(a: &Settings, b: &Settings) -> Vec<String> {
    let object = |s| serde_json::to_value(s).unwrap_or_default();
    let (a, b) = (object(a), object(b));
    let names = a.as_object().into_iter().flatten();
    names
        .filter(|(name, value)| b.get(name) != Some(value))
        .map(|(name, _)| name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use countdown::eval::Subject;

    fn settings() -> Settings {
        Settings {
            model: "m".into(),
            text: "t".into(),
            calibration: "c".into(),
            ctx: 512,
            chunks: 16,
            stepping: "batched".into(),
            fit: Fit::default(),
        }
    }

    fn about() -> About {
        let text = || TextAbout {
            name: "a".into(),
            tokens: 1,
        };
        About {
            model: String::new(),
            model_file: String::new(),
            weights: String::new(),
            text: text(),
            calibration: text(),
        }
    }

    #[test]
    fn a_folder_is_taken_up_by_its_own_settings_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report");
        let mut results = Results::resume(&path, settings(), about()).unwrap();
        assert!(
            !path.exists(),
            "nothing is written before there is something"
        );
        let key = Key {
            target: 0.7,
            predictor: Some("copy3".into()),
            cut: Some(Cut::Neuron),
            form: Some(Form::Practical),
            ..Key::dense()
        };
        let perplexity = PerplexityRow {
            task: "perplexity",
            subject: Subject {
                method: String::new(),
                predictor: None,
                cut: None,
                form: None,
                target: 0.7,
            },
            realised: 0.1 + 0.2,
            tokens: 9,
            perplexity: 12.0,
            stderr: 1.0,
            kl: 0.3,
            top1: 0.9,
        };
        results.rows.push(Row::new(key.clone(), &perplexity, 10.0));
        results.save(&path).unwrap();
        let again = Results::resume(&path, settings(), about()).unwrap();
        assert_eq!(again.row(&key).unwrap().ratio, 1.2);
        let other = Settings {
            ctx: 256,
            text: "u".into(),
            ..settings()
        };
        let refused = Results::resume(&path, other, about()).unwrap_err();
        let message = refused.to_string();
        assert!(message.ends_with("text, ctx differ"), "{message}");
    }

    #[test]
    fn folders_of_something_else_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| Results::resume(path, settings(), about()).unwrap_err();
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        assert_eq!(refused(&file).exit_code(), 1);
        assert_eq!(refused(folder.path()).exit_code(), 2);
        assert_eq!(refused(&folder.path().join("a/b")).exit_code(), 1);
        fs::write(folder.path().join(FILE), "{}").unwrap();
        assert!(
            refused(folder.path())
                .to_string()
                .contains("no file of results")
        );
    }
}
