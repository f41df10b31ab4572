//! What a machine must be able to do to run a model: a dozen coarse operations on activations.
//! [`crate::decode`] is written against this trait alone.

pub(crate) mod cpu;
pub(crate) mod cuda;
mod kept;

use crate::{
    arch::{Config, LayerSpec},
    error::Result,
    model::{Ffn, Linear, Matrix, Model},
    sparsity::{Rule, SparsityPlan},
};
use countdown_kernels::shortlist::Shortlist;
use std::sync::Arc;

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The CPU.
    #[default]
    Cpu,
    /// The NVIDIA card of this number, from 0.
    Cuda(usize),
}

/// Whether tokens were given or are being generated.
///
/// Prompts are computed densely; steps follow the plan. Several tokens in one step are each decided by themselves,
/// so they give what one token at a time gives (a test says so), only quicker: useful to score a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Dense, whatever the plan.
    Prompt,
    /// By the plan's rules.
    Decode,
}

/// What one FFN saw, handed to an observer: rows of `inter` elements, one a token.
pub struct FfnTrace<'a> {
    /// The layer.
    pub layer: usize,
    /// Position of the first token.
    pub start: usize,
    /// Neurons of the layer.
    pub inter: usize,
    /// x, `[tokens, hidden]`.
    pub input: &'a [f32],
    /// act(W_gate x), `[tokens, inter]`.
    pub gate: &'a [f32],
    /// W_up x, `[tokens, inter]`.
    pub up: &'a [f32],
}

/// An observer of the FFNs of a forward pass.
pub type Observer<'a> = &'a mut dyn FnMut(FfnTrace<'_>);

/// An RMS norm.
#[derive(Clone, Copy)]
pub(crate) struct RmsNorm<'a> {
    /// What a row is multiplied by.
    pub(crate) weight: &'a [f32],
    /// Added to the mean square.
    pub(crate) eps: f32,
}

/// What makes logits: norm(x) W^T times `scale`, then `cap * tanh(x / cap)`.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) norm: RmsNorm<'a>,
    pub(crate) weights: &'a Matrix,
    pub(crate) scale: f32,
    pub(crate) soft_cap: Option<f32>,
}

/// One call of an FFN.
pub(crate) struct FfnCall<'a> {
    pub(crate) layer: usize,
    pub(crate) start: usize,
    pub(crate) tokens: usize,
    pub(crate) weights: &'a Ffn,
    /// `None` computes every neuron.
    pub(crate) rule: Option<&'a Rule>,
    pub(crate) observer: Option<Observer<'a>>,
}

/// One call of attention, of `tokens` tokens from position `start` on.
pub(crate) struct Attending<'a, B> {
    pub(crate) layer: usize,
    pub(crate) spec: &'a LayerSpec,
    pub(crate) start: usize,
    pub(crate) tokens: usize,
    /// Of q and k.
    pub(crate) norms: [Option<RmsNorm<'a>>; 2],
    /// `[tokens, heads * head_dim]`.
    pub(crate) q: &'a mut B,
    /// `[tokens, kv_heads * head_dim]`.
    pub(crate) k: &'a mut B,
    /// The same.
    pub(crate) v: &'a B,
}

/// What a step follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ByPlan {
    /// No plan.
    Dense,
    /// The plan set last.
    Sparse,
}

/// Whether operations must be issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Issue {
    /// They must.
    Needed,
    /// They need not: they are, or the device has recorded such a step before and runs that.
    Done,
}

/// A device. Operations take place in their order, but need not have ended, nor succeeded, before [`Backend::head`] or
/// [`Backend::take_kept`] says so. Buffers hold activations, `[tokens, width]` row-major; weights are named by the host's matrices.
pub(crate) trait Backend: Send {
    type Buffer: Send;
    type Cache: Send;

    /// Room for `tokens` rows of `width`.
    fn buffer(&self, tokens: usize, width: usize) -> Result<Self::Buffer>;
    /// An empty key/value cache.
    fn cache(&self, config: &Config, context: usize) -> Result<Self::Cache>;

    /// Gets ready for steps by a plan; `None` is dense. Refuses what the device cannot run.
    fn set_plan(&mut self, model: &Model, plan: Option<&Arc<SparsityPlan>>) -> Result<()>;
    /// What follows until [`Backend::end`] is a step that differs from others of its kind, by the plan or dense, in token and position only.
    fn begin(&mut self, token: u32, position: usize, by_plan: ByPlan) -> Issue;
    /// All operations of the step are issued. They must be once more where recording them failed.
    fn end(&mut self) -> Issue;

    /// Copies the first `tokens` rows to host memory.
    fn download(&mut self, x: &Self::Buffer, tokens: usize, to: &mut [f32]);
    /// Overwrites the first rows from host memory.
    fn upload(&mut self, from: &[f32], x: &mut Self::Buffer);

