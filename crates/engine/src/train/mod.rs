//! Training predictors on what a dense model's FFNs see.

mod elementwise;
pub mod labels;
pub mod students;
pub mod work;

pub use labels::{Labels, Target};
