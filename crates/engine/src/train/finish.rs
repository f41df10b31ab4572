//! From a student's parameters to the predictor that steps run.

use super::{
    host::transpose,
    init::Standard,
    students::{LowRank, Product, Ternary},
};
use crate::{
    error::{Error, Result},
    model::{Linear, Matrix},
    sparsity::{Outer, Predictor},
};
use countdown_kernels::{DType, quant};

/// The predictor of a low-rank student, its matrices of a type whose blocks fill their rows.
///
/// # Errors
/// [`Error::NotFinite`] for parameters that 16 bits cannot hold (so below).
pub(super) fn low_rank(
    student: &LowRank,
    parameters: &[f32],
    standard: &Standard,
    dtype: DType,
) -> Result<Predictor> {
    let (a, b, bias) = student.parts(parameters);
    let (inner, constant) = inner(a, student.hidden, standard, dtype)?;
    Ok(Predictor {
        rest: None,
        inner: Some(inner),
        outer: Outer::Logits(outer(b, bias, &constant, dtype)?),
    })
}

/// The predictor of a product, stored as that of [`low_rank`].
///
/// # Errors
/// As [`low_rank`].
pub(super) fn product(
    student: &Product,
    parameters: &[f32],
    standard: &Standard,
    dtype: DType,
) -> Result<Predictor> {
    let at = student.parts(parameters);
    let (inner, constant) = inner(at.a, student.hidden, standard, dtype)?;
    Ok(Predictor {
        rest: None,
        inner: Some(inner),
        outer: Outer::Product {
            gate: outer(at.gate, at.gate_bias, &constant, dtype)?,
            up: outer(at.up, at.up_bias, &constant, dtype)?,
        },
    })
}

/// The predictor of a ternary student, at 2 bits. Its logits are the student's over the scale, which keeps their order.
///
/// # Errors
/// As [`low_rank`].
pub(super) fn ternary(
    student: &Ternary,
    parameters: &[f32],
    standard: &Standard,
) -> Result<Predictor> {
    let (weights, bias) = student.parts(parameters);
    let scale = Ternary::scale(weights);
    let mut signs = Vec::new();
    Ternary::rounded(weights, scale, &mut signs);
    let mut rows = Vec::new();
    transpose(&signs, student.inter, &mut rows);
    let mut bias: Vec<f32> = bias.iter().map(|b| b / scale).collect();
    for (row, b) in rows.chunks_exact_mut(student.hidden).zip(&mut bias) {
        row.iter_mut().for_each(|w| *w /= scale);
        // Channels that never vary have factor 0 and no weight; all others keep their spread.
        for ((w, m), f) in row.iter_mut().zip(&standard.mean).zip(&standard.factor) {
            *w *= f;
            *b -= *w * m;
        }
    }
    Ok(Predictor {
        rest: None,
        inner: None,
        outer: Outer::Logits(Linear {
            weight: pack(&rows, student.hidden, DType::T2)?,
            bias: Some(bias),
        }),
    })
}

/// A for inputs that were not standardised, and what it lacks then.
fn inner(
    a: &[f32],
    hidden: usize,
    standard: &Standard,
    dtype: DType,
) -> Result<(Matrix, Vec<f32>)> {
    let mut a = a.to_vec();
    let constant = standard.fold(&mut a);
    Ok((pack(&a, hidden, dtype)?, constant))
}

/// B of its transpose `[rank, inter]`, and the bias with what A lacks.
fn outer(b: &[f32], bias: &[f32], constant: &[f32], dtype: DType) -> Result<Linear> {
    let inter = bias.len();
    let mut bias = bias.to_vec();
    for (row, c) in b.chunks_exact(inter).zip(constant) {
        bias.iter_mut()
            .zip(row)
            .for_each(|(bias, b)| *bias += c * b);
    }
    let mut rows = Vec::new();
    transpose(b, inter, &mut rows);
    Ok(Linear {
        weight: pack(&rows, constant.len(), dtype)?,
        bias: Some(bias),
    })
}

fn pack(values: &[f32], cols: usize, dtype: DType) -> Result<Matrix> {
    if !values.iter().all(|v| v.abs() <= f32::from(half::f16::MAX)) {
        return Err(Error::NotFinite("a trained weight in 16 bits".into()));
    }
    let bytes = dtype.row_bytes(cols);
    let bytes = bytes.expect("the request was checked: blocks fill rows");
    let rows = values.len() / cols;
    let mut data = vec![0; rows * bytes];
    for (row, out) in values.chunks_exact(cols).zip(data.chunks_exact_mut(bytes)) {
        quant::pack_row(dtype, row, out);
    }
    Ok(Matrix::new(dtype, rows, cols, data.into()).expect("as many bytes as rows need"))
}
