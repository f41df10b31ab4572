//! Numbers, not models: storage types, block formats, and the dense and sparse products of an LLM's
//! decode step, on slices and row ranges.
//!
//! Conventions:
//! - A weight matrix is row-major `[rows, cols]` ([`MatRef`]); a product `y = W x` is one dot product a row.
//! - Row lists are `u32` indices, ascending, each below `rows`.
//! - Instruction sets are chosen at run time ([`cpu::Kernels`]), and so is a GPU ([`cuda`]); [`reference`](mod@reference) is the oracle of all of them.
//! - Unsafe code of the project lives in this crate.

pub mod bytes;
pub mod cpu;
pub mod cuda;
pub mod dtype;
pub mod matrix;
pub mod quant;
pub mod reference;
pub mod shortlist;

pub use bytes::Bytes;
pub use dtype::DType;
pub use matrix::{Layout, MatRef, ShapeError};
