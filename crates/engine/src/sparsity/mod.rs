//! Contextual sparsity: rules, plans that hold a rule a layer, and the methods that make them.

mod cats;
mod d_countdown;
mod dejavu;
mod dense;
mod m_countdown;
mod method;
mod plan;
mod plan_file;
pub mod predictor;
mod rule;
mod s_countdown;

pub use method::{CUTS, Cut, Form, METHODS, Method, PREDICTED, Practical, names};
pub use plan::{CalibrationText, Provenance, SparsityPlan, check_sparsity};
pub use predictor::{Estimator, Outer, PREDICTORS, Predictor, PredictorKind, PredictorSet};
pub use rule::{Keep, NeuronWeights, Rule, Score, Selection, Signal, ideal_drop};
