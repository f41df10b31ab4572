//! AArch64's vectors: the generic loops, vectorised by the compiler.

use super::{
    Act, DTYPES, Input, Isa, Kernels, Score, elementwise,
    gemm::{DEPTH, LANES},
    generic, per_format,
};
use crate::{matrix::MatRef, quant::Format};
use std::ops::Range;

pub(super) static KERNELS: Kernels = Kernels {
    isa: Isa::Neon,
    dot: per_format!(dot),
    tiles: [None; DTYPES],
    quick_rows: &[],
    dot_parts: [None; DTYPES],
    axpy_parts: [None; DTYPES],
    axpy: per_format!(axpy),
    unpack: per_format!(unpack),
    panel,
    panel_in_halves: None,
    bf16: None,
    fill,
    act,
    glu,
    rms_norm,
    exp_below,
    soft_cap,
    log_sum_exp,
    kl_divergence,
    select_above,
};

elementwise!("neon");

#[target_feature(enable = "neon")]
fn dot<F: Format>(m: MatRef, rows: Option<&[u32]>, x: &Input, out: &mut [f32]) {
    generic::dot::<F>(m, rows, x, out);
}

#[target_feature(enable = "neon")]
fn axpy<F: Format>(
    m: MatRef,
    rows: Option<&[u32]>,
    coef: &[f32],
    cols: Range<usize>,
    y: &mut [f32],
) {
    generic::axpy::<F>(m, rows, coef, cols, y);
}

#[target_feature(enable = "neon")]
fn unpack<F: Format>(row: &[u8], out: &mut [f32]) {
    generic::unpack::<F>(row, out);
}

#[target_feature(enable = "neon")]
fn panel(w: &[[f32; DEPTH]], x: &[[f32; LANES]], acc: &mut [[f32; LANES]]) {
    generic::panel(w, x, acc);
}

#[target_feature(enable = "neon")]
fn select_above(signal: &[f32], score: Score, tau: f32, base: u32, out: &mut [u32]) -> usize {
    generic::select_above(signal, score, tau, base, out)
}
