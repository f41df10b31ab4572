//! The CUDA backend: one card, one stream. A step is recorded once and replayed for every token; what differs, the token and its
//! position, is read from the card's memory.

mod attention;
mod ffn;
mod joining;
mod logits;
mod memory;
mod observed;
mod plan;
mod weights;

use super::{Attending, Backend, ByPlan, FfnCall, Head, Issue, RmsNorm};
use crate::{
    arch::Config,
    error::{Error, Result},
    model::{Linear, Matrix, Model},
    sparsity::SparsityPlan,
};
use attention::Cache;
use countdown_kernels::{
    DType,
    cpu::Act,
    cuda::{
        AttentionKernels, AttentionShape, Cuda, CudaError, CudaSlice, HostBuffer, Joints,
        Orientation, Output, Product, PromptKernels, StepKernels,
        ffn::{FfnKernels, FfnShape, Neighbours},
    },
    shortlist::Shortlist,
};
use joining::Waiting;
use logits::Logits;
use memory::Need;
use observed::Observed;
use plan::{DevicePlan, Steps};
use std::{path::Path, sync::Arc};
use weights::DeviceWeights;

/// Where the tokens of a batch begin in what the card is given: behind the position.
const TOKENS: usize = 1;

/// As the engine reports it.
pub(crate) fn error(e: CudaError) -> Error {
    let remedy = match &e {
        CudaError::Weights { .. } => {
            "use --device cpu, or a model whose rows are whole blocks and short enough for a card's shared memory"
        }
        CudaError::NoDriver | CudaError::NoCard { .. } => {
            "use --device cpu, or install the driver; `countdown doctor` lists cards"
        }
        CudaError::NoCompiler | CudaError::NoBlas => {
            "install the CUDA toolkit and put its libraries where the loader looks (LD_LIBRARY_PATH), or use --device cpu"
        }
        _ => "use --device cpu, or report this with the output of `countdown doctor`",
    };
    Error::Machine {
        cause: e.to_string(),
        remedy: remedy.into(),
    }
}

/// Rows of activations, `[tokens, width]`.
pub(crate) struct Buffer {
    width: usize,
    data: CudaSlice<f32>,
}

pub(crate) struct CudaBackend {
    cuda: Cuda,
    weights: DeviceWeights,
    step: StepKernels,
    prompt: PromptKernels,
    attention: AttentionKernels,
    /// One for each shape that layers or plans have.
    ffns: Vec<(FfnShape, FfnKernels)>,
    /// What runs beside them; where that is attention, what else they speak through, and a launch that waits for what may join it.
    neighbours: Neighbours,
    joints: Option<Joints>,
    waiting: Option<Waiting>,
    act: Act,
    hidden: usize,
    /// The position of the first token of a batch, and from [`TOKENS`] on its tokens: of a step one copy to the card.
    given: CudaSlice<u32>,
    /// The position it holds.
    placed: Option<usize>,
    /// act(gate) and up, `[batch, inter]`, and attention's output, `[batch, heads, head_dim]`.
    gate: CudaSlice<f32>,
    up: CudaSlice<f32>,
    wide: CudaSlice<f32>,
    logits: Logits,
    /// Neurons kept, `[batch, layers]`.
    kept: CudaSlice<u32>,
    /// Those of the first token, `[layers]`, and whether they came since FFNs ran.
    fetched_kept: HostBuffer<u32>,
    is_kept_fetched: bool,
    layers: usize,
    /// Layers whose FFNs followed the plan since [`Backend::take_kept`], with their tokens; and neurons computed by those that did not.
    counted: Vec<(usize, usize)>,
    dense: usize,
    /// Dense steps.
    steps: Steps,
    /// Plans seen, the one in force first, if there is one.
    plans: Vec<DevicePlan>,
    in_force: ByPlan,
    /// For FFNs that are observed, or follow a rule of no plan; made when the first is.
    observed: Option<Observed>,
    threads: usize,
    issuing: Option<Issuing>,
    /// What went wrong first.
    failed: Option<Error>,
}

