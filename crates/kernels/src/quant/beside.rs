//! Rows of several matrices side by side, for what reads the same rows of all.

use super::{
    parts::{parts_bytes, put_row},
    transpose,
};
use crate::{
    bytes::{Buffer, Bytes},
    cpu::Team,
    dtype::DType,
    matrix::{Layout, MatRef},
};
use std::ops::Range;

/// Where rows come from.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// From a matrix of rows.
    Of(MatRef<'a>),
    /// They are the columns of a matrix of rows, in blocks of that type ([`transpose_pack`](super::transpose_pack)).
    ColumnsOf(MatRef<'a>, DType),
}

impl Rows<'_> {
    /// What they are stored in.
    pub fn dtype(&self) -> DType {
        match self {
            Rows::Of(m) => m.dtype(),
            Rows::ColumnsOf(_, dtype) => *dtype,
        }
    }

    /// Rows, and elements of each.
    fn shape(&self) -> (usize, usize) {
        match self {
            Rows::Of(m) => (m.rows(), m.cols()),
            Rows::ColumnsOf(m, _) => (m.cols(), m.rows()),
        }
    }

    /// Bytes of a row in that form.
    fn bytes(&self, form: RowForm) -> usize {
        match (form, self) {
            (RowForm::Parts, _) => parts_bytes(self.dtype(), self.shape().1),
            (RowForm::Same, Rows::Of(m)) => m.row_bytes(),
            (RowForm::Same, Rows::ColumnsOf(m, dtype)) => {
                let bytes = dtype.row_bytes(m.rows());
                bytes.expect("interleave: columns fill blocks")
            }
        }
    }
}

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

/// Lays rows of equal number side by side.
///
/// # Panics
/// If the numbers of rows differ, a matrix is tiles, or rows cannot lie as they are to.
pub fn interleave(all: &[(Rows, RowForm)], team: &mut Team) -> Beside {
    const LINE: usize = 64;
    let count = all.first().map_or(0, |(rows, _)| rows.shape().0);
    assert!(
        all.iter().all(|(rows, _)| rows.shape().0 == count),
        "interleave: rows"
    );
    let mut stride = 0;
    let places: Vec<Range<usize>> = all
        .iter()
        .map(|(rows, form)| {
            let (at, bytes) = (stride, rows.bytes(*form));
            stride += bytes.next_multiple_of(LINE);
            at..at + bytes
        })
        .collect();
    // As many neurons as are transposed together.
    let together = all.iter().map(|(rows, _)| match rows {
        Rows::Of(_) => 1,
        Rows::ColumnsOf(m, _) => transpose::width(*m),
    });
    let together = together.max().unwrap_or(1);
    let mut data = Buffer::zeroed(count * stride);
    team.split(&mut data, together * stride, |at, part| {
        for (n, part) in part.chunks_mut(together * stride).enumerate() {
            let first = at / stride + n * together;
            for ((rows, form), place) in all.iter().zip(&places) {
                put(*rows, *form, first, part, stride, place.clone());
            }
        }
    });
    let view = |((rows, form), place): (&(Rows, RowForm), &Range<usize>)| {
        let range = match count {
            0 => 0..0,
            n => place.start..(n - 1) * stride + place.end,
        };
        let lie_in_parts = match rows {
            Rows::Of(m) => matches!(m.layout(), Layout::Parts { .. }),
            Rows::ColumnsOf(..) => false,
        };
        let layout = match form {
            RowForm::Same if !lie_in_parts => Layout::Rows { stride },
            RowForm::Same | RowForm::Parts => Layout::Parts { stride },
        };
        (range, layout)
    };
    Beside {
        views: all.iter().zip(&places).map(view).collect(),
        data: data.into(),
    }
}

/// Puts rows `first..` at bytes `place` of every `stride` of `out`.
fn put(
    rows: Rows,
    form: RowForm,
    first: usize,
    out: &mut [u8],
    stride: usize,
    place: Range<usize>,
) {
    let turned;
    let (m, first) = match rows {
        Rows::Of(m) => (m, first),
        Rows::ColumnsOf(m, dtype) => {
            let count = out.len() / stride;
            turned = transpose::columns(m, first, count, dtype);
            let m = MatRef::new(dtype, count, m.rows(), &turned);
            (m.expect("whole rows of that type"), 0)
        }
    };
    for (i, neuron) in out.chunks_exact_mut(stride).enumerate() {
        let row = &mut neuron[place.clone()];
        match form {
            RowForm::Same => row.copy_from_slice(m.row_data(first + i)),
            RowForm::Parts => put_row(m, first + i, row),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{quant::transpose_pack, reference};

    #[test]
    fn rows_are_laid_side_by_side() {
        let (a, b): (Vec<u8>, Vec<u8>) = ((0..4).collect(), (0..132).map(|i| 255 - i).collect());
        let m = [
            MatRef::new(DType::F16, 2, 1, &a).unwrap(),
            MatRef::new(DType::F16, 2, 33, &b).unwrap(),
        ];
        for threads in [1, 3] {
            let mut team = Team::new(threads).unwrap();
            let Beside { data, views } =
                interleave(&m.map(|m| (Rows::Of(m), RowForm::Same)), &mut team);
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
        let all = [RowForm::Same, RowForm::Parts].map(|form| (Rows::Of(m), form));
        let beside = interleave(&all, &mut team);
        assert!(beside.data.is_empty());
        assert_eq!(beside.views.len(), 2);
    }

    #[test]
    fn columns_are_laid_as_the_rows_of_the_transpose() {
        for (from, rows, cols) in [(DType::Q8_0, 160, 224), (DType::F32, 32, 67)] {
            let x: Vec<f32> = (0..rows * cols).map(|i| (i * 37 % 101) as f32).collect();
            let data = reference::packed(from, &x);
            let m = MatRef::new(from, rows, cols, &data).unwrap();
            let mut team = Team::new(2).unwrap();
            let turned = transpose_pack(m, DType::Q8_0, &mut team).unwrap();
            let t = MatRef::new(DType::Q8_0, cols, rows, &turned).unwrap();
            let forms = [RowForm::Same, RowForm::Parts];
            let want = interleave(&forms.map(|form| (Rows::Of(t), form)), &mut team);
            for threads in [1, 3] {
                let mut team = Team::new(threads).unwrap();
                let columns = forms.map(|form| (Rows::ColumnsOf(m, DType::Q8_0), form));
                let got = interleave(&columns, &mut team);
                assert_eq!(got.data, want.data, "{from}");
                assert_eq!(got.views, want.views, "{from}");
            }
        }
    }
}
