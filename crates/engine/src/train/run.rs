//! Training all layers of a model, one after the other, so that it can be killed at any moment.
//!
//! Before a layer there are two things: the residual streams of the text, which are in memory and computed again after an
//! interruption, and the files of the layers below. In a layer the state is written after each epoch.

use super::{
    adamw::Moments,
    fit::{EpochLoss, Schedule, State},
    init::Standard,
    labels::needed,
    layer::{self, Begin, LayerReport, Shape},
    layer_data::{LayerData, Part},
    machine::Machine,
    request::TrainRequest,
    samples::Samples,
    scorer::Scorer,
    state,
};
use crate::{
    backend::Device,
    calibrate::{self, PlanRequest, calibrate, down_norms, measure_realised},
    error::{Error, Result},
    files,
    layerwise::Layerwise,
    model::{Down, DownLayout, Matrix, Model},
    session::Session,
    sparsity::{CalibrationText, Form, Predictor, PredictorSet, SparsityPlan},
};
use serde::{Deserialize, Serialize};
use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Every so many windows one is held out.
const HELD_OUT: usize = 10;
/// Windows held out at most: their exact coefficients are kept in memory.
const MOST_HELD_OUT: usize = 8;
/// Fewer tokens than this train nothing worth using.
const LEAST_TOKENS: usize = 2048;

/// Tokens that thresholds are fitted on, at most: one number a layer does not need more.
const CALIBRATED: usize = 12 * 1024;

/// How far training is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainProgress {
    /// The layer at work.
    pub layer: usize,
    /// Epochs of it that are finished.
    pub epoch: usize,
    /// Its held-out loss, once there is one.
    pub loss: Option<f64>,
    /// Passes over tokens done, of all layers, forward passes included.
    pub done: u64,
    /// Passes over tokens in all.
    pub all: u64,
}

/// What training came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainReport {
    /// What was trained, on what.
    pub identity: Identity,
    /// Layer by layer.
    pub layers: Vec<LayerReport>,
}

/// All that results depend on. A folder of another identity cannot be gone on from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The countdown that trains.
    pub tool: String,
    /// See [`Model::fingerprint`].
    pub model: String,
    /// BLAKE3 of the tokens.
    pub text: String,
    /// How many those are.
    pub tokens: usize,
    /// Positions of the session, which windows must fit.
    pub context: usize,
    /// The method's name.
    pub method: String,
    /// The predictor's name.
    pub predictor: String,
    /// The type its matrices are stored in.
    pub storage: String,
    /// Which neurons are labelled.
    pub labels: String,
    /// The target.
    pub sparsity: f64,
    /// Epochs in all: the learning rate depends on them.
    pub epochs: usize,
    /// Learning rate.
    pub rate: f32,
    /// Tokens a step.
    pub batch: usize,
    /// The seed.
    pub seed: u64,
    /// What computes: cpu or cuda, which round differently.
    pub device: String,
}

/// Trains a predictor for every layer on `tokens`, which are cut into windows, each opened by `bos` if there is one; then fits
/// thresholds with it as [`calibrate`] does. State is kept in `folder`, which is made where it is missing: a run that was
/// killed goes on from there and comes to the same result. The session is left empty and dense.
///
/// # Errors
/// [`Error::Input`] for a request that cannot be, a text that is too short, or a folder of another run; [`Error::NotFinite`] for
/// activations that are no numbers; [`Error::Write`] where the folder cannot be written; whatever running the model gives.
pub fn train(
    session: &mut Session,
    tokens: &[u32],
    bos: Option<u32>,
    request: &TrainRequest,
    folder: &Path,
    mut progress: impl FnMut(&TrainProgress),
) -> Result<(SparsityPlan, TrainReport)> {
    let model = session.shared_model();
    request.check(&model)?;
    if model.down_layout != DownLayout::Transposed {
        return Err(Error::Input {
            cause: "training measures what skipped neurons add, which needs transposed down projections".into(),
            remedy: "open the model with DownLayout::Transposed".into(),
        });
    }
    if tokens.len() < LEAST_TOKENS {
        return Err(Error::Input {
            cause: format!(
                "the training text has {} tokens, at least {LEAST_TOKENS} are needed",
                tokens.len()
            ),
            remedy: "give a longer text; fifty thousand tokens are a good start".into(),
        });
    }
    let machine = Machine::like(session)?;
    let identity = Identity::of(session, tokens, request);
    identity.claim(folder)?;
    let windows = calibrate::windows(session, tokens, bos);
    let mut run = Run {
        request,
        folder,
        machine: &machine,
        norms: down_norms(&model),
        count: windows.iter().map(Vec::len).sum(),
        progress: &mut progress,
        model: &model,
    };
    let (predictors, layers) = run.layers(session, &windows)?;
    let set = PredictorSet {
        name: request.predictor_name(),
        layers: predictors,
    };
    let plan_request = PlanRequest {
        method: request.method,
        cut: request.cut(),
        form: Form::Practical,
        sparsity: request.sparsity,
        predictor: Some(Arc::new(set)),
        fit: request.fit,
    };
    let some = &tokens[..tokens.len().min(CALIBRATED)];
    let mut plans = calibrate(session, some, bos, &[plan_request], |_, _| ())?;
    measure_realised(session, some, bos, &mut plans, |_, _| ())?;
    let plan = plans
        .into_iter()
        .next()
        .expect("one request gives one plan");
    Ok((plan, TrainReport { identity, layers }))
}

