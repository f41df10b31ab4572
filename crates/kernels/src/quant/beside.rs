//! Rows of several matrices side by side, for what reads the same rows of all.

use super::parts::{parts_bytes, put_row};
use crate::{
    bytes::{Buffer, Bytes},
    cpu::Team,
    matrix::{Layout, MatRef},
};
use std::ops::Range;

/// How the rows of a matrix are to lie beside those of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowForm {
    /// As they do.
    Same,
    /// In parts, of a type that has them ([`has_parts`](super::has_parts)); they lie in blocks.
    Parts,
}

/// Rows of several matrices side by side, in whole cache lines.
pub struct Beside {
    /// Row 0 of each, row 1 of each, and so on.
    pub data: Bytes,
    /// For each matrix, which of the bytes are its view, and its layout there.
    pub views: Vec<(Range<usize>, Layout)>,
}

/// Lays the rows of matrices of equally many side by side.
///
/// # Panics
/// If the numbers of rows differ, a matrix is tiles, or rows that are to lie in parts cannot.
pub fn interleave(matrices: &[(MatRef, RowForm)], team: &mut Team) -> Beside {
    const LINE: usize = 64;
    let rows = matrices.first().map_or(0, |(m, _)| m.rows());
    assert!(
        matrices.iter().all(|(m, _)| m.rows() == rows),
        "interleave: rows"
    );
    let bytes = |(m, form): &(MatRef, RowForm)| match form {
        RowForm::Same => m.row_bytes(),
        RowForm::Parts => parts_bytes(m.dtype(), m.cols()),
    };
    let lines = |m: &(MatRef, RowForm)| bytes(m).next_multiple_of(LINE);
    let stride: usize = matrices.iter().map(lines).sum();
    let mut data = Buffer::zeroed(rows * stride);
    team.split(&mut data, stride, |at, part| {
        for (i, mut neuron) in part.chunks_exact_mut(stride).enumerate() {
            let i = at / stride + i;
            for m in matrices {
                let (row, rest) = neuron.split_at_mut(lines(m));
                let (row, (m, form)) = (&mut row[..bytes(m)], m);
                match form {
                    RowForm::Same => row.copy_from_slice(m.row_data(i)),
                    RowForm::Parts => put_row(*m, i, row),
                }
                neuron = rest;
            }
        }
    });
    let mut at = 0;
    let view = |m: &(MatRef, RowForm)| {
        let range = match rows {
            0 => 0..0,
            n => at..at + (n - 1) * stride + bytes(m),
        };
        at += lines(m);
        let layout = match (m.0.layout(), m.1) {
            (Layout::Parts { .. }, _) | (_, RowForm::Parts) => Layout::Parts { stride },
            _ => Layout::Rows { stride },
        };
        (range, layout)
    };
    Beside {
        views: matrices.iter().map(view).collect(),
        data: data.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn rows_are_laid_side_by_side() {
        let (a, b): (Vec<u8>, Vec<u8>) = ((0..4).collect(), (0..132).map(|i| 255 - i).collect());
        let m = [
            MatRef::new(DType::F16, 2, 1, &a).unwrap(),
            MatRef::new(DType::F16, 2, 33, &b).unwrap(),
        ];
        for threads in [1, 3] {
            let mut team = Team::new(threads).unwrap();
            let Beside { data, views } = interleave(&m.map(|m| (m, RowForm::Same)), &mut team);
            assert_eq!(data.len(), 2 * (64 + 128));
            for (m, (range, layout)) in m.iter().zip(views) {
                let view = &data[range];
                let v = MatRef::with_layout(DType::F16, 2, m.cols(), layout, view).unwrap();
                assert_eq!((v.row(0), v.row(1)), (m.row(0), m.row(1)));
            }
        }
    }

    #[test]
    fn nothing_beside_nothing_is_nothing() {
        let mut team = Team::new(2).unwrap();
        assert!(interleave(&[], &mut team).data.is_empty());
        let m = MatRef::new(DType::Q8_0, 0, 32, &[]).unwrap();
        let beside = interleave(&[(m, RowForm::Same), (m, RowForm::Parts)], &mut team);
        assert!(beside.data.is_empty());
        assert_eq!(beside.views.len(), 2);
    }
}
