//! What a session needs of a card's memory.

use super::error;
use crate::{
    error::{Error, Result},
    model::Model,
};
use countdown_kernels::cuda::Cuda;

/// Memory left to the driver and its libraries: kernels, graphs, cuBLAS's workspace.
const RESERVE: usize = 512 << 20;

/// Bytes of memory that a session needs.
pub(super) struct Need {
    pub(super) weights: usize,
    pub(super) cache: usize,
    pub(super) activations: usize,
}

impl Need {
    /// Refuses a card that has less free.
    pub(super) fn check(&self, cuda: &Cuda) -> Result<()> {
        let free = cuda.free_memory().map_err(error)?;
        let need = self.weights + self.cache + self.activations + RESERVE;
        if need <= free {
            return Ok(());
        }
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        Err(Error::Machine {
            cause: format!(
                "{} has {} MiB free, and this needs {}: {} for weights, {} for keys and values, {} for activations, {} in reserve",
                cuda.card().name,
                free >> 20,
                mib(need),
                mib(self.weights),
                mib(self.cache),
                mib(self.activations),
                mib(RESERVE),
            ),
            remedy: "use a shorter context (-c), a smaller batch (-b) or --device cpu".into(),
        })
    }
}

/// Elements of the largest quantised matrix: prompts unpack one at a time.
pub(super) fn largest_quantised(model: &Model) -> usize {
    let of_layers = model.layers.iter().flat_map(|l| {
        let linears = [&l.query, &l.key, &l.value, &l.attn_output];
        let ffn = [&l.ffn.gate, &l.ffn.up, l.ffn.down.matrix()];
        linears.into_iter().map(|l| &l.weight).chain(ffn)
    });
    let all = of_layers.chain([&model.head]);
    let quantised = all.filter(|m| m.dtype().is_quantized());
    quantised.map(|m| m.rows() * m.cols()).max().unwrap_or(0)
}
