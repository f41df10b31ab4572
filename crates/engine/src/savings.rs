//! What sparsity could save, known from shapes and types alone.

use crate::model::{Down, Model, StepBytes, transposed_dtype};

impl Model {
    /// Weight bytes that a dense decode step would read, by part, if down projections were transposed (see
    /// [`crate::DownLayout::Transposed`]): what [`Model::bytes_per_token`] says of this model opened that way.
    pub fn bytes_per_token_transposed(&self) -> StepBytes {
        let down = |d: &Down| match d {
            Down::Transposed(m) => m.bytes(),
            Down::Stored(m) => {
                let (hidden, inter) = (m.rows(), m.cols());
                let row = transposed_dtype(m.dtype(), hidden).row_bytes(hidden);
                row.unwrap_or(0) * inter
            }
        };
        StepBytes {
            down: self.layers.iter().map(|l| down(&l.ffn.down)).sum(),
            ..self.bytes_per_token()
        }
    }
}
