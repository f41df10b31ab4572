//! Training predictors on what a dense model's FFNs see.

pub mod adamw;
mod elementwise;
pub mod init;
pub mod labels;
mod linalg;
pub mod metrics;
pub mod samples;
pub mod students;
pub mod work;

pub use adamw::AdamW;
pub use labels::{Labels, Target};
