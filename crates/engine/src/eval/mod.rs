//! Quality: what a plan costs on a text, and where it chooses other neurons than the exact choice.

mod agreement;
mod divergence;
mod perplexity;

pub use agreement::{Agreement, LayerAgreement, PairAgreement, Side, agreement};
pub use perplexity::{PerplexityOptions, PerplexityRow, Stepping, perplexity};
