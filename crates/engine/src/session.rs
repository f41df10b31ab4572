//! A session: a model with a key/value cache, fed token by token or prompt by prompt.

use crate::{
    backend::{Device, FfnTrace, Phase, cpu::Cpu, cuda::CudaBackend},
    decode::{Decoder, LayerStep, Runner, Step},
    error::{Error, Result},
    model::Model,
    profile::Profile,
    sampler::Sampler,
    sparsity::{Rule, SparsityPlan},
};
use countdown_kernels::{DType, cpu::Team};
use std::{
    num::NonZero,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Contexts above this must be asked for.
const DEFAULT_CONTEXT: usize = 4096;
/// Rows of logits computed at a time where a whole text is scored: bounds the memory of large vocabularies.
const SCORED_ROWS: usize = 32;

/// How a session computes.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Positions in the cache; the model's own context, at most 4096, if `None`.
    pub context: Option<usize>,
    /// Threads, the caller's included; the physical cores if `None`.
    pub threads: Option<usize>,
    /// Tokens of a prompt computed together.
    pub batch: usize,
    /// Storage type of keys and values.
    pub cache_dtype: DType,
    /// What computes.
    pub device: Device,
    /// Folder where device code is kept once it is compiled; compiled anew for each session if `None`.
    pub kernel_cache: Option<PathBuf>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            context: None,
            threads: None,
            batch: 256,
            cache_dtype: DType::F16,
            device: Device::Cpu,
            kernel_cache: None,
        }
    }
}

/// What the steps of a session did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tokens fed in [`Phase::Decode`].
    pub tokens: u64,
    /// Neurons computed for them, over all layers.
    pub kept: u64,
    /// Neurons there were.
    pub neurons: u64,
    /// Tokens whose logits were all copied from a device to draw the next one, which takes longer: the largest did not decide it.
    pub drawn_from_all: u64,
}

impl Stats {
    /// The share of neurons skipped; 0 before the first step.
    pub fn realised_sparsity(&self) -> f64 {
        if self.neurons == 0 {
            return 0.0;
        }
        1.0 - self.kept as f64 / self.neurons as f64
    }

    /// What was done since `before`.
    pub fn since(&self, before: Stats) -> Stats {
        Stats {
            tokens: self.tokens - before.tokens,
            kept: self.kept - before.kept,
            neurons: self.neurons - before.neurons,
            drawn_from_all: self.drawn_from_all - before.drawn_from_all,
        }
    }
}

/// A model being run.
pub struct Session {
    model: Arc<Model>,
    plan: Option<Arc<SparsityPlan>>,
    decoder: Box<dyn Decoder>,
    context: usize,
    batch: usize,
    threads: usize,
    cache_dtype: DType,
    runs_on: Device,
    kernel_cache: Option<PathBuf>,
    /// The tokens in the cache, in order.
    history: Vec<u32>,
    stats: Stats,
}

/// The logits after a token, where the device has them. They are finite.
pub struct Logits<'a> {
    decoder: &'a mut dyn Decoder,
    stats: &'a mut Stats,
}

impl<'a> Logits<'a> {
    /// All of them, `[vocab]`, in the host's memory. A device must copy them there.
    ///
    /// # Errors
    /// [`Error::Machine`], where the copy fails.
    pub fn all(self) -> Result<&'a mut [f32]> {
        self.decoder.logits()
    }

    /// Draws the next token. A device hands over the largest logits, and all of them only where the sampler cannot tell by those what it
    /// would draw from all: [`Sampler::sample_largest`] says when.
    ///
    /// # Errors
    /// [`Error::Machine`], where the copy fails; those of [`Sampler::sample`].
    pub fn sample(self, sampler: &mut Sampler) -> Result<u32> {
        if let Some(list) = self.decoder.shortlist() {
            if let Some(token) = sampler.sample_largest(list) {
                return Ok(token);
            }
            self.stats.drawn_from_all += 1;
        }
        sampler.sample(self.all()?)
    }
}

/// Physical cores, as far as the operating system tells; at least one.
pub fn physical_cores() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, NonZero::get);
    // Where two logical CPUs share a core, Linux lists both in the topology; count distinct lists.
    let siblings = |cpu: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        std::fs::read_to_string(path).ok()
    };
    let cores: std::collections::BTreeSet<String> = (0..logical).map_while(siblings).collect();
    if cores.is_empty() {
        logical
    } else {
        cores.len()
    }
}

