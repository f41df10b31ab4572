//! Rows in parts: right to rounding, whoever is beside them, and the same matrix to everything that unpacks.

use super::{
    super::gemm::{GemmWork, matmul},
    *,
};
use crate::{
    matrix::{Layout, Place},
    quant::{has_parts, part, parts_bytes, unpack_row_of},
};

fn in_parts() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|t| has_parts(*t))
}

fn parts(m: &Mat) -> Vec<u8> {
    part(m.get(), &mut Team::new(1).unwrap()).unwrap()
}

fn view<'a>(m: &Mat, parts: &'a [u8]) -> MatRef<'a> {
    let stride = parts_bytes(m.dtype, m.cols);
    let reach = stride;
    let layout = Layout::Parts(Place { stride, reach });
    MatRef::with_layout(m.dtype, m.rows, m.cols, layout, parts).unwrap()
}

fn each_case(f: impl Fn(&Kernels, DType, usize)) {
    for k in Kernels::available() {
        for dtype in in_parts() {
            for &cols in widths(dtype) {
                f(k, dtype, cols);
            }
        }
    }
}

/// Holds products with some rows in parts against the reference on the blocks.
fn check(k: &Kernels, m: &Mat, rows: &[u32], x: &[f32]) {
    let bytes = parts(m);
    let seen = reference::activations(x, m.dtype);
    let mut out = vec![f32::NAN; rows.len()];
    k.dot_list(view(m, &bytes), rows, &input(k, x), &mut out);
    let want = reference::dot_rows(m.get(), &seen);
    for (&i, got) in rows.iter().zip(&out) {
        let want = want[i as usize].value;
        let error = (f64::from(*got) - want).abs();
        // Eight partial sums at least, and a handful of roundings in a scale and the last addition.
        let bound = bound(magnitude(m, i as usize, &seen), m.cols / 8 + 12);
        let label = format!("{} {} x {}, row {i}", k.isa(), m.dtype, m.cols);
        assert!(error <= bound, "{label}: {got} for {want}");
    }
}

#[test]
fn dot_products_of_parts_are_within_the_rounding_of_their_sum() {
    each_case(|k, dtype, cols| {
        let m = Mat::new(dtype, 14, cols, 7);
        let x = noise(8, cols);
        check(k, &m, &(0..14).collect::<Vec<_>>(), &x);
        check(k, &m, &[1, 2, 5, 11, 13], &x);
    });
}

#[test]
fn extreme_levels_of_parts_neither_saturate_nor_lose_their_sign() {
    for k in Kernels::available() {
        for dtype in in_parts() {
            for byte in [0x80, 0x7f, 0xff, 0x00, 0x88, 0x77, 0x55, 0xaa] {
                let cols = dtype.block_len().max(128);
                let mut data = vec![byte; 5 * dtype.row_bytes(cols).unwrap()];
                for (i, block) in data.chunks_exact_mut(dtype.block_bytes()).enumerate() {
                    // Scales that differ from block to block; a minimum where there is one.
                    let scale = half::f16::from_f32(1.0 + i as f32 / 8.0).to_le_bytes();
                    block[..2].copy_from_slice(&scale);
                    if !matches!(dtype, DType::Q8_0 | DType::Q4_0 | DType::Q5_0) {
                        block[2..4].copy_from_slice(&scale);
                    }
                }
                let m = Mat {
                    dtype,
                    rows: 5,
                    cols,
                    data,
                };
                for signs in [[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]] {
                    let x: Vec<f32> = (0..cols).map(|c| signs[c % 2]).collect();
                    check(k, &m, &[0, 1, 2, 3, 4], &x);
                }
            }
        }
    }
}

