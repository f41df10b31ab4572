//! FFNs on a card: by the kernels of steps, or by products for prompts.

use super::{Buffer, CudaBackend, RmsNorm, error, plan::NO_RANK};
use crate::{
    backend::{FfnCall, FfnTrace},
    error::{Error, Result},
    model::Ffn,
};
use countdown_kernels::{
    DType,
    cuda::{
        Orientation, Output,
        ffn::{Decide, FfnBuffers, FfnKernels, FfnShape, FfnWeights},
    },
};

impl CudaBackend {
    pub(super) fn ffn_shape(
        &self,
        ffn: &Ffn,
        predictor: Option<(usize, DType)>,
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
        let (rank, predictor) = predictor.unwrap_or((NO_RANK, DType::BF16));
        Ok(FfnShape {
            hidden: self.hidden,
            inter: ffn.gate.rows(),
            rank,
            weights: gate,
            down: self.weights.matrix(ffn.down.matrix()).dtype(),
            predictor,
            act: self.act,
        })
    }

    pub(super) fn compile(&mut self, shape: FfnShape) -> Result<()> {
        if !self.ffns.iter().any(|(s, _)| *s == shape) {
            let kernels = FfnKernels::new(&self.cuda, shape).map_err(error)?;
            self.ffns.push((shape, kernels));
        }
        Ok(())
    }

    /// FFNs by the kernels of steps, token by token; of the output's own rows without `x`.
    pub(super) fn ffn_steps(
        &mut self,
        call: &FfnCall<'_>,
        x: Option<&Buffer>,
        norm: Option<RmsNorm<'_>>,
        mut out: Output<'_>,
    ) {
        let inter = call.weights.gate.rows();
        let rule = match (call.rule, self.plans.first()) {
            (None, _) => None,
            (Some(_), Some(plan)) => Some(&plan.rules[call.layer]),
            (Some(_), None) => {
                self.failed.get_or_insert(Error::Machine {
                    cause: "a rule was given to a card without a plan".into(),
                    remedy: "calibrate and train on the CPU (--device cpu)".into(),
                });
                return;
            }
        };
        let shape = self.ffn_shape(call.weights, rule.and_then(|r| r.rank()));
        let shape = shape.expect("types were checked when the model was uploaded");
        let found = self.ffns.iter_mut().find(|(s, _)| *s == shape);
        let (_, kernels) = found.expect("`new` and `set_plan` compiled all shapes");
        let weights = FfnWeights {
            gate: self.weights.matrix(&call.weights.gate),
            up: self.weights.matrix(&call.weights.up),
            down: self.weights.matrix(call.weights.down.matrix()),
        };
        let norm = norm.map(|n| (self.weights.vector(n.weight), n.eps));
        let mut done = Ok(());
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
            done = done.and_then(|()| kernels.run(&self.cuda, weights, decide, buffers));
        }
        if rule.is_some() {
            self.counted.push((call.layer, call.tokens));
        } else {
            self.dense += inter * call.tokens;
        }
        self.check(done);
    }

    /// FFNs of several tokens, densely.
    pub(super) fn ffn_prompt(
        &mut self,
        call: &mut FfnCall<'_>,
        x: &Buffer,
        out: Option<&mut Buffer>,
    ) {
        let (cuda, step) = (&self.cuda, &self.step);
        let (tokens, inter, act) = (call.tokens, call.weights.gate.rows(), self.act);
        let (prompt, gate, up) = (&mut self.prompt, &mut self.gate, &mut self.up);
        let w = |m| self.weights.matrix(m);
        let rows = Orientation::RowPerOutput;
        let x = (&x.data, 0, tokens);
        let run = || {
            prompt.matmul(cuda, step, w(&call.weights.gate), rows, x, gate)?;
            prompt.matmul(cuda, step, w(&call.weights.up), rows, x, up)?;
            if let Some(observer) = &mut call.observer {
                step.multiply(cuda, gate, None, tokens * inter, act)?;
                let mut seen = [self.hidden, inter, inter].map(|n| vec![0.0; tokens * n]);
                let [input, seen_gate, seen_up] = &mut seen;
                cuda.read(x.0, input)?;
                cuda.read(gate, seen_gate)?;
                cuda.read(up, seen_up)?;
                observer(FfnTrace {
                    layer: call.layer,
                    start: call.start,
                    inter,
                    input,
                    gate: seen_gate,
                    up: seen_up,
                });
                // Activated already: the product is made anew.
                prompt.matmul(cuda, step, w(&call.weights.gate), rows, x, gate)?;
            }
            let Some(out) = out else { return Ok(()) };
            step.multiply(cuda, gate, Some(up), tokens * inter, act)?;
            let down = w(call.weights.down.matrix());
            let columns = Orientation::RowPerInput;
            prompt.matmul(cuda, step, down, columns, (gate, 0, tokens), &mut out.data)
        };
        let done = run();
        self.check(done);
    }
}
