//! What FFNs saw, on the host: for observers, and for rules that belong to no plan, by which the host decides.

use super::error;
use crate::{
    backend::{cpu::kernels, kept::multiply_kept},
    error::Result,
    sparsity::{Estimator, Rule},
};
use countdown_kernels::{
    cpu::{Act, Kernels, Team},
    cuda::{Cuda, CudaError, CudaSlice, HostBuffer},
};

/// Memory for inputs, activated gates and up of a batch, and what decides by them.
pub(super) struct Observed {
    /// x `[batch, hidden]`; act(gate) and up, `[batch, inter]`.
    buffers: [HostBuffer<f32>; 3],
    team: Team,
    kernels: &'static Kernels,
    estimator: Estimator,
    signals: Vec<f32>,
    coefficients: Vec<f32>,
}

/// x, act(gate) and up of some tokens.
pub(super) type Seen<'a> = [&'a [f32]; 3];

impl Observed {
    /// Room for so many elements of the three.
    pub(super) fn new(cuda: &Cuda, lengths: [usize; 3], threads: usize) -> Result<Observed> {
        let [x, gate, up] = lengths.map(|n| cuda.host_buffer(n).map_err(error));
        Ok(Observed {
            buffers: [x?, gate?, up?],
            team: crate::session::team(threads)?,
            kernels: kernels()?,
            estimator: Estimator::default(),
            signals: Vec::new(),
            coefficients: Vec::new(),
        })
    }

    /// Copies the beginnings of the three from the card, once they are computed.
    pub(super) fn fetch(
        &mut self,
        cuda: &Cuda,
        from: [&CudaSlice<f32>; 3],
        lengths: [usize; 3],
    ) -> Result<(), CudaError> {
        for ((from, n), to) in from.into_iter().zip(lengths).zip(&mut self.buffers) {
            cuda.fetch(from, n, to)?;
        }
        cuda.synchronize()
    }

    /// What was fetched, of so many elements.
    pub(super) fn seen(&self, lengths: [usize; 3]) -> Result<Seen<'_>, CudaError> {
        let [x, gate, up] = &self.buffers;
        Ok([
            &x.get()?[..lengths[0]],
            &gate.get()?[..lengths[1]],
            &up.get()?[..lengths[2]],
        ])
    }

    /// The coefficients of what was fetched, `[tokens, inter]`, zero for neurons that the rule does not keep; and how many it keeps.
    pub(super) fn coefficients(
        &mut self,
        rule: &Rule,
        (act, inter): (Act, usize),
        lengths: [usize; 3],
    ) -> Result<(&[f32], usize), CudaError> {
        let [x, gate, up] = &self.buffers;
        let (x, up) = (&x.get()?[..lengths[0]], &up.get()?[..lengths[2]]);
        self.coefficients.clear();
        self.coefficients
            .extend_from_slice(&gate.get()?[..lengths[1]]);
        let (team, signals) = (&mut self.team, &mut self.signals);
        if let Some(p) = &rule.predictor {
            signals.resize(lengths[1], 0.0);
            self.estimator
                .signals(team, self.kernels, p, act, x, signals);
        }
        let kept = multiply_kept(team, rule, inter, &mut self.coefficients, up, signals);
        Ok((&self.coefficients, kept))
    }
}
