//! The engine's own thread: one request at a time, the others wait in order.

use crate::{
    ServeError, Served,
    api::{Prompt, Request},
    error::ApiError,
    metrics::{Metrics, Outcome},
    queue::{Job, Queue},
};
use countdown::{
    Session, Stats,
    chat::GenerationPrompt,
    generate::{FinishReason, GenerateOptions, Generator, OnFull, Timings},
};
use serde_json::{Value, json};
use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};

/// Tokens of a prompt computed before the engine looks whether the client is still there.
const PROMPT_STEP: usize = 256;

/// What a client hears of its answer, in this order: `Started`, any number of `Text`s, `Finished`.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The request is sound and its turn has come.
    Started,
    /// More of the answer.
    Text(String),
    /// The answer is complete.
    Finished(FinishReason, Summary),
}

/// The work for an answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) timings: Timings,
    /// What its one-token steps did.
    pub(crate) stats: Stats,
}

/// A running engine. The thread ends after the last clone is dropped.
#[derive(Clone)]
pub struct Engine(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    /// Closed when the thread has ended.
    running: watch::Receiver<()>,
    /// The model, for `/v1/models`.
    description: Value,
}

struct Shared {
    queue: Queue,
    metrics: Metrics,
}

impl Engine {
    /// Starts the thread; at most `queue` requests wait while one is answered.
    ///
    /// # Errors
    /// [`ServeError::Thread`] where it cannot be started.
    pub fn start(served: Served, queue: usize) -> Result<Engine, ServeError> {
        let shared = Arc::new(Shared {
            queue: Queue::new(queue),
            metrics: Metrics::default(),
        });
        let (alive, running) = watch::channel(());
        let description = describe(&served.session);
        let guard = CloseAtEnd {
            shared: shared.clone(),
            _alive: alive,
        };
        thread::Builder::new()
            .name("engine".into())
            .spawn(move || answer_all(served, &guard.shared))
            .map_err(ServeError::Thread)?;
        Ok(Engine(Arc::new(Handle {
            shared,
            running,
            description,
        })))
    }

    /// Puts a request in the queue.
    ///
    /// # Errors
    /// 503 where the queue is full or the engine has ended.
    pub(crate) fn submit(&self, request: Request) -> Result<Answer, ApiError> {
        let (sender, events) = mpsc::unbounded_channel();
        let Shared { queue, metrics } = &*self.0.shared;
        let job = Job {
            request,
            events: sender,
        };
        queue.push(job, metrics)?;
        Ok(Answer {
            events,
            first: None,
        })
    }

    /// Lets the present answer come to its end and refuses all others.
    pub(crate) fn close(&self) {
        self.0.shared.queue.close();
    }

    /// Waits for the thread's end.
    pub(crate) async fn ended(&self) {
        // Nothing is ever sent: only the sender's end is awaited.
        let _ = self.0.running.clone().changed().await;
    }

    pub(crate) fn is_open(&self) -> bool {
        self.0.shared.queue.is_open()
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.shared.metrics
    }

    pub(crate) fn metrics_text(&self) -> String {
        self.0.shared.metrics.render(self.0.shared.queue.load())
    }

