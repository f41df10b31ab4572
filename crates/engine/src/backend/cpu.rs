//! The CPU backend.

use super::{
    Attending, Backend, ByPlan, FfnCall, FfnTrace, Head, Issue, RmsNorm,
    kept::{multiply_kept, select},
};
use crate::{
    arch::{Act, Config, Rope},
    error::{Error, Result},
    model::{Down, Ffn, Linear, Matrix, Model},
    packing,
    sparsity::{Estimator, Keep, Predictor, Rule, Selection, Signal, SparsityPlan},
};
use countdown_kernels::{
    DType,
    cpu::{
        Input, Kernels, Team,
        attention::{Attention, AttentionWork, LayerCache, RopeTable, attend},
        ffn::{
            Affine, Decider, FfnWork, SparseFfn, coefficients, estimate, sparse_ffn,
            sparse_ffn_rows, sum_all,
        },
        gemm::{GemmWork, matmul, matmul_transposed},
        parallel::{gemv, gemv_all},
        soft_cap,
    },
    quant,
    shortlist::Shortlist,
};
use std::sync::Arc;

/// Forces an instruction set: scalar, neon, avx2, avx512.
pub(crate) const ISA_VARIABLE: &str = "COUNTDOWN_ISA";

/// Rows of activations, `[tokens, width]`.
pub(crate) struct Buffer {
    width: usize,
    data: Vec<f32>,
}

impl Buffer {
    fn rows(&self, n: usize) -> &[f32] {
        &self.data[..n * self.width]
    }
    fn rows_mut(&mut self, n: usize) -> &mut [f32] {
        &mut self.data[..n * self.width]
    }
}

/// Keys and values of all layers, and the rope tables for their positions.
pub(crate) struct Cache {
    layers: Vec<LayerCache>,
    ropes: Vec<(Arc<Rope>, RopeTable)>,
}

pub(crate) struct Cpu {
    kernels: &'static Kernels,
    team: Team,
    act: Act,
    cache_dtype: DType,
    input: Input,
    attention: AttentionWork,
    gemm: GemmWork,
    sparse: FfnWork,
    /// act(gate), and after the product the coefficients: `[batch, inter]`.
    gate: Vec<f32>,
    /// Up, `[batch, inter]`; between two FFNs attention's output, `[batch, heads, head_dim]`.
    up: Vec<f32>,
    row: Vec<f32>,
    /// A predictor's z, for one token.
    narrow: Vec<f32>,
    narrow_input: Input,
    /// A predictor's signals for several tokens, `[batch, inter]`.
    signals: Vec<f32>,
    estimator: Estimator,
    selection: Selection,
    /// Neurons computed since the last [`Backend::take_kept`].
    kept: usize,
    /// Those made last, `[rows, vocab]`.
    logits: Vec<f32>,
}

/// The kernels of the machine, or those that the environment asks for.
pub(crate) fn kernels() -> Result<&'static Kernels> {
    let forced = std::env::var(ISA_VARIABLE).ok();
    Kernels::select(forced.as_deref()).map_err(|e| Error::Machine {
        cause: format!("{ISA_VARIABLE}: {e}"),
        remedy: format!("unset {ISA_VARIABLE} or name an instruction set that the CPU has"),
    })
}

/// Attention of the first token, without a window.
fn geometry(c: &Config) -> Attention {
    Attention {
        heads: c.heads,
        kv_heads: c.kv_heads,
        scale: c.attention_scale,
        soft_cap: c.attention_soft_cap,
        window: None,
        start: 0,
    }
}