/// A step that is being issued.
struct Issuing {
    by_plan: ByPlan,
    /// Whether it is recorded.
    recorded: Recorded,
    /// Entries of `counted`, and `dense`, before it.
    counted: usize,
    dense: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Recorded {
    No,
    Yes,
}

impl CudaBackend {
    /// Copies a model to a card. `threads` help to transpose.
    pub(crate) fn new(
        model: &Model,
        (ordinal, kernel_cache): (usize, Option<&Path>),
        (context, batch, cache): (usize, usize, DType),
        threads: usize,
    ) -> Result<CudaBackend> {
        let c = &model.config;
        if model.layers.iter().any(|l| l.ffn.has_biases()) {
            return Err(Error::Machine {
                cause: "the model's FFNs have biases, for which there are no CUDA kernels".into(),
                remedy: "use --device cpu".into(),
            });
        }
        let cuda = Cuda::open(ordinal, kernel_cache).map_err(error)?;
        let inter = c.layers.iter().map(|l| l.inter).max().unwrap_or(0);
        let width = c.heads * c.head_dim;
        let widest = inter.max(c.hidden).max(width);
        let shape = AttentionShape {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            context,
            cache,
            queries_and_keys: attention::queries_and_keys(model),
        };
        let unpacked = memory::largest_quantised(model);
        let need = Need {
            weights: DeviceWeights::bytes(model)?,
            cache: c.layers.len() * shape.cache_bytes(),
            activations: 4 * batch * (2 * inter + 2 * widest + 6 * c.hidden + 3 * width)
                + Logits::bytes(c.vocab, batch)
                + 2 * unpacked,
        };
        need.check(&cuda)?;
        let weights = DeviceWeights::upload(&cuda, model, threads)?;
        let attention = AttentionKernels::new(&cuda, shape).map_err(error)?;
        let neighbours = joining::neighbours(model, &attention)?;
        let joints = match neighbours {
            Neighbours::Products => None,
            Neighbours::Attention { .. } => {
                Some(Joints::new(&cuda, c.hidden, shape).map_err(error)?)
            }
        };
        let mut backend = CudaBackend {
            step: StepKernels::new(&cuda).map_err(error)?,
            prompt: PromptKernels::new(&cuda, batch * widest, unpacked).map_err(error)?,
            attention,
            ffns: Vec::new(),
            neighbours,
            joints,
            waiting: None,
            act: c.act,
            hidden: c.hidden,
            given: cuda.zeros(TOKENS + batch).map_err(error)?,
            placed: None,
            gate: cuda.zeros(batch * inter).map_err(error)?,
            up: cuda.zeros(batch * inter).map_err(error)?,
            wide: cuda.zeros(batch * width).map_err(error)?,
            logits: Logits::new(&cuda, c.vocab, batch).map_err(error)?,
            kept: cuda.zeros(batch * c.layers.len()).map_err(error)?,
            fetched_kept: cuda.host_buffer(c.layers.len()).map_err(error)?,
            is_kept_fetched: false,
            layers: c.layers.len(),
            counted: Vec::new(),
            dense: 0,
            steps: Steps::None,
            plans: Vec::new(),
            in_force: ByPlan::Dense,
            observed: None,
            threads,
            issuing: None,
            failed: None,
            weights,
            cuda,
        };
        for l in &model.layers {
            let shape = backend.ffn_shape(&l.ffn, None)?;
            backend.compile(shape)?;
        }
        Ok(backend)
    }

    /// Remembers what went wrong first; a call that cannot report it goes on.
    fn check(&mut self, done: Result<(), CudaError>) {
        if let Err(e) = done {
            self.failed.get_or_insert(error(e));
        }
    }

    fn place(&mut self, position: usize) {
        if self.placed != Some(position) {
            let written = self.cuda.write(&[position as u32], &mut self.given);
            self.check(written);
            self.placed = Some(position);
        }
    }

    fn steps(&mut self, by_plan: ByPlan) -> &mut Steps {
        match by_plan {
            ByPlan::Dense => &mut self.steps,
            ByPlan::Sparse => {
                let plan = self.plans.first_mut();
                &mut plan.expect("a step by a plan follows `set_plan`").steps
            }
        }
    }
}

impl Backend for CudaBackend {
    type Buffer = Buffer;
    type Cache = Cache;

