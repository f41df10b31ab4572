//! The forward pass: the only one, for prompts and steps, for every family and backend.

use crate::{
    backend::{
        Attending, Backend, ByPlan, FfnCall, FfnTrace, Head, Issue, Observer, Phase, RmsNorm,
    },
    error::Result,
    model::Model,
    profile::{Part, Profile, Stopwatch},
    sparsity::{Rule, SparsityPlan},
};
use countdown_kernels::shortlist::Shortlist;
use std::sync::Arc;

/// Tokens to run through the model.
pub(crate) struct Step<'a> {
    pub(crate) tokens: &'a [u32],
    /// Position of the first token.
    pub(crate) start: usize,
    pub(crate) phase: Phase,
    /// One rule a layer; `None` is dense.
    pub(crate) rules: Option<&'a [Rule]>,
    pub(crate) observer: Option<Observer<'a>>,
}

/// What one layer is run on: the residual stream of some tokens.
pub(crate) struct LayerStep<'a> {
    pub(crate) tokens: usize,
    /// Position of the first token.
    pub(crate) start: usize,
    /// `None` computes every neuron.
    pub(crate) rule: Option<&'a Rule>,
    pub(crate) observer: Option<Observer<'a>>,
}

/// A model on a backend, with the activations of one batch. Object-safe, so that a session need not name its backend.
pub(crate) trait Decoder: Send {
    /// Runs a step of at most the batch size and leaves its last hidden states for [`Decoder::head`].
    fn forward(&mut self, mut step: Step<'_>) {
        let rules = step.rules.filter(|_| step.phase == Phase::Decode);
        let by_plan = rules.map_or(ByPlan::Dense, |_| ByPlan::Sparse);
        let single = match (step.tokens, &step.observer) {
            (&[token], None) => Some(token),
            _ => None,
        };
        if let Some(token) = single
            && self.begin(token, step.start, by_plan) == Issue::Done
        {
            return;
        }
        loop {
            self.embed(step.tokens);
            for i in 0..self.layers() {
                let observer = step
                    .observer
                    .as_mut()
                    .map(|o| &mut **o as &mut dyn FnMut(FfnTrace<'_>));
                let step = LayerStep {
                    tokens: step.tokens.len(),
                    start: step.start,
                    rule: rules.map(|r| &r[i]),
                    observer,
                };
                self.layer(i, step);
            }
            if single.is_none() || self.end() == Issue::Done {
                return;
            }
        }
    }
    /// See [`Backend::set_plan`].
    fn set_plan(&mut self, plan: Option<&Arc<SparsityPlan>>) -> Result<()>;
    /// See [`Backend::begin`].
    fn begin(&mut self, token: u32, position: usize, by_plan: ByPlan) -> Issue;
    /// See [`Backend::end`].
    fn end(&mut self) -> Issue;
    /// How many layers there are.
    fn layers(&self) -> usize;
    /// Makes the residual stream the embeddings of `tokens`.
    fn embed(&mut self, tokens: &[u32]);
    /// Copies the residual stream of `tokens` tokens, `[tokens, hidden]`.
    fn residual(&mut self, tokens: usize, to: &mut [f32]);
    /// Replaces it.
    fn set_residual(&mut self, from: &[f32]);
    /// Runs layer `i` on the residual stream.
    fn layer(&mut self, i: usize, step: LayerStep<'_>);
    /// What [`Decoder::run_ffns`] runs on from now on, `[layers, hidden]`.
    fn set_ffn_inputs(&mut self, from: &[f32]) -> Result<()>;
    /// Runs the FFN of every layer on its input, and nothing else, so many times, and waits for them.
    fn run_ffns(&mut self, passes: usize, rules: Option<&[Rule]>);
    /// Neurons computed since this was last asked, over all layers and tokens.
    fn take_kept(&mut self) -> Result<usize>;
    /// Makes the logits of tokens `first..first + rows` of the last step.
    fn head(&mut self, first: usize, rows: usize) -> Result<()>;
    /// See [`Backend::shortlist`].
    fn shortlist(&self) -> Option<&Shortlist>;
    /// See [`Backend::logits`].
    fn logits(&mut self) -> Result<&mut [f32]>;
    /// Where the time went since the last call.
    fn take_profile(&mut self) -> Profile;
    /// What runs, for logs.
    fn device(&self) -> String;
}

pub(crate) struct Runner<B: Backend> {
    model: Arc<Model>,
    backend: B,
    cache: B::Cache,
    /// The residual stream, its norm, and what a block adds to it: `[batch, hidden]`.
    x: B::Buffer,
    normed: B::Buffer,
    y: B::Buffer,
    /// `[batch, heads * head_dim]` and `[batch, kv_heads * head_dim]`.
    q: B::Buffer,
    k: B::Buffer,
    v: B::Buffer,
    /// What FFNs are run on by themselves: a row for each layer, once there are any.
    ffn_inputs: Vec<B::Buffer>,
    profile: Profile,
}

impl<B: Backend> Runner<B> {
    pub(crate) fn new(model: Arc<Model>, backend: B, context: usize, batch: usize) -> Result<Self> {
        let c = &model.config;
        let (hidden, kv) = (c.hidden, c.kv_heads * c.head_dim);
        Ok(Runner {
            cache: backend.cache(c, context)?,
            x: backend.buffer(batch, hidden)?,
            normed: backend.buffer(batch, hidden)?,
            y: backend.buffer(batch, hidden)?,
            q: backend.buffer(batch, c.heads * c.head_dim)?,
            k: backend.buffer(batch, kv)?,
            v: backend.buffer(batch, kv)?,
            ffn_inputs: Vec::new(),
            backend,
            model,
            profile: Profile::default(),
        })
    }
}

impl<B: Backend> Decoder for Runner<B> {
    fn set_plan(&mut self, plan: Option<&Arc<SparsityPlan>>) -> Result<()> {
        self.backend.set_plan(&self.model, plan)
    }

    fn begin(&mut self, token: u32, position: usize, by_plan: ByPlan) -> Issue {
        self.backend.begin(token, position, by_plan)
    }

    fn end(&mut self) -> Issue {
        self.backend.end()
    }

    fn layers(&self) -> usize {
        self.model.layers.len()
    }

    fn embed(&mut self, tokens: &[u32]) {
        let m = &self.model;
        let scale = m.config.embedding_scale;
        let mut time = Stopwatch::start(&mut self.profile);
        self.backend.embed(&m.embedding, tokens, scale, &mut self.x);
        time.was(Part::Embedding);
    }

    fn residual(&mut self, tokens: usize, to: &mut [f32]) {
        self.backend.download(&self.x, tokens, to);
    }

    fn set_residual(&mut self, from: &[f32]) {
        self.backend.upload(from, &mut self.x);
    }

    fn layer(&mut self, i: usize, mut step: LayerStep<'_>) {
        let Runner {
            model,
            backend: b,
            cache,
            x,
            normed,
            y,
            q,
            k,
            v,
            profile,
            ..
        } = self;
        let mut time = Stopwatch::start(profile);
        let (c, tokens) = (&model.config, step.tokens);
        let layer = &model.layers[i];
        let scale = c.residual_scale;
        let norm = |weight| RmsNorm {
            weight,
            eps: c.norm_eps,
        };
        let qkv = [
            (&layer.query, &mut *q),
            (&layer.key, &mut *k),
            (&layer.value, &mut *v),
        ];
        match &layer.attn_norm {
            Some(w) => b.norm_linears(x, tokens, norm(w), normed, qkv),
            None => b.linears(x, tokens, qkv),
        }
        time.was(Part::Projections);
        let norms = [&layer.query_norm, &layer.key_norm].map(|w| w.as_deref().map(norm));
        let call = Attending {
            layer: i,
            spec: &c.layers[i],
            start: step.start,
            tokens,
            norms,
            q: &mut *q,
            k,
            v,
        };
        b.attention(cache, c, call);
        time.was(Part::Attention);
        let after = layer.post_attn_norm.as_deref().map(norm);
        b.linear_add(q, tokens, (&layer.attn_output, after), y, (&mut *x, scale));
        time.was(Part::Projections);
        let call = FfnCall {
            layer: i,
            start: step.start,
            tokens,
            weights: &layer.ffn,
            rule: step.rule,
            observer: match &mut step.observer {
                Some(o) => Some(&mut **o as &mut dyn FnMut(FfnTrace<'_>)),
                None => None,
            },
        };
        let norms = [&layer.ffn_norm, &layer.post_ffn_norm].map(|w| w.as_deref().map(norm));
        b.ffn_add(call, norms, normed, y, (&mut *x, scale));
        time.was(Part::Ffn);
    }

    fn set_ffn_inputs(&mut self, from: &[f32]) -> Result<()> {
        let hidden = self.model.config.hidden;
        self.ffn_inputs.clear();
        for row in from.chunks_exact(hidden) {
            let mut input = self.backend.buffer(1, hidden)?;
            self.backend.upload(row, &mut input);
            self.ffn_inputs.push(input);
        }
        Ok(())
    }

    fn run_ffns(&mut self, passes: usize, rules: Option<&[Rule]>) {
        let mut time = Stopwatch::start(&mut self.profile);
        for _ in 0..passes {
            for (i, (layer, input)) in self.model.layers.iter().zip(&self.ffn_inputs).enumerate() {
                let call = FfnCall {
                    layer: i,
                    start: 0,
                    tokens: 1,
                    weights: &layer.ffn,
                    rule: rules.map(|r| &r[i]),
                    observer: None,
                };
                self.backend.ffn(call, input, &mut self.y);
                time.was(Part::Ffn);
            }
        }
        // A device computes on its own; what the last one made is there when all have ended.
        let mut last = vec![0.0; self.model.config.hidden];
        self.backend.download(&self.y, 1, &mut last);
    }

    fn take_kept(&mut self) -> Result<usize> {
        self.backend.take_kept()
    }

    fn head(&mut self, first: usize, rows: usize) -> Result<()> {
        let m = &self.model;
        let mut time = Stopwatch::start(&mut self.profile);
        let head = Head {
            norm: RmsNorm {
                weight: &m.output_norm,
                eps: m.config.norm_eps,
            },
            weights: &m.head,
            scale: m.config.logit_scale,
            soft_cap: m.config.logit_soft_cap,
        };
        let rows = (first, rows);
        let done = self.backend.head(&self.x, rows, head, &mut self.normed);
        time.was(Part::Head);
        done
    }

    fn shortlist(&self) -> Option<&Shortlist> {
        self.backend.shortlist()
    }

    fn logits(&mut self) -> Result<&mut [f32]> {
        self.backend.logits()
    }

    fn take_profile(&mut self) -> Profile {
        std::mem::take(&mut self.profile)
    }

    fn device(&self) -> String {
        self.backend.name()
    }
}
