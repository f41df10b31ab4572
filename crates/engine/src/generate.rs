//! Generation: an iterator over the text of an answer.

use crate::{
    backend::Phase,
    error::Result,
    sampler::{Sampler, SamplingOptions},
    session::Session,
    stop::StopMatcher,
    tokenizer::{TextStream, Tokenizer},
};
use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

/// What to do when the context is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFull {
    /// End with [`crate::Error::ContextFull`].
    Fail,
    /// Drop the older half of what follows the first `keep` tokens, and compute the rest anew as a prompt.
    Shift {
        /// Tokens at the start that always stay.
        keep: usize,
    },
}

/// How to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Tokens at most; no limit but the context's if `None`.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// How tokens are drawn.
    pub sampling: SamplingOptions,
    /// What to do when the context is full.
    pub on_full: OnFull,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_tokens: None,
            stop: Vec::new(),
            sampling: SamplingOptions::default(),
            on_full: OnFull::Fail,
        }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop text came.
    Stop,
    /// It has as many tokens as were asked for.
    Length,
}

/// Tokens and time of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Tokens of the prompt, those found in the cache included.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that had to be computed.
    pub prompt_computed: usize,
    /// Time they took.
    pub prompt_time: Duration,
    /// Tokens drawn.
    pub tokens: usize,
    /// One-token steps computed; after a prompt the first token needs none.
    pub steps: usize,
    /// Time the steps took, sampling included.
    pub step_time: Duration,
}

impl Timings {
    /// Prompt tokens computed a second.
    pub fn prompt_rate(&self) -> f64 {
        self.prompt_computed as f64 / self.prompt_time.as_secs_f64().max(1e-9)
    }
    /// Steps a second.
    pub fn step_rate(&self) -> f64 {
        self.steps as f64 / self.step_time.as_secs_f64().max(1e-9)
    }
}

/// An answer as it comes: yields pieces of text that are whole characters.
pub struct Generator<'a> {
    session: &'a mut Session,
    tokenizer: &'a Tokenizer,
    text: TextStream<'a>,
    stop: StopMatcher,
    sampler: Sampler,
    options: GenerateOptions,
    next: u32,
    /// The last token of the answer, until it is fed.
    unfed: Option<u32>,
    tokens: Vec<u32>,
    finish: Option<FinishReason>,
    timings: Timings,
}

