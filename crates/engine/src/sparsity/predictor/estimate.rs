//! Estimates for many tokens at once: calibration, training and batched evaluation.

use super::{Outer, Predictor};
use crate::model::Linear;
use countdown_kernels::cpu::{
    Act, Kernels, Team,
    gemm::{GemmWork, matmul},
};

/// Memory for estimates of many tokens.
#[derive(Default)]
pub struct Estimator {
    gemm: GemmWork,
    z: Vec<f32>,
    up: Vec<f32>,
}

impl Estimator {
    /// The signals that `p` estimates from `x` `[tokens, hidden]`, `[tokens, inter]`. As prompts are multiplied; steps round `x` to 8 bits.
    pub fn signals(
        &mut self,
        team: &mut Team,
        k: &Kernels,
        p: &Predictor,
        act: Act,
        x: &[f32],
        out: &mut [f32],
    ) {
        let Estimator { gemm, z, up } = self;
        let tokens = out.len() / p.inter();
        let z = match &p.inner {
            None => x,
            Some(a) => {
                z.resize(tokens * a.rows(), 0.0);
                matmul(team, k, a.view(), x, tokens, z, gemm);
                z
            }
        };
        let mut rows = |l: &Linear, team: &mut Team, out: &mut [f32]| {
            matmul(team, k, l.weight.view(), z, tokens, out, gemm);
            if let Some(bias) = &l.bias {
                for row in out.chunks_exact_mut(bias.len()) {
                    row.iter_mut().zip(bias).for_each(|(o, b)| *o += b);
                }
            }
        };
        match &p.outer {
            Outer::Logits(l) => rows(l, team, out),
            Outer::Gate(l) => {
                rows(l, team, out);
                team.split(out, 1024, |_, part| k.act(act, part));
            }
            Outer::Product { gate, up: linear } => {
                up.resize(out.len(), 0.0);
                rows(gate, team, out);
                rows(linear, team, up);
                let up = &up[..];
                team.split(out, 1024, |at, part| {
                    k.glu(act, part, &up[at..at + part.len()]);
                });
            }
        }
    }
}
