//! FFNs on a card: by the kernels of steps, or by products for prompts.

use super::{Buffer, CudaBackend, RmsNorm, error, observed::Observed};
use crate::{
    backend::{ByPlan, FfnCall, FfnTrace},
    error::{Error, Result},
    model::Ffn,
    sparsity::Rule,
};
use countdown_kernels::cuda::{
    NormAddLaunch, Orientation, Output, PredictorShape,
    ffn::{Decide, FfnBuffers, FfnKernels, FfnShape, FfnWeights},
};

impl CudaBackend {
    pub(super) fn ffn_shape(
        &self,
        ffn: &Ffn,
        predictor: Option<PredictorShape>,
    ) -> Result<FfnShape> {
        let (gate, up) = (ffn.gate.dtype(), ffn.up.dtype());
        if gate != up {
            return Err(Error::Machine {
                cause: format!(
                    "gate is of type {gate} and up of type {up}, for which there is no CUDA kernel"
                ),
                remedy: "use --device cpu, or a model with both in one type".into(),
            });
        }
        Ok(FfnShape {
            hidden: self.hidden,
            inter: ffn.gate.rows(),
            weights: gate,
            down: self.weights.matrix(ffn.down.matrix()).dtype(),
            predictor,
            act: self.act,
            neighbours: self.neighbours,
        })
    }

    pub(super) fn compile(&mut self, shape: FfnShape) -> Result<()> {
        if !self.ffns.iter().any(|(s, _)| *s == shape) {
            let kernels = FfnKernels::new(&self.cuda, shape).map_err(error)?;
            self.ffns.push((shape, kernels));
        }
        Ok(())
    }

    /// Whether a rule belongs to no plan: the host decides by it.
    pub(super) fn is_alone(&self, rule: Option<&Rule>) -> bool {
        rule.is_some() && self.in_force == ByPlan::Dense
    }

    /// FFNs by the kernels of steps, token by token; of the output's own rows without `x`. Of one token, `then` is done with the output.
    pub(super) fn ffn_steps(
        &mut self,
        call: &FfnCall<'_>,
        x: Option<&Buffer>,
        norm: Option<RmsNorm<'_>>,
        mut out: Output<'_>,
        then: Option<NormAddLaunch>,
    ) {
        let inter = call.weights.gate.rows();
        let rule = call.rule.map(|_| {
            let plan = self.plans.first();
            &plan.expect("steps follow a plan that is set").rules[call.layer]
        });
        let shape = self.ffn_shape(call.weights, rule.and_then(|r| r.predictor()));
        let shape = shape.expect("types were checked when the model was uploaded");
        let found = self.ffns.iter_mut().find(|(s, _)| *s == shape);
        let (_, kernels) = found.expect("`new` and `set_plan` compiled all shapes");
        let weights = FfnWeights {
            gate: self.weights.matrix(&call.weights.gate),
            up: self.weights.matrix(&call.weights.up),
            down: self.weights.matrix(call.weights.down.matrix()),
        };
        let norm = norm.map(|n| (self.weights.vector(n.weight), n.eps));
        let mut launches = Vec::with_capacity(call.tokens);
        for row in 0..call.tokens {
            let decide = rule.map_or(Decide::All, |r| r.decide());
            let buffers = FfnBuffers {
                x: x.map(|x| &x.data),
                norm,
                y: out.again(),
                row,
                kept: &mut self.kept,
                at: row * self.layers + call.layer,
            };
            launches.push(kernels.prepare(&self.cuda, weights, decide, buffers));
        }
        if rule.is_some() {
            self.counted.push((call.layer, call.tokens));
        } else {
            self.dense += inter * call.tokens;
        }
        if let Some(then) = then {
            let one = launches.pop().filter(|_| launches.is_empty());
            launches.push(one.expect("one token").then(then));
        }
        launches.into_iter().for_each(|l| self.launch_ffn(l));
    }