/// A team of so many threads, the caller's included.
///
/// # Errors
/// [`Error::Machine`] where the operating system does not give them.
pub fn team(threads: usize) -> Result<Team> {
    Team::new(threads).map_err(|e| Error::Machine {
        cause: format!("cannot start {threads} threads: {e}"),
        remedy: "use fewer threads (-t)".into(),
    })
}

impl Session {
    /// A session with an empty cache.
    ///
    /// # Errors
    /// [`Error::Input`] for a context, batch or thread count that cannot be; [`Error::Machine`] where threads or instruction sets are
    /// missing, or where the card, its driver, its memory or its kernels do not do for the model.
    pub fn new(model: Arc<Model>, options: &SessionOptions) -> Result<Session> {
        let c = &model.config;
        let context = options.context.unwrap_or(c.context.min(DEFAULT_CONTEXT));
        let threads = options.threads.unwrap_or_else(physical_cores);
        let batch = options.batch.min(context);
        if context == 0 || threads == 0 || batch == 0 {
            return Err(Error::Input {
                cause: "context, threads and batch must be at least 1".into(),
                remedy: "leave them out for the defaults".into(),
            });
        }
        if context > c.context {
            return Err(Error::Input {
                cause: format!(
                    "a context of {context} is beyond the {} positions the model was trained for",
                    c.context
                ),
                remedy: format!("use -c {} or less", c.context),
            });
        }
        let decoder: Box<dyn Decoder> = match options.device {
            Device::Cpu => {
                let cpu = Cpu::new(&model, threads, context, batch, options.cache_dtype)?;
                Box::new(Runner::new(model.clone(), cpu, context, batch)?)
            }
            Device::Cuda(ordinal) => {
                let cache = options.kernel_cache.as_deref();
                let memory = (context, batch, options.cache_dtype);
                let cuda = CudaBackend::new(&model, (ordinal, cache), memory, threads)?;
                Box::new(Runner::new(model.clone(), cuda, context, batch)?)
            }
        };
        Ok(Session {
            plan: None,
            decoder,
            context,
            batch,
            threads,
            cache_dtype: options.cache_dtype,
            runs_on: options.device,
            kernel_cache: options.kernel_cache.clone(),
            history: Vec::with_capacity(context),
            stats: Stats::default(),
            model,
        })
    }

    /// Decides steps by `plan` from now on; `None` is dense.
    ///
    /// # Errors
    /// [`Error::Plan`] where the plan is for another model, or the device cannot run it: on the CPU the model's down projection must be transposed.
    /// [`Error::Machine`] where a card has no room for it.
    pub fn set_plan(&mut self, plan: Option<Arc<SparsityPlan>>) -> Result<()> {
        if let Some(plan) = &plan {
            plan.check_fits(&self.model)?;
        }
        self.decoder.set_plan(plan.as_ref())?;
        self.plan = plan;
        Ok(())
    }

