//! A decoder for large language models that reads only the weights a token needs.

mod error;
pub mod files;
pub mod formats;
pub mod synth;

pub use countdown_kernels as kernels;
pub use error::{Error, Result};
