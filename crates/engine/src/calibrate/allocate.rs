//! Which layers skip how much: more where it costs the model's output less, the target on average.
//!
//! The cost of a layer at a sparsity is its share of dropped output energy there (read off the histogram of its scores),
//! scaled so that it meets what was measured: how far the final hidden states move when this layer alone skips the target.

use super::{WARM_UP, Work, scores::Group};
use crate::{
    error::Result,
    layerwise::Layerwise,
    model::Model,
    session::Session,
    sparsity::{Keep, SparsityPlan},
};

/// Windows that are run once a layer, and their length.
const WINDOWS: usize = 2;
const LENGTH: usize = 256;
/// Sparsities are allocated in steps of one in so many.
const STEPS: usize = 200;
/// No layer skips more than this, or a few layers would be emptied.
const MOST: f64 = 0.98;

fn taken(windows: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let every = windows.len().div_ceil(WINDOWS).max(1);
    let cut = |w: &Vec<u32>| w[..w.len().min(LENGTH)].to_vec();
    windows.iter().step_by(every).map(cut).collect()
}

/// Tokens that fitting one plan runs: the layers from each on, so half of the model a layer.
pub(super) fn tokens(model: &Model, windows: &[Vec<u32>]) -> usize {
    taken(windows).iter().map(Vec::len).sum::<usize>() * model.layers.len().div_ceil(2)
}

/// The cost of each layer at 0, 1 / STEPS, ..., 1.
pub(super) fn costs(
    session: &mut Session,
    windows: &[Vec<u32>],
    plan: &SparsityPlan,
    group: &Group,
    work: &mut Work<'_>,
) -> Result<Vec<Vec<f64>>> {
    let windows = taken(windows);
    let tokens: usize = windows.iter().map(Vec::len).sum();
    let mut pass = Layerwise::new(session, &windows)?;
    // Residual streams in front of each layer, and at the end.
    let mut before = Vec::with_capacity(plan.rules.len());
    for _ in &plan.rules {
        before.push(pass.residuals().to_vec());
        pass.advance(0, None, |_, _| ())?;
    }
    let dense = pass.residuals().to_vec();
    let mut all = Vec::with_capacity(plan.rules.len());
    for (layer, (rule, stats)) in plan.rules.iter().zip(&group.layers).enumerate() {
        let keeps_all = matches!(rule.keep, Keep::Above(tau) if tau == f32::NEG_INFINITY);
        let mut curve = stats.scores.costs(STEPS);
        if !keeps_all {
            pass.restart(layer, std::mem::take(&mut before[layer]));
            pass.advance(WARM_UP, Some(rule), |_, _| ())?;
            while pass.next_layer() < plan.rules.len() {
                pass.advance(WARM_UP, None, |_, _| ())?;
            }
            let at = (plan.provenance.target * STEPS as f64).round() as usize;
            let scale = moved(&dense, pass.residuals()) / curve[at].max(1e-12);
            curve.iter_mut().for_each(|c| *c *= scale);
        }
        all.push(curve);
        work.advance(tokens / 2);
    }
    Ok(all)
}

/// The mean over tokens of the squared distance of two residual streams, relative to the first's.
fn moved(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let squares = |x: &[f32], y: &[f32]| {
        let pairs = x.iter().zip(y);
        pairs.fold((0.0f64, 0.0f64), |(d, n), (x, y)| {
            (d + f64::from(x - y).powi(2), n + f64::from(*x).powi(2))
        })
    };
    let (distance, norm) = a.iter().zip(b).fold((0.0, 0.0), |(d, n), (a, b)| {
        let (x, y) = squares(a, b);
        (d + x, n + y)
    });
    distance / norm.max(f64::MIN_POSITIVE)
}

/// The sparsity of each layer, `target` on average, whose summed cost is least: steps are given one by one to the layer where
/// the next one costs least.
pub(super) fn targets(costs: &[Vec<f64>], target: f64) -> Vec<f64> {
    let most = (MOST.max(target) * STEPS as f64) as usize;
    let mut steps = vec![0usize; costs.len()];
    let budget = (target * STEPS as f64 * costs.len() as f64).round() as usize;
    for _ in 0..budget {
        let next = |(layer, &at): (usize, &usize)| {
            (at < most).then(|| (costs[layer][at + 1] - costs[layer][at], layer))
        };
        let cheapest = steps
            .iter()
            .enumerate()
            .filter_map(next)
            .min_by(|a, b| a.0.total_cmp(&b.0));
        let Some((_, layer)) = cheapest else { break };
        steps[layer] += 1;
    }
    steps.iter().map(|&s| s as f64 / STEPS as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_goes_where_it_costs_least_and_is_met() {
        let curve = |scale: f64| -> Vec<f64> {
            let share = |i| i as f64 / STEPS as f64;
            (0..=STEPS).map(|i| scale * share(i).powi(3)).collect()
        };
        let costs = [curve(1.0), curve(4.0), curve(1.0)];
        let got = targets(&costs, 0.6);
        assert!((got.iter().sum::<f64>() / 3.0 - 0.6).abs() < 1e-9);
        // Marginal costs 3 s^2 and 12 s^2 are equal where the second layer skips half as much.
        assert!((got[0] / got[1] - 2.0).abs() < 0.05, "{got:?}");
        assert!((got[0] - got[2]).abs() < 2.0 / STEPS as f64);
        assert!(targets(&costs, 0.99).iter().all(|t| *t <= 0.995));
    }
}
