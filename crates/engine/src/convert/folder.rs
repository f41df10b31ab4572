//! The output as a Hugging Face folder.

use super::{
    Existing, Job, Summary,
    gguf_file::{self, PADDING},
    rows::Stream,
};
use crate::{
    error::{Error, Result},
    formats::{
        Metadata, gguf,
        gguf::TensorInfo,
        huggingface,
        safetensors::{self, INDEX},
    },
    kernels::DType,
    text,
    tokenizer::Tokenizer,
};
use serde_json::{Map, Value as Json, json};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// Bytes of tensors in one file, at most, unless a single one has more.
const SHARD: u64 = 5_000_000_000;

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const MORE_TEMPLATES: &str = "additional_chat_templates";

/// What a folder holds beside weights.
struct Beside {
    config: Map<String, Json>,
    generation: Option<Json>,
    tokenizer_config: Option<Json>,
    /// Names and contents of further files.
    files: Vec<(PathBuf, Vec<u8>)>,
}

pub(super) fn write(
    job: &Job<'_>,
    summary: &mut Summary,
    progress: &mut dyn FnMut(u64, u64) -> io::Result<()>,
) -> Result<()> {
    let output = job.request.output;
    if output.exists() {
        check_replaceable(output)?;
    }
    let mut beside = match &job.checkpoint.metadata {
        Metadata::HuggingFace(m) => kept(m)?,
        Metadata::Gguf(m) => made(job, m, summary)?,
    };
    let most = summary.types.first().map_or(DType::F32, |(t, _)| *t);
    beside.config.remove("dtype");
    beside
        .config
        .insert("torch_dtype".into(), torch_name(most).into());
    job.check(Metadata::HuggingFace(huggingface::Metadata {
        folder: output.to_owned(),
        config: Json::Object(beside.config.clone()),
        generation: None,
        tokenizer_config: None,
        chat_templates: Default::default(),
    }))?;
    let failed = |source| Error::Write {
        path: output.to_owned(),
        source,
    };
    let parent = match output.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let mut temporary = tempfile::Builder::new();
    temporary.prefix(".countdown-").suffix(".tmp");
    // A temporary folder is private (0700) unless told otherwise; the finished one is an ordinary folder.
    #[cfg(unix)]
    temporary.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let temporary = temporary.tempdir_in(parent).map_err(failed)?;
    let mut stream = Stream::new(job, progress);
    let written = beside
        .write(temporary.path())
        .and_then(|()| weights(job, temporary.path(), &mut stream))
        .map_err(failed);
    stream.finish(written)?;
    put(temporary, output, parent, job.request.existing).map_err(failed)
}

/// Moves the finished folder to where it belongs; what stood there is set aside until then.
fn put(
    finished: tempfile::TempDir,
    output: &Path,
    parent: &Path,
    existing: Existing,
) -> io::Result<()> {
    let aside = match (output.exists(), existing) {
        (true, Existing::Replace) => {
            let aside = tempfile::Builder::new()
                .prefix(".countdown-")
                .tempdir_in(parent)?;
            fs::rename(output, aside.path().join("old"))?;
            Some(aside)
        }
        (true, Existing::Refuse) => return Err(io::ErrorKind::AlreadyExists.into()),
        (false, _) => None,
    };
    let moved = fs::rename(finished.path(), output);
    if let (Err(_), Some(aside)) = (&moved, &aside) {
        fs::rename(aside.path().join("old"), output)?;
    }
    moved?;
    // There is nothing left at the path that it would remove.
    let _ = finished.keep();
    Ok(())
}

/// Refuses to replace a folder that holds anything but a model.
fn check_replaceable(output: &Path) -> Result<()> {
    let ours = |name: &str| {
        name.ends_with(".safetensors")
            || [
                CONFIG,
                GENERATION,
                TOKENIZER,
                TOKENIZER_CONFIG,
                TEMPLATE,
                MORE_TEMPLATES,
                INDEX,
            ]
            .contains(&name)
    };
    let read = |source| Error::Read {
        path: output.to_owned(),
        source,
    };
    for entry in fs::read_dir(output).map_err(read)? {
        let name = entry.map_err(read)?.file_name();
        if !name.to_str().is_some_and(ours) {
            return Err(Error::Input {
                cause: format!(
                    "{} holds {}, which is no file of a model: it is not replaced",
                    output.display(),
                    name.to_string_lossy()
                ),
                remedy: "name another output, or remove that folder yourself".into(),
            });
        }
    }
    Ok(())
}

impl Beside {
    fn write(&self, folder: &Path) -> io::Result<()> {
        let text = |json: &Json| format!("{json:#}\n").into_bytes();
        let config = Json::Object(self.config.clone());
        fs::write(folder.join(CONFIG), text(&config))?;
        for (name, json) in [
            (GENERATION, &self.generation),
            (TOKENIZER_CONFIG, &self.tokenizer_config),
        ] {
            if let Some(json) = json {
                fs::write(folder.join(name), text(json))?;
            }
        }
        for (name, content) in &self.files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
            fs::write(path, content)?;
        }
        Ok(())
    }
}

