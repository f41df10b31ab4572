//! Logits on a card. Of a single token the largest are listed in the host's memory, from which it draws as a rule; all of them are fetched where somebody asks.

use super::{Buffer, CudaBackend, error};
use crate::{backend::Head, error::Result};
use countdown_kernels::{
    cuda::{
        Cuda, CudaError, CudaSlice, HostBuffer, Orientation, Output, Product, ShortlistKernels,
    },
    shortlist::Shortlist,
};

/// Rows that are made at a time.
const ROWS: usize = 32;

pub(super) struct Logits {
    vocab: usize,
    /// `[ROWS, vocab]` at most.
    made: CudaSlice<f32>,
    /// Rows made last.
    rows: usize,
    kernels: ShortlistKernels,
    shortlist: Shortlist,
    /// Room for as many rows as were ever asked for.
    fetched: Option<HostBuffer<f32>>,
}

impl Logits {
    /// Bytes on the card.
    pub(super) fn bytes(vocab: usize, batch: usize) -> usize {
        4 * ROWS.min(batch) * vocab
    }

    pub(super) fn new(cuda: &Cuda, vocab: usize, batch: usize) -> Result<Logits, CudaError> {
        Ok(Logits {
            vocab,
            made: cuda.zeros(ROWS.min(batch) * vocab)?,
            rows: 0,
            kernels: ShortlistKernels::new(cuda, vocab)?,
            shortlist: Shortlist::default(),
            fetched: None,
        })
    }

    /// The largest, of a single row.
    pub(super) fn shortlist(&self) -> Option<&Shortlist> {
        (self.rows == 1).then_some(&self.shortlist)
    }

    /// All that were made last, `[rows, vocab]`.
    pub(super) fn fetch(&mut self, cuda: &Cuda) -> Result<&mut [f32]> {
        let n = self.rows * self.vocab;
        let has_room = |room: &HostBuffer<f32>| room.get().is_ok_and(|room| room.len() >= n);
        let room = match self.fetched.take().filter(has_room) {
            Some(room) => room,
            None => cuda.host_buffer(n).map_err(error)?,
        };
        let room = self.fetched.insert(room);
        let fetched = cuda.fetch(&self.made, n, room);
        fetched.and_then(|()| cuda.synchronize()).map_err(error)?;
        Ok(&mut room.get_mut().map_err(error)?[..n])
    }
}

impl CudaBackend {
    /// See [`crate::backend::Backend::head`].
    pub(super) fn make_logits(
        &mut self,
        x: &Buffer,
        (first, rows): (usize, usize),
        head: Head<'_>,
        normed: &mut Buffer,
    ) -> Result<(), CudaError> {
        let (cuda, step, logits) = (&self.cuda, &mut self.step, &mut self.logits);
        let weights = self.weights.matrix(head.weights);
        let norm = (self.weights.vector(head.norm.weight), head.norm.eps);
        logits.rows = rows;
        if rows == 1 {
            let product = Product {
                weights,
                bias: None,
                out: Output::Write(&mut logits.made),
            };
            step.products(cuda, (&x.data, first), Some(norm), &[product])?;
        } else {
            let (of, by) = (&mut normed.data, Orientation::RowPerOutput);
            step.norm(cuda, &x.data, first + rows, norm, Some(&mut *of))?;
            let (x, prompt) = ((&*of, first, rows), &mut self.prompt);
            prompt.matmul(cuda, step, weights, by, x, &mut logits.made)?;
        }
        let capped = (head.scale, head.soft_cap);
        if capped != (1.0, None) {
            step.cap(cuda, &mut logits.made, capped, rows * logits.vocab)?;
        }
        if rows == 1 {
            // Neurons kept come along.
            let kept = (&self.kept, &mut self.fetched_kept);
            logits.kernels.list(cuda, &logits.made, kept)?;
            cuda.synchronize()?;
            logits.kernels.read(&mut logits.shortlist)?;
            self.is_kept_fetched = true;
        }
        Ok(())
    }
}