impl Cpu {
    pub(crate) fn new(
        model: &Model,
        threads: usize,
        context: usize,
        batch: usize,
        cache_dtype: DType,
    ) -> Result<Cpu> {
        let c = &model.config;
        let inter = c.layers.iter().map(|l| l.inter).max().unwrap_or(0);
        let widest = inter.max(c.hidden).max(c.heads * c.head_dim);
        Ok(Cpu {
            kernels: kernels()?,
            team: crate::session::team(threads)?,
            act: c.act,
            cache_dtype,
            input: Input::with_capacity(widest),
            attention: AttentionWork::new(threads, &geometry(c), c.head_dim, context),
            gemm: GemmWork::new(),
            sparse: FfnWork::new(inter, c.hidden),
            gate: vec![0.0; batch * widest],
            up: vec![0.0; batch * widest],
            row: Vec::with_capacity(widest),
            narrow: Vec::with_capacity(widest),
            narrow_input: Input::with_capacity(widest),
            signals: Vec::new(),
            estimator: Estimator::default(),
            selection: Selection::with_capacity(inter),
            kept: 0,
            logits: Vec::with_capacity(c.vocab),
        })
    }

    /// Gate (activated) and up of all neurons into the working memory.
    fn gate_and_up(&mut self, x: &[f32], tokens: usize, w: &Ffn) {
        let n = tokens * w.gate.rows();
        let (gate, up) = (&mut self.gate[..n], &mut self.up[..n]);
        let biases = [&w.gate_bias, &w.up_bias];
        let (team, kernels, act) = (&mut self.team, self.kernels, self.act);
        if tokens == 1 {
            kernels.prepare(x, &mut self.input);
            let products = [(w.gate.view(), &mut *gate), (w.up.view(), &mut *up)];
            gemv_all(team, kernels, &self.input, products);
        } else {
            for (m, out) in [(&w.gate, &mut *gate), (&w.up, &mut *up)] {
                matmul(team, kernels, m.view(), x, tokens, out, &mut self.gemm);
            }
        }
        for (bias, out) in biases.into_iter().zip([&mut *gate, up]) {
            add_bias(bias, out);
        }
        team.split(gate, 1024, |_, part| kernels.act(act, part));
    }

    /// Every neuron: gate times up through the down projection, in whichever layout it has.
    fn project_down(&mut self, tokens: usize, w: &Ffn, out: &mut [f32]) {
        let (team, kernels) = (&mut self.team, self.kernels);
        let s = &self.gate[..tokens * w.gate.rows()];
        match &w.down {
            Down::Stored(m) if tokens == 1 => {
                kernels.prepare(s, &mut self.input);
                gemv(team, kernels, m.view(), &self.input, out);
            }
            Down::Stored(m) => matmul(team, kernels, m.view(), s, tokens, out, &mut self.gemm),
            Down::Transposed(m) if tokens == 1 => {
                sum_all(team, kernels, m.view(), s, &mut self.sparse, out);
            }
            Down::Transposed(m) => {
                matmul_transposed(team, kernels, m.view(), s, tokens, out, &mut self.gemm);
            }
        }
    }

    /// One token by a rule: neurons that are not kept cost no bytes but those that decide.
    fn sparse_step(&mut self, x: &[f32], w: &Ffn, rule: &Rule, out: &mut [f32]) -> usize {
        let Down::Transposed(down) = &w.down else {
            unreachable!("a session with a plan has its down projections transposed")
        };
        let weights = SparseFfn {
            gate: w.gate.view(),
            up: w.up.view(),
            down: down.view(),
            gate_bias: w.gate_bias.as_deref(),
            up_bias: w.up_bias.as_deref(),
            act: self.act,
        };
        self.kernels.prepare(x, &mut self.input);
        if let Some(p) = &rule.predictor {
            self.narrow(p);
        }
        let (team, kernels) = (&mut self.team, self.kernels);
        let decider = match (&rule.predictor, rule.signal) {
            (Some(p), _) => {
                let z = match &p.inner {
                    Some(_) => &self.narrow_input,
                    None => &self.input,
                };
                Some(p.decider(z))
            }
            (None, Signal::Gate) => Some(Decider::Gate),
            (None, Signal::Up) => Some(Decider::Up),
            (None, Signal::Product) => None,
        };
        let inter = w.gate.rows();
        match (decider, rule.keep, &rule.predictor) {
            (Some(decider), Keep::Above(tau), _) => {
                return sparse_ffn(
                    team,
                    kernels,
                    &weights,
                    decider,
                    rule.score.view(),
                    tau,
                    &self.input,
                    &mut self.sparse,
                    out,
                );
            }
            (_, Keep::AllBut { .. }, Some(p)) => {
                let z = match &p.inner {
                    Some(_) => &self.narrow_input,
                    None => &self.input,
                };
                let (signal, spare) = (&mut self.gate[..inter], &mut self.up[..inter]);
                estimate(team, kernels, &p.estimate(), self.act, z, signal, spare);
                rule.select(signal.iter().copied(), &mut self.selection);
            }
            _ => {
                self.gate_and_up(x, 1, w);
                let (gate, up) = (&self.gate[..inter], &self.up[..inter]);
                select(rule, gate, up, None, &mut self.selection);
            }
        }
        sparse_ffn_rows(
            &mut self.team,
            self.kernels,
            &weights,
            self.selection.kept(),
            &self.input,
            &mut self.sparse,
            out,
        );
        self.selection.kept().len()
    }

