//! What can be amiss with CUDA.

use super::{AttentionShape, Card};
use crate::DType;
use cudarc::{cublas::result::CublasError, driver::DriverError, nvrtc::result::NvrtcError};

/// What can be amiss with CUDA.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// There is no driver.
    #[error("no CUDA driver (libcuda) on this machine")]
    NoDriver,
    /// The driver lacks a function.
    #[error("the CUDA driver on this machine is too old: it has no {function}")]
    OldDriver {
        /// Which.
        function: &'static str,
    },
    /// There is no compiler.
    #[error("no CUDA run-time compiler (libnvrtc) on this machine; it comes with the CUDA toolkit")]
    NoCompiler,
    /// There is no such card.
    #[error("no CUDA card number {ordinal}: this machine has {count}")]
    NoCard {
        /// The card asked for, from 0.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The card lacks instructions.
    #[error("{} has compute capability {}.{}; kernels need 9.0 or more", card.name, card.capability.0, card.capability.1)]
    OldCard {
        /// The card.
        card: Card,
    },
    /// The driver reports an error.
    #[error("CUDA, {doing}: {source}")]
    Driver {
        /// In the middle of what.
        doing: &'static str,
        /// Which.
        source: DriverError,
    },
    /// The compiler cannot be used.
    #[error("CUDA's run-time compiler, {doing}: {source:?}")]
    Compiler {
        /// In the middle of what.
        doing: &'static str,
        /// Which.
        source: NvrtcError,
    },
    /// Device code does not compile.
    #[error("device code does not compile with {options}: {log}")]
    Code {
        /// The compiler's options.
        options: String,
        /// What the compiler says.
        log: String,
    },
    /// There is no library for products.
    #[error(
        "no cuBLAS (libcublas) on this machine, which prompts need; it comes with the CUDA toolkit"
    )]
    NoBlas,
    /// The library for products reports an error.
    #[error("cuBLAS: {source:?}")]
    Blas {
        /// Which.
        source: CublasError,
    },
    /// Weights that have no kernels.
    #[error("no CUDA kernel for weights of type {dtype} in rows of {cols}")]
    Weights {
        /// Their type.
        dtype: DType,
        /// Columns of a row.
        cols: usize,
    },
    /// Attention that has no kernels.
    #[error(
        "no CUDA kernel for attention of {} heads over {} of width {}, cache {}",
        shape.heads, shape.kv_heads, shape.head_dim, shape.cache
    )]
    Attention {
        /// Its shape.
        shape: AttentionShape,
    },
}