impl<'a> Generator<'a> {
    /// Computes the prompt (what the session holds of it already is kept) and draws the first token.
    /// `progress(done, all)` counts the prompt's tokens.
    ///
    /// # Errors
    /// Of [`Session::prompt`] and of the sampling options.
    pub fn new(
        session: &'a mut Session,
        tokenizer: &'a Tokenizer,
        prompt: &[u32],
        options: GenerateOptions,
        progress: impl FnMut(usize, usize),
    ) -> Result<Generator<'a>> {
        let mut sampler = Sampler::new(options.sampling.clone(), session.model().config.vocab)?;
        let before = session.history().to_vec();
        let kept = prompt
            .iter()
            .zip(&before)
            .take_while(|(a, b)| a == b)
            .count();
        let started = Instant::now();
        let logits = session.prompt(prompt, progress)?;
        let prompt_time = started.elapsed();
        prompt.iter().for_each(|&t| sampler.accept(t));
        let next = logits.sample(&mut sampler)?;
        let timings = Timings {
            prompt_tokens: prompt.len(),
            prompt_computed: prompt.len() - kept.min(prompt.len() - 1),
            prompt_time,
            ..Timings::default()
        };
        Generator::begin(session, tokenizer, sampler, options, next, timings)
    }

    /// Feeds `last` behind what the session holds by a one-token step and draws the first token from that: under a plan,
    /// the first token is predicted under it like those that follow.
    ///
    /// # Errors
    /// Of [`Session::feed`] and of the sampling options.
    pub(crate) fn after_step(
        session: &'a mut Session,
        tokenizer: &'a Tokenizer,
        last: u32,
        options: GenerateOptions,
    ) -> Result<Generator<'a>> {
        let mut sampler = Sampler::new(options.sampling.clone(), session.model().config.vocab)?;
        let prompt = session.history().iter().chain([&last]);
        prompt.for_each(|&t| sampler.accept(t));
        let started = Instant::now();
        let logits = session.feed(&[last], Phase::Decode)?;
        let next = logits.sample(&mut sampler)?;
        let timings = Timings {
            prompt_tokens: session.position(),
            steps: 1,
            step_time: started.elapsed(),
            ..Timings::default()
        };
        Generator::begin(session, tokenizer, sampler, options, next, timings)
    }

    fn begin(
        session: &'a mut Session,
        tokenizer: &'a Tokenizer,
        sampler: Sampler,
        options: GenerateOptions,
        next: u32,
        timings: Timings,
    ) -> Result<Generator<'a>> {
        Ok(Generator {
            text: tokenizer.stream(),
            stop: StopMatcher::new(options.stop.clone())?,
            session,
            tokenizer,
            sampler,
            options,
            next,
            unfed: None,
            tokens: Vec::new(),
            finish: None,
            timings,
        })
    }

    /// Why the answer ended; `None` while it goes on.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }
    /// The tokens drawn so far, the one that ended the answer not included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
    /// Tokens and time so far.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Feeds the token taken last and takes the one drawn after it. Returns the text that became certain.
    fn advance(&mut self) -> Result<String> {
        if self
            .options
            .max_tokens
            .is_some_and(|n| self.tokens.len() >= n)
        {
            return Ok(self.end(FinishReason::Length));
        }
        if let Some(token) = self.unfed.take() {
            self.step(token)?;
        }
        let token = self.next;
        if self.tokenizer.end_of_generation().contains(&token) {
            return Ok(self.end(FinishReason::Stop));
        }
        self.tokens.push(token);
        self.timings.tokens += 1;
        self.sampler.accept(token);
        self.unfed = Some(token);
        Ok(match self.stop.push(&self.text.push(token)) {
            ControlFlow::Continue(text) => text,
            ControlFlow::Break(text) => {
                self.finish = Some(FinishReason::Stop);
                text
            }
        })
    }

    fn step(&mut self, token: u32) -> Result<()> {
        self.make_room()?;
        let started = Instant::now();
        let logits = self.session.feed(&[token], Phase::Decode)?;
        self.next = logits.sample(&mut self.sampler)?;
        self.timings.step_time += started.elapsed();
        self.timings.steps += 1;
        Ok(())
    }

    fn make_room(&mut self) -> Result<()> {
        let OnFull::Shift { keep } = self.options.on_full else {
            return Ok(());
        };
        if self.session.position() < self.session.context() {
            return Ok(());
        }
        let history = self.session.history();
        let keep = keep.min(history.len().saturating_sub(2));
        let from = keep + (history.len() - keep).div_ceil(2);
        let stay: Vec<u32> = [&history[..keep], &history[from..]].concat();
        self.session.prompt(&stay, |_, _| ()).map(|_| ())
    }

    fn end(&mut self, reason: FinishReason) -> String {
        self.finish = Some(reason);
        match self.stop.push(&self.text.flush()) {
            ControlFlow::Continue(text) => text + &self.stop.flush(),
            ControlFlow::Break(text) => {
                self.finish = Some(FinishReason::Stop);
                text
            }
        }
    }
}

impl Iterator for Generator<'_> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Result<String>> {
        while self.finish.is_none() {
            match self.advance() {
                Ok(text) if text.is_empty() => {}
                Ok(text) => return Some(Ok(text)),
                Err(e) => {
                    // An iterator that failed has ended.
                    self.finish = Some(FinishReason::Stop);
                    return Some(Err(e));
                }
            }
        }
        None
    }
}