    /// z = A x of a predictor that has an A, from the input prepared.
    fn narrow(&mut self, p: &Predictor) {
        let Some(a) = &p.inner else { return };
        self.narrow.resize(a.rows(), 0.0);
        let (team, z) = (&mut self.team, &mut self.narrow);
        gemv(team, self.kernels, a.view(), &self.input, z);
        self.kernels.prepare(z, &mut self.narrow_input);
    }

    /// An FFN up to the bias of its output. Returns the neurons computed.
    fn ffn_without_bias(&mut self, mut call: FfnCall<'_>, x: &[f32], out: &mut [f32]) -> usize {
        let (w, tokens, inter) = (call.weights, call.tokens, call.weights.gate.rows());
        if let (1, Some(rule), None) = (tokens, call.rule, &call.observer) {
            return self.sparse_step(x, w, rule, out);
        }
        if let (1, None, None) = (tokens, call.rule, &call.observer) {
            self.kernels.prepare(x, &mut self.input);
            let (gate, up) = (&mut self.gate[..inter], &mut self.up[..inter]);
            let (team, kernels) = (&mut self.team, self.kernels);
            let w_gate = Affine {
                weight: w.gate.view(),
                bias: w.gate_bias.as_deref(),
            };
            let w_up = Affine {
                weight: w.up.view(),
                bias: w.up_bias.as_deref(),
            };
            coefficients(team, kernels, w_gate, w_up, self.act, &self.input, gate, up);
            self.project_down(1, w, out);
            return inter;
        }
        self.gate_and_up(x, tokens, w);
        if let Some(observer) = &mut call.observer {
            observer(FfnTrace {
                layer: call.layer,
                start: call.start,
                inter,
                input: x,
                gate: &self.gate[..tokens * inter],
                up: &self.up[..tokens * inter],
            });
        }
        let kept = match call.rule {
            Some(rule) => self.products(x, tokens, inter, rule),
            None => {
                let up = &self.up;
                let gate = &mut self.gate[..tokens * inter];
                self.team.split(gate, 1024, |at, part| {
                    part.iter_mut().zip(&up[at..]).for_each(|(g, u)| *g *= u);
                });
                tokens * inter
            }
        };
        self.project_down(tokens, w, out);
        kept
    }

    /// Multiplies gate and up of several tokens into gate; of neurons that the rule does not keep the product is zero.
    /// Returns how many are kept.
    fn products(&mut self, x: &[f32], tokens: usize, inter: usize, rule: &Rule) -> usize {
        let n = tokens * inter;
        if let Some(p) = &rule.predictor {
            self.signals.resize(n, 0.0);
            let (team, signals) = (&mut self.team, &mut self.signals);
            self.estimator
                .signals(team, self.kernels, p, self.act, x, signals);
        }
        let (gate, up) = (&mut self.gate[..n], &self.up[..n]);
        multiply_kept(&mut self.team, rule, inter, gate, up, &self.signals)
    }
}