impl Identity {
    fn of(session: &Session, tokens: &[u32], request: &TrainRequest) -> Identity {
        let text = CalibrationText::of(tokens);
        Identity {
            tool: format!("countdown {}", env!("CARGO_PKG_VERSION")),
            model: session.model().fingerprint.clone(),
            text: text.hash,
            tokens: text.tokens,
            context: session.context(),
            method: request.method.name.into(),
            predictor: request.predictor_name(),
            storage: request
                .storage_type(session.model().config.hidden)
                .name()
                .into(),
            labels: request.labels.name().into(),
            sparsity: request.sparsity,
            epochs: request.epochs,
            rate: request.rate,
            batch: request.batch,
            seed: request.seed,
            device: match session.runs_on() {
                Device::Cpu => "cpu".into(),
                Device::Cuda(_) => "cuda".into(),
            },
        }
    }

    /// Makes the folder this run's, or refuses one that is another's.
    fn claim(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|source| Error::Write {
            path: folder.to_owned(),
            source,
        })?;
        let path = folder.join("run.json");
        let ours = serde_json::to_value(self).expect("an identity is a plain structure");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return files::atomic_write(&path, |out| write!(out, "{ours:#}"));
            }
            Err(source) => return Err(Error::Read { path, source }),
        };
        let theirs: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|e| Error::Malformed {
                path: path.clone(),
                cause: format!("is no description of a training run ({e})"),
            })?;
        let fields = ours.as_object().into_iter().flatten();
        let differing: Vec<String> = fields
            .filter(|(name, value)| theirs.get(name) != Some(value))
            .map(|(name, value)| {
                let there = theirs
                    .get(name)
                    .map_or("nothing".into(), ToString::to_string);
                format!("{name} is {there} there and {value} here")
            })
            .collect();
        if differing.is_empty() {
            return Ok(());
        }
        Err(Error::Input {
            cause: format!(
                "the folder {} holds another training run: {}",
                folder.display(),
                differing.join("; ")
            ),
            remedy: "go on with that run's model, text and settings, or name another folder".into(),
        })
    }
}

/// The note beside a layer's finished parameters.
#[derive(Serialize, Deserialize)]
struct Finished {
    report: LayerReport,
}

/// The note beside the state of a layer in training.
#[derive(Serialize, Deserialize)]
struct Unfinished {
    layer: usize,
    steps: usize,
    losses: Vec<EpochLoss>,
}

struct Run<'a> {
    request: &'a TrainRequest,
    folder: &'a Path,
    machine: &'a Machine,
    /// Norms of the columns of down, by layer.
    norms: Vec<Vec<f32>>,
    /// Tokens of all windows.
    count: usize,
    progress: &'a mut dyn FnMut(&TrainProgress),
    model: &'a Model,
}

