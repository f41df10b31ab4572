//! Launches that wait for what is issued next, which may join them: the output of attention joins the FFN behind it, and the projections of the next layer the one before.

use super::{Buffer, CudaBackend, RmsNorm, error};
use crate::{
    error::{Error, Result},
    model::{Layer, Linear, Model},
};
use countdown_kernels::cuda::{
    AttentionKernels, FfnLaunch, NormAddLaunch, Output, Product, ProductsLaunch, Taken,
    ffn::Neighbours,
};

/// What waits.
pub(super) enum Waiting {
    /// The output of attention.
    Output(Box<ProductsLaunch>),
    /// An FFN, with what came before it.
    Ffn(Box<FfnLaunch>),
}

/// Names what steps are launched as: `joined`, or nothing, has the projections of a layer in the launch of its FFN where the model allows it, `apart` has a launch for each.
const LAUNCHES_VARIABLE: &str = "COUNTDOWN_LAUNCHES";

/// What runs beside the FFNs of a model: attention alone, where all projections of all layers can join FFNs. Values may be of another type, as they are in files of few bits.
pub(super) fn neighbours(model: &Model, attention: &AttentionKernels) -> Result<Neighbours> {
    let asked = std::env::var(LAUNCHES_VARIABLE);
    match asked.as_deref().unwrap_or("joined") {
        "joined" => joined(model, attention),
        "apart" => Ok(Neighbours::Products),
        other => Err(Error::Machine {
            cause: format!("{LAUNCHES_VARIABLE}: there is no {other:?}"),
            remedy: format!("unset {LAUNCHES_VARIABLE}, or set it to joined or apart"),
        }),
    }
}

fn joined(model: &Model, attention: &AttentionKernels) -> Result<Neighbours> {
    let c = &model.config;
    let types = |l: &Layer| (l.ffn.gate.dtype(), l.value.weight.dtype());
    let all = || model.layers.iter().map(types);
    // Values of another type, which are multiplied with the same input.
    let mixed = all().find(|(dtype, values)| dtype != values);
    let is_room = mixed.is_none_or(|(dtype, values)| {
        dtype.is_quantized() == values.is_quantized()
            && all().all(|t| t == (dtype, values) || t == (dtype, dtype))
    });
    let is_normed = |l: &Layer| [&l.post_attn_norm, &l.post_ffn_norm].map(|w| w.is_some());
    let first = model.layers.first().map_or([false; 2], is_normed);
    let joins = |l: &Layer| {
        let linears = [&l.query, &l.key, &l.attn_output];
        // What a block makes of attention's output has the room of its neurons' signals.
        l.ffn.gate.rows() >= c.hidden
            && is_normed(l) == first
            && linears.iter().all(|p| p.weight.dtype() == types(l).0)
    };
    if first[0] != first[1]
        || c.residual_scale != 1.0
        || !is_room
        || !model.layers.iter().all(joins)
    {
        return Ok(Neighbours::Products);
    }
    Ok(Neighbours::Attention {
        footprint: attention.footprint().map_err(error)?,
        values: mixed.map(|(_, values)| values),
        attended: c.heads * c.head_dim,
        sums: if first[0] { Taken::Normed } else { Taken::AsIs },
    })
}

impl CudaBackend {
    /// Launches what waits: nothing will join it.
    pub(super) fn flush(&mut self) {
        let done = match self.waiting.take() {
            None => Ok(()),
            Some(Waiting::Output(output)) => {
                let joints = self.joints.as_mut();
                let forgotten = joints.map_or(Ok(()), |j| j.forget(&self.cuda));
                forgotten.and_then(|()| output.launch(&self.cuda))
            }
            Some(Waiting::Ffn(ffn)) => ffn.launch(&self.cuda, self.joints.as_mut()),
        };
        self.check(done);
    }

    /// x += norm(y) times `scale`, which something goes before.
    pub(super) fn prepare_norm_add(
        &self,
        y: &Buffer,
        tokens: usize,
        norm: RmsNorm<'_>,
        (x, scale): (&mut Buffer, f32),
    ) -> NormAddLaunch {
        let weight = (self.weights.vector(norm.weight), norm.eps);
        let y = (&y.data, scale);
        let (cuda, step) = (&self.cuda, &self.step);
        step.prepare_norm_add(cuda, &mut x.data, y, tokens, weight)
    }

    /// The output of attention, which waits for an FFN if one may take it.
    pub(super) fn launch_output(&mut self, output: ProductsLaunch) {
        self.flush();
        self.waiting = Some(Waiting::Output(Box::new(output)));
        if self.joints.is_none() {
            self.flush();
        }
    }

    /// An FFN, which takes the output of attention if that waits, and waits for the projections of the next layer.
    pub(super) fn launch_ffn(&mut self, mut ffn: FfnLaunch) {
        if let Some(Waiting::Output(output)) =
            self.waiting.take_if(|w| matches!(w, Waiting::Output(_)))
            && let Some(alone) = ffn.join_output(*output)
        {
            self.waiting = Some(Waiting::Output(Box::new(alone)));
        }
        self.flush();
        self.waiting = Some(Waiting::Ffn(Box::new(ffn)));
        if self.joints.is_none() {
            self.flush();
        }
    }

    /// Projections, which join an FFN if one waits for them; that waits on, for attention.
    pub(super) fn launch_projections(&mut self, projections: ProductsLaunch) {
        let alone = match &mut self.waiting {
            Some(Waiting::Ffn(ffn)) => ffn.join_next(projections),
            _ => Some(projections),
        };
        if let Some(alone) = alone {
            self.flush();
            let done = alone.launch(&self.cuda);
            self.check(done);
        }
    }

    /// Launches what waits before attention of a step, which takes queries, keys and values from an FFN's launch if they have joined one and nothing came between.
    pub(super) fn flush_for_attention(&mut self, qkv: [&Buffer; 3]) {
        if let Some(Waiting::Ffn(ffn)) = &mut self.waiting {
            ffn.join_attention(&self.cuda, qkv.map(|b| &b.data));
        }
        self.flush();
    }

    /// Products of one token.
    pub(super) fn step_linears<const N: usize>(
        &mut self,
        x: &Buffer,
        norm: Option<RmsNorm<'_>>,
        products: [(&Linear, &mut Buffer); N],
    ) {
        let (cuda, step, all) = (&self.cuda, &mut self.step, &self.weights);
        let products = products.map(|(l, out)| Product {
            weights: all.matrix(&l.weight),
            bias: l.bias.as_ref().map(|b| all.vector(b)),
            out: Output::Write(&mut out.data),
        });
        let norm = norm.map(|n| (all.vector(n.weight), n.eps));
        let prepare = |p: &[_]| step.prepare_products(cuda, (&x.data, 0), norm, p);
        // A launch is of one type.
        match products
            .chunk_by(|a, b| a.weights.dtype() == b.weights.dtype())
            .map(prepare)
            .collect::<Result<Vec<_>, _>>()
        {
            Ok(launches) => launches
                .into_iter()
                .for_each(|l| self.launch_projections(l)),
            failed => self.check(failed.map(|_| ())),
        }
    }
}
