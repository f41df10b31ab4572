//! Contextual sparsity: rules, plans that hold a rule a layer, and the methods that make them.

mod cats;
mod d_countdown;
mod dense;
mod m_countdown;
mod method;
mod plan;
mod rule;

pub use method::{Constants, Cut, Form, METHODS, Method, names};
pub use plan::{CalibrationText, Provenance, SparsityPlan, check_sparsity};
pub use rule::{Keep, NeuronWeights, Rule, Selection, Signal, ideal_drop};