/// The files of another folder.
fn kept(m: &huggingface::Metadata) -> Result<Beside> {
    let mut files = Vec::new();
    let path = m.folder.join(TOKENIZER);
    match fs::read(&path) {
        Ok(content) => files.push((TOKENIZER.into(), content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(Error::Read { path, source }),
    }
    let is_in_config = |c: &Json| c.get("chat_template").is_some();
    if !m.tokenizer_config.as_ref().is_some_and(is_in_config) {
        let template = |(name, text): (&String, &String)| template_file(name, text);
        files.extend(m.chat_templates.iter().map(template));
    }
    Ok(Beside {
        config: m.config.as_object().cloned().unwrap_or_default(),
        generation: m.generation.clone(),
        tokenizer_config: m.tokenizer_config.clone(),
        files,
    })
}

/// The file that holds the chat template of that name.
fn template_file(name: &str, template: &str) -> (PathBuf, Vec<u8>) {
    let path = match name {
        huggingface::DEFAULT_TEMPLATE => TEMPLATE.into(),
        name => Path::new(MORE_TEMPLATES).join(format!("{name}.jinja")),
    };
    (path, template.as_bytes().to_vec())
}

/// What a GGUF file says, in the files of a folder.
fn made(job: &Job<'_>, m: &gguf::Metadata, summary: &mut Summary) -> Result<Beside> {
    let mut config = job.family.hf_config(job.checkpoint, job.config)?;
    let has_head = job
        .pieces
        .iter()
        .any(|p| p.info.name == crate::arch::names::HEAD.1);
    config.insert("tie_word_embeddings".into(), (!has_head).into());
    let padding = m.opt_u32(PADDING)?;
    // Without it some families' default is taken, which may lie beyond the vocabulary.
    config.insert("pad_token_id".into(), padding.into());
    let mut beside = Beside {
        config,
        generation: None,
        tokenizer_config: None,
        files: Vec::new(),
    };
    // Writers have two words for it.
    if matches!(
        m.opt_str("tokenizer.ggml.model")?,
        None | Some("none" | "no_vocab")
    ) {
        let none = "the file has no tokenizer, so the folder has none";
        summary.left_out.push(none.into());
        return Ok(beside);
    }
    let path = &job.checkpoint.path;
    let vocab = text::gguf_vocab(path, m)?;
    let tokenizer = Tokenizer::from_gguf(vocab.clone())?;
    let (file, mut config) = vocab.to_json(&tokenizer)?;
    config["pad_token"] = padding.and_then(|id| tokenizer.token(id)).into();
    let content = file.to_string().into_bytes();
    let made = Tokenizer::from_json(Path::new(TOKENIZER), &content, Some(&config))?;
    if !tokenizer.same_tokens(&made) {
        return Err(Error::Unsupported {
            path: path.clone(),
            cause: "its tokenizer has rules that tokenizer.json has no word for".into(),
            remedy: "keep the model in a GGUF file".into(),
        });
    }
    for (key, id) in [
        ("bos_token_id", tokenizer.bos()),
        ("eos_token_id", tokenizer.eos()),
    ] {
        beside
            .config
            .extend(id.map(|id| (key.to_owned(), id.into())));
    }
    beside.generation = Some(json!({
        "bos_token_id": tokenizer.bos(),
        "eos_token_id": tokenizer.end_of_generation(),
    }));
    beside.tokenizer_config = Some(config);
    beside.files.push((TOKENIZER.into(), content));
    let template = |(key, value): (&str, &gguf::Value)| {
        let rest = key.strip_prefix(gguf_file::TEMPLATE)?;
        let name = match rest {
            "" => huggingface::DEFAULT_TEMPLATE,
            other => other.strip_prefix('.')?,
        };
        match value {
            gguf::Value::String(text) => Some(template_file(name, text)),
            _ => None,
        }
    };
    beside.files.extend(m.iter().filter_map(template));
    Ok(beside)
}

/// Writes the safetensors files, with an index where there are several.
fn weights(job: &Job<'_>, folder: &Path, stream: &mut Stream<'_>) -> io::Result<()> {
    let shards = shards(job.infos())?;
    let count = shards.len();
    let name = |i: usize| match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    };
    for (i, tensors) in shards.iter().enumerate() {
        let file = File::create(folder.join(name(i)))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        safetensors::encode(&mut out, tensors, |info, out| stream.write(info, out))?;
        out.into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()?;
    }
    if count > 1 {
        let names: Vec<String> = (0..count).map(name).collect();
        let places = shards.iter().zip(&names).flat_map(|(tensors, file)| {
            tensors
                .iter()
                .map(move |t| (t.name.as_str(), file.as_str()))
        });
        let bytes = job.pieces.iter().map(|p| p.bytes as u64).sum();
        File::create(folder.join(INDEX))?.write_all(&safetensors::index(bytes, places))?;
    }
    Ok(())
}

/// Cuts the tensors into files.
fn shards(mut tensors: Vec<TensorInfo>) -> io::Result<Vec<Vec<TensorInfo>>> {
    // Wide numbers first, so that each lies at a multiple of its width.
    tensors.sort_by_key(|t| std::cmp::Reverse(t.dtype.block_bytes()));
    let mut shards: Vec<Vec<TensorInfo>> = vec![Vec::new()];
    let mut filled = 0;
    for tensor in tensors {
        let bytes = tensor.bytes()? as u64;
        if filled > 0 && filled + bytes > SHARD {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        shards
            .last_mut()
            .expect("there is one from the start")
            .push(tensor);
    }
    Ok(shards)
}

fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    }
}
