//! Models of any shape with random weights.
//!
//! Speed depends on shapes and types, not on what a model knows: a random model of the true shape
//! shows how fast the real one would decode, without a download. Its text is noise.

mod shape;
#[cfg(test)]
mod tests;

pub use shape::{Arch, Shape};

use crate::error::{Error, Result};
use crate::formats::gguf::{self, TensorInfo};
use crate::kernels::{DType, quant::pack_row};
use crate::rows;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use std::{
    io::{self, Write},
    ops::Range,
    path::Path,
    thread,
};

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Weights in all.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Matrices whose rows are no whole number of blocks of the type asked for, with the type they
    /// are stored in instead.
    pub fallbacks: Vec<(String, DType)>,
}

/// Writes a GGUF file of a model with random weights, of which matrices are stored as `dtype`.
///
/// Weights are normal with a standard deviation of `1 / sqrt(columns)`, so that a product has the
/// magnitude of its input; norms are near 1, biases near 0. The file is the same for the same
/// arguments, whatever the number of cores. A few MiB a core are in memory at a time. `progress`
/// gets the bytes done and the bytes in all, and stops the writing by an error, which leaves nothing
/// behind.
///
/// # Errors
/// [`crate::Error::Input`] if no model can have this shape or no GGUF file this type, [`crate::Error::Write`] if the file
/// cannot be written; then what stood at `path` is untouched.
pub fn write(
    path: &Path,
    shape: &Shape,
    dtype: DType,
    seed: u64,
    progress: &mut dyn FnMut(u64, u64) -> io::Result<()>,
) -> Result<Summary> {
    if !gguf::dtypes().any(|t| t == dtype) {
        return Err(Error::Input {
            cause: format!("a GGUF file cannot hold {dtype}, a type for predictors"),
            remedy: "choose one of GGUF's types, such as Q4_0".into(),
        });
    }
    let tensors = shape.tensors(dtype)?;
    let mut summary = Summary {
        parameters: shape.parameters()?,
        bytes: 0,
        fallbacks: Vec::new(),
    };
    for tensor in &tensors {
        let bytes = tensor.bytes().map_err(|source| Error::Write {
            path: path.into(),
            source,
        })?;
        summary.bytes += bytes as u64;
        if tensor.shape.len() == 2 && tensor.dtype != dtype {
            summary.fallbacks.push((tensor.name.clone(), tensor.dtype));
        }
    }
    let source = Source {
        quantiles: normal_quantiles(),
        seed,
    };
    let (mut stream, mut done) = (0, 0);
    gguf::write(
        path,
        &shape.metadata(dtype, seed),
        &tensors,
        |tensor, out| {
            stream += 1;
            source.write(tensor, stream, out, &mut |bytes| {
                done += bytes as u64;
                progress(done, summary.bytes)
            })
        },
    )?;
    Ok(summary)
}

/// Where weights come from.
struct Source {
    quantiles: Vec<f32>,
    seed: u64,
}

impl Source {
    /// Writes a tensor, chunks of rows in parallel. `stream` is its own part of the random numbers.
    fn write(
        &self,
        tensor: &TensorInfo,
        stream: u64,
        out: &mut dyn Write,
        wrote: &mut dyn FnMut(usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let (rows, cols) = match tensor.shape[..] {
            [rows, cols] => (rows, cols),
            _ => (1, tensor.shape.iter().product()),
        };
        let row_bytes = tensor.bytes()? / rows;
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let make = |chunk: usize, range: Range<usize>| {
            let count = range.len() * cols;
            let weights = self.weights(distribution(tensor, cols), stream, chunk, count);
            let mut bytes = vec![0; range.len() * row_bytes];
            pack_row(tensor.dtype, &weights, &mut bytes);
            Ok(bytes)
        };
        rows::write([rows, cols], threads, make, &mut |bytes| {
            out.write_all(bytes)?;
            wrote(bytes.len())
        })
    }

    /// Some elements of a tensor: chunk number `chunk` of random stream `stream`.
    fn weights(
        &self,
        (mean, deviation): (f32, f32),
        stream: u64,
        chunk: usize,
        count: usize,
    ) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(stream);
        // Chunks lie 2^32 words apart, more than any of them takes.
        random.set_word_pos((chunk as u128) << 32);
        let mut weights = vec![0.0; count];
        for pair in weights.chunks_mut(2) {
            let word = random.next_u32();
            for (weight, half) in pair.iter_mut().zip([word & 0xffff, word >> 16]) {
                *weight = mean + deviation * self.quantiles[half as usize];
            }
        }
        weights
    }
}

/// Mean and standard deviation of a tensor's elements.
fn distribution(tensor: &TensorInfo, cols: usize) -> (f32, f32) {
    if tensor.name.ends_with("norm.weight") {
        (1.0, 0.02)
    } else if tensor.name.ends_with(".bias") {
        (0.0, 0.02)
    } else {
        (0.0, 1.0 / (cols as f32).sqrt())
    }
}

/// The standard normal distribution as 65,536 equally likely values, ascending: with it, 16 random
/// bits make a normal number. Each value is where the area under the density, summed up step by
/// step, passes the middle of the value's share.
fn normal_quantiles() -> Vec<f32> {
    const COUNT: usize = 1 << 16;
    const STEP: f64 = 1e-5;
    let mut quantiles = Vec::with_capacity(COUNT);
    let (mut x, mut area) = (-6.0f64, 0.0f64);
    while quantiles.len() < COUNT {
        let middle = x + STEP / 2.0;
        area += STEP * (-middle * middle / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        x += STEP;
        while quantiles.len() < COUNT && area >= (quantiles.len() as f64 + 0.5) / COUNT as f64 {
            quantiles.push(x as f32);
        }
    }
    quantiles
}