    pub(crate) fn description(&self) -> &Value {
        &self.0.description
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

/// An answer as it comes. Dropping it ends the work on it.
pub(crate) struct Answer {
    events: mpsc::UnboundedReceiver<Result<Event, ApiError>>,
    /// The event seen by [`Answer::begun`].
    first: Option<Event>,
}

impl Answer {
    /// Waits until the engine has taken or refused the request.
    pub(crate) async fn begun(&mut self) -> Result<(), ApiError> {
        self.first = Some(self.next().await?);
        Ok(())
    }

    /// The next event; an error is the last one.
    pub(crate) async fn next(&mut self) -> Result<Event, ApiError> {
        match self.first.take() {
            Some(event) => Ok(event),
            None => self.events.recv().await.unwrap_or(Err(ApiError::stopped())),
        }
    }
}

/// Closes the queue when the thread ends, be it by a panic: nobody then waits for an answer that cannot come.
struct CloseAtEnd {
    shared: Arc<Shared>,
    _alive: watch::Sender<()>,
}

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

fn describe(session: &Session) -> Value {
    let model = session.model();
    let plan = session.plan().map(|plan| &plan.provenance);
    json!({
        "n_vocab": model.config.vocab,
        "n_ctx_train": model.config.context,
        "n_ctx": session.context(),
        "n_params": model.parameters(),
        "device": session.device(),
        "sparsity": plan.map(|p| json!({ "method": p.method, "target": p.target })),
    })
}

fn answer_all(mut served: Served, shared: &Shared) {
    while let Some(job) = shared.queue.pop() {
        let before = served.session.stats();
        let mut timings = Timings::default();
        let end = answer(&mut served, &job, &mut timings);
        let summary = Summary {
            timings,
            stats: served.session.stats().since(before),
        };
        shared.metrics.add(&summary);
        let outcome = match &end {
            Ok(Some(_)) => Outcome::Completed,
            Ok(None) => Outcome::Cancelled,
            Err(e) if e.status.is_server_error() => Outcome::Failed,
            Err(_) => Outcome::Invalid,
        };
        shared.metrics.count(outcome, 1);
        shared.queue.done();
        let last = match end {
            Ok(Some(finish)) => Ok(Event::Finished(finish, summary)),
            Ok(None) => continue,
            Err(error) => {
                if outcome == Outcome::Failed {
                    // What a step that failed left in the cache must not begin another answer.
                    served.session.truncate(0);
                }
                Err(error)
            }
        };
        // A client that has gone just now needs no answer.
        let _ = job.events.send(last);
    }
}

/// Answers one request; `None` where the client went away.
fn answer(
    served: &mut Served,
    job: &Job,
    timings: &mut Timings,
) -> Result<Option<FinishReason>, ApiError> {
    if job.events.is_closed() {
        return Ok(None);
    }
    let prompt = tokens(served, &job.request.prompt)?;
    let context = served.session.context();
    // The last token of an answer takes no place in the context.
    let room = (context + 1)
        .checked_sub(prompt.len())
        .filter(|&room| room > 0)
        .ok_or_else(|| ApiError::too_long(prompt.len(), context))?;
    let asked = job.request.options.max_tokens.unwrap_or(room);
    let mut options = GenerateOptions {
        max_tokens: Some(asked.min(room)),
        on_full: OnFull::Fail,
        ..job.request.options.clone()
    };
    // The sampler keeps room for as many tokens as it is to look back on; there are no more than these.
    options.sampling.repeat_last_n = options.sampling.repeat_last_n.min(context);
    if job.events.send(Ok(Event::Started)).is_err() {
        return Ok(None);
    }
    let early = Instant::now();
    let Some(computed) = prefill(&mut served.session, &prompt, job)? else {
        return Ok(None);
    };
    let early = early.elapsed();
    let mut generator = Generator::new(
        &mut served.session,
        &served.tokenizer,
        &prompt,
        options,
        |_, _| (),
    )?;
    let mut failure = None;
    for piece in generator.by_ref() {
        match piece.map(|text| job.events.send(Ok(Event::Text(text)))) {
            Ok(Ok(())) => {}
            Ok(Err(_gone)) => break,
            Err(e) => failure = Some(e),
        }
    }
    *timings = with_prefill(generator.timings(), computed, early);
    match failure {
        Some(e) => Err(e.into()),
        None => Ok(generator.finish_reason()),
    }
}

/// Computes all but the last part of a prompt in steps; returns how many tokens that were, `None` where the client went away.
fn prefill(session: &mut Session, prompt: &[u32], job: &Job) -> Result<Option<usize>, ApiError> {
    let same = prompt
        .iter()
        .zip(session.history())
        .take_while(|(a, b)| a == b);
    let cached = same.count();
    let mut done = cached;
    while prompt.len() - done > PROMPT_STEP {
        done += PROMPT_STEP;
        session.prompt(&prompt[..done], |_, _| ())?;
        if job.events.is_closed() {
            return Ok(None);
        }
    }
    Ok(Some(done - cached))
}

fn with_prefill(timings: Timings, computed: usize, time: Duration) -> Timings {
    Timings {
        prompt_computed: timings.prompt_computed + computed,
        prompt_time: timings.prompt_time + time,
        ..timings
    }
}

/// The tokens of a prompt, at least one and all of the vocabulary.
fn tokens(served: &Served, prompt: &Prompt) -> Result<Vec<u32>, ApiError> {
    let tokens = match prompt {
        Prompt::Tokens(tokens) => tokens.clone(),
        Prompt::Text(text) => served.tokenizer.encode_prompt(text)?,
        Prompt::Chat(conversation) => {
            let template = served.template.as_ref().ok_or_else(|| {
                ApiError::bad_request(
                    "the model has no chat template: use /v1/completions, or start the server with a template",
                )
            })?;
            let text = template.render(conversation, GenerationPrompt::Add)?;
            served.tokenizer.encode_prompt(&text)?
        }
    };
    let vocab = served.session.model().config.vocab;
    if tokens.is_empty() {
        return Err(ApiError::invalid("prompt", "at least one token long"));
    }
    if tokens.iter().any(|&t| t as usize >= vocab) {
        let expected = format!("made of tokens below {vocab}, the size of the vocabulary");
        return Err(ApiError::invalid("prompt", &expected));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use countdown::generate::GenerateOptions;

    fn job() -> (Job, Answer) {
        let (sender, events) = mpsc::unbounded_channel();
        let request = Request {
            prompt: Prompt::Text("a".into()),
            options: GenerateOptions::default(),
        };
        let job = Job {
            request,
            events: sender,
        };
        (
            job,
            Answer {
                events,
                first: None,
            },
        )
    }

    #[test]
    fn a_panic_of_the_engine_leaves_nobody_waiting() {
        let shared = Arc::new(Shared {
            queue: Queue::new(4),
            metrics: Metrics::default(),
        });
        let (alive, running) = watch::channel(());
        let guard = CloseAtEnd {
            shared: shared.clone(),
            _alive: alive,
        };
        let (first, mut served) = job();
        let (second, mut waiting) = job();
        for job in [first, second] {
            assert!(shared.queue.push(job, &shared.metrics).is_ok());
        }
        let engine = thread::spawn(move || {
            let _job = guard.shared.queue.pop();
            panic!("as if a bug had been met");
        });
        assert!(engine.join().is_err());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            assert_eq!(served.next().await.unwrap_err(), ApiError::stopped());
            assert_eq!(waiting.begun().await.unwrap_err(), ApiError::stopped());
            assert!(running.clone().changed().await.is_err());
        });
        let refused = shared.queue.push(job().0, &shared.metrics);
        assert_eq!(refused.unwrap_err(), ApiError::stopped());
    }
}
