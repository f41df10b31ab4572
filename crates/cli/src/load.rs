//! Opening what a command works on: models, tokenizers, texts; and the line that says what runs.

use crate::{console::Console, failure::Result, progress::Progress, table};
use countdown::{
    DownLayout, Error, Model, Session, SparsityPlan,
    chat::ChatTemplate,
    formats::Checkpoint,
    kernels::DType,
    model::Matrix,
    sparsity::Form,
    text,
    tokenizer::{Specials, Tokenizer},
};
use countdown_hub::{Settings, Spec};
use std::{
    fmt,
    io::Read,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

/// A model as the user names it.
#[derive(Clone, Debug)]
pub(crate) enum ModelSource {
    /// On this machine.
    Path(PathBuf),
    /// On the Hub.
    Hub(Spec),
}

impl FromStr for ModelSource {
    type Err = countdown_hub::Error;

    fn from_str(text: &str) -> Result<ModelSource, countdown_hub::Error> {
        match Spec::is_meant(text) {
            true => text.parse().map(ModelSource::Hub),
            false => Ok(ModelSource::Path(text.into())),
        }
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelSource::Path(path) => path.display().fmt(f),
            ModelSource::Hub(spec) => spec.fmt(f),
        }
    }
}

impl ModelSource {
    /// Its path on this machine, once it is fetched.
    pub(crate) fn path(&self, console: &Console) -> Result<PathBuf> {
        let spec = match self {
            ModelSource::Path(path) => return Ok(path.clone()),
            ModelSource::Hub(spec) => spec,
        };
        let settings = Settings::from_env()?;
        let bar = Progress::bar(console, "fetching");
        let mut announced = false;
        let path = countdown_hub::fetch(spec, &settings, &mut |file, done, all| {
            if !announced {
                console.note(format_args!(
                    "fetching {spec} into {}",
                    settings.cache.display()
                ));
                announced = true;
            }
            bar.say(&format!("fetching {file}"));
            bar.update(done as usize, all as usize);
        })?;
        console.detail(format_args!("{spec} is {}", path.display()));
        Ok(path)
    }

    /// Opens it, fetched before where need be.
    pub(crate) fn open(&self, console: &Console) -> Result<Checkpoint> {
        Ok(Checkpoint::open(&self.path(console)?)?)
    }

    /// A short name: of the file or folder, or of the repository.
    pub(crate) fn name(&self) -> String {
        match self {
            ModelSource::Path(path) => {
                let name = path.file_name().unwrap_or(path.as_os_str());
                name.to_string_lossy().into_owned()
            }
            ModelSource::Hub(spec) => spec.to_string(),
        }
    }

    /// The same without the ending of a file.
    pub(crate) fn stem(&self) -> String {
        match self {
            ModelSource::Path(path) => match path.file_stem() {
                Some(stem) => stem.to_string_lossy().into_owned(),
                None => "model".into(),
            },
            ModelSource::Hub(spec) => spec.repository.clone(),
        }
    }
}

/// Opens the weights of a checkpoint.
pub(crate) fn model(
    console: &Console,
    checkpoint: &Checkpoint,
    layout: DownLayout,
    threads: usize,
) -> Result<Arc<Model>> {
    let _spinner = Progress::spinner(console, "loading");
    let model = Model::from_checkpoint(checkpoint, layout, threads)?;
    console.detail(format_args!(
        "model {}: fingerprint {}, {} parameters",
        checkpoint.path.display(),
        model.fingerprint,
        model.parameters()
    ));
    Ok(Arc::new(model))
}

/// Says what runs: device, threads, types, plan in force.
pub(crate) fn announce(console: &Console, session: &Session, cache: DType) {
    announce_with(console, session, cache, &plan_in_force(session.plan()));
}

/// The same where several plans take turns.
pub(crate) fn announce_with(console: &Console, session: &Session, cache: DType, plans: &str) {
    let model = session.model();
    let down = match model.down_layout {
        DownLayout::Stored => "",
        DownLayout::Transposed => " (down transposed)",
    };
    console.note(format_args!(
        "countdown {}: {}; {} {}, weights {}{down}, cache {cache}, context {}; {plans}",
        env!("CARGO_PKG_VERSION"),
        session.device(),
        model.config.family,
        table::parameters(model.parameters()),
        weight_types(model).join("+"),
        session.context(),
    ));
}

/// The types that a step reads, those with the most bytes first.
pub(crate) fn weight_types(model: &Model) -> Vec<&'static str> {
    let downs = model.layers.iter().map(|l| l.ffn.down.matrix());
    types_by_bytes(all_but_downs(model).chain(downs))
}

