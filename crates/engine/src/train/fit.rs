//! Epochs over one layer's tokens. An epoch depends on its number, the seed and the state before it, and on nothing else: not on
//! the number of threads, nor on what was interrupted when.

use super::{
    adamw::{AdamW, Moments},
    arithmetic::{Arithmetic, Labelled, Work},
    init::Standard,
    layer_data::LayerData,
    students::{Gradient, Shard},
};
use crate::error::{Error, Result};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// How a student is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Schedule {
    /// Passes over all tokens.
    pub epochs: usize,
    /// Learning rate at the end of the warm-up.
    pub rate: f32,
    /// Tokens a step.
    pub batch: usize,
    /// What the order of tokens depends on.
    pub seed: u64,
}

/// The mean loss over tokens and neurons after an epoch.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct EpochLoss {
    /// Of the steps of the epoch; `None` before the first.
    pub training: Option<f64>,
    /// On the held-out tokens, after the epoch.
    pub held_out: f64,
}

/// All that an interrupted training goes on from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct State {
    /// Where training stands.
    pub parameters: Vec<f32>,
    /// The optimiser's memory.
    pub moments: Moments,
    /// The parameters with the lowest held-out loss so far.
    pub best: Vec<f32>,
    /// Losses at the start and after each epoch.
    pub losses: Vec<EpochLoss>,
}

impl State {
    /// Epochs finished.
    pub(crate) fn epochs(&self) -> usize {
        self.losses.len().saturating_sub(1)
    }

    /// The epoch whose parameters are the best; 0 is the start.
    pub(crate) fn best_epoch(&self) -> usize {
        let losses = self.losses.iter().enumerate();
        let least = losses.min_by(|a, b| a.1.held_out.total_cmp(&b.1.held_out));
        least.map_or(0, |(i, _)| i)
    }
}

/// A shard of a minibatch, with what it is computed with.
struct Lane<A: Arithmetic> {
    work: Work<A>,
    gradient: A::Vector,
    x: A::Vector,
    labels: A::Words,
    /// What is loaded from host memory.
    host_x: Vec<f32>,
    host_labels: Vec<u32>,
    loss: Result<f64>,
}

/// Trains one student on one layer.
pub(crate) struct Trainer<'a, A: Arithmetic> {
    student: &'a dyn Gradient<A>,
    /// Mean and factor of inputs, and the student's constants.
    change: [A::Vector; 2],
    constants: A::Vector,
    schedule: Schedule,
    by: A,
    /// Tokens a lane.
    shard: usize,
    lanes: Vec<Lane<A>>,
}

