//! Hugging Face folders: `config.json` and its companions beside safetensors files.

use super::{
    Checkpoint, Metadata as AnyMetadata, file_names, malformed, read_error, safetensors,
    unsupported,
};
use crate::error::{Error, Result};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Largest JSON file read, in bytes, tokenizers apart.
pub(super) const MAX_JSON: u64 = 64 << 20;
/// Largest `tokenizer.json` read, in bytes; the largest known have about 40 MB.
const MAX_TOKENIZER: u64 = 512 << 20;

/// The name of the template that is used where nothing asks for another one.
pub const DEFAULT_TEMPLATE: &str = "default";

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";

/// The JSON files of a model's folder. Getters read `config.json`; a `null` there is no value.
#[derive(Clone, Debug)]
pub struct Metadata {
    /// The folder.
    pub folder: PathBuf,
    /// `config.json`, an object.
    pub config: Value,
    /// `generation_config.json`, an object: how the model's authors sample, and its end-of-turn tokens.
    pub generation: Option<Value>,
    /// `tokenizer_config.json`, an object.
    pub tokenizer_config: Option<Value>,
    /// The chat templates by name; `default` is the usual one.
    pub chat_templates: BTreeMap<String, String>,
}

/// Defines `get_x` and `opt_x` in terms of one conversion.
macro_rules! getters {
    ($($get:ident, $opt:ident: $type:ty, $wanted:literal, $convert:expr;)*) => {$(
        #[doc = concat!("The ", $wanted, " under `key` of `config.json`.")]
        ///
        /// # Errors
        /// [`Error::Unsupported`] if there is no such key or it holds something else.
        pub fn $get(&self, key: &str) -> Result<$type> {
            self.$opt(key)?.ok_or_else(|| self.config_error(format!("`{key}` is missing ({} expected)", $wanted)))
        }

        #[doc = concat!("The ", $wanted, " under `key` of `config.json`, or `None` without such a key.")]
        ///
        /// # Errors
        /// [`Error::Unsupported`] if the key holds something else.
        pub fn $opt(&self, key: &str) -> Result<Option<$type>> {
            let Some(value) = self.config.get(key).filter(|v| !v.is_null()) else {
                return Ok(None);
            };
            let convert: fn(&Value) -> Option<$type> = $convert;
            match convert(value) {
                Some(converted) => Ok(Some(converted)),
                None => Err(self.config_error(format!("`{key}`: {} expected, found {}", $wanted, shown(value)))),
            }
        }
    )*};
}

impl Metadata {
    getters! {
        get_u32, opt_u32: u32, "u32", |v| v.as_u64()?.try_into().ok();
        get_u64, opt_u64: u64, "u64", Value::as_u64;
        get_f32, opt_f32: f32, "number", |v| v.as_f64().map(|x| x as f32);
        get_bool, opt_bool: bool, "bool", Value::as_bool;
        get_str, opt_str: &str, "string", Value::as_str;
        get_array, opt_array: &[Value], "array", |v| v.as_array().map(Vec::as_slice);
    }

    /// The content of `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the folder has none, [`Error::Read`] if it cannot be read.
    pub fn tokenizer_json(&self) -> Result<Vec<u8>> {
        let path = self.folder.join("tokenizer.json");
        read(&path, MAX_TOKENIZER).map_err(|e| match e {
            Error::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => unsupported(
                &self.folder,
                "has no tokenizer.json".into(),
                "fetch tokenizer.json of the model into its folder",
            ),
            other => other,
        })
    }

    fn config_error(&self, cause: String) -> Error {
        unsupported(
            &self.folder.join(CONFIG),
            cause,
            "compare the file with the one of the model's authors",
        )
    }
}

/// The beginning of a JSON value, for messages.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}

/// The folder that a path to one of its files stands for; `None` if the file is no such file.
pub(super) fn folder_of(path: &Path) -> Option<&Path> {
    let ours = path.extension().is_some_and(|e| e == "safetensors")
        || path
            .file_name()
            .is_some_and(|n| n == CONFIG || n == safetensors::INDEX);
    let folder = path.parent()?;
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    ours.then_some(folder)
}

/// Opens a folder. `chosen` is the file in it that the user named, if any.
pub(super) fn open(folder: &Path, chosen: Option<&Path>) -> Result<Checkpoint> {
    let names = file_names(folder)?;
    let weights = Weights::find(folder, chosen, &names)?;
    if !names.iter().any(|n| n == CONFIG) {
        return Err(unsupported(
            folder,
            "has safetensors files but no config.json".into(),
            "fetch config.json of the model into its folder",
        ));
    }
    let metadata = read_metadata(folder)?;
    let tensors = match weights {
        Weights::Single(path) => safetensors::open_single(&path)?,
        Weights::Sharded(index) => safetensors::open_sharded(folder, &index)?,
    };
    Checkpoint::new(folder, AnyMetadata::HuggingFace(metadata), tensors)
}

/// Where a folder's weights are.
enum Weights {
    Single(PathBuf),
    /// The index.
    Sharded(PathBuf),
}

