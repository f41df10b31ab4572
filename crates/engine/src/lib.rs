//! A decoder for large language models that reads only the weights a token needs.

pub mod arch;
mod backend;
pub mod bench;
mod calibrate;
pub mod chat;
pub mod convert;
mod decode;
mod error;
pub mod eval;
pub mod files;
pub mod formats;
pub mod generate;
mod layerwise;
pub mod model;
mod packing;
mod profile;
mod rows;
pub mod sampler;
mod savings;
pub mod session;
pub mod sparsity;
pub mod stop;
pub mod synth;
pub mod text;
pub mod tokenizer;
pub mod train;
mod worth;

pub use backend::{Device, FfnTrace, Observer, Phase};
pub use calibrate::{
    Allocation, Fit, Inputs, PlanRequest, Threshold, calibrate, down_norms, measure_realised,
};
pub use countdown_kernels as kernels;
pub use error::{Error, Result};
pub use generate::{GenerateOptions, Generator};
pub use layerwise::Layerwise;
pub use model::{DownLayout, Model};
pub use packing::Packing;
pub use profile::{Part, Profile};
pub use session::{Logits, Session, SessionOptions, Stats};
pub use sparsity::SparsityPlan;
pub use worth::FfnTimes;

/// The text that plans are calibrated on where the user names none: public domain, prose and code; see data/README.md.
pub const CALIBRATION_TEXT: &str = include_str!("../data/calibration.txt");

/// The README's example is compiled with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
