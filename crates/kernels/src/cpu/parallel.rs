//! Products spread over a team. Results do not depend on the number of threads.

use super::{Input, Kernels, Team};
use crate::{matrix::MatRef, quant::TILE};

/// Rows are cut in multiples of this, so that kernels which take several rows at once seldom have a rest, and no tile is cut.
pub(super) const ROWS: usize = TILE;

/// `out[i] = m[i] x` for every row.
///
/// # Panics
/// As [`Kernels::dot_rows`].
pub fn gemv(team: &mut Team, k: &Kernels, m: MatRef, x: &Input, out: &mut [f32]) {
    assert_eq!(out.len(), m.rows(), "gemv: output");
    team.split(out, ROWS, |at, out| {
        k.dot_rows(m.rows_range(at..at + out.len()), x, out);
    });
}
