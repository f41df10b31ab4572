//! What a rule keeps of tokens whose gate and up are known.

use crate::sparsity::{Rule, Selection, Signal};
use countdown_kernels::cpu::Team;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Selects the neurons of a token by its activated gate and its up, or by what a predictor made of them.
pub(super) fn select(
    rule: &Rule,
    gate: &[f32],
    up: &[f32],
    estimated: Option<&[f32]>,
    into: &mut Selection,
) {
    match (estimated, rule.signal) {
        (Some(signals), _) => rule.select(signals.iter().copied(), into),
        (None, Signal::Gate) => rule.select(gate.iter().copied(), into),
        (None, Signal::Up) => rule.select(up.iter().copied(), into),
        (None, Signal::Product) => rule.select(gate.iter().zip(up).map(|(g, u)| g * u), into),
    }
}

/// Multiplies activated gates of several tokens, `[tokens, inter]`, by up; of neurons that the rule does not keep the product is zero. `signals` are what the
/// rule's predictor estimates, if it has one. Returns how many neurons are kept.
pub(super) fn multiply_kept(
    team: &mut Team,
    rule: &Rule,
    inter: usize,
    gate: &mut [f32],
    up: &[f32],
    signals: &[f32],
) -> usize {
    let kept = AtomicUsize::new(0);
    team.split(gate, inter, |at, part| {
        let mut selection = Selection::with_capacity(inter);
        for (t, gate) in part.chunks_exact_mut(inter).enumerate() {
            let row = at + t * inter..at + (t + 1) * inter;
            let up = &up[row.clone()];
            let estimated = rule.predictor.as_ref().map(|_| &signals[row]);
            select(rule, gate, up, estimated, &mut selection);
            kept.fetch_add(selection.kept().len(), Relaxed);
            let mut stay = selection.kept().iter().peekable();
            for (i, (g, u)) in gate.iter_mut().zip(up).enumerate() {
                let stays = stay.next_if(|k| **k as usize == i).is_some();
                *g = if stays { *g * u } else { 0.0 };
            }
        }
    });
    kept.into_inner()
}
