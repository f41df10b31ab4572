//! Calibration: one pass over a text fits the constants and thresholds of any number of plans.
//!
//! The first half of the text's windows gives the neurons' constants, the second half the thresholds, by default the target
//! quantile of the scores of all neurons and tokens of a layer, read off a histogram. So thresholds are fitted on tokens that the
//! constants were not, and memory is bounded by the model, not the text.

mod allocate;
mod histogram;
mod request;
mod scores;
mod sequential;

pub use request::{Allocation, Fit, Inputs, PlanRequest, Threshold};
pub(crate) use scores::Machine;
pub use scores::down_norms;

use crate::{
    backend::{FfnTrace, Phase},
    error::{Error, Result},
    layerwise::Layerwise,
    model::Model,
    session::Session,
    sparsity::{CalibrationText, Form, Keep, Provenance, Rule, SparsityPlan, ideal_drop},
};
use scores::{Group, LayerStats};

/// Tokens a window; contexts of a few hundred tokens are where decoding happens.
const WINDOW: usize = 512;
/// Tokens at the start of a window that are not counted: the first ones draw activations that no decoded token has.
const WARM_UP: usize = 16;
/// Fewer tokens than this fit nothing worth using.
const LEAST_TOKENS: usize = 512;
/// Windows fed under each plan to learn what it realises.
const CHECKED_WINDOWS: usize = 4;

/// Fits all requested plans on `tokens`, which are cut into windows, each opened by `bos` if there is one. What the plans realise
/// is not known yet: see [`measure_realised`]. `progress(done, all)` counts tokens. The session is left empty and dense.
///
/// # Errors
/// [`Error::Input`] for a request that cannot be or a text that is too short, and whatever running the model gives.
pub fn calibrate(
    session: &mut Session,
    tokens: &[u32],
    bos: Option<u32>,
    requests: &[PlanRequest],
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<SparsityPlan>> {
    requests.iter().try_for_each(PlanRequest::check)?;
    session.set_plan(None)?;
    let needs_text = requests.iter().any(PlanRequest::needs_text);
    if needs_text && tokens.len() < LEAST_TOKENS {
        return Err(Error::Input {
            cause: format!(
                "the calibration text has {} tokens, at least {LEAST_TOKENS} are needed",
                tokens.len()
            ),
            remedy: "give a longer text; some ten thousand tokens are plenty".into(),
        });
    }
    let windows = if needs_text {
        windows(session, tokens, bos)
    } else {
        Vec::new()
    };
    let mut c = Calibration {
        norms: down_norms(session.model()),
        machine: Machine::like(session)?,
        groups: groups(session.model(), requests)?,
        work: Work::plan(session.model(), requests, &windows, &mut progress),
        windows,
        session,
    };
    c.count()?;
    let plans = c.plans(requests, tokens)?;
    session.reset();
    Ok(plans)
}

struct Calibration<'a> {
    session: &'a mut Session,
    machine: Machine,
    /// Of every neuron's down row, by layer.
    norms: Vec<Vec<f32>>,
    groups: Vec<Group>,
    windows: Vec<Vec<u32>>,
    work: Work<'a>,
}

/// One group for all requests whose scores are the same.
fn groups(model: &Model, requests: &[PlanRequest]) -> Result<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    for r in requests {
        let scoring = r.scoring()?;
        if groups.iter().any(|g| g.scoring == scoring) {
            continue;
        }
        let same = |other: &&PlanRequest| other.scoring().is_ok_and(|s| s == scoring);
        let by_mean = |other: &&PlanRequest| other.fit.threshold == Threshold::Mean;
        let means: Vec<f64> = requests
            .iter()
            .filter(same)
            .filter(by_mean)
            .map(|r| r.sparsity)
            .collect();
        groups.push(Group::new(model, scoring, &means));
    }
    Ok(groups)
}

