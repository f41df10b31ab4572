//! A decoder for large language models that reads only the weights a token needs.

pub mod chat;
mod error;
pub mod sampler;
pub mod stop;
pub mod tokenizer;

pub use countdown_kernels as kernels;
pub use error::{Error, Result};
