//! The table that runs everywhere: the generic loops, compiled for the target's base instruction set.

use super::{DTYPES, Input, Isa, Kernels, generic, per_format};

pub(super) static KERNELS: Kernels = Kernels {
    isa: Isa::Scalar,
    dot: per_format!(generic::dot),
    tiles: [None; DTYPES],
    quick_rows: &[],
    dot_parts: [None; DTYPES],
    axpy_parts: [None; DTYPES],
    axpy: per_format!(generic::axpy),
    unpack: per_format!(generic::unpack),
    panel: generic::panel,
    panel_in_halves: None,
    bf16: None,
    fill: Input::fill,
    act: generic::act,
    glu: generic::glu,
    rms_norm: generic::rms_norm,
    exp_below: generic::exp_below,
    soft_cap: generic::soft_cap,
    log_sum_exp: generic::log_sum_exp,
    kl_divergence: generic::kl_divergence,
    select_above: generic::select_above,
};
