//! Which plan is in force: one from a file, one from the cache, or one fitted now and cached.

use crate::{
    args::PlanChoice,
    console::Console,
    failure::Result,
    load::{self, cut_name, form_name},
    progress::Progress,
};
use countdown::{
    DownLayout, Model, PlanRequest, Session, SessionOptions, SparsityPlan, calibrate,
    tokenizer::Tokenizer,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Names the cache folder.
pub(crate) const CACHE_VARIABLE: &str = "COUNTDOWN_CACHE";
/// Positions that calibration needs; more are not used.
const CALIBRATION_CONTEXT: usize = 512;

impl PlanChoice {
    /// How the model must be opened.
    pub(crate) fn layout(&self) -> DownLayout {
        match self {
            PlanChoice::Dense => DownLayout::Stored,
            PlanChoice::File(_) | PlanChoice::Fit(_) => DownLayout::Transposed,
        }
    }
}

/// The text that plans are fitted on.
pub(crate) struct CalibrationText {
    name: String,
    text: String,
}

impl CalibrationText {
    /// The file's text, or the built-in one.
    pub(crate) fn open(path: Option<&Path>) -> Result<CalibrationText> {
        Ok(match path {
            Some(path) => CalibrationText {
                name: path.display().to_string(),
                text: load::text(path)?,
            },
            None => CalibrationText {
                name: "the built-in text".into(),
                text: countdown::CALIBRATION_TEXT.into(),
            },
        })
    }

    /// The text itself.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// Finds and makes plans for one model.
pub(crate) struct Planner<'a> {
    pub(crate) console: &'a Console,
    pub(crate) model: &'a Arc<Model>,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) threads: usize,
}

impl Planner<'_> {
    /// The plan chosen; `None` is dense.
    pub(crate) fn plan(
        &self,
        choice: &PlanChoice,
        calibration: Option<&Path>,
    ) -> Result<Option<Arc<SparsityPlan>>> {
        Ok(match choice {
            PlanChoice::Dense => None,
            PlanChoice::File(path) => Some(self.from_file(path)?),
            PlanChoice::Fit(request) => {
                let text = CalibrationText::open(calibration)?;
                self.cached_or_fitted(std::slice::from_ref(request), &text)?
                    .pop()
            }
        })
    }

    /// A plan from a file, checked against the model.
    pub(crate) fn from_file(&self, path: &Path) -> Result<Arc<SparsityPlan>> {
        let plan = SparsityPlan::load(path)?;
        plan.check_fits(self.model)?;
        Ok(Arc::new(plan))
    }

    /// A plan for each request: from the cache where it is there, otherwise fitted (all of them in one pass) and cached.
    pub(crate) fn cached_or_fitted(
        &self,
        requests: &[PlanRequest],
        text: &CalibrationText,
    ) -> Result<Vec<Arc<SparsityPlan>>> {
        let folder = cache_folder().map(|f| f.join("plans").join(&self.model.fingerprint));
        let file = |r: &PlanRequest| Some(folder.as_ref()?.join(file_name(r, text)));
        let mut plans: Vec<Option<Arc<SparsityPlan>>> = requests
            .iter()
            .map(|r| self.from_cache(r, &file(r)?))
            .collect();
        let missing: Vec<PlanRequest> = requests
            .iter()
            .zip(&plans)
            .filter(|(_, p)| p.is_none())
            .map(|(r, _)| r.clone())
            .collect();
        if missing.iter().any(PlanRequest::needs_text) {
            self.console.note(format_args!(
                "calibrating {} on {}; cached in {}",
                labels(&missing),
                text.name,
                match &folder {
                    Some(folder) => folder.display().to_string(),
                    None => "no folder: this user has no home".into(),
                }
            ));
        }
        let mut fitted = self.fit(&missing, text)?.into_iter();
        let mut can_save = true;
        for (plan, request) in plans.iter_mut().zip(requests) {
            if plan.is_some() {
                continue;
            }
            let Some(new) = fitted.next() else { break };
            if let Some(file) = file(request).filter(|_| can_save && request.needs_text())
                && let Err(e) = save(&new, &file)
            {
                // One warning is enough for a folder.
                can_save = false;
                self.console.warn(format_args!(
                    "{e}; the plan is used but not cached (set {CACHE_VARIABLE} to a folder that can be written)"
                ));
            }
            *plan = Some(Arc::new(new));
        }
        Ok(plans.into_iter().flatten().collect())
    }

    /// Fits plans, whatever the cache holds.
    pub(crate) fn fit(
        &self,
        requests: &[PlanRequest],
        text: &CalibrationText,
    ) -> Result<Vec<SparsityPlan>> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let tokens = if requests.iter().any(PlanRequest::needs_text) {
            load::text_tokens(self.tokenizer, &text.text)?
        } else {
            Vec::new()
        };
        // A session of its own: the user's may be too short to see how the model behaves in the middle of a text.
        let mut session = Session::new(
            self.model.clone(),
            &SessionOptions {
                context: Some(CALIBRATION_CONTEXT.min(self.model.config.context)),
                threads: Some(self.threads),
                ..SessionOptions::default()
            },
        )?;
        let bar = Progress::bar(self.console, "calibrating");
        let opening = load::opening(self.tokenizer);
        Ok(calibrate(
            &mut session,
            &tokens,
            opening,
            requests,
            |done, all| bar.update(done, all),
        )?)
    }

    fn from_cache(&self, request: &PlanRequest, file: &Path) -> Option<Arc<SparsityPlan>> {
        if !file.exists() {
            return None;
        }
        let cause = match SparsityPlan::load(file) {
            Ok(plan) if !answers(&plan, request) => "it is another plan".into(),
            Ok(plan) => match plan.check_fits(self.model) {
                Ok(()) => {
                    self.console
                        .detail(format_args!("plan from {}", file.display()));
                    return Some(Arc::new(plan));
                }
                Err(e) => e.to_string(),
            },
            Err(e) => e.to_string(),
        };
        self.console.warn(format_args!(
            "the cached plan {} is damaged and fitted again: {cause}",
            file.display()
        ));
        None
    }
}

/// Whether a plan is what was asked for.
fn answers(plan: &SparsityPlan, request: &PlanRequest) -> bool {
    let p = &plan.provenance;
    p.method == request.method.name
        && p.cut == request.cut
        && p.form == request.form
        && p.target == request.sparsity
}

fn save(plan: &SparsityPlan, file: &Path) -> countdown::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(|source| countdown::Error::Write {
            path: folder.to_owned(),
            source,
        })?;
    }
    plan.save(file)
}

/// The folder for what can be made again: the environment's, or the user's.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    match std::env::var_os(CACHE_VARIABLE).filter(|v| !v.is_empty()) {
        Some(folder) => Some(folder.into()),
        None => directories::ProjectDirs::from("", "", "countdown")
            .map(|dirs| dirs.cache_dir().to_owned()),
    }
}

fn file_name(r: &PlanRequest, text: &CalibrationText) -> String {
    let hash = blake3::hash(text.text.as_bytes()).to_hex();
    format!(
        "{}-{}-{}-{}-{}.safetensors",
        r.method.name,
        cut_name(r.cut),
        form_name(r.form),
        r.sparsity,
        &hash[..16]
    )
}

/// One plan by its name, several by their number.
fn labels(requests: &[PlanRequest]) -> String {
    match requests {
        [r] => format!("{} {}", r.method.name, r.sparsity),
        many => format!("{} plans", many.len()),
    }
}