/// Adds a bias, if there is one, to every row of `out`.
fn add_bias(bias: &Option<Vec<f32>>, out: &mut [f32]) {
    if let Some(bias) = bias {
        for row in out.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
}

impl Backend for Cpu {
    type Buffer = Buffer;
    type Cache = Cache;

    fn buffer(&self, tokens: usize, width: usize) -> Result<Buffer> {
        Ok(Buffer {
            width,
            data: vec![0.0; tokens * width],
        })
    }

    fn set_plan(&mut self, model: &Model, plan: Option<&Arc<SparsityPlan>>) -> Result<()> {
        let Some(plan) = plan else { return Ok(()) };
        packing::check(plan, model)
    }

    fn begin(&mut self, _: u32, _: usize, _: ByPlan) -> Issue {
        Issue::Needed
    }

    fn end(&mut self) -> Issue {
        Issue::Done
    }

    fn take_kept(&mut self) -> Result<usize> {
        Ok(std::mem::take(&mut self.kept))
    }

    fn cache(&self, c: &Config, context: usize) -> Result<Cache> {
        let dtype = self.cache_dtype;
        if LayerCache::bytes(dtype, c.kv_heads, context, c.head_dim).is_none() {
            return Err(Error::Input {
                cause: format!("a key/value cache of type {dtype} for {context} positions"),
                remedy: "use F16 or F32 for the cache, or a shorter context".into(),
            });
        }
        let mut ropes: Vec<(Arc<Rope>, RopeTable)> = Vec::new();
        for rope in c.layers.iter().filter_map(|l| l.rope.as_ref()) {
            if !ropes.iter().any(|(r, _)| r == rope) {
                let frequencies = rope.frequencies(context);
                let table = RopeTable::new(context, c.head_dim, frequencies, rope.magnitude);
                ropes.push((rope.clone(), table));
            }
        }
        let layer = || LayerCache::new(dtype, c.kv_heads, context, c.head_dim);
        Ok(Cache {
            layers: c.layers.iter().map(|_| layer()).collect(),
            ropes,
        })
    }

    fn download(&mut self, x: &Buffer, tokens: usize, to: &mut [f32]) {
        to.copy_from_slice(x.rows(tokens));
    }

    fn upload(&mut self, from: &[f32], x: &mut Buffer) {
        x.data[..from.len()].copy_from_slice(from);
    }

    fn embed(&mut self, table: &Matrix, tokens: &[u32], scale: f32, out: &mut Buffer) {
        for (&t, row) in tokens.iter().zip(out.data.chunks_exact_mut(out.width)) {
            quant::unpack_row(table.dtype(), table.view().row(t as usize), row);
            if scale != 1.0 {
                row.iter_mut().for_each(|v| *v *= scale);
            }
        }
    }

    fn norm(&mut self, x: &Buffer, rows: usize, norm: RmsNorm<'_>, out: &mut Buffer) {
        let RmsNorm { weight, eps } = norm;
        let n = weight.len();
        let (x, out) = (&x.data[..rows * n], &mut out.data[..rows * n]);
        for (x, y) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            self.kernels.rms_norm(x, weight, eps, y);
        }
    }

    fn norm_in_place(&mut self, x: &mut Buffer, rows: usize, norm: RmsNorm<'_>) {
        let RmsNorm { weight, eps } = norm;
        let n = weight.len();
        for row in x.data[..rows * n].chunks_exact_mut(n) {
            self.row.clear();
            self.row.extend_from_slice(row);
            self.kernels.rms_norm(&self.row, weight, eps, row);
        }
    }

    fn linears<const N: usize>(
        &mut self,
        x: &Buffer,
        tokens: usize,
        products: [(&Linear, &mut Buffer); N],
    ) {
        let mut products = products.map(|(w, out)| (w, out.rows_mut(tokens)));
        let (team, kernels, x) = (&mut self.team, self.kernels, x.rows(tokens));
        if tokens == 1 {
            kernels.prepare(x, &mut self.input);
            let products = products.each_mut();
            let products = products.map(|(w, out)| (w.weight.view(), &mut **out));
            gemv_all(team, kernels, &self.input, products);
        } else {
            for (w, out) in &mut products {
                let m = w.weight.view();
                matmul(team, kernels, m, x, tokens, out, &mut self.gemm);
            }
        }
        for (w, out) in products {
            add_bias(&w.bias, out);
        }
    }

    fn attention(&mut self, cache: &mut Cache, c: &Config, call: Attending<'_, Buffer>) {
        let Attending {
            layer,
            spec,
            start,
            tokens,
            norms,
            q,
            k,
            v,
        } = call;
        self.norm_queries_and_keys(c, tokens, norms, [&mut *q, &mut *k]);
        let rope = spec.rope.as_ref().map(|rope| {
            let table = cache.ropes.iter().find(|(r, _)| r == rope);
            &table.expect("`cache` made a table for every rope").1
        });
        let layer = &mut cache.layers[layer];
        for t in 0..tokens {
            let kv = t * k.width..(t + 1) * k.width;
            if let Some(rope) = rope {
                rope.rotate(&mut q.data[t * q.width..(t + 1) * q.width], start + t);
                rope.rotate(&mut k.data[kv.clone()], start + t);
            }
            layer.store(start + t, &k.data[kv.clone()], &v.data[kv]);
        }
        let shape = Attention {
            window: spec.window,
            start,
            ..geometry(c)
        };
        let out = &mut self.up[..tokens * q.width];
        attend(
            &mut self.team,
            self.kernels,
            &shape,
            layer,
            q.rows(tokens),
            &mut self.attention,
            out,
        );
        q.rows_mut(tokens).copy_from_slice(out);
    }

    fn ffn(&mut self, call: FfnCall<'_>, x: &Buffer, out: &mut Buffer) {
        let (tokens, down_bias) = (call.tokens, &call.weights.down_bias);
        let (x, out) = (x.rows(tokens), out.rows_mut(tokens));
        self.kept += self.ffn_without_bias(call, x, out);
        add_bias(down_bias, out);
    }

    fn add(&mut self, x: &mut Buffer, y: &Buffer, scale: f32, tokens: usize) {
        let pairs = x.rows_mut(tokens).iter_mut().zip(y.rows(tokens));
        pairs.for_each(|(x, y)| *x += scale * y);
    }

    fn head(
        &mut self,
        x: &Buffer,
        (first, rows): (usize, usize),
        head: Head<'_>,
        normed: &mut Buffer,
    ) -> Result<()> {
        // Norms go row by row from the start; what lies before `first` costs little beside the head.
        self.norm(x, first + rows, head.norm, normed);
        let x = &normed.rows(first + rows)[first * normed.width..];
        self.logits.resize(rows * head.weights.rows(), 0.0);
        let (weights, out) = (head.weights.view(), &mut self.logits[..]);
        if rows == 1 {
            self.kernels.prepare(x, &mut self.input);
            gemv(&mut self.team, self.kernels, weights, &self.input, out);
        } else {
            let (team, work) = (&mut self.team, &mut self.gemm);
            matmul(team, self.kernels, weights, x, rows, out, work);
        }
        if head.scale != 1.0 {
            out.iter_mut().for_each(|x| *x *= head.scale);
        }
        if let Some(cap) = head.soft_cap {
            soft_cap(cap, out);
        }
        Ok(())
    }

    fn shortlist(&self) -> Option<&Shortlist> {
        None
    }

    fn logits(&mut self) -> Result<&mut [f32]> {
        Ok(&mut self.logits)
    }

    fn name(&self) -> String {
        format!(
            "CPU {}, {} threads",
            self.kernels.isa(),
            self.team.threads()
        )
    }
}
