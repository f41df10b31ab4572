//! Neuron-major weights: the rows that a step reads only of the neurons it keeps, side by side in memory.
//!
//! A row of a gate, up or down matrix is half a kilobyte to a few kilobytes, too short for the hardware to fetch ahead. A neuron's
//! rows read as one run come up to twice as fast (docs/performance.md).

use crate::{
    model::{Down, Ffn, Matrix, Model},
    sparsity::{Keep, Rule, Signal, SparsityPlan},
};
use countdown_kernels::{Bytes, interleave};

/// Which of a neuron's rows lie side by side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// None: three matrices.
    #[default]
    Apart,
    /// Up and down: for a gate that is read of all neurons.
    UpDown,
    /// Gate and down: for an up that is read of all neurons.
    GateDown,
    /// All three: for neurons chosen before any of their rows is read.
    GateUpDown,
}

impl Packing {
    /// What suits a plan's steps: what they read only of the neurons kept.
    pub fn of(plan: &SparsityPlan) -> Packing {
        plan.rules.first().map_or(Packing::Apart, of_rule)
    }
}

fn of_rule(rule: &Rule) -> Packing {
    match (&rule.predictor, rule.keep, rule.signal) {
        // What is left of gate and up lies with the plan.
        (Some(p), ..) if p.rest.is_some() => Packing::Apart,
        (Some(_), ..) => Packing::GateUpDown,
        (None, Keep::Above(_), Signal::Gate) => Packing::UpDown,
        (None, Keep::Above(_), Signal::Up) => Packing::GateDown,
        (None, ..) => Packing::Apart,
    }
}

impl Model {
    /// The same model packed so, layer after layer: what the packed rows were taken from is freed as soon as no one else has it.
    /// All plans and dense steps give the same results; those that suit the packing are faster. A model with stored down
    /// projections stays as it is.
    #[must_use]
    pub fn packed(mut self, packing: Packing) -> Model {
        for layer in &mut self.layers {
            pack(&mut layer.ffn, packing);
        }
        self
    }
}

fn pack(ffn: &mut Ffn, packing: Packing) {
    let Down::Transposed(down) = &mut ffn.down else {
        return;
    };
    let mut parts = match packing {
        Packing::Apart => return,
        Packing::UpDown => vec![&mut ffn.up, down],
        Packing::GateDown => vec![&mut ffn.gate, down],
        Packing::GateUpDown => vec![&mut ffn.gate, &mut ffn.up, down],
    };
    let views: Vec<_> = parts.iter().map(|m| m.view()).collect();
    let data = Bytes::from(interleave(&views));
    let stride = views.iter().map(|v| v.row_bytes()).sum();
    let mut at = 0;
    for m in &mut parts {
        let bytes = m.view().row_bytes();
        let data = data.slice(at..at + m.rows().saturating_sub(1) * stride + bytes);
        **m = Matrix::strided(m.dtype(), m.rows(), m.cols(), stride, data)
            .expect("the rows were just laid out so");
        at += bytes;
    }
}
