//! What turns words into tokens and back for a model: its tokenizer, chat template and end tokens.

use crate::{
    chat::ChatTemplate,
    error::{Error, Result},
    formats::{Checkpoint, Metadata, gguf, huggingface},
    tokenizer::{GgufVocab, Tokenizer},
};
use serde_json::Value as Json;
use std::path::Path;

/// Loads the tokenizer of a checkpoint.
///
/// # Errors
/// [`Error::Unsupported`] where it has none or one of an unknown kind.
pub fn tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer> {
    match &checkpoint.metadata {
        Metadata::Gguf(m) => Tokenizer::from_gguf(gguf_vocab(&checkpoint.path, m)?),
        Metadata::HuggingFace(m) => from_hugging_face(m),
    }
}

/// Loads the chat template of a checkpoint, `None` where it has none. Where there are several, the default one counts, and
/// `tool_use` for conversations with tools.
///
/// # Errors
/// [`Error::Template`] where it cannot be parsed, or where none of several is the default.
pub fn chat_template(
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
) -> Result<Option<ChatTemplate>> {
    const TOOL_USE: &str = "tool_use";
    let (default, tool_use) = match &checkpoint.metadata {
        Metadata::Gguf(m) => (
            m.opt_str("tokenizer.chat_template")?,
            m.opt_str("tokenizer.chat_template.tool_use")?,
        ),
        Metadata::HuggingFace(m) => {
            let named = |name| m.chat_templates.get(name).map(String::as_str);
            let default = named(huggingface::DEFAULT_TEMPLATE);
            if default.is_none() && !m.chat_templates.is_empty() {
                let names: Vec<&str> = m.chat_templates.keys().map(String::as_str).collect();
                return Err(Error::Template(format!(
                    "the model has several ({}) but none is named `{}`",
                    names.join(", "),
                    huggingface::DEFAULT_TEMPLATE
                )));
            }
            (default, named(TOOL_USE))
        }
    };
    let Some(default) = default else {
        return Ok(None);
    };
    let template = chat_template_from(default, tokenizer)?;
    Ok(Some(match tool_use {
        Some(source) => template.with_tool_use(source)?,
        None => template,
    }))
}

/// Parses a chat template with the BOS and EOS of a tokenizer.
///
/// # Errors
/// [`Error::Template`] where it cannot be parsed.
pub fn chat_template_from(source: &str, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    let spelled = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or("");
    ChatTemplate::new(source, spelled(tokenizer.bos()), spelled(tokenizer.eos()))
}

/// What a GGUF file says about its vocabulary.
///
/// # Errors
/// [`Error::Unsupported`] where it has none.
pub(crate) fn gguf_vocab<'a>(path: &'a Path, m: &'a gguf::Metadata) -> Result<GgufVocab<'a>> {
    let missing = || Error::Unsupported {
        path: path.to_owned(),
        cause: "has no tokenizer (tokenizer.ggml.model)".into(),
        remedy: "use a file that was converted with its tokenizer".into(),
    };
    let model = m.opt_str("tokenizer.ggml.model")?.ok_or_else(missing)?;
    let id = |name: &str| m.opt_u32(&format!("tokenizer.ggml.{name}_token_id"));
    let types = match m.opt_array("tokenizer.ggml.token_type")? {
        Some(gguf::Array::I32(v)) => v.clone(),
        Some(gguf::Array::U32(v)) => v.iter().map(|&t| t as i32).collect(),
        _ => Vec::new(),
    };
    Ok(GgufVocab {
        path,
        name: m.opt_str("general.name")?,
        model,
        pre: m.opt_str("tokenizer.ggml.pre")?,
        tokens: m.get_strings("tokenizer.ggml.tokens")?.iter().collect(),
        scores: m
            .opt_f32s("tokenizer.ggml.scores")?
            .map(<[f32]>::to_vec)
            .unwrap_or_default(),
        token_types: types,
        merges: m
            .opt_strings("tokenizer.ggml.merges")?
            .map(|s| s.iter().collect())
            .unwrap_or_default(),
        bos: id("bos")?,
        eos: id("eos")?,
        eot: id("eot")?,
        eom: id("eom")?,
        unknown: id("unknown")?,
        add_bos: m.opt_bool("tokenizer.ggml.add_bos_token")?,
        add_space_prefix: m.opt_bool("tokenizer.ggml.add_space_prefix")?,
        remove_extra_whitespaces: m.opt_bool("tokenizer.ggml.remove_extra_whitespaces")?,
        has_charsmap: m
            .opt_array("tokenizer.ggml.precompiled_charsmap")?
            .is_some(),
    })
}

fn from_hugging_face(m: &huggingface::Metadata) -> Result<Tokenizer> {
    // Models of raw bytes have no tokenizer file; their config says so in words (see the fixture byte-llama).
    let bytes = m.config.get("tokenizer").and_then(Json::as_str) == Some("raw bytes 0..255");
    if bytes {
        let vocab = m.get_u64("vocab_size")?.min(1 << 20) as usize;
        return Ok(Tokenizer::bytes(vocab));
    }
    let mut tokenizer = Tokenizer::from_file(
        &m.folder.join("tokenizer.json"),
        m.tokenizer_config.as_ref(),
    )?;
    // Without a generation_config.json, Hugging Face takes what config.json says.
    let generation = m.generation.as_ref().unwrap_or(&m.config);
    let ends = generation.get("eos_token_id");
    let ends: Vec<u32> = match ends {
        Some(Json::Array(ids)) => ids
            .iter()
            .filter_map(Json::as_u64)
            .map(|i| i as u32)
            .collect(),
        Some(id) => id.as_u64().map(|i| i as u32).into_iter().collect(),
        None => Vec::new(),
    };
    tokenizer.add_end_of_generation(&ends)?;
    Ok(tokenizer)
}
