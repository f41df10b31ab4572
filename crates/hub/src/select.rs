//! Which files of a repository make up the model that is meant.

use crate::{
    error::{Error, Result},
    spec::Spec,
};
use std::path::{Path, PathBuf};

pub(crate) const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
/// What a folder may have beside config.json and weights.
pub(crate) const OPTIONAL: [&str; 4] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// The files of a model.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// What to fetch; where the index is among them, the files that it names, too.
    pub(crate) files: Vec<String>,
    /// The file to open; the folder if there is none.
    open: Option<String>,
}

impl Choice {
    pub(crate) fn is_folder(&self) -> bool {
        self.files.iter().any(|f| f == CONFIG)
    }

    /// What to open, below the folder of all files.
    pub(crate) fn path(&self, folder: &Path) -> PathBuf {
        match &self.open {
            Some(file) => folder.join(file),
            None => folder.to_owned(),
        }
    }
}

/// Chooses among the files of a repository.
///
/// # Errors
/// [`Error::Choice`] where none or several are meant.
pub(crate) fn choose(files: &[String], spec: &Spec) -> Result<Choice> {
    let has = |name: &str| files.iter().any(|f| f == name);
    match &spec.file {
        Some(file) if has(file) && file.ends_with(".gguf") => gguf(files, file, spec),
        Some(file) if has(file) && file.ends_with(".safetensors") => {
            Ok(folder(files, file, Some(file)))
        }
        Some(file) if has(file) => Err(wrong(
            spec,
            format!("has {file}, which is neither GGUF nor safetensors"),
            "name a file of one of these formats".into(),
        )),
        Some(tag) => {
            let tagged: Vec<&str> = models(files).filter(|f| ends_in(f, tag)).collect();
            match tagged[..] {
                [only] => gguf(files, only, spec),
                [] => Err(wrong(
                    spec,
                    format!("has no file {tag} and no GGUF file whose name ends in it"),
                    listed(files, spec),
                )),
                _ => Err(wrong(
                    spec,
                    format!("has several GGUF files whose names end in {tag}"),
                    listed(&tagged, spec),
                )),
            }
        }
        None => whole(files, spec),
    }
}

/// The model of a repository without further words: its folder, or its only GGUF file.
fn whole(files: &[String], spec: &Spec) -> Result<Choice> {
    let has = |name: &str| files.iter().any(|f| f == name);
    let tensors: Vec<&str> = files
        .iter()
        .map(String::as_str)
        .filter(|f| f.ends_with(".safetensors") && !f.contains('/'))
        .collect();
    let weights = match tensors[..] {
        _ if has(SINGLE) => Some(SINGLE),
        _ if has(INDEX) => Some(INDEX),
        [only] => Some(only),
        _ => None,
    };
    if let Some(weights) = weights.filter(|_| has(CONFIG)) {
        return Ok(folder(files, weights, None));
    }
    let models: Vec<&str> = models(files).collect();
    match models[..] {
        [only] => gguf(files, only, spec),
        [] => Err(wrong(
            spec,
            "has neither config.json with safetensors files nor a GGUF file".into(),
            "choose a repository with one of these, or convert the model".into(),
        )),
        _ => Err(wrong(
            spec,
            "has several GGUF files".into(),
            listed(&models, spec),
        )),
    }
}

fn folder(files: &[String], weights: &str, open: Option<&String>) -> Choice {
    let companions = OPTIONAL.iter().filter(|n| files.iter().any(|f| f == *n));
    let names = [CONFIG].into_iter().chain(companions.copied());
    Choice {
        files: names.chain([weights]).map(str::to_owned).collect(),
        open: open.cloned(),
    }
}

/// A GGUF file with the other parts of a split model.
fn gguf(files: &[String], file: &str, spec: &Spec) -> Result<Choice> {
    let Some((stem, _, count)) = part(file) else {
        return Ok(Choice {
            files: vec![file.to_owned()],
            open: Some(file.to_owned()),
        });
    };
    let parts: Vec<String> = (1..=count)
        .map(|n| format!("{stem}-{n:05}-of-{count:05}.gguf"))
        .collect();
    match parts.iter().find(|p| !files.contains(p)) {
        Some(missing) => Err(wrong(
            spec,
            format!("lacks {missing}, a part of a split model"),
            "choose another file".into(),
        )),
        None => Ok(Choice {
            open: parts.first().cloned(),
            files: parts,
        }),
    }
}

/// The GGUF models: whole files, and the first parts of split ones. Vision projectors and importance matrices are none.
fn models(files: &[String]) -> impl Iterator<Item = &str> {
    files.iter().map(String::as_str).filter(|f| {
        let name = f.rsplit('/').next().unwrap_or(f).to_ascii_lowercase();
        name.ends_with(".gguf")
            && part(f).is_none_or(|(_, number, _)| number == 1)
            && !["mmproj", "imatrix"]
                .iter()
                .any(|other| name.contains(other))
    })
}

/// Whether a file's name ends in the tag, as a word of its own, whatever the case.
fn ends_in(file: &str, tag: &str) -> bool {
    let stem = part(file).map_or(file.trim_end_matches(".gguf"), |(stem, ..)| stem);
    let (stem, tag) = (stem.to_ascii_lowercase(), tag.to_ascii_lowercase());
    let before = stem.strip_suffix(&tag);
    before.is_some_and(|b| b.is_empty() || b.ends_with(['-', '.', '_', '/']))
}

