//! The work itself, in phases; what is done is on disk after each.

use super::{
    CACHE, CompareArgs,
    bytes::Bytes,
    candidates::{Candidate, Source},
    page,
    results::{
        Choices, Key, Pair, Phase, Results, Row, Speed, SpeedSettings, TaskAccuracy, TaskSettings,
    },
};
use crate::{
    args::Wish,
    console::Console,
    failure::Result,
    load, machine,
    plans::{CalibrationText, Packed, Planner},
    progress::Progress,
};
use countdown::{
    Model, Session, SessionOptions, SparsityPlan,
    bench::{Load, bench},
    eval::{
        ChoiceOptions, ChoiceTask, PairAgreement, PerplexityOptions, agreement, choice, perplexity,
    },
    sparsity::{Cut, Form, Practical},
};
use std::{path::Path, sync::Arc, time::Instant};

/// Where choices are compared with the exact one; the nearest target that takes part.
const CHOICES_AT: f64 = 0.7;
/// Tokens that they are compared on.
const CHOICES_TOKENS: usize = 1024;

/// A comparison under way.
pub(super) struct Comparison<'a> {
    pub(super) console: &'a Console,
    pub(super) args: &'a CompareArgs,
    /// The model as stored, for dense steps.
    pub(super) stored: Arc<Model>,
    pub(super) bytes: Bytes,
    pub(super) planner: Planner<'a>,
    pub(super) calibration: CalibrationText,
    pub(super) tokens: Vec<u32>,
    pub(super) task: Option<Task>,
    /// Of the model with transposed down projections.
    pub(super) session: Session,
    pub(super) candidates: Vec<Candidate>,
    pub(super) results: Results,
}

/// Questions to be answered.
pub(super) struct Task {
    questions: ChoiceTask,
    name: String,
    hash: String,
}

impl Task {
    pub(super) fn open(path: &Path) -> Result<Task> {
        let questions = ChoiceTask::open(path)?;
        let bytes = std::fs::read(path).map_err(|source| countdown::Error::Read {
            path: path.to_owned(),
            source,
        })?;
        let name = path.file_name().unwrap_or(path.as_os_str());
        Ok(Task {
            questions,
            name: name.to_string_lossy().into_owned(),
            hash: blake3::hash(&bytes).to_hex().to_string(),
        })
    }

    fn settings(&self, limit: usize) -> TaskSettings {
        TaskSettings {
            name: self.name.clone(),
            hash: self.hash.clone(),
            documents: self.questions.documents().min(limit),
        }
    }
}

/// A candidate with its plan.
type Ready = (Key, Arc<SparsityPlan>);