impl<'a, A: Arithmetic> Trainer<'a, A> {
    /// Memory for minibatches.
    ///
    /// # Errors
    /// [`Error::Machine`] where threads or a card's memory are missing (so below).
    pub(crate) fn new(
        student: &'a dyn Gradient<A>,
        standard: &Standard,
        schedule: Schedule,
        by: A,
    ) -> Result<Trainer<'a, A>> {
        let lane = || {
            let own = by.alone()?;
            Ok(Lane {
                gradient: own.take(vec![0.0; student.parameters()])?,
                x: own.take(Vec::new())?,
                labels: own.no_words()?,
                host_x: Vec::new(),
                host_labels: Vec::new(),
                loss: Ok(0.0),
                work: Work::new(own)?,
            })
        };
        let shard = by.shard(schedule.batch);
        let lanes = schedule.batch.div_ceil(shard).max(1);
        let change = [&standard.mean, &standard.factor];
        let [mean, factor] = change.map(|v| by.take(v.clone()));
        Ok(Trainer {
            lanes: (0..lanes).map(|_| lane()).collect::<Result<_>>()?,
            change: [mean?, factor?],
            constants: by.take(student.constants().to_vec())?,
            student,
            schedule,
            by,
            shard,
        })
    }

    /// The state before the first epoch.
    ///
    /// # Errors
    /// As [`Trainer::epoch`].
    pub(crate) fn start(&mut self, data: &mut LayerData, parameters: Vec<f32>) -> Result<State> {
        let moments = Moments::new(parameters.len());
        let best = parameters.clone();
        let live = self.by.take(parameters)?;
        let held_out = self.held_out(data, &live)?;
        Ok(State {
            parameters: self.by.give(live)?,
            moments,
            best,
            losses: vec![EpochLoss {
                training: None,
                held_out,
            }],
        })
    }

    /// One pass over all tokens in an order of its own. After an error the state holds nothing.
    ///
    /// # Errors
    /// [`Error::Input`] where the loss is no number any more; [`Error::Read`] where inputs in a file cannot be read.
    pub(crate) fn epoch(&mut self, data: &mut LayerData, state: &mut State) -> Result<()> {
        let tokens = data.samples.tokens();
        let batch = self.schedule.batch.min(tokens);
        let steps = tokens.div_ceil(batch) * self.schedule.epochs;
        let optimiser = AdamW::new(self.schedule.rate, steps);
        let order = order(tokens, self.schedule.seed, state.epochs());
        let mut parameters = self.by.take(std::mem::take(&mut state.parameters))?;
        let mut first = self.by.take(std::mem::take(&mut state.moments.first))?;
        let mut second = self.by.take(std::mem::take(&mut state.moments.second))?;
        let mut sum = 0.0;
        for batch in order.chunks(batch) {
            for (lane, tokens) in self.lanes.iter_mut().zip(batch.chunks(self.shard)) {
                lane.host_x.resize(tokens.len() * data.hidden(), 0.0);
                data.samples.gather(tokens, &mut lane.host_x)?;
                lane.host_labels.clear();
                for &t in tokens {
                    lane.host_labels
                        .extend_from_slice(data.labels.row(t as usize));
                }
            }
            let lanes = batch.len().div_ceil(self.shard);
            let scale = 1.0 / (batch.len() * data.inter()) as f32;
            sum += self.gradients(lanes, scale, data, &parameters)?;
            let gradients: Vec<&A::Vector> =
                self.lanes[..lanes].iter().map(|l| &l.gradient).collect();
            state.moments.steps += 1;
            self.by.adamw(
                optimiser.at(state.moments.steps),
                [&mut parameters, &mut first, &mut second],
                &gradients,
                self.student.decayed(),
            )?;
        }
        let loss = EpochLoss {
            training: Some(sum / (tokens * data.inter()) as f64),
            held_out: self.held_out(data, &parameters)?,
        };
        state.parameters = self.by.give(parameters)?;
        state.moments.first = self.by.give(first)?;
        state.moments.second = self.by.give(second)?;
        if loss.held_out < state.losses[state.best_epoch()].held_out {
            state.best.clone_from(&state.parameters);
        }
        state.losses.push(loss);
        Ok(())
    }

    /// Standardises the inputs of the first lanes and computes their gradients. Returns the loss summed over all.
    fn gradients(
        &mut self,
        lanes: usize,
        scale: f32,
        data: &LayerData,
        parameters: &A::Vector,
    ) -> Result<f64> {
        let (hidden, inter) = (data.hidden(), data.inter());
        let (student, constants) = (self.student, &self.constants);
        let [mean, factor] = &self.change;
        let one = |lane: &mut Lane<A>| {
            let tokens = lane.host_x.len() / hidden;
            let by = &mut lane.work.by;
            by.load(&lane.host_x, &mut lane.x)?;
            by.load_words(&lane.host_labels, &mut lane.labels)?;
            by.standardise(&mut lane.x, tokens, [mean, factor])?;
            let shard = Shard {
                x: &lane.x,
                labelled: Labelled {
                    labels: &lane.labels,
                    tokens,
                    inter,
                    scale,
                },
                constants,
            };
            student.gradient(parameters, &shard, &mut lane.work, &mut lane.gradient)
        };
        let lanes = &mut self.lanes[..lanes];
        self.by.each(lanes, |lane| lane.loss = one(lane));
        let losses = lanes.iter_mut();
        losses
            .map(|l| std::mem::replace(&mut l.loss, Ok(0.0)))
            .sum()
    }

    fn held_out(&mut self, data: &LayerData, parameters: &A::Vector) -> Result<f64> {
        let (held, hidden) = (&data.held, data.hidden());
        let tokens = held.labels.tokens();
        let mut sum = 0.0;
        let many = self.lanes.len() * self.shard;
        for first in (0..tokens).step_by(many) {
            let end = (first + many).min(tokens);
            let starts = (first..end).step_by(self.shard);
            let lanes = starts.len();
            for (lane, start) in self.lanes.iter_mut().zip(starts) {
                let range = start..(start + self.shard).min(end);
                let rows = &held.x[range.start * hidden..range.end * hidden];
                lane.host_x.clear();
                lane.host_x.extend_from_slice(rows);
                lane.host_labels.clear();
                for t in range {
                    lane.host_labels.extend_from_slice(held.labels.row(t));
                }
            }
            sum += self.gradients(lanes, 1.0, data, parameters)?;
        }
        let loss = sum / (tokens * data.inter()) as f64;
        if loss.is_finite() {
            return Ok(loss);
        }
        Err(Error::Input {
            cause: "training diverged: the loss is no number any more".into(),
            remedy: "use a smaller learning rate (--lr)".into(),
        })
    }
}

/// The tokens in an order that depends on seed and epoch.
fn order(tokens: usize, seed: u64, epoch: usize) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(epoch as u64);
    let mut order: Vec<u32> = (0..tokens as u32).collect();
    for i in (1..order.len()).rev() {
        // Fisher and Yates; the bias of a remainder is below one in a million for any text that fits memory.
        let j = (random.next_u64() % (i as u64 + 1)) as usize;
        order.swap(i, j);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_takes_every_token_once_in_an_order_of_its_own() {
        let (first, second) = (order(1000, 7, 0), order(1000, 7, 1));
        assert_ne!(first, second);
        assert_eq!(first, order(1000, 7, 0));
        assert_ne!(first, order(1000, 8, 0));
        let mut sorted = first;
        sorted.sort_unstable();
        assert!(sorted.iter().enumerate().all(|(i, t)| i == *t as usize));
    }
}
