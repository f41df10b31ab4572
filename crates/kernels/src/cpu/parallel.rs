//! Products spread over a team. Results do not depend on the number of threads.

use super::{Input, Kernels, Team, team::Disjoint};
use crate::{matrix::MatRef, quant::TILE};

/// Rows are cut in multiples of this, so that kernels which take several rows at once seldom have a rest, and no tile is cut.
pub(super) const ROWS: usize = TILE;

/// `out[i] = m[i] x` for every row.
///
/// # Panics
/// As [`Kernels::dot_rows`].
pub fn gemv(team: &mut Team, k: &Kernels, m: MatRef, x: &Input, out: &mut [f32]) {
    gemv_all(team, k, x, [(m, out)]);
}

/// Products of several matrices with one input, in one parallel region: beginning and ending one takes as long as some hundred rows.
///
/// # Panics
/// As [`Kernels::dot_rows`], for any of them.
pub fn gemv_all<const N: usize>(
    team: &mut Team,
    k: &Kernels,
    x: &Input,
    products: [(MatRef, &mut [f32]); N],
) {
    let mut end = 0;
    // Each with the place of its first row among those of all. Whole tiles, so that cuts meet those of every matrix.
    let parts = products.map(|(m, out)| {
        assert_eq!(out.len(), m.rows(), "gemv: output");
        let start = end;
        end += m.rows().next_multiple_of(ROWS);
        (start, m, Disjoint::new(out))
    });
    let piece = team.piece_len(end, ROWS);
    team.for_each(end.div_ceil(piece), |p| {
        for (start, m, out) in &parts {
            let here = |at: usize| at.saturating_sub(*start).min(m.rows());
            let rows = here(p * piece)..here((p + 1) * piece);
            if !rows.is_empty() {
                // SAFETY: the rows of different pieces do not overlap, and each piece runs once.
                let out = unsafe { out.slice(rows.clone()) };
                k.dot_rows(m.rows_range(rows), x, out);
            }
        }
    });
}