    /// out = rows of `table` times `scale`.
    fn embed(&mut self, table: &Matrix, tokens: &[u32], scale: f32, out: &mut Self::Buffer);
    /// RMS norm of the first `rows` rows of `weight.len()` elements.
    fn norm(&mut self, x: &Self::Buffer, rows: usize, norm: RmsNorm<'_>, out: &mut Self::Buffer);
    /// The same in place.
    fn norm_in_place(&mut self, x: &mut Self::Buffer, rows: usize, norm: RmsNorm<'_>);
    /// out = x W^T + bias, for several W.
    fn linears<const N: usize>(
        &mut self,
        x: &Self::Buffer,
        tokens: usize,
        products: [(&Linear, &mut Self::Buffer); N],
    );
    /// Norms q and k where there are norms of them, rotates them to their positions if the layer has a rope, appends k and v to the layer's cache, and attends; the result replaces q.
    fn attention(
        &mut self,
        cache: &mut Self::Cache,
        config: &Config,
        call: Attending<'_, Self::Buffer>,
    );
    /// The norms of q and k that there are, of `tokens` rows.
    fn norm_queries_and_keys(
        &mut self,
        c: &Config,
        tokens: usize,
        norms: [Option<RmsNorm<'_>>; 2],
        [q, k]: [&mut Self::Buffer; 2],
    ) {
        for ((x, heads), norm) in [(q, c.heads), (k, c.kv_heads)].into_iter().zip(norms) {
            if let Some(norm) = norm {
                let rows = tokens * heads * c.head_dim / norm.weight.len();
                self.norm_in_place(x, rows, norm);
            }
        }
    }
    /// out = FFN(x).
    fn ffn(&mut self, call: FfnCall<'_>, x: &Self::Buffer, out: &mut Self::Buffer);
    /// x += y times `scale`, the first `tokens` rows.
    fn add(&mut self, x: &mut Self::Buffer, y: &Self::Buffer, scale: f32, tokens: usize);
    /// out = norm(x) W^T + bias, for several W; `normed` is room for the norm.
    fn norm_linears<const N: usize>(
        &mut self,
        x: &Self::Buffer,
        tokens: usize,
        norm: RmsNorm<'_>,
        normed: &mut Self::Buffer,
        products: [(&Linear, &mut Self::Buffer); N],
    ) {
        self.norm(x, tokens, norm, normed);
        self.linears(normed, tokens, products);
    }
    /// x += the product `input W^T + bias`, or the norm of that, times `scale`; `spare` is room for the product.
    fn linear_add(
        &mut self,
        input: &Self::Buffer,
        tokens: usize,
        (linear, after): (&Linear, Option<RmsNorm<'_>>),
        spare: &mut Self::Buffer,
        x_and_scale: (&mut Self::Buffer, f32),
    ) {
        self.linears(input, tokens, [(linear, &mut *spare)]);
        self.norm_add(spare, tokens, after, x_and_scale);
    }
    /// x += FFN(x), or that of the norm before and with the norm after, times `scale`; `normed` and `spare` are room for the norm and the sum.
    fn ffn_add(
        &mut self,
        call: FfnCall<'_>,
        before_and_after: [Option<RmsNorm<'_>>; 2],
        normed: &mut Self::Buffer,
        spare: &mut Self::Buffer,
        x_and_scale: (&mut Self::Buffer, f32),
    ) {
        self.ffn_add_in_parts(call, before_and_after, normed, spare, x_and_scale);
    }
    /// The same by other operations.
    fn ffn_add_in_parts(
        &mut self,
        call: FfnCall<'_>,
        [before, after]: [Option<RmsNorm<'_>>; 2],
        normed: &mut Self::Buffer,
        spare: &mut Self::Buffer,
        (x, scale): (&mut Self::Buffer, f32),
    ) {
        let tokens = call.tokens;
        match before {
            Some(norm) => {
                self.norm(x, tokens, norm, normed);
                self.ffn(call, normed, spare);
            }
            None => self.ffn(call, x, spare),
        }
        self.norm_add(spare, tokens, after, (x, scale));
    }
    /// x += y, or its norm, times `scale`, the first `tokens` rows; y may change.
    fn norm_add(
        &mut self,
        y: &mut Self::Buffer,
        tokens: usize,
        norm: Option<RmsNorm<'_>>,
        (x, scale): (&mut Self::Buffer, f32),
    ) {
        if let Some(norm) = norm {
            self.norm_in_place(y, tokens, norm);
        }
        self.add(x, y, scale, tokens);
    }
    /// Neurons that FFNs computed since this was last asked, over all tokens; or what went wrong.
    fn take_kept(&mut self) -> Result<usize>;
    /// Makes the logits of `rows` rows of `x` from row `first`; they stay where the device has them. `normed` is room for the norm.
    fn head(
        &mut self,
        x: &Self::Buffer,
        first_and_rows: (usize, usize),
        head: Head<'_>,
        normed: &mut Self::Buffer,
    ) -> Result<()>;
    /// The largest logits of the row made last; `None` where all of them are at hand, or were made with others.
    fn shortlist(&self) -> Option<&Shortlist>;
    /// The logits made last in the host's memory, `[rows, vocab]`.
    fn logits(&mut self) -> Result<&mut [f32]>;

    /// What runs, for logs: instruction set or card.
    fn name(&self) -> String;
}
