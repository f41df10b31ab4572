//! Quality: what a plan costs on a text.

mod divergence;
mod perplexity;

pub use perplexity::{PerplexityOptions, PerplexityRow, Stepping, perplexity};