impl Calibration<'_> {
    /// Constants from the first half of the windows, scores from the second.
    fn count(&mut self) -> Result<()> {
        let Calibration {
            session,
            machine,
            norms,
            groups,
            windows,
            work,
        } = self;
        let model = session.shared_model();
        let (first, second) = windows.split_at(windows.len() / 2);
        let advance = &mut |tokens| work.advance(tokens);
        observe(session, first, advance, |t| {
            groups.iter_mut().for_each(|g| g.add_moments(machine, t));
        })?;
        for g in groups.iter_mut() {
            for (layer, norms) in norms.iter().enumerate() {
                g.fix_weights(layer, norms);
            }
        }
        observe(session, second, advance, |t| {
            for g in groups.iter_mut() {
                g.add_scores(&model, machine, &norms[t.layer], t);
            }
        })
    }

    fn plans(&mut self, requests: &[PlanRequest], tokens: &[u32]) -> Result<Vec<SparsityPlan>> {
        requests.iter().map(|r| self.plan(r, tokens)).collect()
    }

    fn plan(&mut self, request: &PlanRequest, tokens: &[u32]) -> Result<SparsityPlan> {
        let scoring = request.scoring()?;
        let group = self.groups.iter().find(|g| g.scoring == scoring);
        let group = group.expect("every request has a group");
        let model = self.session.shared_model();
        let uniform = vec![request.sparsity; model.layers.len()];
        let mut plan = SparsityPlan {
            rules: rules(&model, request, group, &uniform),
            provenance: Provenance::new(
                &model,
                request.method,
                request.cut,
                request.form,
                request.sparsity,
            ),
        };
        plan.provenance.predictor = request.predictor.as_ref().map(|p| p.name.clone());
        if request.needs_text() {
            plan.provenance.calibration = Some(CalibrationText::of(tokens));
        }
        if request.form == Form::Ideal {
            return Ok(plan);
        }
        plan.provenance.fit = Some(request.fit);
        let mut targets = uniform;
        if request.fit.allocation == Allocation::Distortion {
            let costs = allocate::costs(self.session, &self.windows, &plan, group, &mut self.work)?;
            targets = allocate::targets(&costs, request.sparsity);
            plan.rules = rules(&model, request, group, &targets);
            plan.provenance.layer_targets = Some(targets.clone());
        }
        if request.fit.inputs == Inputs::Sequential {
            plan.rules = sequential::rules(self, request, &targets)?;
        }
        Ok(plan)
    }
}

/// The rules of a request, from what its group counted.
fn rules(model: &Model, request: &PlanRequest, group: &Group, targets: &[f64]) -> Vec<Rule> {
    let layers = group.layers.iter().zip(targets).enumerate();
    layers
        .map(|(i, (stats, &target))| rule(model, i, request, stats, target))
        .collect()
}

fn rule(
    model: &Model,
    layer: usize,
    request: &PlanRequest,
    stats: &LayerStats,
    target: f64,
) -> Rule {
    let keep = match (request.form, request.fit.threshold) {
        (Form::Practical, Threshold::Quantile) => Keep::Above(stats.scores.quantile(target)),
        (Form::Practical, Threshold::Mean) => Keep::Above(stats.mean_threshold(target)),
        (Form::Ideal, _) => Keep::AllBut {
            drop: ideal_drop(model.config.layers[layer].inter, target),
        },
    };
    Rule {
        signal: request.method.signal.expect("requests were checked"),
        predictor: request.predictor.as_ref().map(|p| p.layers[layer].clone()),
        score: stats.score.clone(),
        keep,
    }
}

/// Cuts a text into windows that fit the session, each opened by `bos`.
pub(crate) fn windows(session: &Session, tokens: &[u32], bos: Option<u32>) -> Vec<Vec<u32>> {
    let room = WINDOW.min(session.context()) - usize::from(bos.is_some());
    // Two windows at least: one for constants, one for thresholds.
    let window = room.min(tokens.len().div_ceil(2)).max(1);
    tokens
        .chunks(window)
        .map(|part| bos.into_iter().chain(part.iter().copied()).collect())
        .collect()
}

fn count(windows: &[Vec<u32>]) -> usize {
    windows.iter().map(Vec::len).sum()
}

/// Tokens run so far, of all that there are to run.
struct Work<'a> {
    done: usize,
    all: usize,
    report: &'a mut dyn FnMut(usize, usize),
}

impl<'a> Work<'a> {
    fn plan(
        model: &Model,
        requests: &[PlanRequest],
        windows: &[Vec<u32>],
        report: &'a mut dyn FnMut(usize, usize),
    ) -> Work<'a> {
        let of_plan = |r: &PlanRequest| match (r.form, r.fit.allocation, r.fit.inputs) {
            (Form::Ideal, ..) => 0,
            (Form::Practical, allocation, inputs) => {
                let mut tokens = 0;
                if allocation == Allocation::Distortion {
                    tokens += allocate::tokens(model, windows);
                }
                if inputs == Inputs::Sequential {
                    tokens += sequential::tokens(windows);
                }
                tokens
            }
        };
        Work {
            done: 0,
            all: count(windows) + requests.iter().map(of_plan).sum::<usize>(),
            report,
        }
    }

    fn advance(&mut self, tokens: usize) {
        self.done += tokens;
        (self.report)(self.done.min(self.all), self.all);
    }
}