    /// The plan in force.
    pub fn plan(&self) -> Option<&SparsityPlan> {
        self.plan.as_deref()
    }
    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }
    /// The model, to be held while the session is borrowed.
    pub fn shared_model(&self) -> Arc<Model> {
        self.model.clone()
    }
    /// Threads that compute, the caller's included.
    pub fn threads(&self) -> usize {
        self.threads
    }
    /// What computes.
    pub fn runs_on(&self) -> Device {
        self.runs_on
    }
    /// Folder where device code is kept, if it is.
    pub fn kernel_cache(&self) -> Option<&Path> {
        self.kernel_cache.as_deref()
    }
    /// Positions in the cache.
    pub fn context(&self) -> usize {
        self.context
    }
    /// Tokens in the cache.
    pub fn position(&self) -> usize {
        self.history.len()
    }
    /// The tokens in the cache, in order.
    pub fn history(&self) -> &[u32] {
        &self.history
    }
    /// What the steps so far did.
    pub fn stats(&self) -> Stats {
        self.stats
    }
    /// Bytes of keys and values that a step at `position` reads.
    pub fn cache_bytes(&self, position: usize) -> usize {
        let c = &self.model.config;
        let row = self.cache_dtype.row_bytes(c.head_dim).unwrap_or(0) * c.kv_heads * 2;
        let seen = |window: Option<usize>| (position + 1).min(window.unwrap_or(usize::MAX));
        c.layers.iter().map(|l| row * seen(l.window)).sum()
    }
    /// Where the time of forward passes went since this was last asked for.
    pub fn take_profile(&mut self) -> Profile {
        self.decoder.take_profile()
    }
    /// What runs, for logs: instruction set or card, threads.
    pub fn device(&self) -> String {
        self.decoder.device()
    }

    /// Forgets all tokens from position `to` on.
    pub fn truncate(&mut self, to: usize) {
        self.history.truncate(to);
    }

    /// Forgets everything, statistics included.
    pub fn reset(&mut self) {
        self.history.clear();
        self.stats = Stats::default();
    }

    /// Appends tokens and returns the logits after the last one.
    ///
    /// # Errors
    /// [`Error::ContextFull`], [`Error::Input`] for no tokens or one outside the vocabulary, [`Error::NotFinite`] where the
    /// logits are not numbers. Nothing is appended in the first two cases.
    pub fn feed(&mut self, tokens: &[u32], phase: Phase) -> Result<Logits<'_>> {
        let last = self.run(tokens, phase, None)?;
        self.logits(phase, last)
    }

    /// Makes `prompt` the content of the cache, keeping what is there of it already, and returns the logits after its last
    /// token. `progress(done, all)` counts tokens.
    ///
    /// # Errors
    /// As [`Session::feed`].
    pub fn prompt(
        &mut self,
        prompt: &[u32],
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Logits<'_>> {
        if prompt.len() > self.context {
            return Err(Error::ContextFull {
                needed: prompt.len(),
                limit: self.context,
            });
        }
        let same = prompt.iter().zip(&self.history).take_while(|(a, b)| a == b);
        // The last token is computed in any case, for its logits.
        self.truncate(same.count().min(prompt.len().saturating_sub(1)));
        let start = self.position();
        self.check(&prompt[start..])?;
        let mut last = 0;
        for batch in prompt[start..].chunks(self.batch) {
            last = self.run(batch, Phase::Prompt, None)?;
            progress(self.position(), prompt.len());
        }
        self.logits(Phase::Prompt, last)
    }

    /// Those after the last token of the last batch, which was of so many.
    fn logits(&mut self, phase: Phase, tokens: usize) -> Result<Logits<'_>> {
        self.decoder.head(tokens - 1, 1)?;
        self.count(phase, tokens)?;
        let position = self.history.len() - 1;
        match self.decoder.shortlist() {
            Some(list) if list.is_finite() => {}
            Some(_) => return Err(not_finite(position)),
            None => check_finite(self.decoder.logits()?, position)?,
        }
        Ok(Logits {
            decoder: &mut *self.decoder,
            stats: &mut self.stats,
        })
    }

    /// Appends tokens and shows `each(index, logits)` the logits after every one.
    ///
    /// # Errors
    /// As [`Session::feed`].
    pub fn score(
        &mut self,
        tokens: &[u32],
        phase: Phase,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<()> {
        self.check(tokens)?;
        let vocab = self.model.config.vocab;
        for (b, batch) in tokens.chunks(self.batch).enumerate() {
            self.run(batch, phase, None)?;
            self.count(phase, batch.len())?;
            for first in (0..batch.len()).step_by(SCORED_ROWS) {
                let rows = SCORED_ROWS.min(batch.len() - first);
                self.decoder.head(first, rows)?;
                let logits = self.decoder.logits()?;
                for (r, row) in logits.chunks_exact(vocab).enumerate() {
                    check_finite(row, self.history.len() - batch.len() + first + r)?;
                    each(b * self.batch + first + r, row);
                }
            }
        }
        Ok(())
    }

    /// Appends tokens and shows `observer` what every layer's FFN saw; computes no logits.
    ///
    /// # Errors
    /// As [`Session::feed`], without the check of logits.
    pub fn trace(
        &mut self,
        tokens: &[u32],
        phase: Phase,
        observer: &mut dyn FnMut(FfnTrace<'_>),
    ) -> Result<()> {
        let last = self.run(tokens, phase, Some(observer))?;
        self.count(phase, last)
    }

    /// Appends a token densely, and remembers what every layer's FFN saw of it for [`Session::run_ffns`].
    pub(crate) fn keep_ffn_inputs(&mut self, token: u32) -> Result<()> {
        let mut inputs = Vec::new();
        let mut observe = |seen: FfnTrace<'_>| inputs.extend_from_slice(seen.input);
        self.trace(&[token], Phase::Prompt, &mut observe)?;
        self.decoder.set_ffn_inputs(&inputs)
    }

    /// Runs the FFNs of all layers, and nothing else, so many times by the plan; each counts as a token.
    pub(crate) fn run_ffns(&mut self, passes: usize) -> Result<()> {
        let rules = self.plan.as_ref().map(|p| &p.rules[..]);
        self.decoder.run_ffns(passes, rules);
        self.count(Phase::Decode, passes)
    }

    /// Puts the embeddings of `tokens` into `residual`, `[tokens, hidden]`, batch by batch.
    pub(crate) fn embed(&mut self, tokens: &[u32], residual: &mut [f32]) {
        let rows = self.batch * self.model.config.hidden;
        for (tokens, residual) in tokens.chunks(self.batch).zip(residual.chunks_mut(rows)) {
            self.decoder.embed(tokens);
            self.decoder.residual(tokens.len(), residual);
        }
    }

    /// Runs layer `i` alone on the residual stream of a whole window from position 0, `[tokens, hidden]`, the first `prompt`
    /// tokens densely, and replaces it. Returns the neurons computed beyond the prompt. Clobbers the layer's cache, so the session must be
    /// reset before it is fed again.
    pub(crate) fn run_layer(
        &mut self,
        i: usize,
        residual: &mut [f32],
        (prompt, rule): (usize, Option<&Rule>),
        observer: &mut dyn FnMut(FfnTrace<'_>),
    ) -> Result<usize> {
        let hidden = self.model.config.hidden;
        let tokens = residual.len() / hidden;
        let (mut start, mut kept) = (0, 0);
        while start < tokens {
            let border = if start < prompt { prompt } else { tokens };
            let end = (start + self.batch).min(border).min(tokens);
            let rows = &mut residual[start * hidden..end * hidden];
            self.decoder.set_residual(rows);
            self.decoder.layer(
                i,
                LayerStep {
                    tokens: end - start,
                    start,
                    rule: rule.filter(|_| start >= prompt),
                    observer: Some(observer),
                },
            );
            self.decoder.residual(end - start, rows);
            let count = self.decoder.take_kept()?;
            if start >= prompt {
                kept += count;
            }
            start = end;
        }
        Ok(kept)
    }

    pub(crate) fn check(&self, tokens: &[u32]) -> Result<()> {
        let needed = self.history.len() + tokens.len();
        if needed > self.context {
            return Err(Error::ContextFull {
                needed,
                limit: self.context,
            });
        }
        let vocab = self.model.config.vocab;
        if tokens.is_empty() {
            return Err(Error::Input {
                cause: "there are no tokens to compute".into(),
                remedy: "give a prompt that is not empty".into(),
            });
        }
        match tokens.iter().find(|&&t| t as usize >= vocab) {
            Some(t) => Err(Error::Input {
                cause: format!("token {t} is outside the vocabulary of {vocab}"),
                remedy: "use the tokenizer that belongs to the model".into(),
            }),
            None => Ok(()),
        }
    }

    /// Runs all tokens; returns how many the last batch had. Those are not counted yet, so that a device need not be waited for twice.
    fn run(
        &mut self,
        tokens: &[u32],
        phase: Phase,
        mut observer: Option<&mut dyn FnMut(FfnTrace<'_>)>,
    ) -> Result<usize> {
        self.check(tokens)?;
        let mut last = 0;
        for batch in tokens.chunks(self.batch) {
            if last > 0 {
                self.count(phase, last)?;
            }
            self.decoder.forward(Step {
                tokens: batch,
                start: self.history.len(),
                phase,
                rules: self.plan.as_ref().map(|p| &p.rules[..]),
                observer: match &mut observer {
                    Some(o) => Some(&mut **o),
                    None => None,
                },
            });
            last = batch.len();
            self.history.extend_from_slice(batch);
        }
        Ok(last)
    }

    /// Counts what the last batch did, which was of so many tokens.
    fn count(&mut self, phase: Phase, tokens: usize) -> Result<()> {
        let kept = self.decoder.take_kept()?;
        if phase == Phase::Decode {
            let neurons: usize = self.model.config.layers.iter().map(|l| l.inter).sum();
            self.stats.tokens += tokens as u64;
            self.stats.kept += kept as u64;
            self.stats.neurons += (neurons * tokens) as u64;
        }
        Ok(())
    }
}

/// Sums of [`check_finite`], enough for several registers.
const SIDE_BY_SIDE: usize = 32;

fn check_finite(logits: &[f32], position: usize) -> Result<()> {
    // A sum is finite only if every term is; sums side by side vectorise, where a search and a single sum do not. Logits are far from overflow.
    let (whole, rest) = logits.as_chunks::<SIDE_BY_SIDE>();
    let mut sums = [0.0; SIDE_BY_SIDE];
    for chunk in whole {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *sum += v;
        }
    }
    if sums.iter().chain(rest).sum::<f32>().is_finite() {
        return Ok(());
    }
    Err(not_finite(position))
}

fn not_finite(position: usize) -> Error {
    Error::NotFinite(format!("a logit at position {position}"))
}
