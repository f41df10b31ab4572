//! Rows in parts: right to rounding, whoever is beside them, and the same matrix to everything that unpacks.

use super::{
    super::gemm::{GemmWork, matmul},
    *,
};
use crate::quant::{Beside, RowForm, Rows, has_parts, interleave, unpack_row_of};

fn in_parts() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|t| has_parts(*t))
}

fn parts(m: &Mat) -> Beside {
    interleave(
        &[(Rows::Of(m.get()), RowForm::Parts)],
        &mut Team::new(1).unwrap(),
    )
}

fn view<'a>(m: &Mat, parts: &'a Beside) -> MatRef<'a> {
    let (range, layout) = parts.views[0].clone();
    MatRef::with_layout(m.dtype, m.rows, m.cols, layout, &parts.data[range]).unwrap()
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
        for count in [0, 1, 3, 4, 9, 21] {
            let m = Mat::new(dtype, 28, cols, 3);
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
                let fixed = fixed_point(k, dtype, magnitude);
                let bound = bound(magnitude + f64::from(start[c].abs()), rows.len() + 6) + fixed;
                let label = format!("{} {dtype} {count} x {cols}, column {c}", k.isa());
                assert!(error <= bound, "{label}: {} for {}", y[c], want.value);
            }
        }
    });
}

/// Eight rows of Q8_0 whose levels are all the same, of that scale, and the sum of them with those coefficients, each column's.
fn sum_of_levels(k: &Kernels, level: i8, scale: f32, coef: &[f32]) -> Vec<f32> {
    let mut block = half::f16::from_f32(scale).to_le_bytes().to_vec();
    block.extend([level as u8; 32]);
    let m = Mat {
        dtype: DType::Q8_0,
        rows: coef.len(),
        cols: 160,
        data: block.repeat(5 * coef.len()),
    };
    let rows: Vec<u32> = (0..coef.len() as u32).collect();
    let mut y = vec![0.0; m.cols];
    k.axpy_list(view(&m, &parts(&m)), &rows, coef, 0..m.cols, &mut y);
    y
}

#[test]
fn sums_of_extreme_levels_do_not_overflow() {
    for k in Kernels::available() {
        for level in [-128, -127, -1, 0, 1, 127] {
            // All of one size, and one among others that hardly count.
            for coef in [[0.5f32; 8], [1e-6, 3.0, 1e-5, -1e-6, 0.0, 2e-6, 1e-7, 1e-9]] {
                for sign in [1.0, -1.0] {
                    let coef = coef.map(|c| c * sign);
                    let want: f64 = coef.iter().map(|c| f64::from(*c) * f64::from(level)).sum();
                    let most: f64 = coef.iter().map(|c| f64::from(c.abs()) * 128.0).sum();
                    for y in sum_of_levels(k, level, 1.0, &coef) {
                        let error = (f64::from(y) - want).abs();
                        let bound =
                            fixed_point(k, DType::Q8_0, most * 254.0 / 128.0) + bound(most, 14);
                        assert!(error <= bound, "{} {level} {coef:?}: {y}", k.isa());
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_no_number_reaches_sums_and_what_is_zero_adds_nothing() {
    for k in Kernels::available() {
        for bad in [f32::NAN, f32::INFINITY] {
            for at in 0..9 {
                let mut coef = [0.25; 9];
                coef[at] = bad;
                let y = sum_of_levels(k, 3, 1.0, &coef);
                assert!(y.iter().all(|y| !y.is_finite()), "{} {bad}", k.isa());
            }
            let y = sum_of_levels(k, 3, bad, &[0.25; 3]);
            assert!(y.iter().all(|y| !y.is_finite()), "{} scale {bad}", k.isa());
        }
        for (scale, coef) in [(1.0, [0.0; 9]), (0.0, [0.25; 9])] {
            let y = sum_of_levels(k, 127, scale, &coef);
            assert!(y.iter().all(|y| *y == 0.0), "{}", k.isa());
        }
    }
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
