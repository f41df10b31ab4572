//! Contextual sparsity: rules, plans that hold a rule a layer, and the methods that make them.

mod cats;
mod d_countdown;
mod dense;
mod m_countdown;
mod method;
mod plan;
mod rule;

pub use method::{Constants, Cut, Form, METHODS, Method};
pub use plan::{Provenance, SparsityPlan};
pub use rule::{Keep, NeuronWeights, Rule, Selection, Signal, ideal_drop};
