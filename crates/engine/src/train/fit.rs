//! Epochs over one layer's tokens. An epoch depends on its number, the seed and the state before it, and on nothing else: not on
//! the number of threads, nor on what was interrupted when.

use super::{
    adamw::{AdamW, Moments},
    init::Standard,
    layer_data::LayerData,
    students::{Shard, Student},
    work::Work,
};
use crate::error::{Error, Result};
use countdown_kernels::cpu::Team;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// Tokens that a thread takes at a time: enough for products to be quick, few enough for their activations to stay in cache.
const SHARD: usize = 256;

/// How a student is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
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
pub struct State {
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
    pub fn epochs(&self) -> usize {
        self.losses.len().saturating_sub(1)
    }

    /// The epoch whose parameters are the best; 0 is the start.
    pub fn best_epoch(&self) -> usize {
        let losses = self.losses.iter().enumerate();
        let least = losses.min_by(|a, b| a.1.held_out.total_cmp(&b.1.held_out));
        least.map_or(0, |(i, _)| i)
    }
}

/// A thread's share of a minibatch.
struct Lane {
    work: Work,
    gradient: Vec<f32>,
    x: Vec<f32>,
    labels: Vec<u32>,
    loss: f64,
}

/// Trains one student on one layer.
pub struct Trainer<'a> {
    student: &'a dyn Student,
    standard: &'a Standard,
    schedule: Schedule,
    team: Team,
    lanes: Vec<Lane>,
}

impl<'a> Trainer<'a> {
    /// Memory for minibatches, and threads.
    ///
    /// # Errors
    /// [`Error::Machine`] where threads are missing.
    pub fn new(
        student: &'a dyn Student,
        standard: &'a Standard,
        schedule: Schedule,
        threads: usize,
    ) -> Result<Trainer<'a>> {
        let lane = || {
            Ok(Lane {
                work: Work::new()?,
                gradient: vec![0.0; student.parameters()],
                x: Vec::new(),
                labels: Vec::new(),
                loss: 0.0,
            })
        };
        let lanes = schedule.batch.div_ceil(SHARD).max(1);
        Ok(Trainer {
            lanes: (0..lanes).map(|_| lane()).collect::<Result<_>>()?,
            team: crate::session::team(threads)?,
            student,
            standard,
            schedule,
        })
    }

    /// The state before the first epoch.
    ///
    /// # Errors
    /// As [`Trainer::epoch`].
    pub fn start(&mut self, data: &mut LayerData, parameters: Vec<f32>) -> Result<State> {
        let mut state = State {
            moments: Moments::new(parameters.len()),
            best: parameters.clone(),
            losses: Vec::new(),
            parameters,
        };
        let held_out = self.held_out(data, &state.parameters)?;
        state.losses.push(EpochLoss {
            training: None,
            held_out,
        });
        Ok(state)
    }

    /// One pass over all tokens in an order of its own.
    ///
    /// # Errors
    /// [`Error::Input`] where the loss is no number any more; [`Error::Read`] where inputs in a file cannot be read.
    pub fn epoch(&mut self, data: &mut LayerData, state: &mut State) -> Result<()> {
        let tokens = data.samples.tokens();
        let batch = self.schedule.batch.min(tokens);
        let steps = tokens.div_ceil(batch) * self.schedule.epochs;
        let optimiser = AdamW::new(self.schedule.rate, steps);
        let order = order(tokens, self.schedule.seed, state.epochs());
        let mut sum = 0.0;
        for batch in order.chunks(batch) {
            for (lane, tokens) in self.lanes.iter_mut().zip(batch.chunks(SHARD)) {
                lane.x.resize(tokens.len() * data.hidden(), 0.0);
                data.samples.gather(tokens, &mut lane.x)?;
                lane.labels.clear();
                for &t in tokens {
                    lane.labels.extend_from_slice(data.labels.row(t as usize));
                }
            }
            let lanes = batch.len().div_ceil(SHARD);
            let scale = 1.0 / (batch.len() * data.inter()) as f32;
            sum += self.gradients(lanes, scale, &state.parameters);
            let gradients: Vec<&[f32]> = self.lanes[..lanes]
                .iter()
                .map(|l| &l.gradient[..])
                .collect();
            optimiser.step(
                &mut self.team,
                &mut state.parameters,
                &mut state.moments,
                &gradients,
                self.student.decayed(),
            );
        }
        let loss = EpochLoss {
            training: Some(sum / (tokens * data.inter()) as f64),
            held_out: self.held_out(data, &state.parameters)?,
        };
        if loss.held_out < state.losses[state.best_epoch()].held_out {
            state.best.clone_from(&state.parameters);
        }
        state.losses.push(loss);
        Ok(())
    }

    /// Standardises the inputs of the first lanes and computes their gradients. Returns the loss summed over all.
    fn gradients(&mut self, lanes: usize, scale: f32, parameters: &[f32]) -> f64 {
        let (student, standard) = (self.student, self.standard);
        let lanes = &mut self.lanes[..lanes];
        self.team.split(lanes, 1, |_, lanes| {
            for lane in lanes {
                standard.apply(&mut lane.x);
                let shard = Shard {
                    x: &lane.x,
                    labels: &lane.labels,
                    scale,
                };
                lane.loss = student.gradient(parameters, shard, &mut lane.work, &mut lane.gradient);
            }
        });
        lanes.iter().map(|l| l.loss).sum()
    }

    fn held_out(&mut self, data: &LayerData, parameters: &[f32]) -> Result<f64> {
        let (held, hidden) = (&data.held, data.hidden());
        let tokens = held.labels.tokens();
        let mut sum = 0.0;
        let many = self.lanes.len() * SHARD;
        for first in (0..tokens).step_by(many) {
            let end = (first + many).min(tokens);
            let starts = (first..end).step_by(SHARD);
            let lanes = starts.len();
            for (lane, start) in self.lanes.iter_mut().zip(starts) {
                let range = start..(start + SHARD).min(end);
                lane.x.clear();
                lane.x
                    .extend_from_slice(&held.x[range.start * hidden..range.end * hidden]);
                lane.labels.clear();
                for t in range {
                    lane.labels.extend_from_slice(held.labels.row(t));
                }
            }
            sum += self.gradients(lanes, 1.0, parameters);
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