    fn buffer(&self, tokens: usize, width: usize) -> Result<Buffer> {
        let data = self.cuda.zeros(tokens * width).map_err(error)?;
        Ok(Buffer { width, data })
    }

    fn cache(&self, c: &Config, context: usize) -> Result<Cache> {
        Cache::new(&self.cuda, &self.attention, c, context)
    }

    fn set_plan(&mut self, model: &Model, plan: Option<&Arc<SparsityPlan>>) -> Result<()> {
        // Plans that nobody else has are not coming back.
        self.plans.retain(|p| Arc::strong_count(&p.plan) > 1);
        self.in_force = ByPlan::Dense;
        let Some(plan) = plan else { return Ok(()) };
        let seen = self.plans.iter().position(|p| Arc::ptr_eq(&p.plan, plan));
        if let Some(at) = seen {
            self.plans.swap(0, at);
            self.in_force = ByPlan::Sparse;
            return Ok(());
        }
        let uploaded = DevicePlan::upload(&self.cuda, model, plan, self.threads)?;
        for (rule, layer) in uploaded.rules.iter().zip(&model.layers) {
            let shape = self.ffn_shape(&layer.ffn, rule.predictor())?;
            self.compile(shape)?;
        }
        self.plans.insert(0, uploaded);
        self.in_force = ByPlan::Sparse;
        Ok(())
    }

    fn begin(&mut self, token: u32, position: usize, by_plan: ByPlan) -> Issue {
        self.flush();
        let given = [position as u32, token];
        let written = self.cuda.write(&given, &mut self.given);
        self.check(written);
        self.placed = Some(position);
        let steps = std::mem::take(self.steps(by_plan));
        let recorded = match steps {
            Steps::Recorded(mut recording, counted, dense) => {
                let replayed = self.cuda.replay(&mut recording);
                self.check(replayed);
                self.counted.extend(&counted);
                self.dense += dense;
                *self.steps(by_plan) = Steps::Recorded(recording, counted, dense);
                return Issue::Done;
            }
            Steps::None => Recorded::No,
            // What has gone wrong already is reported as it is.
            Steps::Run if self.failed.is_some() => Recorded::No,
            Steps::Run => {
                let recording = self.cuda.record();
                self.check(recording);
                Recorded::Yes
            }
        };
        self.issuing = Some(Issuing {
            by_plan,
            recorded,
            counted: self.counted.len(),
            dense: self.dense,
        });
        Issue::Needed
    }

    fn end(&mut self) -> Issue {
        self.flush();
        let Some(issued) = self.issuing.take() else {
            return Issue::Done;
        };
        let mut steps = Steps::Run;
        if issued.recorded == Recorded::Yes {
            let recorded = self.cuda.recorded();
            let (Ok(Some(mut recording)), None) = (recorded, &self.failed) else {
                // The driver breaks a recording off for some of what other threads do with the card; nothing of the step has run then.
                self.failed = None;
                self.counted.truncate(issued.counted);
                self.dense = issued.dense;
                self.issuing = Some(Issuing {
                    recorded: Recorded::No,
                    ..issued
                });
                return Issue::Needed;
            };
            let replayed = self.cuda.replay(&mut recording);
            self.check(replayed);
            let counted = self.counted[issued.counted..].to_vec();
            steps = Steps::Recorded(recording, counted, self.dense - issued.dense);
        }
        *self.steps(issued.by_plan) = steps;
        Issue::Done
    }

    fn download(&mut self, x: &Buffer, tokens: usize, to: &mut [f32]) {
        self.flush();
        let read = self.cuda.read(&x.data, &mut to[..tokens * x.width]);
        self.check(read);
    }

    fn upload(&mut self, from: &[f32], x: &mut Buffer) {
        self.flush();
        let written = self.cuda.write(from, &mut x.data);
        self.check(written);
    }

