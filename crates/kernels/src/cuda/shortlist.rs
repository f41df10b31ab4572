//! The largest logits of a step, written to the host's memory.

use super::{
    Cuda, CudaError, HostBuffer,
    launch::{Grid, Source, sources},
};
use crate::shortlist::{Candidate, Shortlist};
use cudarc::driver::{CudaFunction, CudaSlice};

const SOURCES: [Source; 3] = sources!["types.cu", "flow.cu", "shortlist.cu"];

/// `KEPT`, `LANE_QUADS` and `SHORTLIST_WARPS` of `shortlist.cu`.
const KEPT: usize = 8;
const LANE_QUADS: usize = 4;
const WARPS: usize = 4;
/// Shares, where there are enough logits for as many and no more than they can take. More of them list more than a sampler asks for, fewer too little where
/// large logits meet.
const SHARES: usize = 256;

/// Finds the largest logits.
pub struct ShortlistKernels {
    function: CudaFunction,
    vocab: usize,
    shares: usize,
    records: HostBuffer<u64>,
}

#[repr(C)]
struct Arguments {
    logits: u64,
    records: u64,
    words: u64,
    words_to: u64,
    count: u32,
    vocab: u32,
    shares: u32,
}

impl ShortlistKernels {
    /// For `vocab` logits. Compiles, or takes what was compiled before.
    ///
    /// # Errors
    /// [`CudaError::NoCompiler`], [`CudaError::Code`] or what the driver says.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn new(cuda: &Cuda, vocab: usize) -> Result<ShortlistKernels, CudaError> {
        assert!(vocab > 0, "there are logits");
        let module = cuda.module(&SOURCES, &[])?;
        let quads = vocab.div_ceil(4);
        let shares = quads.min(SHARES).max(quads.div_ceil(32 * LANE_QUADS));
        Ok(ShortlistKernels {
            function: Cuda::function(&module, "shortlist", 0)?,
            vocab,
            shares,
            records: cuda.host_buffer(shares * (KEPT + 1))?,
        })
    }

    /// Lists the largest of `logits`, `[vocab]`, and copies as many of `words` along as `words_to` has room for, in the order of calls and without waiting.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Panics
    /// If `logits` or `words` are too short.
    pub fn list(
        &mut self,
        cuda: &Cuda,
        logits: &CudaSlice<f32>,
        (words, words_to): (&CudaSlice<u32>, &mut HostBuffer<u32>),
    ) -> Result<(), CudaError> {
        assert!(self.vocab <= logits.len() && words_to.0.len() <= words.len());
        let arguments = Arguments {
            logits: cuda.address(logits),
            records: self.records.address()?,
            words: cuda.address(words),
            words_to: words_to.address()?,
            count: words_to.0.len() as u32,
            vocab: self.vocab as u32,
            shares: self.shares as u32,
        };
        let grid = Grid::of(self.shares.div_ceil(WARPS), 32 * WARPS);
        // SAFETY: as `Shortlist` is declared; lengths were checked, and there is a record for each share.
        unsafe { cuda.launch(&self.function, grid, arguments) }
    }

    /// What was listed last, once it was waited for ([`Cuda::synchronize`]).
    ///
    /// # Errors
    /// What the driver says.
    pub fn read(&self, list: &mut Shortlist) -> Result<(), CudaError> {
        let records = self.records.get()?.chunks_exact(KEPT + 1);
        let candidate = |kept: u64| Candidate {
            logit: f32::from_bits((kept >> 32) as u32),
            id: kept as u32,
        };
        // Where a share has fewer, what is missing is not a number, which `max` passes over.
        let floor = records.clone().map(|r| candidate(r[KEPT - 1]).logit);
        let floor = floor.fold(f32::NEG_INFINITY, f32::max);
        list.candidates.clear();
        list.sums.clear();
        for record in records {
            let sum = f32::from_bits(record[KEPT] as u32);
            list.sums.push((candidate(record[0]).logit, sum));
            let kept = record[..KEPT].iter().map(|k| candidate(*k));
            list.candidates.extend(kept.take_while(|c| c.logit > floor));
        }
        Ok(())
    }
}