/// The part of a trace that counts: the tokens behind the warm-up. `None` where there are none.
pub(crate) fn warm<'a>(t: &FfnTrace<'a>) -> Option<FfnTrace<'a>> {
    let tokens = t.gate.len() / t.inter;
    let skip = WARM_UP.saturating_sub(t.start).min(tokens);
    let hidden = t.input.len() / tokens.max(1);
    (skip < tokens).then(|| FfnTrace {
        start: t.start + skip,
        input: &t.input[skip * hidden..],
        gate: &t.gate[skip * t.inter..],
        up: &t.up[skip * t.inter..],
        ..*t
    })
}

/// Whether the coefficients of a trace and its inputs are numbers.
pub(crate) fn is_finite(t: &FfnTrace<'_>) -> bool {
    // A sum is finite only if every term is; side by side, so that it vectorises.
    let mut sums = [0f32; 16];
    let (gate, gate_rest) = t.gate.as_chunks::<16>();
    let (up, up_rest) = t.up.as_chunks::<16>();
    for (gate, up) in gate.iter().zip(up) {
        let pairs = gate.iter().zip(up);
        sums.iter_mut()
            .zip(pairs)
            .for_each(|(s, (g, u))| *s += g * u);
    }
    let (input, input_rest) = t.input.as_chunks::<16>();
    for x in input {
        sums.iter_mut().zip(x).for_each(|(s, x)| *s += x);
    }
    let rest = gate_rest.iter().zip(up_rest).map(|(g, u)| g * u);
    let rest: f32 = rest.chain(input_rest.iter().copied()).sum();
    (rest + sums.iter().sum::<f32>()).is_finite()
}

/// Runs windows densely and shows `each` what counts, the tokens behind the warm-up; `advance` is told the tokens run.
pub(crate) fn observe(
    session: &mut Session,
    windows: &[Vec<u32>],
    advance: &mut dyn FnMut(usize),
    mut each: impl FnMut(&FfnTrace<'_>),
) -> Result<()> {
    for window in windows {
        let mut bad = None;
        session.reset();
        session.trace(window, Phase::Prompt, &mut |t: FfnTrace<'_>| {
            if let Some(t) = warm(&t) {
                if !is_finite(&t) {
                    bad = bad.or(Some(t.layer));
                }
                each(&t);
            }
        })?;
        if let Some(layer) = bad {
            return Err(Error::NotFinite(format!("an activation of layer {layer}")));
        }
        advance(window.len());
    }
    Ok(())
}

/// Runs some of the windows that [`calibrate`] cuts `tokens` into under each practical plan, and notes what it realises: the share of
/// neurons skipped by all tokens but a window's first ones, which are a prompt. Layer by layer, so that any plan can be measured
/// wherever the model runs. `progress(done, all)` counts tokens. The session is left empty and dense.
///
/// # Errors
/// [`Error::Plan`] for a plan of another model, and whatever running the model gives.
pub fn measure_realised(
    session: &mut Session,
    tokens: &[u32],
    bos: Option<u32>,
    plans: &mut [SparsityPlan],
    mut progress: impl FnMut(usize, usize),
) -> Result<()> {
    let windows = windows(session, tokens, bos);
    let windows = &windows[..windows.len().div_ceil(2).min(CHECKED_WINDOWS)];
    let prompt = windows
        .iter()
        .map(|w| w.len() / 2)
        .fold(WARM_UP, usize::min);
    let measured = |p: &&mut SparsityPlan| p.provenance.form == Form::Practical;
    let tokens = count(windows);
    let all = plans.iter_mut().filter(measured).count() * tokens;
    let mut done = 0;
    for plan in plans.iter_mut().filter(measured) {
        plan.check_fits(session.model())?;
        let layers = plan.rules.len();
        let (mut kept, mut neurons) = (0, 0);
        let mut pass = Layerwise::new(session, windows)?;
        for (layer, rule) in plan.rules.iter().enumerate() {
            kept += pass.advance(prompt, Some(rule), |_, _| ())?;
            let inter = pass.session().model().config.layers[layer].inter;
            neurons += inter * (tokens - prompt * windows.len());
            progress(done + tokens * (layer + 1) / layers, all);
        }
        done += tokens;
        plan.provenance.realised = Some(1.0 - kept as f64 / neurons.max(1) as f64);
    }
    session.reset();
    Ok(())
}
