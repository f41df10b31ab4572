//! A decoder for large language models that reads only the weights a token needs.

mod error;
pub mod tokenizer;

pub use countdown_kernels as kernels;
pub use error::{Error, Result};
