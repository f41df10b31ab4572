//! What can be amiss with CUDA.

use super::Card;
use cudarc::{driver::DriverError, nvrtc::result::NvrtcError};

/// What can be amiss with CUDA.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// There is no driver.
    #[error("no CUDA driver (libcuda) on this machine")]
    NoDriver,
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
}
