//! The output as a GGUF file.

use super::{Job, Summary, rows::Stream};
use crate::{
    error::Result,
    formats::{
        Metadata,
        gguf::{self, Array, Strings, Value},
        huggingface,
    },
    kernels::DType,
    text,
    tokenizer::{Description, GgufVocab},
};
use std::{collections::BTreeMap, io};

/// The version of the block layouts, which GGUF counts apart from its own.
const QUANTIZATION_VERSION: u32 = 2;

/// The token that fills up short texts of a batch.
pub(super) const PADDING: &str = "tokenizer.ggml.padding_token_id";

/// The default chat template; those of other names follow a dot.
pub(super) const TEMPLATE: &str = "tokenizer.chat_template";

type Pairs = Vec<(String, Value)>;

pub(super) fn write(
    job: &Job<'_>,
    summary: &mut Summary,
    progress: &mut dyn FnMut(u64, u64) -> io::Result<()>,
) -> Result<()> {
    let mut pairs = match &job.checkpoint.metadata {
        Metadata::Gguf(m) => kept(m),
        Metadata::HuggingFace(m) => made(job, m, summary)?,
    };
    let most = summary.types.first().map_or(DType::F32, |(t, _)| *t);
    let file_type = job.request.weights.file_type(most);
    pairs.extend(file_type.map(|n| ("general.file_type".into(), Value::U32(n))));
    pairs.push((
        "general.quantization_version".into(),
        Value::U32(QUANTIZATION_VERSION),
    ));
    let values: BTreeMap<String, Value> = pairs.iter().cloned().collect();
    job.check(Metadata::Gguf(gguf::Metadata::new(
        job.request.output,
        values,
    )))?;
    let infos = job.infos();
    let mut stream = Stream::new(job, progress);
    let written = gguf::write(job.request.output, &pairs, &infos, |info, out| {
        stream.write(info, out)
    });
    stream.finish(written)
}

/// The metadata of another GGUF file but for what says how it is stored.
fn kept(m: &gguf::Metadata) -> Pairs {
    let stored = |key: &str| {
        key.starts_with("split.")
            || ["general.file_type", "general.quantization_version"].contains(&key)
    };
    m.iter()
        .filter(|(key, _)| !stored(key))
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .collect()
}

/// The metadata of a Hugging Face folder in GGUF's words.
fn made(job: &Job<'_>, m: &huggingface::Metadata, summary: &mut Summary) -> Result<Pairs> {
    let string = |s: &str| Value::String(s.to_owned());
    let mut pairs = vec![
        (
            "general.architecture".to_owned(),
            string(job.family.gguf_type()),
        ),
        ("general.type".to_owned(), string("model")),
    ];
    let folder = job.checkpoint.path.canonicalize().ok();
    let name = folder.as_deref().and_then(|f| f.file_name()?.to_str());
    pairs.extend(name.map(|n| ("general.name".to_owned(), string(n))));
    pairs.extend(job.family.gguf_metadata(job.checkpoint, job.config)?);
    let path = m.folder.join("tokenizer.json");
    if !path.exists() {
        let none = "the folder has no tokenizer.json, so the file has no tokenizer";
        summary.left_out.push(none.into());
        return Ok(pairs);
    }
    let description = Description::read(&path, &m.tokenizer_json()?)?;
    let tokenizer = text::tokenizer(job.checkpoint)?;
    pairs.extend(vocabulary(
        &tokenizer.to_gguf(&description, job.config.vocab)?,
    ));
    let padding = m.tokenizer_config.as_ref().and_then(|c| {
        let token = &c["pad_token"];
        token.as_str().or_else(|| token["content"].as_str())
    });
    pairs.extend(
        padding
            .and_then(|text| tokenizer.id(text))
            .map(|id| (PADDING.to_owned(), Value::U32(id))),
    );
    pairs.extend(templates(m));
    Ok(pairs)
}

/// Chat templates: the default one, and others by their names.
fn templates(m: &huggingface::Metadata) -> Pairs {
    let (mut pairs, mut names) = (Pairs::new(), Strings::default());
    for (name, template) in &m.chat_templates {
        let key = match name.as_str() {
            huggingface::DEFAULT_TEMPLATE => TEMPLATE.to_owned(),
            name => {
                names.push(name);
                format!("{TEMPLATE}.{name}")
            }
        };
        pairs.push((key, Value::String(template.clone())));
    }
    if !names.is_empty() {
        let names = Value::Array(Array::String(names));
        pairs.push(("tokenizer.chat_templates".into(), names));
    }
    pairs
}

fn vocabulary(v: &GgufVocab<'_>) -> Pairs {
    // Readers want a text of its own for every row of the embedding.
    let padded = |(id, text): (usize, &&str)| match text.is_empty() {
        true => format!("[PAD{id}]"),
        false => (*text).to_owned(),
    };
    let strings = |s: Strings| Value::Array(Array::String(s));
    let mut pairs: Vec<(&str, Value)> = vec![
        ("model", Value::String(v.model.into())),
        // A SentencePiece vocabulary has no splitting rule; readers want a word all the same.
        ("pre", Value::String(v.pre.unwrap_or("default").into())),
        (
            "tokens",
            strings(v.tokens.iter().enumerate().map(padded).collect()),
        ),
        (
            "token_type",
            Value::Array(Array::I32(v.token_types.clone())),
        ),
    ];
    if !v.scores.is_empty() {
        pairs.push(("scores", Value::Array(Array::F32(v.scores.clone()))));
    }
    if !v.merges.is_empty() {
        pairs.push(("merges", strings(v.merges.iter().collect())));
    }
    for (key, id) in [
        ("bos_token_id", v.bos),
        ("eos_token_id", v.eos),
        ("unknown_token_id", v.unknown),
    ] {
        pairs.extend(id.map(|id| (key, Value::U32(id))));
    }
    for (key, flag) in [
        ("add_bos_token", v.add_bos),
        ("add_space_prefix", v.add_space_prefix),
    ] {
        pairs.extend(flag.map(|flag| (key, Value::Bool(flag))));
    }
    let prefixed = |(key, value)| (format!("tokenizer.ggml.{key}"), value);
    pairs.into_iter().map(prefixed).collect()
}
