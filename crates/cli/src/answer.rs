//! An answer as it streams: the flags that shape it, Ctrl+C, and the line of figures at its end.

use crate::{
    args::at_least,
    console::Console,
    failure::{Failure, Result},
    interrupt::Answering,
    progress::Progress,
};
use clap::Args;
use countdown::{
    GenerateOptions, Generator, Session, SparsityPlan, Stats,
    generate::{FinishReason, OnFull, Timings},
    model::ReadDensely,
    sampler::{Sampler, SamplingOptions},
    tokenizer::Tokenizer,
};

/// How an answer is drawn and where it ends.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Generation")]
pub(crate) struct AnswerArgs {
    /// Tokens at most; -1 for no limit but the context's
    #[arg(short = 'n', long, aliases = ["n-predict"], value_name = "N", default_value_t = -1, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    predict: i64,
    /// Text that ends the answer and is not part of it; may be given several times
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    reverse_prompt: Vec<String>,
    /// When the context is full, forget the older half instead of ending
    #[arg(long)]
    context_shift: bool,
    /// Tokens at the start that --context-shift never forgets
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = at_least(0), requires = "context_shift")]
    keep: usize,
    /// Temperature; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = SamplingOptions::default().temperature, allow_negative_numbers = true)]
    temp: f32,
    /// Only the K most likely tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = SamplingOptions::default().top_k, value_parser = at_least(0))]
    top_k: usize,
    /// Only the most likely tokens that together reach this probability; 1 for all
    #[arg(long, value_name = "P", default_value_t = SamplingOptions::default().top_p, allow_negative_numbers = true)]
    top_p: f32,
    /// Only tokens at least this likely, relative to the most likely one; 0 for all
    #[arg(long, value_name = "P", default_value_t = SamplingOptions::default().min_p, allow_negative_numbers = true)]
    min_p: f32,
    /// Makes recent tokens less likely; 1 does nothing
    #[arg(long, value_name = "X", default_value_t = SamplingOptions::default().repeat_penalty, allow_negative_numbers = true)]
    repeat_penalty: f32,
    /// How many of the last tokens count as recent
    #[arg(long, value_name = "N", default_value_t = SamplingOptions::default().repeat_last_n, value_parser = recent())]
    repeat_last_n: usize,
    /// Same seed, same answer; -1 for another one each time
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    seed: i64,
}

/// A number of recent tokens: as many as the longest contexts have.
fn recent() -> clap::builder::RangedU64ValueParser<usize> {
    clap::builder::RangedU64ValueParser::new().range(0..=1 << 20)
}

impl AnswerArgs {
    /// Whether old text is dropped when the context is full.
    pub(crate) fn shifts(&self) -> bool {
        self.context_shift
    }

    /// The options, checked.
    pub(crate) fn options(&self) -> Result<GenerateOptions> {
        let sampling = SamplingOptions {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            seed: u64::try_from(self.seed).ok(),
        };
        // Before a model is loaded rather than after.
        Sampler::new(sampling.clone(), 1)?;
        Ok(GenerateOptions {
            max_tokens: usize::try_from(self.predict).ok(),
            stop: self.reverse_prompt.clone(),
            sampling,
            on_full: if self.context_shift {
                OnFull::Shift { keep: self.keep }
            } else {
                OnFull::Fail
            },
        })
    }
}

/// An answer, complete or not.
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) timings: Timings,
    pub(crate) end: End,
    /// Share of neurons skipped; `None` without a plan.
    pub(crate) realised: Option<f64>,
    /// Effective read rate of the steps, in GB/s.
    pub(crate) bandwidth: f64,
}

/// How an answer ended.
pub(crate) enum End {
    /// By itself.
    Finished(FinishReason),
    /// By Ctrl+C.
    Interrupted,
    /// By something that went wrong, after the text so far.
    Failed(Failure),
}

impl End {
    /// Its name in JSON.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            End::Finished(FinishReason::Stop) => "stop",
            End::Finished(FinishReason::Length) => "length",
            End::Interrupted => "interrupted",
            End::Failed(_) => "error",
        }
    }
}

/// Prompts from this many tokens on show their progress.
const LONG_PROMPT: usize = 512;

/// Answers `prompt`; `show` gets the text as it comes.
///
/// # Errors
/// Those of the prompt. What happens later is in [`Answer::end`].
pub(crate) fn answer(
    console: &Console,
    session: &mut Session,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: GenerateOptions,
    mut show: impl FnMut(&str) -> Result<()>,
) -> Result<Answer> {
    let before = session.stats();
    let bar = (prompt.len() >= LONG_PROMPT).then(|| Progress::bar(console, "prompt"));
    let mut generator = Generator::new(session, tokenizer, prompt, options, |done, all| {
        if let Some(bar) = &bar {
            bar.update(done, all);
        }
    })?;
    drop(bar);
    let answering = Answering::begin();
    let mut text = String::new();
    let end = loop {
        if answering.is_stopped() {
            break End::Interrupted;
        }
        match generator.next() {
            Some(Ok(piece)) => {
                text.push_str(&piece);
                if let Err(e) = show(&piece) {
                    break End::Failed(e);
                }
            }
            Some(Err(e)) => break End::Failed(e.into()),
            None => break End::Finished(generator.finish_reason().unwrap_or(FinishReason::Stop)),
        }
    };
    drop(answering);
    let (tokens, timings) = (generator.tokens().to_vec(), generator.timings());
    let (realised, bytes) = reading(session, before, timings);
    Ok(Answer {
        text,
        tokens,
        timings,
        end,
        realised,
        bandwidth: bytes * timings.step_rate() / 1e9,
    })
}

/// The realised sparsity since `before`, and the bytes that a step in the middle of the answer read.
fn reading(session: &Session, before: Stats, timings: Timings) -> (Option<f64>, f64) {
    let steps = session.stats().since(before);
    let plan = session.plan();
    let reads = plan.map_or(ReadDensely::All, SparsityPlan::reads);
    let kept = 1.0 - steps.realised_sparsity();
    let middle = session.position().saturating_sub(timings.steps / 2);
    let bytes =
        session.model().bytes_per_token().at(reads, kept) + session.cache_bytes(middle) as f64;
    (plan.map(|_| 1.0 - kept), bytes)
}

impl Answer {
    /// The line at the end, in llama.cpp's form.
    pub(crate) fn figures(&self) -> String {
        let mut figures = vec![format!("Prompt: {:.1} t/s", self.timings.prompt_rate())];
        if self.timings.steps > 0 {
            figures.push(format!("Generation: {:.1} t/s", self.timings.step_rate()));
            if let Some(realised) = self.realised {
                figures.push(format!("sparsity realised {realised:.2}"));
            }
            figures.push(format!("{:.1} GB/s", self.bandwidth));
        }
        format!("[ {} ]", figures.join(" | "))
    }
}