impl Comparison<'_> {
    /// Measures what is not in the results yet.
    pub(super) fn run(&mut self) -> Result<()> {
        let plans = self.plans()?;
        let mut targets: Vec<f64> = self.candidates.iter().map(|c| c.key.target).collect();
        targets.dedup();
        for &target in &targets {
            let missing = of(&plans, |key| {
                key.target == target && self.results.row(key).is_none()
            });
            if !missing.is_empty() {
                let started = Instant::now();
                self.quality(target, &missing)?;
                self.finish(format!("quality {target}"), started)?;
            }
        }
        let at = self.choices_target();
        if self.lacks_choices(at) {
            let started = Instant::now();
            self.choices(at, &of(&plans, |key| key.target == at))?;
            self.finish(format!("choices {at}"), started)?;
        }
        for &target in &targets {
            let missing = of(&plans, |key| {
                key.target == target && self.lacks_accuracy(key)
            });
            if !missing.is_empty() {
                let started = Instant::now();
                self.accuracy(&missing)?;
                self.finish(format!("accuracy {target}"), started)?;
            }
        }
        for &target in &targets {
            let missing = of(&plans, |key| key.target == target && self.lacks_speed(key));
            if !missing.is_empty() {
                let started = Instant::now();
                self.speed(target, &missing)?;
                self.finish(format!("speed {target}"), started)?;
            }
        }
        self.save()
    }

    /// The plans of all candidates that something is to be measured of; those to be fitted in one pass.
    fn plans(&self) -> Result<Vec<Ready>> {
        let at = self.choices_target();
        let lacks_choices = self.lacks_choices(at);
        let is_needed = |key: &Key| {
            self.results.row(key).is_none()
                || self.lacks_speed(key)
                || self.lacks_accuracy(key)
                || lacks_choices && key.target == at
        };
        let mut wishes: Vec<Wish> = Vec::new();
        let mut wished: Vec<Key> = Vec::new();
        let mut ready: Vec<Ready> = Vec::new();
        for c in self.candidates.iter().filter(|c| is_needed(&c.key)) {
            match &c.source {
                Source::Wish(wish) => {
                    wishes.push(wish.clone());
                    wished.push(c.key.clone());
                }
                Source::File(plan) => ready.push((c.key.clone(), plan.clone())),
                Source::SameAs(_) => (),
            }
        }
        // Not cached: plans carry their predictors, and there are many.
        let requests = self.planner.requests(&wishes)?;
        let fitted = self.planner.fit(&requests, &self.calibration)?;
        ready.extend(wished.into_iter().zip(fitted.into_iter().map(Arc::new)));
        let order = |key: &Key| self.candidates.iter().position(|c| c.key == *key);
        ready.sort_by_key(|(key, _)| order(key));
        Ok(ready)
    }

    fn opening(&self) -> Option<u32> {
        load::opening(self.planner.tokenizer)
    }

    fn quality(&mut self, target: f64, ready: &[Ready]) -> Result<()> {
        let bar = Progress::bar(self.console, &format!("quality at {target}"));
        let options = PerplexityOptions {
            ctx: self.args.ctx,
            chunks: Some(self.args.chunks),
            stepping: self.args.stepping,
            threads: self.planner.threads,
        };
        let opening = self.opening();
        let plans: Vec<_> = ready.iter().map(|(_, plan)| plan.clone()).collect();
        let measured = perplexity(
            &mut self.session,
            &self.tokens,
            opening,
            &plans,
            &options,
            |done, all| bar.update(done, all),
        )?;
        let Some((dense, sparse)) = measured.split_first() else {
            return Ok(());
        };
        if self.results.rows.is_empty() {
            let mut row = Row::new(Key::dense(), dense, dense.perplexity);
            row.bytes_per_token = self.bytes.dense();
            self.results.rows.push(row);
        }
        for ((key, plan), measured) in ready.iter().zip(sparse) {
            let mut row = Row::new(key.clone(), measured, dense.perplexity);
            row.bytes_per_token = self.bytes.sparse(plan, row.realised);
            row.ffn_share = self.bytes.shares(plan, row.realised);
            let predictors = plan.rules.iter().filter_map(|r| r.predictor.as_ref());
            row.predictor_bytes = predictors.map(|p| p.bytes()).sum();
            self.results.rows.push(row);
        }
        Ok(())
    }

    /// The target at which choices are compared.
    fn choices_target(&self) -> f64 {
        let targets = self.candidates.iter().map(|c| c.key.target);
        let distance = |t: &f64| (t - CHOICES_AT).abs();
        targets
            .min_by(|a, b| distance(a).total_cmp(&distance(b)))
            .unwrap_or(CHOICES_AT)
    }

    fn lacks_choices(&self, target: f64) -> bool {
        let mut measured = self.candidates.iter().filter(|c| c.is_measured());
        self.results
            .choices
            .as_ref()
            .is_none_or(|c| c.target != target)
            || measured.any(|c| {
                let row = self.results.row(&c.key);
                c.key.target == target && row.is_none_or(|r| r.layers.is_none())
            })
    }

    fn choices(&mut self, target: f64, ready: &[Ready]) -> Result<()> {
        let bar = Progress::bar(self.console, &format!("choices at {target}"));
        let opening = self.opening();
        let plans: Vec<_> = ready.iter().map(|(_, plan)| plan.clone()).collect();
        let pairs = pairs(ready);
        let indices: Vec<_> = pairs.iter().map(|&(a, b, ..)| (a, b)).collect();
        let tokens = &self.tokens[..self.tokens.len().min(CHOICES_TOKENS)];
        let found = agreement(
            &mut self.session,
            tokens,
            opening,
            target,
            &plans,
            &indices,
            |done, all| bar.update(done, all),
        )?;
        let results = &mut self.results;
        results.rows.iter_mut().for_each(|r| {
            if r.key.target != target {
                r.layers = None;
            }
        });
        for ((key, _), layers) in ready.iter().zip(found.plans) {
            if let Some(row) = results.row_mut(key) {
                row.layers = Some(layers);
            }
        }
        let pair = |(&(a, b, cut, form), agreement): (&Alike, PairAgreement)| Pair {
            first: ready[a].0.method.clone(),
            second: ready[b].0.method.clone(),
            cut,
            form,
            agreement,
        };
        results.choices = Some(Choices {
            target,
            tokens: found.tokens,
            pairs: pairs.iter().zip(found.pairs).map(pair).collect(),
        });
        Ok(())
    }

    fn lacks_accuracy(&self, key: &Key) -> bool {
        let Some(task) = &self.task else { return false };
        let row = self.results.row(key);
        let accuracy = row.and_then(|r| r.accuracy.as_ref());
        accuracy.is_none_or(|a| a.settings != task.settings(self.args.limit))
    }

    fn accuracy(&mut self, ready: &[Ready]) -> Result<()> {
        let Some(task) = &self.task else {
            return Ok(());
        };
        let bar = Progress::bar(self.console, "questions");
        let settings = task.settings(self.args.limit);
        let plans: Vec<_> = ready.iter().map(|(_, plan)| plan.clone()).collect();
        let options = ChoiceOptions {
            limit: Some(self.args.limit),
            stepping: self.args.stepping,
            results: None,
        };
        let answered = choice(
            &mut self.session,
            self.planner.tokenizer,
            &task.questions,
            &plans,
            &options,
            |done, all| bar.update(done, all),
        )?;
        let keys = std::iter::once(Key::dense()).chain(ready.iter().map(|(key, _)| key.clone()));
        for (key, answered) in keys.zip(&answered) {
            if let Some(row) = self.results.row_mut(&key) {
                row.accuracy = Some(TaskAccuracy {
                    settings: settings.clone(),
                    raw: answered.raw.mean,
                    stderr: answered.raw.stderr,
                    per_char: answered.per_char.mean,
                    agreement: answered.agreement,
                    realised: answered.realised,
                });
            }
        }
        Ok(())
    }

    fn speed_settings(&self) -> SpeedSettings {
        SpeedSettings {
            steps: self.args.steps,
            depth: self.args.depth,
            repetitions: self.args.repetitions,
            threads: self.planner.threads,
        }
    }

    /// Whether a row's speed is asked for and not there; ideal plans have none.
    fn lacks_speed(&self, key: &Key) -> bool {
        let wanted = self.args.steps > 0 && key.form == Some(Form::Practical);
        let speed = self.results.row(key).and_then(|r| r.speed);
        wanted && speed.is_none_or(|s| s.settings != self.speed_settings())
    }

    fn speed(&mut self, target: f64, ready: &[Ready]) -> Result<()> {
        let bar = Progress::bar(self.console, &format!("speed at {target}"));
        let settings = self.speed_settings();
        let options = SessionOptions {
            context: Some(settings.steps + settings.depth),
            threads: Some(settings.threads),
            batch: self.args.compute.batch_size,
            cache_dtype: CACHE,
            ..SessionOptions::default()
        };
        let plans: Vec<_> = ready.iter().map(|(_, plan)| plan.clone()).collect();
        let mut packed = Packed::default();
        packed.add_dense(&self.stored, settings.threads)?;
        packed.add_plans(self.planner.model, &plans, settings.threads)?;
        let mut sessions = packed.sessions(&options)?;
        let load = Load::Steps {
            tokens: settings.steps,
            depth: settings.depth,
        };
        let text: Vec<u32> = self
            .opening()
            .into_iter()
            .chain(self.tokens.iter().copied())
            .collect();
        let measured = bench(
            &mut sessions,
            &packed.variants,
            load,
            &text,
            settings.repetitions,
            |done, all| bar.update(done, all),
        )?;
        let dense = measured.first().map_or(0.0, |r| r.median());
        let keys = std::iter::once(Key::dense()).chain(ready.iter().map(|(key, _)| key.clone()));
        for (key, measured) in keys.zip(&measured) {
            if let Some(row) = self.results.row_mut(&key) {
                row.speed = Some(Speed {
                    settings,
                    rate: measured.median(),
                    ratio: measured.median() / dense,
                    realised: measured.realised,
                });
            }
        }
        Ok(())
    }

    /// Notes that a phase is done, and saves.
    fn finish(&mut self, name: String, started: Instant) -> Result<()> {
        let command: Vec<String> = std::env::args().skip(1).collect();
        self.results.phases.push(Phase {
            name,
            finished: machine::utc_now(),
            seconds: started.elapsed().as_secs_f64(),
            command: format!("countdown {}", command.join(" ")),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: env!("COUNTDOWN_COMMIT").into(),
            cpu: machine::cpu(),
            device: self.session.device(),
        });
        self.save()
    }

    /// Rows that are copies of another method's, of this run and of those before it, and the name of that method.
    fn twins(&self) -> Vec<(Key, String)> {
        let here = self.candidates.iter().filter_map(|c| match &c.source {
            Source::SameAs(other) => Some((c.key.clone(), other.method.clone())),
            _ => None,
        });
        let mut twins: Vec<_> = here.collect();
        for r in &self.results.rows {
            if let Some(other) = &r.same_as
                && twins.iter().all(|(key, _)| *key != r.key)
            {
                twins.push((r.key.clone(), other.clone()));
            }
        }
        twins
    }

    /// Writes the results and the page, rows in order.
    fn save(&mut self) -> Result<()> {
        let twins = self.twins();
        let results = &mut self.results;
        results
            .rows
            .retain(|r| twins.iter().all(|(key, _)| *key != r.key));
        for (key, other) in twins {
            let of_other = Key {
                method: other.clone(),
                ..key.clone()
            };
            if let Some(row) = results.row(&of_other).cloned() {
                let same_as = Some(other);
                results.rows.push(Row {
                    key,
                    same_as,
                    ..row
                });
            }
        }
        let names = countdown::sparsity::names();
        let order = |r: &Row| {
            let key = &r.key;
            let place = names.iter().position(|n| *n == key.method);
            let cut = key.cut.map(|c| c as u8);
            let form = key.form.map(|f| f as u8);
            (place, key.plan.is_some(), key.predictor.clone(), cut, form)
        };
        results.rows.sort_by(|a, b| {
            let by_target = a.key.target.total_cmp(&b.key.target);
            order(a).cmp(&order(b)).then(by_target)
        });
        let folder: &Path = &self.args.output;
        results.save(folder)?;
        page::save(results, folder)
    }
}

/// Those whose key is so.
fn of(plans: &[Ready], is: impl Fn(&Key) -> bool) -> Vec<Ready> {
    plans.iter().filter(|(key, _)| is(key)).cloned().collect()
}

/// Two plans alike in cut and form: their places, and what they have in common.
type Alike = (usize, usize, Cut, Form);

/// Plans that were fitted here for methods that compute their signal, each with those of the methods behind it.
fn pairs(ready: &[Ready]) -> Vec<Alike> {
    let place = |key: &Key| {
        let mut computed = Practical::Computed.methods();
        let place = computed.position(|m| m.name == key.method);
        place.filter(|_| key.plan.is_none())
    };
    let mut pairs = Vec::new();
    for (a, (first, _)) in ready.iter().enumerate() {
        for (b, (second, _)) in ready.iter().enumerate() {
            let (Some(before), Some(after)) = (place(first), place(second)) else {
                continue;
            };
            let alike = (first.cut, first.form) == (second.cut, second.form);
            if let (true, Some(cut), Some(form)) = (alike && before < after, first.cut, first.form)
            {
                pairs.push((a, b, cut, form));
            }
        }
    }
    pairs
}
