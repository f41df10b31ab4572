//! A model's weights on a card, found by where the host has them.

use super::error;
use crate::{
    arch::Rope,
    error::Result,
    model::{Down, Matrix, Model, transposed_dtype},
};
use countdown_kernels::{
    cpu::Team,
    cuda::{Cuda, CudaSlice, Weights},
};
use std::collections::{HashMap, hash_map::Entry};

/// Copies of all matrices and vectors of a model.
pub(super) struct DeviceWeights {
    matrices: HashMap<usize, Weights>,
    vectors: HashMap<usize, CudaSlice<f32>>,
}

/// Where the host has it: a model is not moved while it is run.
fn place<T>(data: &[T]) -> usize {
    data.as_ptr() as usize
}

/// All matrices but the down projections; twice those that are shared.
fn matrices(model: &Model) -> impl Iterator<Item = &Matrix> {
    let of_layers = model.layers.iter().flat_map(|l| {
        let linears = [&l.query, &l.key, &l.value, &l.attn_output];
        let ffn = [&l.ffn.gate, &l.ffn.up];
        linears.into_iter().map(|l| &l.weight).chain(ffn)
    });
    [&model.embedding, &model.head].into_iter().chain(of_layers)
}

fn vectors(model: &Model) -> impl Iterator<Item = &Vec<f32>> {
    let of_layers = model.layers.iter().flat_map(|l| {
        let linears = [&l.query, &l.key, &l.value, &l.attn_output];
        let norms = [
            l.attn_norm.as_ref(),
            l.ffn_norm.as_ref(),
            l.query_norm.as_ref(),
            l.key_norm.as_ref(),
            l.post_attn_norm.as_ref(),
            l.post_ffn_norm.as_ref(),
        ];
        let biases = linears.into_iter().filter_map(|l| l.bias.as_ref());
        norms.into_iter().flatten().chain(biases)
    });
    std::iter::once(&model.output_norm).chain(of_layers)
}

impl DeviceWeights {
    /// Bytes that a model takes.
    pub(super) fn bytes(model: &Model) -> Result<usize> {
        let mut seen = HashMap::new();
        for m in matrices(model) {
            let bytes = Weights::bytes(m.dtype(), m.rows(), m.cols()).map_err(error)?;
            seen.insert(place(m.view().data()), bytes);
        }
        let mut bytes: usize = seen.values().sum();
        for l in &model.layers {
            let (inter, hidden) = (l.ffn.gate.rows(), model.config.hidden);
            let dtype = match &l.ffn.down {
                Down::Stored(m) => transposed_dtype(m.dtype(), hidden),
                Down::Transposed(m) => m.dtype(),
            };
            bytes += Weights::bytes(dtype, inter, hidden).map_err(error)?;
        }
        Ok(bytes + vectors(model).map(|v| 4 * v.len()).sum::<usize>())
    }

    /// Copies everything. `threads` help to lay out rows, and to transpose down projections that are stored otherwise.
    pub(super) fn upload(cuda: &Cuda, model: &Model, threads: usize) -> Result<DeviceWeights> {
        let mut weights = DeviceWeights {
            matrices: HashMap::new(),
            vectors: HashMap::new(),
        };
        let mut team = crate::session::team(threads)?;
        for m in matrices(model) {
            let place = place(m.view().data());
            if let Entry::Vacant(entry) = weights.matrices.entry(place) {
                entry.insert(Weights::upload(cuda, m.view(), Some(&mut team)).map_err(error)?);
            }
        }
        for l in &model.layers {
            let m = l.ffn.down.matrix();
            let copy = match &l.ffn.down {
                Down::Stored(m) => transposed(cuda, m, &mut team)?,
                Down::Transposed(m) => {
                    Weights::upload(cuda, m.view(), Some(&mut team)).map_err(error)?
                }
            };
            weights.matrices.insert(place(m.view().data()), copy);
        }
        for v in vectors(model) {
            let copy = cuda.upload(v).map_err(error)?;
            weights.vectors.insert(place(v), copy);
        }
        Ok(weights)
    }

    /// The copy of one of the model's matrices; of a down projection the transposed one.
    pub(super) fn matrix(&self, m: &Matrix) -> &Weights {
        let copy = self.matrices.get(&place(m.view().data()));
        copy.expect("all matrices of the model were uploaded")
    }

    /// The copy of one of the model's vectors.
    pub(super) fn vector(&self, v: &[f32]) -> &CudaSlice<f32> {
        let copy = self.vectors.get(&place(v));
        copy.expect("all vectors of the model were uploaded")
    }
}

fn transposed(cuda: &Cuda, m: &Matrix, team: &mut Team) -> Result<Weights> {
    Weights::upload(cuda, m.transposed(team).view(), Some(team)).map_err(error)
}

/// Cosines and sines in turns for all positions of a context, `[context, pairs]`.
pub(super) fn turns(rope: &Rope, context: usize) -> Vec<f32> {
    let frequencies = rope.frequencies(context);
    let mut turns = Vec::with_capacity(2 * context * frequencies.len());
    for position in 0..context {
        for frequency in frequencies {
            let angle = f64::from(position as f32 * frequency);
            turns.extend([angle.cos(), angle.sin()].map(|t| t as f32 * rope.magnitude));
        }
    }
    turns
}