impl Run<'_> {
    fn layers(
        &mut self,
        session: &mut Session,
        windows: &[Vec<u32>],
    ) -> Result<(Vec<Arc<Predictor>>, Vec<LayerReport>)> {
        let mut pass = Layerwise::new(session, windows)?;
        let (mut predictors, mut reports) = (Vec::new(), Vec::new());
        // Layers that are finished are run only if one above them is not.
        let mut behind = 0;
        for layer in 0..self.model.layers.len() {
            let (predictor, report) = match self.finished(layer)? {
                Some(done) => {
                    behind += 1;
                    done
                }
                None => {
                    while behind > 0 {
                        pass.advance(0, None, |_, _| ())?;
                        behind -= 1;
                        self.tell(pass.next_layer() - 1, self.request.epochs, None);
                    }
                    self.layer(layer, &mut pass)?
                }
            };
            predictors.push(Arc::new(predictor));
            reports.push(report);
        }
        Ok((predictors, reports))
    }

    fn tell(&mut self, layer: usize, epoch: usize, loss: Option<f64>) {
        let passes = 1 + self.request.epochs;
        let count = self.count as u64;
        (self.progress)(&TrainProgress {
            layer,
            epoch,
            loss,
            done: count * (layer * passes + 1 + epoch) as u64,
            all: count * (self.model.layers.len() * passes) as u64,
        });
    }

    fn layer(
        &mut self,
        layer: usize,
        pass: &mut Layerwise<'_>,
    ) -> Result<(Predictor, LayerReport)> {
        let mut data = self.collect(layer, pass)?;
        self.tell(layer, 0, None);
        let (request, machine) = (self.request, self.machine);
        let (config, ffn) = (&self.model.config, &self.model.layers[layer].ffn);
        let down = down(self.model, layer);
        let seed = request.seed.wrapping_add(layer as u64);
        let mut shape = Shape::new(request, config.act, &data);
        let standard = shape.standard(&data);
        let start = shape.start(request, ffn, &standard, &mut data, seed, machine)?;
        let begin = match self.unfinished(layer, start.len())? {
            Some(state) => Begin::From(state),
            None => Begin::At(start),
        };
        let schedule = Schedule {
            epochs: request.epochs,
            rate: request.rate,
            batch: request.batch,
            seed,
        };
        let unfinished = self.unfinished_path();
        let state = layer::train(
            &shape,
            &standard,
            &mut data,
            schedule,
            machine,
            begin,
            |s| {
                let vectors = [
                    ("parameters", &s.parameters[..]),
                    ("first", &s.moments.first),
                    ("second", &s.moments.second),
                    ("best", &s.best),
                ];
                let note = Unfinished {
                    layer,
                    steps: s.moments.steps,
                    losses: s.losses.clone(),
                };
                state::save(&unfinished, &vectors, &note)?;
                self.tell(layer, s.epochs(), s.losses.last().map(|l| l.held_out));
                Ok(())
            },
        )?;
        let predictor =
            shape.finish(&state.best, &standard, request.storage_type(config.hidden))?;
        let (quality, bound) =
            layer::measure(&predictor, request, config.act, down, &mut data, machine)?;
        let report = LayerReport {
            layer,
            tokens: data.samples.tokens(),
            held_out: data.held.labels.tokens(),
            bytes: predictor.bytes(),
            chance: data.chance(),
            best_epoch: state.best_epoch(),
            losses: state.losses,
            quality,
            bound,
        };
        let vectors = [
            ("parameters", &state.best[..]),
            ("mean", &standard.mean),
            ("factor", &standard.factor),
        ];
        let note = Finished {
            report: report.clone(),
        };
        state::save(&self.finished_path(layer), &vectors, &note)?;
        Ok((predictor, report))
    }

    /// Runs the layer, and keeps what its FFN sees.
    fn collect(&self, layer: usize, pass: &mut Layerwise<'_>) -> Result<LayerData> {
        let hidden = self.model.config.hidden;
        let windows = pass.residuals().len();
        let every = HELD_OUT.max(windows.div_ceil(MOST_HELD_OUT)).min(windows);
        let part = |window: usize| {
            if window % every == every - 1 {
                Part::HeldOut
            } else {
                Part::Training
            }
        };
        let norms = &self.norms[layer];
        let needed = needed(norms.len(), self.request.sparsity);
        let (target, down) = (self.request.labels, down(self.model, layer).view());
        let mut scorer = Scorer::new(target, needed, norms, down, self.machine)?;
        let samples = self.samples(hidden, norms.len())?;
        let mut data = LayerData::new(layer, norms.clone(), hidden, samples);
        let mut failed = Ok(());
        pass.advance(0, None, |window, t| {
            if failed.is_ok()
                && let Some(t) = calibrate::warm(&t)
            {
                failed = data.push(part(window), &t, &mut scorer);
            }
        })?;
        failed.map(|()| data)
    }

    /// Room for a layer's inputs: in memory, or in a file where that would exceed what may be used.
    fn samples(&self, hidden: usize, inter: usize) -> Result<Samples> {
        let bytes = |floats: usize| (floats * size_of::<f32>()) as u64;
        let streams = bytes(self.count * hidden);
        let labels = (self.count * inter / 8) as u64;
        let rest = labels + bytes(Scorer::floats(self.request.labels, hidden, inter));
        if streams + rest > self.request.memory {
            return Err(Error::Input {
                cause: format!(
                    "the residual streams and labels of {} tokens take {:.1} GiB, and {:.1} may be used",
                    self.count,
                    gibibytes(streams + rest),
                    gibibytes(self.request.memory)
                ),
                remedy: "allow more (--memory) or give a shorter text".into(),
            });
        }
        if 2 * streams + rest <= self.request.memory {
            return Ok(Samples::in_memory(hidden, self.count));
        }
        Samples::in_file(hidden, &self.folder.join("inputs"))
    }

    fn finished_path(&self, layer: usize) -> PathBuf {
        self.folder.join(format!("layer-{layer:03}.safetensors"))
    }

    fn unfinished_path(&self) -> PathBuf {
        self.folder.join("epoch.safetensors")
    }

    /// The predictor of a layer that an earlier run finished.
    fn finished(&self, layer: usize) -> Result<Option<(Predictor, LayerReport)>> {
        let path = self.finished_path(layer);
        let Some(mut saved) = state::load::<Finished>(&path)? else {
            return Ok(None);
        };
        let hidden = self.model.config.hidden;
        let norms = self.norms[layer].clone();
        let samples = Samples::in_memory(hidden, 0);
        let data = LayerData::new(layer, norms, hidden, samples);
        let shape = Shape::new(self.request, self.model.config.act, &data);
        let parameters = saved.take("parameters", shape.student().parameters());
        let (mean, factor) = (saved.take("mean", hidden), saved.take("factor", hidden));
        let (Some(parameters), Some(mean), Some(factor)) = (parameters, mean, factor) else {
            return Err(Error::Malformed {
                path,
                cause: format!(
                    "does not hold layer {layer} of this run; remove it to train the layer again"
                ),
            });
        };
        let standard = Standard { mean, factor };
        let predictor = shape.finish(&parameters, &standard, self.request.storage_type(hidden))?;
        Ok(Some((predictor, saved.note.report)))
    }

    /// The state of a layer that an earlier run was in the middle of.
    fn unfinished(&self, layer: usize, parameters: usize) -> Result<Option<State>> {
        let path = self.unfinished_path();
        let Some(mut saved) = state::load::<Unfinished>(&path)? else {
            return Ok(None);
        };
        if saved.note.layer != layer {
            return Ok(None);
        }
        let mut take = |name| saved.take(name, parameters);
        match (
            take("parameters"),
            take("first"),
            take("second"),
            take("best"),
        ) {
            (Some(parameters), Some(first), Some(second), Some(best)) => Ok(Some(State {
                parameters,
                moments: Moments {
                    steps: saved.note.steps,
                    first,
                    second,
                },
                best,
                losses: saved.note.losses,
            })),
            _ => Err(Error::Malformed {
                path,
                cause: format!(
                    "does not hold the state of layer {layer}; remove it to train the layer again"
                ),
            }),
        }
    }
}

/// The transposed down projection of a layer; [`train`] has checked the layout.
fn down(model: &Model, layer: usize) -> &Matrix {
    match &model.layers[layer].ffn.down {
        Down::Transposed(down) => down,
        _ => unreachable!("the layout was checked"),
    }
}

fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
