//! Which plan is in force: one from a file, one from the cache, or one fitted now and cached.

use crate::{
    args::{DeviceArgs, PlanChoice, SessionArgs, Wish},
    console::Console,
    failure::Result,
    load::{self, form_name},
    progress::Progress,
};
use countdown::{
    DownLayout, FfnTimes, Fit, Model, Packing, PlanRequest, Session, SessionOptions, SparsityPlan,
    bench::{BenchResult, Load, Variant, bench},
    calibrate,
    formats::Checkpoint,
    measure_realised,
    model::Layer,
    sparsity::{Form, PredictorKind, PredictorSet, Signal},
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

/// A session with its plan in force, announced.
pub(crate) fn session(
    console: &Console,
    args: &SessionArgs,
    choice: &PlanChoice,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
) -> Result<Session> {
    let threads = args.compute.threads();
    let model = load::model(console, checkpoint, DownLayout::Stored, threads)?;
    let options = args
        .context
        .session_options(&args.compute, model.config.context);
    let planner = Planner {
        console,
        model: &model,
        tokenizer,
        threads,
        device: args.device,
    };
    let plan = planner.plan(choice, args.plan.calibration.as_deref())?;
    let on_card = {
        let _spinner = Progress::spinner(console, "looking for a card");
        let plans = plan.as_slice();
        args.device.on_card(console, &model, plans, &options)?
    };
    if let Some(mut session) = on_card {
        if let Some(plan) = plan.filter(|_| !args.plan.always_sparse) {
            follow_if_quicker(console, &mut session, plan, tokenizer)?;
        }
        load::announce(console, &session, options.cache_dtype);
        return Ok(session);
    }
    let plan = match plan {
        Some(plan) if !args.plan.always_sparse => quicker(console, &model, plan, threads)?,
        plan => plan,
    };
    let (model, plan) = {
        let _spinner = Progress::spinner(console, "laying out weights");
        let packing = Packing::of(plan.as_deref());
        let mut model = Arc::unwrap_or_clone(model).packed(packing, threads)?;
        let plan = plan.map(|p| p.packed(&mut model, threads)).transpose()?;
        (model, plan)
    };
    let mut session = Session::new(Arc::new(model), &options)?;
    session.set_plan(plan.map(Arc::new))?;
    load::announce(console, &session, options.cache_dtype);
    Ok(session)
}

/// FFNs of fewer bytes take too little time to be told apart.
const SMALL_FFN: usize = 1 << 20;

/// The plan, or none where dense is quicker on this machine. Announces a change.
fn quicker(
    console: &Console,
    model: &Model,
    plan: Arc<SparsityPlan>,
    threads: usize,
) -> Result<Option<Arc<SparsityPlan>>> {
    let is_small = |l: &Layer| l.ffn.gate.bytes() + l.ffn.up.bytes() < SMALL_FFN;
    // Nobody asks for an ideal plan to be quick.
    if plan.provenance.form == Form::Ideal || model.layers.iter().any(is_small) {
        return Ok(Some(plan));
    }
    let times = {
        let _spinner = Progress::spinner(console, "timing the plan");
        FfnTimes::measure(model, &plan, threads)?
    };
    let gain = times.dense.as_secs_f64() / times.sparse.as_secs_f64();
    Ok(is_quicker(console, &plan, "FFNs", gain).then_some(plan))
}

/// Whether a plan that runs something `gain` times as fast as dense is followed. Says so.
fn is_quicker(console: &Console, plan: &SparsityPlan, what: &str, gain: f64) -> bool {
    let of = &plan.provenance;
    let plan = format!("{} at {}", of.method, of.target);
    if gain > 1.0 {
        console.detail(format_args!(
            "{plan}: {what} {gain:.2} times as fast as dense here"
        ));
    } else {
        console.note(format_args!(
            "{plan} would run {what} at {gain:.2} of dense's speed here: decoding without it (--always-sparse follows it anyway)"
        ));
    }
    gain > 1.0
}

/// Steps that are timed on a card, and how often.
const STEPS: usize = 16;
const ROUNDS: usize = 5;

/// Puts the plan of a session on a card in force, or none where its steps are quicker without. Announces a change.
fn follow_if_quicker(
    console: &Console,
    session: &mut Session,
    plan: Arc<SparsityPlan>,
    tokenizer: &Tokenizer,
) -> Result<()> {
    if plan.provenance.form == Form::Ideal || session.context() < STEPS {
        return Ok(());
    }
    let text = load::text_tokens(tokenizer, countdown::CALIBRATION_TEXT)?;
    let plans = [None, Some(plan.clone())];
    let variants = plans.map(|plan| Variant { session: 0, plan });
    let steps = Load::Steps {
        tokens: STEPS,
        depth: 0,
    };
    let timed = {
        let _spinner = Progress::spinner(console, "timing the plan");
        let sessions = std::slice::from_mut(session);
        bench(sessions, &variants, steps, &text, ROUNDS, |_, _| ())?
    };
    let [dense, sparse] = [&timed[0], &timed[1]].map(BenchResult::median);
    let is_followed = is_quicker(console, &plan, "steps", sparse / dense);
    session.set_plan(Some(plan).filter(|_| is_followed))?;
    Ok(())
}

/// Variants of a benchmark, and a model for the session of each.
#[derive(Default)]
pub(crate) struct Packed {
    pub(crate) models: Vec<Arc<Model>>,
    pub(crate) variants: Vec<Variant>,
}

impl Packed {
    /// Adds dense runs on a model as stored.
    pub(crate) fn add_dense(&mut self, model: &Model, threads: usize) -> Result<()> {
        self.variants.push(Variant {
            session: self.models.len(),
            plan: None,
        });
        let model = model.clone().packed(Packing::of(None), threads)?;
        self.models.push(Arc::new(model));
        Ok(())
    }

    /// Adds plans, each to run on the model in the packing that suits it.
    pub(crate) fn add_plans(
        &mut self,
        model: &Model,
        plans: &[Arc<SparsityPlan>],
        threads: usize,
    ) -> Result<()> {
        let mut places: Vec<(Packing, usize)> = Vec::new();
        for plan in plans {
            let packing = Packing::of(Some(plan));
            let place = places.iter().find(|(p, _)| *p == packing).map(|p| p.1);
            let mut suited = match place {
                Some(place) => Model::clone(&self.models[place]),
                None => model.clone().packed(packing, threads)?,
            };
            let plan = Some(Arc::new(plan.packed(&mut suited, threads)?));
            // What lies beside a plan's own matrices suits no other plan.
            let session = place.filter(|_| packing != Packing::DownWithPlan);
            let session = session.unwrap_or_else(|| {
                places.push((packing, self.models.len()));
                self.models.push(Arc::new(suited));
                self.models.len() - 1
            });
            self.variants.push(Variant { session, plan });
        }
        Ok(())
    }

    /// A session for each model.
    pub(crate) fn sessions(&self, options: &SessionOptions) -> Result<Vec<Session>> {
        let session = |m: &Arc<Model>| Ok(Session::new(m.clone(), options)?);
        self.models.iter().map(session).collect()
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
                text: load::text_file(path)?,
            },
            None => CalibrationText {
                name: "the built-in text".into(),
                text: countdown::CALIBRATION_TEXT.into(),
            },
        })
    }

    /// What people call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
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
    /// What runs the model while plans are fitted.
    pub(crate) device: DeviceArgs,
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
            PlanChoice::File(path) => Some(self.open(path)?),
            PlanChoice::Fit(wish) => {
                let text = CalibrationText::open(calibration)?;
                self.cached_or_fitted(std::slice::from_ref(wish), &text)?
                    .pop()
            }
        })
    }

    /// A plan from a file, checked against the model.
    pub(crate) fn open(&self, path: &Path) -> Result<Arc<SparsityPlan>> {
        let plan = SparsityPlan::load(path)?;
        plan.check_fits(self.model)?;
        Ok(Arc::new(plan))
    }

    /// A plan for each wish: from the cache where it is there, otherwise fitted (all of them in one pass) and cached.
    pub(crate) fn cached_or_fitted(
        &self,
        wishes: &[Wish],
        text: &CalibrationText,
    ) -> Result<Vec<Arc<SparsityPlan>>> {
        let folder = cache_folder().map(|f| f.join("plans").join(&self.model.fingerprint));
        let file = |w: &Wish| Some(folder.as_ref()?.join(file_name(w, text)));
        let mut plans: Vec<Option<Arc<SparsityPlan>>> =
            wishes.iter().map(|w| self.cached(w, &file(w)?)).collect();
        let missing: Vec<Wish> = wishes
            .iter()
            .zip(&plans)
            .filter(|(_, p)| p.is_none())
            .map(|(w, _)| w.clone())
            .collect();
        let requests = self.requests(&missing)?;
        if requests.iter().any(PlanRequest::needs_text) {
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
        let mut can_save = true;
        let fitted = self.fit_and_measure(&requests, text)?;
        let fitted = fitted.into_iter().zip(&requests);
        let empty = plans.iter_mut().zip(wishes).filter(|(p, _)| p.is_none());
        for ((plan, wish), (new, request)) in empty.zip(fitted) {
            if let Some(file) = file(wish).filter(|_| can_save && request.needs_text())
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

    /// Wishes with the predictors they name, each made once.
    pub(crate) fn requests(&self, wishes: &[Wish]) -> Result<Vec<PlanRequest>> {
        let mut made: Vec<(PredictorKind, Signal, Arc<PredictorSet>)> = Vec::new();
        let mut predictor = |wish: &Wish| -> Result<Option<Arc<PredictorSet>>> {
            let (Some(kind), Some(signal)) = (wish.predictor, wish.method.signal) else {
                return Ok(None);
            };
            let found = made.iter().find(|(k, s, _)| (*k, *s) == (kind, signal));
            if let Some((.., set)) = found {
                return Ok(Some(set.clone()));
            }
            let _spinner = Progress::spinner(self.console, "copying gate and up");
            let set = Arc::new(kind.untrained(self.model, signal, self.threads)?);
            made.push((kind, signal, set.clone()));
            Ok(Some(set))
        };
        let request = |wish: &Wish| {
            let request = PlanRequest {
                method: wish.method,
                cut: wish.cut,
                form: wish.form,
                sparsity: wish.sparsity,
                predictor: predictor(wish)?,
                fit: wish.fit,
            };
            request.check()?;
            Ok(request)
        };
        wishes.iter().map(request).collect()
    }

    /// Fits plans, whatever the cache holds, and measures what they realise on the text.
    pub(crate) fn fit_and_measure(
        &self,
        requests: &[PlanRequest],
        text: &CalibrationText,
    ) -> Result<Vec<SparsityPlan>> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let (mut session, tokens) = self.calibration(requests, text)?;
        let mut plans = self.fit_in(&mut session, &tokens, requests)?;
        let bar = Progress::bar(self.console, "measuring what is skipped");
        measure_realised(
            &mut session,
            &tokens,
            load::opening(self.tokenizer),
            &mut plans,
            |done, all| bar.update(done, all),
        )?;
        Ok(plans)
    }

    /// Fits plans, whatever the cache holds. What they realise is not measured.
    pub(crate) fn fit(
        &self,
        requests: &[PlanRequest],
        text: &CalibrationText,
    ) -> Result<Vec<SparsityPlan>> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let (mut session, tokens) = self.calibration(requests, text)?;
        self.fit_in(&mut session, &tokens, requests)
    }

    fn fit_in(
        &self,
        session: &mut Session,
        tokens: &[u32],
        requests: &[PlanRequest],
    ) -> Result<Vec<SparsityPlan>> {
        let bar = Progress::bar(self.console, "calibrating");
        let opening = load::opening(self.tokenizer);
        Ok(calibrate(
            session,
            tokens,
            opening,
            requests,
            |done, all| {
                bar.update(done, all);
            },
        )?)
    }

    /// What plans are fitted with: a session, and the text's tokens.
    fn calibration(
        &self,
        requests: &[PlanRequest],
        text: &CalibrationText,
    ) -> Result<(Session, Vec<u32>)> {
        Ok((
            self.calibration_session()?,
            self.calibration_tokens(requests, text)?,
        ))
    }

    /// None where no request needs any.
    fn calibration_tokens(
        &self,
        requests: &[PlanRequest],
        text: &CalibrationText,
    ) -> Result<Vec<u32>> {
        if requests.iter().any(PlanRequest::needs_text) {
            load::text_tokens(self.tokenizer, &text.text)
        } else {
            Ok(Vec::new())
        }
    }

    /// One of its own: the user's may be too short to see how the model behaves in the middle of a text.
    fn calibration_session(&self) -> Result<Session> {
        let options = SessionOptions {
            context: Some(CALIBRATION_CONTEXT.min(self.model.config.context)),
            threads: Some(self.threads),
            ..SessionOptions::default()
        };
        let model = match self.model.down_layout {
            DownLayout::Transposed => self.model.clone(),
            DownLayout::Stored => {
                let model = Model::clone(self.model);
                Arc::new(model.packed(Packing::Apart, self.threads)?)
            }
        };
        self.device.session(self.console, &model, &options)
    }

    fn cached(&self, wish: &Wish, file: &Path) -> Option<Arc<SparsityPlan>> {
        if !file.exists() {
            return None;
        }
        let cause = match SparsityPlan::load(file) {
            Ok(plan) if !answers(&plan, wish) => "it is another plan".into(),
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
fn answers(plan: &SparsityPlan, wish: &Wish) -> bool {
    let p = &plan.provenance;
    p.method == wish.method.name
        && p.cut == wish.cut
        && p.form == wish.form
        && p.target == wish.sparsity
        && p.predictor.as_deref() == wish.predictor.map(PredictorKind::name)
        && p.fit.is_none_or(|fit| fit == wish.fit)
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

/// Says all that the plan depends on.
fn file_name(w: &Wish, text: &CalibrationText) -> String {
    let hash = blake3::hash(text.text.as_bytes()).to_hex();
    let predictor = w
        .predictor
        .map_or(String::new(), |k| format!("-{}", k.name()));
    let fit = if w.fit == Fit::default() {
        String::new()
    } else {
        format!("-{:?}", w.fit)
            .to_lowercase()
            .replace(|c: char| !c.is_alphanumeric(), "")
    };
    format!(
        "{}{predictor}-{}-{}-{}{fit}-{}.safetensors",
        w.method.name,
        w.cut.name(),
        form_name(w.form),
        w.sparsity,
        &hash[..16]
    )
}

/// One plan by its name, several by their number.
fn labels(wishes: &[Wish]) -> String {
    match wishes {
        [w] => format!("{} {}", w.method.name, w.sparsity),
        many => format!("{} plans", many.len()),
    }
}
