//! Training predictors on what a dense model's FFNs see.
//!
//! [`train`] goes through the model layer by layer. What a layer's FFN saw of the text, and which neurons it needed, becomes
//! `LayerData`; a `Student` is initialised from it in closed form, trained by `AdamW`, and finished as a
//! [`crate::sparsity::Predictor`]. Nothing depends on the number of threads, and a run that was killed comes to the same result.
//! A model that runs on a card is trained for there: `arithmetic` is what the host and the card have in common.

mod adamw;
mod arithmetic;
mod card;
mod elementwise;
mod finish;
mod fit;
mod host;
mod init;
mod labels;
mod layer;
mod layer_data;
mod linalg;
mod machine;
mod metrics;
mod request;
mod run;
mod samples;
mod scorer;
mod state;
mod students;

pub use fit::EpochLoss;
pub use labels::{TARGETS, Target};
pub use layer::LayerReport;
pub use metrics::Quality;
pub use request::{STORED, TrainRequest};
pub use run::{Identity, TrainProgress, TrainReport, train};