/// The type of most weights, which does not depend on how down projections are laid out.
pub(crate) fn most_weights(model: &Model) -> &'static str {
    let types = types_by_bytes(all_but_downs(model));
    types.first().unwrap_or(&"")
}

fn all_but_downs(model: &Model) -> impl Iterator<Item = &Matrix> {
    let of_layers = model.layers.iter().flat_map(|l| {
        let linears = [&l.query, &l.key, &l.value, &l.attn_output].map(|linear| &linear.weight);
        linears.into_iter().chain([&l.ffn.gate, &l.ffn.up])
    });
    std::iter::once(&model.head).chain(of_layers)
}

fn types_by_bytes<'a>(matrices: impl Iterator<Item = &'a Matrix>) -> Vec<&'static str> {
    let mut bytes: Vec<(usize, &'static str)> = Vec::new();
    for m in matrices {
        let name = m.dtype().name();
        match bytes.iter_mut().find(|(_, n)| *n == name) {
            Some((sum, _)) => *sum += m.bytes(),
            None => bytes.push((m.bytes(), name)),
        }
    }
    bytes.sort_by(|a, b| b.cmp(a));
    bytes.into_iter().map(|(_, name)| name).collect()
}

/// What a row is about, with the name of the file that its plan came from.
pub(crate) fn with_file(label: String, plan: Option<&str>) -> String {
    let name = plan.and_then(|p| Path::new(p).file_name());
    match name {
        Some(name) => format!("{label} ({})", name.display()),
        None => label,
    }
}

fn plan_in_force(plan: Option<&SparsityPlan>) -> String {
    let Some(plan) = plan else {
        return "dense".into();
    };
    let p = &plan.provenance;
    let predictor = p
        .predictor
        .as_ref()
        .map_or(String::new(), |name| format!(" by {name}"));
    format!(
        "plan {}{predictor} {:.2} ({} cut, {})",
        p.method,
        p.target,
        p.cut.name(),
        form_name(p.form)
    )
}

/// Dense and so many plans, for [`announce_with`].
pub(crate) fn count(plans: &[Arc<SparsityPlan>]) -> String {
    match plans {
        [] => "dense".into(),
        [one] => format!("dense and {}", plan_in_force(Some(one))),
        many => format!("dense and {} plans", many.len()),
    }
}

/// The form's name in files and tables.
pub(crate) fn form_name(form: Form) -> &'static str {
    match form {
        Form::Practical => "practical",
        Form::Ideal => "ideal",
    }
}

/// A text file, or standard input for `-`.
pub(crate) fn text_file(path: &Path) -> Result<String> {
    let named = if path == Path::new("-") {
        Path::new("standard input")
    } else {
        path
    };
    let read = |source| Error::Read {
        path: named.to_owned(),
        source,
    };
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin()
            .lock()
            .read_to_end(&mut bytes)
            .map_err(read)?;
        bytes
    } else {
        std::fs::read(path).map_err(read)?
    };
    Ok(String::from_utf8(bytes).map_err(|e| Error::Malformed {
        path: named.to_owned(),
        cause: format!("is not UTF-8 text (byte {})", e.utf8_error().valid_up_to()),
    })?)
}

/// A text as tokens, without BOS, control tokens as plain text.
pub(crate) fn text_tokens(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    Ok(tokenizer.encode(text, Specials::AsText)?)
}

/// The token that opens a text, for models that want one.
pub(crate) fn opening(tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.bos().filter(|_| tokenizer.adds_bos())
}

/// The tokenizer of a checkpoint.
pub(crate) fn tokenizer(console: &Console, checkpoint: &Checkpoint) -> Result<Tokenizer> {
    let _spinner = Progress::spinner(console, "loading the tokenizer");
    Ok(text::tokenizer(checkpoint)?)
}

/// A chat template: the file's, or else the checkpoint's; `None` where it has none.
pub(crate) fn template(
    file: Option<&Path>,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
) -> Result<Option<ChatTemplate>> {
    Ok(match file {
        Some(file) => Some(text::chat_template_from(&text_file(file)?, tokenizer)?),
        None => text::chat_template(checkpoint, tokenizer)?,
    })
}

/// Fails where `path` lies in no folder: before an hour of work, not after.
pub(crate) fn check_writable(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(f) if !f.as_os_str().is_empty() => f.to_owned(),
        _ => PathBuf::from("."),
    };
    let cause = match std::fs::metadata(&folder) {
        Err(e) => e,
        Ok(m) if !m.is_dir() => std::io::ErrorKind::NotADirectory.into(),
        Ok(_) if path.is_dir() => std::io::ErrorKind::IsADirectory.into(),
        Ok(_) => return Ok(()),
    };
    Err(Error::Write {
        path: path.to_owned(),
        source: cause,
    }
    .into())
}
