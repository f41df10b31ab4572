//! A decoder for large language models that reads only the weights a token needs.

pub mod arch;
mod backend;
pub mod bench;
mod calibrate;
mod decode;
mod error;
pub mod eval;
pub mod files;
pub mod formats;
pub mod model;
pub mod session;
pub mod sparsity;
pub mod tokenizer;

pub use backend::{FfnTrace, Observer, Phase};
pub use calibrate::{PlanRequest, calibrate, down_norms};
pub use countdown_kernels as kernels;
pub use error::{Error, Result};
pub use model::{DownLayout, Model};
pub use session::{Session, SessionOptions, Stats};
pub use sparsity::SparsityPlan;