    /// FFNs of several tokens, densely or by a rule of no plan; the coefficients of neurons that it does not keep become zero.
    pub(super) fn ffn_prompt(
        &mut self,
        call: &mut FfnCall<'_>,
        x: &Buffer,
        out: Option<&mut Buffer>,
    ) {
        let done = self.try_ffn_prompt(call, x, out);
        if let Err(e) = done {
            self.failed.get_or_insert(e);
        }
    }

    fn try_ffn_prompt(
        &mut self,
        call: &mut FfnCall<'_>,
        x: &Buffer,
        out: Option<&mut Buffer>,
    ) -> Result<()> {
        let alone = call.rule.filter(|_| self.is_alone(call.rule));
        let is_seen = call.observer.is_some() || alone.is_some();
        self.project_gate(call, x)?;
        self.project_up(call, x)?;
        if is_seen {
            self.show(call, x, alone)?;
        }
        let Some(out) = out else { return Ok(()) };
        if alone.is_none() {
            if is_seen {
                // Activated already: the product is made anew.
                self.project_gate(call, x)?;
            }
            let n = call.tokens * call.weights.gate.rows();
            self.step
                .multiply(&self.cuda, &mut self.gate, Some(&self.up), n, self.act)
                .map_err(error)?;
        }
        let down = self.weights.matrix(call.weights.down.matrix());
        let coefficients = (&self.gate, 0, call.tokens);
        let (cuda, step, columns) = (&self.cuda, &self.step, Orientation::RowPerInput);
        self.prompt
            .matmul(cuda, step, down, columns, coefficients, &mut out.data)
            .map_err(error)
    }

    /// W_gate x.
    fn project_gate(&mut self, call: &FfnCall<'_>, x: &Buffer) -> Result<()> {
        let w = self.weights.matrix(&call.weights.gate);
        let (cuda, step, rows) = (&self.cuda, &self.step, Orientation::RowPerOutput);
        self.prompt
            .matmul(
                cuda,
                step,
                w,
                rows,
                (&x.data, 0, call.tokens),
                &mut self.gate,
            )
            .map_err(error)
    }

    /// W_up x.
    fn project_up(&mut self, call: &FfnCall<'_>, x: &Buffer) -> Result<()> {
        let w = self.weights.matrix(&call.weights.up);
        let (cuda, step, rows) = (&self.cuda, &self.step, Orientation::RowPerOutput);
        self.prompt
            .matmul(cuda, step, w, rows, (&x.data, 0, call.tokens), &mut self.up)
            .map_err(error)
    }

    /// Activates gate, and shows the host what there is. By a rule that belongs to no plan the host replaces gate by the coefficients of the neurons that are
    /// kept, and zeros.
    fn show(&mut self, call: &mut FfnCall<'_>, x: &Buffer, alone: Option<&Rule>) -> Result<()> {
        let inter = call.weights.gate.rows();
        let lengths = [self.hidden, inter, inter].map(|n| call.tokens * n);
        let observed = match &mut self.observed {
            Some(observed) => observed,
            none => {
                let all = [x.data.len(), self.gate.len(), self.up.len()];
                none.insert(Observed::new(&self.cuda, all, self.threads)?)
            }
        };
        let cuda = &self.cuda;
        self.step
            .multiply(cuda, &mut self.gate, None, lengths[1], self.act)
            .and_then(|()| observed.fetch(cuda, [&x.data, &self.gate, &self.up], lengths))
            .map_err(error)?;
        if let Some(observer) = &mut call.observer {
            let [input, gate, up] = observed.seen(lengths).map_err(error)?;
            observer(FfnTrace {
                layer: call.layer,
                start: call.start,
                inter,
                input,
                gate,
                up,
            });
        }
        if let Some(rule) = alone {
            let by = (self.act, inter);
            let decided = observed.coefficients(rule, by, lengths);
            let (coefficients, kept) = decided.map_err(error)?;
            cuda.write(coefficients, &mut self.gate).map_err(error)?;
            self.dense += kept;
        }
        Ok(())
    }
}
