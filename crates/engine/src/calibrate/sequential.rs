//! Fitting layer by layer on what comes out of the layers below under their own rules.

use super::{
    Calibration, WARM_UP, count, is_finite, request::PlanRequest, rule, scores::Group, warm,
};
use crate::{
    error::{Error, Result},
    layerwise::Layerwise,
    sparsity::Rule,
};

/// Windows at most, since all residual streams are in memory and every plan needs passes of its own.
const WINDOWS: usize = 16;

/// Every so many windows are taken, from all over the text.
fn taken(windows: &[Vec<u32>]) -> impl Iterator<Item = &Vec<u32>> {
    windows
        .iter()
        .step_by(windows.len().div_ceil(WINDOWS).max(1))
}

/// Tokens that fitting one plan runs.
pub(super) fn tokens(windows: &[Vec<u32>]) -> usize {
    2 * taken(windows).map(Vec::len).sum::<usize>()
}

/// The rules of a request, one layer after the other.
pub(super) fn rules(
    c: &mut Calibration<'_>,
    request: &PlanRequest,
    targets: &[f64],
) -> Result<Vec<Rule>> {
    let model = c.session.shared_model();
    let windows: Vec<Vec<u32>> = taken(&c.windows).cloned().collect();
    let half = windows.len() / 2;
    let mut group = Group::new(&model, request.scoring()?, &[request.sparsity]);
    let mut pass = Layerwise::new(c.session, &windows)?;
    let mut rules = Vec::with_capacity(targets.len());
    for (layer, &target) in targets.iter().enumerate() {
        let (norms, machine) = (&c.norms[layer], &mut c.machine);
        let mut are_numbers = true;
        // Windows come in order: constants from the first half, scores from the second.
        let mut fixed = false;
        pass.look(|window, t| {
            let Some(t) = warm(&t) else { return };
            are_numbers &= is_finite(&t);
            if window < half {
                group.add_moments(machine, &t);
                return;
            }
            if !fixed {
                group.fix_weights(layer, norms);
                fixed = true;
            }
            group.add_scores(&model, machine, norms, &t);
        })?;
        if !are_numbers {
            return Err(Error::NotFinite(format!("an activation of layer {layer}")));
        }
        let rule = rule(&model, layer, request, &group.layers[layer], target);
        pass.advance(WARM_UP, Some(&rule), |_, _| ())?;
        rules.push(rule);
        c.work.advance(2 * count(&windows) / targets.len());
    }
    Ok(rules)
}
