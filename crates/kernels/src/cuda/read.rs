//! How fast a card's memory is read: the limit of steps.

use super::{
    Cuda, CudaError,
    launch::{Grid, Source, sources},
};
use cudarc::driver::{CudaFunction, CudaSlice};
use std::time::Instant;

const SOURCES: [Source; 3] = sources!["types.cu", "flow.cu", "read.cu"];
const THREADS: usize = 512;
/// Blocks of a multiprocessor, of which the best counts.
const BLOCKS: [usize; 3] = [2, 3, 4];
/// Words that a launch reads at most. Blocks drift apart, which costs some per cent where it reads more.
const PART: usize = 16 << 20;
/// How often all memory is read together, and how often that is timed. The best counts: whatever else runs only slows reading down.
const TIMES: usize = 3;
const ROUNDS: usize = 5;
/// Words of an element that kernels read.
const WORDS: usize = 4;

/// Memory to be read, and the kernel that reads it.
pub struct ReadProbe {
    function: CudaFunction,
    memory: CudaSlice<u32>,
    sum: CudaSlice<u32>,
}

#[repr(C)]
struct Arguments {
    from: u64,
    sum: u64,
    count: u64,
}

impl ReadProbe {
    /// Of `memory`, which should be more than the caches of the card hold. Compiles, or takes what was compiled before.
    ///
    /// # Errors
    /// [`CudaError::NoCompiler`], [`CudaError::Code`] or what the driver says.
    ///
    /// # Panics
    /// If the memory is no multiple of 16 bytes, or empty.
    pub fn new(cuda: &Cuda, memory: CudaSlice<u32>) -> Result<ReadProbe, CudaError> {
        assert!(!memory.is_empty() && memory.len().is_multiple_of(WORDS));
        let module = cuda.module(&SOURCES, &[("READ_THREADS", THREADS)])?;
        Ok(ReadProbe {
            function: Cuda::function(&module, "read_memory", 0)?,
            sum: cuda.zeros(1)?,
            memory,
        })
    }

    /// Reads all of the memory, with so many blocks for each multiprocessor.
    fn read(&mut self, cuda: &Cuda, blocks: usize) -> Result<(), CudaError> {
        let grid = Grid::of(blocks * cuda.card().multiprocessors, THREADS);
        let words = self.memory.len();
        for at in (0..words).step_by(PART) {
            let arguments = Arguments {
                from: cuda.address(&self.memory) + 4 * at as u64,
                sum: cuda.address(&self.sum),
                count: ((words - at).min(PART) / WORDS) as u64,
            };
            // SAFETY: `Read` of `read.cu`; the buffers are this probe's, and as long as it says.
            unsafe { cuda.launch(&self.function, grid, arguments)? };
        }
        Ok(())
    }

    /// The sum of all words, as the kernel reads them. For tests.
    ///
    /// # Errors
    /// What the driver says.
    pub fn sum(&mut self, cuda: &Cuda) -> Result<u32, CudaError> {
        cuda.write(&[0], &mut self.sum)?;
        self.read(cuda, BLOCKS[0])?;
        let mut sum = [0];
        cuda.read(&self.sum, &mut sum)?;
        Ok(sum[0])
    }

    /// GB/s (10^9 bytes a second).
    ///
    /// # Errors
    /// What the driver says.
    pub fn gb_s(&mut self, cuda: &Cuda) -> Result<f64, CudaError> {
        let mut best = f64::INFINITY;
        for blocks in BLOCKS {
            // The first of a kernel takes longer.
            self.read(cuda, blocks)?;
            for _ in 0..ROUNDS {
                cuda.synchronize()?;
                let started = Instant::now();
                for _ in 0..TIMES {
                    self.read(cuda, blocks)?;
                }
                cuda.synchronize()?;
                best = best.min(started.elapsed().as_secs_f64());
            }
        }
        let bytes = TIMES * self.memory.num_bytes();
        Ok(bytes as f64 / best / 1e9)
    }
}