    fn embed(&mut self, table: &Matrix, tokens: &[u32], scale: f32, out: &mut Buffer) {
        self.flush();
        if self.issuing.is_none() {
            let written = self.cuda.write_at(tokens, &mut self.given, TOKENS);
            self.check(written);
        }
        let table = self.weights.matrix(table);
        let tokens = (&self.given, TOKENS, tokens.len());
        let done = self
            .step
            .embed(&self.cuda, table, tokens, scale, &mut out.data);
        self.check(done);
    }

    fn norm(&mut self, x: &Buffer, rows: usize, norm: RmsNorm<'_>, out: &mut Buffer) {
        self.flush();
        let weight = (self.weights.vector(norm.weight), norm.eps);
        let out = Some(&mut out.data);
        let done = self.step.norm(&self.cuda, &x.data, rows, weight, out);
        self.check(done);
    }

    fn norm_in_place(&mut self, x: &mut Buffer, rows: usize, norm: RmsNorm<'_>) {
        self.flush();
        let weight = (self.weights.vector(norm.weight), norm.eps);
        let done = self.step.norm(&self.cuda, &x.data, rows, weight, None);
        self.check(done);
    }

    fn linears<const N: usize>(
        &mut self,
        x: &Buffer,
        tokens: usize,
        products: [(&Linear, &mut Buffer); N],
    ) {
        if tokens == 1 {
            return self.step_linears(x, None, products);
        }
        self.flush();
        let (cuda, step, all) = (&self.cuda, &self.step, &self.weights);
        let (prompt, mut done) = (&mut self.prompt, Ok(()));
        for (l, out) in products {
            let (w, rows) = (all.matrix(&l.weight), Orientation::RowPerOutput);
            let x = (&x.data, 0, tokens);
            done = done.and_then(|()| prompt.matmul(cuda, step, w, rows, x, &mut out.data));
            if let Some(bias) = &l.bias {
                let (bias, n) = (all.vector(bias), tokens * bias.len());
                done = done.and_then(|()| step.add(cuda, &mut out.data, (bias, 1.0), n));
            }
        }
        self.check(done);
    }

    fn norm_linears<const N: usize>(
        &mut self,
        x: &Buffer,
        tokens: usize,
        norm: RmsNorm<'_>,
        normed: &mut Buffer,
        products: [(&Linear, &mut Buffer); N],
    ) {
        if tokens == 1 {
            return self.step_linears(x, Some(norm), products);
        }
        self.norm(x, tokens, norm, normed);
        self.linears(normed, tokens, products);
    }