impl Weights {
    /// The file that was named, unless it is part of a model in several files; else what the folder
    /// is made of, where a whole `model.safetensors` goes before an index.
    fn find(folder: &Path, chosen: Option<&Path>, names: &[String]) -> Result<Weights> {
        let has = |name: &str| names.iter().any(|n| n == name);
        let index = folder.join(safetensors::INDEX);
        let chosen = chosen
            .and_then(|p| p.file_name()?.to_str())
            .filter(|n| n.ends_with(".safetensors"));
        if let Some(name) = chosen {
            let part = has(safetensors::INDEX) && safetensors::names_shard(&index, name)?;
            return Ok(if part {
                Weights::Sharded(index)
            } else {
                Weights::Single(folder.join(name))
            });
        }
        if has(SINGLE) {
            return Ok(Weights::Single(folder.join(SINGLE)));
        }
        if has(safetensors::INDEX) {
            return Ok(Weights::Sharded(index));
        }
        let files: Vec<&String> = names
            .iter()
            .filter(|n| n.ends_with(".safetensors"))
            .collect();
        match files[..] {
            [only] => Ok(Weights::Single(folder.join(only))),
            [] => Err(no_weights(folder, names)),
            _ => Err(unsupported(
                folder,
                format!(
                    "holds several safetensors files but no {}: {files:?}",
                    safetensors::INDEX
                ),
                "fetch the index of the model into its folder, or name one of the files",
            )),
        }
    }
}

fn no_weights(folder: &Path, names: &[String]) -> Error {
    let pytorch = names
        .iter()
        .find(|n| n.ends_with(".bin") || n.ends_with(".pt") || n.ends_with(".pth"));
    match pytorch {
        Some(name) => unsupported(
            folder,
            format!("holds PyTorch weights ({name}) but no safetensors or GGUF file"),
            "convert the model to safetensors or GGUF, or fetch it in one of these formats",
        ),
        None => unsupported(
            folder,
            "holds no model: no safetensors and no GGUF file".into(),
            "name a GGUF file or a folder with config.json and safetensors files",
        ),
    }
}

fn read_metadata(folder: &Path) -> Result<Metadata> {
    let optional = |name: &str| {
        read_object(&folder.join(name))
            .map(Some)
            .or_else(none_if_missing)
    };
    let config = read_object(&folder.join(CONFIG))?;
    let generation = optional("generation_config.json")?;
    let tokenizer_config = optional("tokenizer_config.json")?;
    let mut chat_templates = template_files(folder)?;
    if chat_templates.is_empty() {
        chat_templates = tokenizer_config
            .as_ref()
            .map(templates_in)
            .unwrap_or_default();
    }
    if chat_templates.is_empty() {
        // Processors of models that also see pictures keep it in a file of its own.
        chat_templates = optional("chat_template.json")?
            .as_ref()
            .map(templates_in)
            .unwrap_or_default();
    }
    Ok(Metadata {
        folder: folder.to_path_buf(),
        config,
        generation,
        tokenizer_config,
        chat_templates,
    })
}

/// Templates in files: `chat_template.jinja` and, by their names, those in `additional_chat_templates`.
fn template_files(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut files = vec![(
        DEFAULT_TEMPLATE.to_string(),
        folder.join("chat_template.jinja"),
    )];
    let additional = folder.join("additional_chat_templates");
    if additional.is_dir() {
        for file in file_names(&additional)? {
            if let Some(name) = file.strip_suffix(".jinja") {
                files.push((name.to_string(), additional.join(&file)));
            }
        }
    }
    let mut templates = BTreeMap::new();
    for (name, path) in files {
        if let Some(text) = read(&path, MAX_JSON).map(Some).or_else(none_if_missing)? {
            let text = String::from_utf8(text)
                .map_err(|e| malformed(&path, format!("is no text: {e}")))?;
            templates.insert(name, text);
        }
    }
    Ok(templates)
}

/// The templates under `chat_template`: one string, a list of named ones, or an object of them.
fn templates_in(file: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().map(str::to_string);
    match file.get("chat_template") {
        Some(Value::String(one)) => [(DEFAULT_TEMPLATE.to_string(), one.clone())].into(),
        Some(Value::Array(named)) => named
            .iter()
            .filter_map(|t| Some((text(t.get("name")?)?, text(t.get("template")?)?)))
            .collect(),
        Some(Value::Object(named)) => named
            .iter()
            .filter_map(|(name, t)| Some((name.clone(), text(t)?)))
            .collect(),
        _ => BTreeMap::new(),
    }
}

fn none_if_missing<T>(error: Error) -> Result<Option<T>> {
    match error {
        Error::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Ok(None),
        other => Err(other),
    }
}

/// Reads a JSON object.
fn read_object(path: &Path) -> Result<Value> {
    let text = read(path, MAX_JSON)?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| malformed(path, e.to_string()))?;
    if !value.is_object() {
        return Err(malformed(
            path,
            format!("a JSON object expected, found {}", shown(&value)),
        ));
    }
    Ok(value)
}

/// Reads a file of at most `limit` bytes.
pub(super) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let there = fs::metadata(path).map_err(|e| read_error(path, e))?;
    if !there.is_file() {
        return Err(malformed(path, "is not a file".into()));
    }
    if there.len() > limit {
        return Err(malformed(
            path,
            format!(
                "has {} bytes, more than the {limit} that such a file may have",
                there.len()
            ),
        ));
    }
    fs::read(path).map_err(|e| read_error(path, e))
}
