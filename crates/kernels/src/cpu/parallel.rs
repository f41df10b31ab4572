//! Products spread over a team. Results do not depend on the number of threads.

use super::{Input, Kernels, Team, team::Disjoint};
use crate::matrix::MatRef;

/// Rows are cut in multiples of this, so that kernels which take several rows at once seldom have a rest.
pub(super) const ROWS: usize = 8;
/// Columns of a sum are cut in multiples of this: whole blocks of the short formats, whole cache lines of output.
const COLS: usize = 32;

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

/// `y = sum over i of coef[i] * m[i]`. Overwrites `y`.
///
/// # Panics
/// As [`Kernels::axpy_rows`].
pub fn axpy(team: &mut Team, k: &Kernels, m: MatRef, coef: &[f32], y: &mut [f32]) {
    assert_eq!(y.len(), m.cols(), "axpy: output");
    by_columns(team, m, y, |cols, y| k.axpy_rows(m, coef, cols, y));
}

/// `y = sum over j of coef[j] * m[rows[j]]`. Overwrites `y`; other rows are not read.
///
/// # Panics
/// As [`Kernels::axpy_list`].
pub fn axpy_list(
    team: &mut Team,
    k: &Kernels,
    m: MatRef,
    rows: &[u32],
    coef: &[f32],
    y: &mut [f32],
) {
    assert_eq!(y.len(), m.cols(), "axpy_list: output");
    by_columns(team, m, y, |cols, y| k.axpy_list(m, rows, coef, cols, y));
}

/// Zeroes `y` and runs `f` on one range of columns a thread.
fn by_columns(
    team: &mut Team,
    m: MatRef,
    y: &mut [f32],
    f: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync,
) {
    // One piece a thread: the shorter the piece of a row, the worse memory is read.
    let grain = m.dtype().block_len().max(COLS);
    let cols = m.cols();
    let piece = cols.div_ceil(team.threads()).max(1).next_multiple_of(grain);
    let y = Disjoint::new(y);
    team.for_each(cols.div_ceil(piece), |i| {
        let range = i * piece..((i + 1) * piece).min(cols);
        // SAFETY: the ranges of different pieces do not overlap, and each piece runs once.
        let y = unsafe { y.slice(range.clone()) };
        y.fill(0.0);
        f(range, y);
    });
}
