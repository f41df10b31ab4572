//! Training predictors on what a dense model's FFNs see.
//!
//! [`train`] goes through the model layer by layer. What a layer's FFN saw of the text, and which neurons it needed, becomes
//! [`LayerData`]; a [`Student`] is initialised from it in closed form, trained by [`AdamW`], and finished as a
//! [`crate::sparsity::Predictor`]. Nothing depends on the number of threads, and a run that was killed comes to the same result.

mod adamw;
mod elementwise;
mod finish;
mod fit;
mod init;
mod labels;
mod layer;
mod layer_data;
mod linalg;
mod metrics;
mod request;
mod run;
mod samples;
mod scorer;
mod state;
mod students;
mod work;

pub use adamw::{AdamW, Moments};
pub use fit::{EpochLoss, Schedule, State, Trainer};
pub use init::Standard;
pub use labels::{Labels, TARGETS, Target};
pub use layer::LayerReport;
pub use layer_data::{LayerData, Part, Spread};
pub use metrics::Quality;
pub use request::TrainRequest;
pub use run::{Identity, TrainProgress, TrainReport, train};
pub use samples::Samples;
pub use scorer::Scorer;
pub use students::{LowRank, Product, Shard, Student, Ternary};
pub use work::Work;