    fn linear_add(
        &mut self,
        input: &Buffer,
        tokens: usize,
        (linear, after): (&Linear, Option<RmsNorm<'_>>),
        spare: &mut Buffer,
        (x, scale): (&mut Buffer, f32),
    ) {
        if tokens > 1 || scale != 1.0 {
            self.linears(input, tokens, [(linear, &mut *spare)]);
            self.norm_add(spare, tokens, after, (x, scale));
            return;
        }
        let out = match after {
            Some(_) => Output::Write(&mut spare.data),
            None => Output::Add(&mut x.data),
        };
        let bias = linear.bias.as_ref();
        let product = Product {
            weights: self.weights.matrix(&linear.weight),
            bias: bias.map(|b| self.weights.vector(b)),
            out,
        };
        let input = (&input.data, 0);
        let prepared = self
            .step
            .prepare_products(&self.cuda, input, None, &[product]);
        match prepared {
            Ok(mut output) => {
                if let Some(norm) = after {
                    output = output.then(self.prepare_norm_add(spare, 1, norm, (x, scale)));
                }
                self.launch_output(output);
            }
            failed => self.check(failed.map(|_| ())),
        }
    }

    fn attention(&mut self, cache: &mut Cache, c: &Config, call: Attending<'_, Buffer>) {
        self.attend(cache, c, call);
    }

    fn ffn(&mut self, mut call: FfnCall<'_>, x: &Buffer, out: &mut Buffer) {
        self.flush();
        if self.is_alone(call.rule) {
            return self.ffn_prompt(&mut call, x, Some(out));
        }
        let is_prompt = call.rule.is_none() && call.tokens > 1;
        if call.observer.is_some() || is_prompt {
            let whole = is_prompt.then_some(&mut *out);
            self.ffn_prompt(&mut call, x, whole);
        }
        if is_prompt {
            self.dense += call.tokens * call.weights.gate.rows();
        } else {
            self.ffn_steps(&call, Some(x), None, Output::Write(&mut out.data), None);
        }
    }

    fn ffn_add(
        &mut self,
        call: FfnCall<'_>,
        [before, after]: [Option<RmsNorm<'_>>; 2],
        normed: &mut Buffer,
        spare: &mut Buffer,
        (x, scale): (&mut Buffer, f32),
    ) {
        let is_step = (call.tokens == 1 || call.rule.is_some()) && !self.is_alone(call.rule);
        if call.observer.is_some() || !is_step || scale != 1.0 {
            return self.ffn_add_in_parts(call, [before, after], normed, spare, (x, scale));
        }
        let Some(after) = after else {
            return self.ffn_steps(&call, None, before, Output::Add(&mut x.data), None);
        };
        let tokens = call.tokens;
        let add = self.prepare_norm_add(spare, tokens, after, (&mut *x, scale));
        let out = Output::Write(&mut spare.data);
        if tokens == 1 {
            return self.ffn_steps(&call, Some(x), before, out, Some(add));
        }
        self.ffn_steps(&call, Some(x), before, out, None);
        self.flush();
        let done = add.launch(&self.cuda);
        self.check(done);
    }

    fn norm_add(
        &mut self,
        y: &mut Buffer,
        tokens: usize,
        norm: Option<RmsNorm<'_>>,
        (x, scale): (&mut Buffer, f32),
    ) {
        let Some(norm) = norm else {
            return self.add(x, y, scale, tokens);
        };
        self.flush();
        let add = self.prepare_norm_add(y, tokens, norm, (x, scale));
        let done = add.launch(&self.cuda);
        self.check(done);
    }

    fn add(&mut self, x: &mut Buffer, y: &Buffer, scale: f32, tokens: usize) {
        self.flush();
        let n = tokens * x.width;
        let y = (&y.data, scale);
        let done = self.step.add(&self.cuda, &mut x.data, y, n);
        self.check(done);
    }

    fn take_kept(&mut self) -> Result<usize> {
        self.flush();
        let dense = std::mem::take(&mut self.dense);
        let counted = std::mem::take(&mut self.counted);
        let rows = counted.iter().map(|(_, tokens)| *tokens).max();
        let mut kept = vec![0; rows.unwrap_or(0) * self.layers];
        let is_fetched = std::mem::take(&mut self.is_kept_fetched);
        let read = match rows {
            None => Ok(()),
            Some(1) if is_fetched => self.fetched_kept.get().map(|k| kept.copy_from_slice(k)),
            Some(_) => self.cuda.read(&self.kept, &mut kept),
        };
        self.check(read);
        match self.failed.take() {
            Some(e) => Err(e),
            None => {
                let of = |&(layer, tokens): &(usize, usize)| -> usize {
                    let rows = kept.chunks_exact(self.layers).take(tokens);
                    rows.map(|r| r[layer] as usize).sum()
                };
                Ok(dense + counted.iter().map(of).sum::<usize>())
            }
        }
    }

    fn head(
        &mut self,
        x: &Buffer,
        rows: (usize, usize),
        head: Head<'_>,
        normed: &mut Buffer,
    ) -> Result<()> {
        self.flush();
        let done = self.make_logits(x, rows, head, normed);
        self.check(done);
        self.failed.take().map_or(Ok(()), Err)
    }

    fn shortlist(&self) -> Option<&Shortlist> {
        self.logits.shortlist()
    }

    fn logits(&mut self) -> Result<&mut [f32]> {
        self.logits.fetch(&self.cuda)
    }

    fn name(&self) -> String {
        let launches = match self.joints {
            Some(_) => ", two launches a layer",
            None => "",
        };
        format!("CUDA {}{launches}", self.cuda.card().name)
    }
}