#[test]
fn sums_of_rows_in_parts_are_within_the_rounding_of_their_sum() {
    each_case(|k, dtype, cols| {
        for count in [0, 1, 3, 4, 9] {
            let m = Mat::new(dtype, 12, cols, 3);
            let bytes = parts(&m);
            let rows: Vec<u32> = (0..count).map(|i| i + i / 3).collect();
            let coef = noise(5, rows.len());
            let start = noise(6, cols);
            let mut y = start.clone();
            // Rows are summed whole, and in one case in two parts.
            let first = if count == 3 {
                dtype.block_len().min(cols)
            } else {
                0
            };
            k.axpy_list(view(&m, &bytes), &rows, &coef, 0..first, &mut y[..first]);
            k.axpy_list(view(&m, &bytes), &rows, &coef, first..cols, &mut y[first..]);
            let want = reference::axpy_rows(m.get(), &rows, &coef);
            let magnitudes: Vec<_> = rows.iter().map(|&i| m.magnitudes(i as usize)).collect();
            for c in 0..cols {
                let want: Sum = want[c].add(1.0, f64::from(start[c]));
                let terms = magnitudes.iter().zip(&coef);
                let magnitude: f64 = terms.map(|(w, &a)| w[c] * f64::from(a.abs())).sum();
                let error = (f64::from(y[c]) - want.value).abs();
                let bound = bound(magnitude + f64::from(start[c].abs()), rows.len() + 6);
                let label = format!("{} {dtype} {count} x {cols}, column {c}", k.isa());
                assert!(error <= bound, "{label}: {} for {}", y[c], want.value);
            }
        }
    });
}

#[test]
fn a_row_in_parts_gives_the_same_bits_in_whatever_company_and_others_are_not_read() {
    each_case(|k, dtype, cols| {
        let rows = [1u32, 4, 5, 8, 9];
        let m = Mat::new(dtype, 10, cols, 18);
        let (clean, poisoned) = (parts(&m), parts(&m.poisoned(&rows)));
        let x = input(k, &noise(19, cols));
        let mut all = vec![0.0; 10];
        k.dot_rows(view(&m, &clean), &x, &mut all);
        let (mut out, mut y) = (vec![0.0; 5], vec![0.0; cols]);
        k.dot_list(view(&m, &poisoned), &rows, &x, &mut out);
        let want: Vec<f32> = rows.iter().map(|&i| all[i as usize]).collect();
        assert_eq!(out, want, "{} {dtype} {cols}", k.isa());
        k.axpy_list(view(&m, &poisoned), &rows, &out, 0..cols, &mut y);
        assert!(y.iter().all(|v| v.is_finite()), "{} {dtype}", k.isa());
        if cols > 0 {
            k.dot_list(view(&m, &poisoned), &[0, 1], &x, &mut out[..2]);
            assert!(out[0].is_nan() && out[1] == all[1], "{} {dtype}", k.isa());
        }
    });
}

#[test]
fn parts_are_the_same_matrix_to_prompts() {
    for k in Kernels::available() {
        for dtype in in_parts() {
            let cols = 768;
            let m = Mat::new(dtype, 37, cols, 3);
            let bytes = parts(&m);
            let p = view(&m, &bytes);
            let x = noise(4, 9 * cols);
            let product = |m: MatRef| {
                let mut out = vec![9.0; 9 * 37];
                let (mut team, mut work) = (Team::new(2).unwrap(), GemmWork::new());
                matmul(&mut team, k, m, &x, 9, &mut out, &mut work);
                out
            };
            assert_eq!(product(p), product(m.get()), "{} {dtype}", k.isa());
            let (mut a, mut b) = (vec![0.0; cols], vec![0.0; cols]);
            unpack_row_of(p, 36, &mut a);
            unpack_row_of(m.get(), 36, &mut b);
            assert_eq!(a, b, "{dtype}");
        }
    }
}

#[test]
fn what_kernels_prefer_comes_in_parts() {
    for k in Kernels::available() {
        for dtype in DType::ALL {
            let wanted = k.multiplies_parts(dtype) || k.sums_parts(dtype);
            assert!(!wanted || has_parts(dtype), "{} {dtype}", k.isa());
            let wants_all = matches!(k.isa(), Isa::Avx2 | Isa::Avx512);
            assert!(!wants_all || k.multiplies_parts(dtype) == has_parts(dtype));
        }
    }
}
