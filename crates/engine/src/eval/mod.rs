//! Quality: what a plan costs on a text, in choosing among answers, and in answers of its own; and where it chooses other neurons
//! than the exact choice.

mod agreement;
mod choice;
mod divergence;
mod generation;
mod journal;
mod perplexity;
mod requests;

pub use agreement::{Agreement, LayerAgreement, PairAgreement, Side, agreement};
pub use choice::{ChoiceOptions, ChoiceRow, ChoiceTask, choice};
pub use generation::{GenerationOptions, GenerationRow, GenerationTask, generation};
pub use perplexity::{PerplexityOptions, PerplexityRow, Stepping, perplexity};

use crate::{
    backend::Phase,
    error::Result,
    session::Session,
    sparsity::{Cut, Form, SparsityPlan},
};
use serde::Serialize;

/// What a row of results is about: dense, or a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Subject {
    /// The method's name.
    pub method: String,
    /// What predicts the signal; `None` where it is computed.
    pub predictor: Option<String>,
    /// How neurons are compared; `None` for dense.
    pub cut: Option<Cut>,
    /// Practical or ideal; `None` for dense.
    pub form: Option<Form>,
    /// The sparsity asked for; 0 for dense.
    pub target: f64,
}

impl Subject {
    /// The method and its predictor, for tables.
    pub fn label(&self) -> String {
        match &self.predictor {
            Some(predictor) => format!("{} by {predictor}", self.method),
            None => self.method.clone(),
        }
    }

    fn of(plan: Option<&SparsityPlan>) -> Subject {
        let from = plan.map(|p| &p.provenance);
        Subject {
            method: from.map_or("dense".into(), |p| p.method.clone()),
            predictor: from.and_then(|p| p.predictor.clone()),
            cut: from.map(|p| p.cut),
            form: from.map(|p| p.form),
            target: from.map_or(0.0, |p| p.target),
        }
    }
}

/// A share of documents, with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// In [0, 1].
    pub mean: f64,
    /// Standard deviation of the sample over the square root of its size; 0 for one document.
    pub stderr: f64,
}

impl Accuracy {
    fn of(right: usize, documents: usize) -> Accuracy {
        let n = documents as f64;
        let mean = right as f64 / n;
        Accuracy {
            mean,
            stderr: (mean * (1.0 - mean) / (n - 1.0).max(1.0)).sqrt(),
        }
    }
}

/// The neurons that the steps of a plan computed.
#[derive(Clone, Copy, Debug, Default)]
struct Neurons {
    kept: u64,
    all: u64,
}

impl Neurons {
    /// Those of the steps that a session has taken so far.
    fn so_far(session: &Session) -> Neurons {
        let stats = session.stats();
        Neurons {
            kept: stats.kept,
            all: stats.neurons,
        }
    }

    /// The share skipped; 0 where there were none.
    fn realised(self) -> f64 {
        match self.all {
            0 => 0.0,
            all => 1.0 - self.kept as f64 / all as f64,
        }
    }
}

impl std::ops::Sub for Neurons {
    type Output = Neurons;

    fn sub(self, before: Neurons) -> Neurons {
        Neurons {
            kept: self.kept - before.kept,
            all: self.all - before.all,
        }
    }
}

impl std::ops::AddAssign for Neurons {
    fn add_assign(&mut self, more: Neurons) {
        self.kept += more.kept;
        self.all += more.all;
    }
}

/// Tokens of a prompt computed at a time.
const PROMPT_BATCH: usize = 256;

/// Makes `prompt` the content of the cache, computed densely; what the cache holds of it already is kept.
///
/// A single token is computed by other kernels than several are, which round differently. So that results do not depend on
/// what the cache held before, a prompt of several tokens is never computed in such parts that one has a single token.
fn fill(session: &mut Session, prompt: &[u32]) -> Result<()> {
    let pairs = prompt.iter().zip(session.history());
    let mut from = pairs.take_while(|(a, b)| a == b).count();
    if prompt.len() - from == 1 {
        from = from.saturating_sub(1);
    }
    session.truncate(from);
    while from < prompt.len() {
        let left = prompt.len() - from;
        let n = match left {
            n if n == PROMPT_BATCH + 1 => PROMPT_BATCH - 1,
            n => n.min(PROMPT_BATCH),
        };
        session.trace(&prompt[from..from + n], Phase::Prompt, &mut |_| ())?;
        from += n;
    }
    Ok(())
}