/// `a/m-00002-of-00003.gguf` as `("a/m", 2, 3)`.
fn part(file: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |s: &str| (s.len() == 5).then(|| s.parse().ok()).flatten();
    Some((stem, digits(number)?, digits(count)?))
}

/// Most files that a message lists.
const LISTED: usize = 30;

fn listed(files: &[impl AsRef<str>], spec: &Spec) -> String {
    let all: Vec<&str> = files
        .iter()
        .map(AsRef::as_ref)
        .filter(|f| f.ends_with(".gguf"))
        .collect();
    if all.is_empty() {
        return "leave the file out, or choose a repository that has it".into();
    }
    let more = if all.len() > LISTED { ", ..." } else { "" };
    let shown = all[..all.len().min(LISTED)].join(", ");
    format!(
        "write hf:{}:FILE with one of {shown}{more}",
        spec.repository
    )
}

fn wrong(spec: &Spec, cause: String, remedy: String) -> Error {
    Error::Choice {
        repository: spec.repository.clone(),
        cause,
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str], spec: &str) -> Result<(Vec<String>, PathBuf)> {
        let files: Vec<String> = files.iter().map(|f| f.to_string()).collect();
        let choice = choose(&files, &spec.parse().unwrap())?;
        let path = choice.path(Path::new("S"));
        Ok((choice.files, path))
    }

    fn error(files: &[&str], spec: &str) -> String {
        let e = chosen(files, spec).unwrap_err();
        format!("{e}; {}", e.remedy())
    }

    const QUANTS: [&str; 6] = [
        "README.md",
        "m-Q4_K_M.gguf",
        "m-q8_0.gguf",
        "mmproj-m-f16.gguf",
        "big/m-BF16-00001-of-00002.gguf",
        "big/m-BF16-00002-of-00002.gguf",
    ];

    #[test]
    fn a_folder_is_its_json_files_and_its_weights() {
        let (files, path) = chosen(
            &[
                "config.json",
                "tokenizer.json",
                "model.safetensors",
                "x.gguf",
            ],
            "hf:o/n",
        )
        .unwrap();
        assert_eq!(
            files,
            ["config.json", "tokenizer.json", "model.safetensors"]
        );
        assert_eq!(path, Path::new("S"));
        let sharded = [
            "config.json",
            "consolidated.safetensors",
            INDEX,
            "model-00001-of-00002.safetensors",
        ];
        assert_eq!(
            chosen(&sharded, "hf:o/n").unwrap().0,
            ["config.json", INDEX]
        );
        let (files, path) = chosen(
            &["config.json", "a.safetensors", "b.safetensors"],
            "hf:o/n:b.safetensors",
        )
        .unwrap();
        assert_eq!(files, ["config.json", "b.safetensors"]);
        assert_eq!(path, Path::new("S/b.safetensors"));
    }

    #[test]
    fn a_tag_picks_a_file_and_parts_come_together() {
        assert_eq!(
            chosen(&QUANTS, "hf:o/n:q4_k_m").unwrap().1,
            Path::new("S/m-Q4_K_M.gguf")
        );
        assert_eq!(chosen(&QUANTS, "hf:o/n:Q8_0").unwrap().0, ["m-q8_0.gguf"]);
        let (files, path) = chosen(&QUANTS, "hf:o/n:BF16").unwrap();
        assert_eq!(files, [QUANTS[4], QUANTS[5]]);
        assert_eq!(path, Path::new("S").join(QUANTS[4]));
        assert_eq!(
            chosen(&QUANTS, &format!("hf:o/n:{}", QUANTS[5])).unwrap().1,
            path
        );
        assert_eq!(
            chosen(&["only.gguf", "mmproj.gguf"], "hf:o/n").unwrap().0,
            ["only.gguf"]
        );
    }

    #[test]
    fn what_is_not_clear_is_an_error_that_lists_the_files() {
        let several = error(&QUANTS, "hf:o/n");
        assert!(several.contains("several GGUF files; write hf:o/n:FILE with one of m-Q4_K_M.gguf, m-q8_0.gguf, big/m-BF16-00001"), "{several}");
        assert!(!several.contains("mmproj"), "{several}");
        let twice = error(&["a-Q4_0.gguf", "b-Q4_0.gguf"], "hf:o/n:Q4_0");
        assert!(
            twice.contains("end in Q4_0; write hf:o/n:FILE with one of a-Q4_0.gguf, b-Q4_0.gguf"),
            "{twice}"
        );
        assert!(error(&QUANTS, "hf:o/n:Q5_0").contains("no file Q5_0"));
        assert!(
            error(&QUANTS[..5], "hf:o/n:BF16").contains("lacks big/m-BF16-00002-of-00002.gguf")
        );
        assert!(
            error(&["pytorch_model.bin", "config.json"], "hf:o/n").contains("neither config.json")
        );
        assert!(error(&QUANTS, "hf:o/n:README.md").contains("neither GGUF"));
    }
}
