//! Every instruction set this CPU has, every storage type, against the oracle, within computed bounds.

use super::*;
use crate::{
    dtype::DType,
    reference::{self, Sum},
};

mod ffn;
mod gemm;
mod parallel;
mod parts;
mod refusals;
mod soft_cap;
mod tiles;

/// Numbers between -1 and 1 that look random, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

/// A random matrix that owns its bytes.
struct Mat {
    dtype: DType,
    rows: usize,
    cols: usize,
    data: Vec<u8>,
}

impl Mat {
    fn new(dtype: DType, rows: usize, cols: usize, seed: u64) -> Mat {
        // Off centre, so that minima and offsets matter.
        let x: Vec<f32> = noise(seed, rows * cols).iter().map(|v| v + 0.3).collect();
        let data = reference::packed(dtype, &x);
        Mat {
            dtype,
            rows,
            cols,
            data,
        }
    }

    fn get(&self) -> MatRef<'_> {
        MatRef::new(self.dtype, self.rows, self.cols, &self.data).unwrap()
    }

    /// The same matrix with every row not listed full of ones: NaN in each type, be it an element or a scale, but for T2,
    /// which has neither.
    fn poisoned(&self, rows: &[u32]) -> Mat {
        let mut data = self.data.clone();
        let bytes = self.get().row_bytes();
        for (i, row) in data.chunks_exact_mut(bytes.max(1)).enumerate() {
            if !rows.contains(&(i as u32)) {
                row.fill(0xff);
            }
        }
        Mat { data, ..*self }
    }

    /// `m[i][c]`, but at least the largest magnitude in its block of 32, twice: what a kernel that splits a weight
    /// into a scaled level and an offset may have to cancel.
    fn magnitudes(&self, i: usize) -> Vec<f64> {
        let row = reference::row(self.get(), i);
        let block = if self.dtype.is_quantized() { 32 } else { 1 };
        row.chunks(block)
            .flat_map(|b| {
                let most = b.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
                let factor = if block == 1 { 1.0 } else { 2.0 };
                std::iter::repeat_n(factor * f64::from(most), b.len())
            })
            .collect()
    }
}

/// The sum of the magnitudes of a row's products with `seen`.
fn magnitude(m: &Mat, i: usize, seen: &[f64]) -> f64 {
    let terms = m.magnitudes(i).into_iter().zip(seen);
    terms.map(|(w, x)| w * x.abs()).sum()
}

fn input(k: &Kernels, x: &[f32]) -> Input {
    let mut input = Input::with_capacity(x.len());
    k.prepare(x, &mut input);
    input
}

/// Widths that leave rests of every kind: of vectors, of unrolled steps, of groups of blocks.
fn widths(dtype: DType) -> &'static [usize] {
    match dtype.block_len() {
        1 => &[0, 1, 7, 31, 33, 64, 130, 259],
        32 => &[0, 32, 64, 96, 128, 160, 288, 544, 576, 640, 896],
        _ => &[0, 256, 512, 1280],
    }
}

fn each_case(f: impl Fn(&Kernels, DType, usize)) {
    for k in Kernels::available() {
        for dtype in DType::ALL {
            for &cols in widths(dtype) {
                f(k, dtype, cols);
            }
        }
    }
}

/// The rounding error of a sum of terms of that magnitude, each of which passes through at most `steps` roundings.
fn bound(magnitude: f64, steps: usize) -> f64 {
    magnitude * f64::from(f32::EPSILON) / 2.0 * steps as f64
}

/// What sums of rows of Q8_0 in parts may be off by where they are added up in fixed point, eight rows at a time: eight units, of
/// which 32,700 are the sum of the magnitudes if all levels were 128, for terms of that magnitude, which is 2 * 127 levels.
fn fixed_point(k: &Kernels, dtype: DType, magnitude: f64) -> f64 {
    if k.isa() == Isa::Avx2 && dtype == DType::Q8_0 {
        magnitude * 128.0 / (2.0 * 127.0) * 8.0 / 32_700.0
    } else {
        0.0
    }
}

#[test]
fn dot_products_are_within_the_rounding_of_their_sum() {
    each_case(|k, dtype, cols| {
        let x = noise(cols as u64, cols);
        let seen = reference::activations(&x, dtype);
        let input = input(k, &x);
        for rows in 0..10 {
            let m = Mat::new(dtype, rows, cols, 7);
            let mut out = vec![f32::NAN; rows];
            k.dot_rows(m.get(), &input, &mut out);
            for (i, (got, want)) in out
                .iter()
                .zip(reference::dot_rows(m.get(), &seen))
                .enumerate()
            {
                let magnitude = magnitude(&m, i, &seen);
                let error = (f64::from(*got) - want.value).abs();
                // Eight partial sums at least, and a handful of roundings in a scale and the last addition.
                let bound = bound(magnitude, cols / 8 + 12);
                assert!(
                    error <= bound,
                    "{} {dtype} {rows} x {cols}, row {i}: {got} for {}, error {error:e} over {bound:e}",
                    k.isa(),
                    want.value
                );
            }
        }
    });
}

/// Where a block of a quantised type has its `f16`.
fn halves(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q8_0 | DType::Q4_0 | DType::Q5_0 => &[0],
        DType::Q3_0 | DType::Q2_0 | DType::Q8_H => &[0],
        DType::T2 => &[],
        DType::Q6_K => &[208],
        _ => &[0, 2],
    }
}

#[test]
fn extreme_levels_neither_saturate_nor_lose_their_sign() {
    // Every byte 0x80, 0x7f, 0xff or 0x00 against activations of the largest level and either sign.
    for k in Kernels::available() {
        for dtype in DType::ALL.into_iter().filter(|t| t.is_quantized()) {
            for byte in [0x80, 0x7f, 0xff, 0x00, 0x88, 0x77, 0x55, 0xaa] {
                for signs in [[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]] {
                    let mut data = vec![byte; 2 * dtype.block_bytes()];
                    for block in data.chunks_exact_mut(dtype.block_bytes()) {
                        for &at in halves(dtype) {
                            block[at..at + 2]
                                .copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
                        }
                    }
                    let cols = 2 * dtype.block_len();
                    let m = MatRef::new(dtype, 1, cols, &data).unwrap();
                    let x: Vec<f32> = (0..cols).map(|i| signs[i % 2] * 127.0).collect();
                    let mut out = [f32::NAN];
                    k.dot_rows(m, &input(k, &x), &mut out);
                    let want = reference::dot_rows(m, &reference::activations(&x, dtype))[0];
                    // An offset of up to 128 levels of 0.5, or 63 minima of 0.5, against each activation.
                    let magnitude = want.magnitude + cols as f64 * 127.0 * 64.0;
                    let error = (f64::from(out[0]) - want.value).abs();
                    assert!(
                        error <= bound(magnitude, cols / 8 + 12),
                        "{} {dtype} {byte:#x}: {} for {}",
                        k.isa(),
                        out[0],
                        want.value
                    );
                }
            }
        }
    }
}

#[test]
fn sums_of_rows_are_within_the_rounding_of_their_sum() {
    each_case(|k, dtype, cols| {
        for rows in 0..10 {
            let m = Mat::new(dtype, rows, cols, 3);
            let coef = noise(5, rows);
            let start = noise(6, cols);
            let mut y = start.clone();
            k.axpy_rows(m.get(), &coef, 0..cols, &mut y);
            let all: Vec<u32> = (0..rows as u32).collect();
            let want = reference::axpy_rows(m.get(), &all, &coef);
            let magnitudes: Vec<_> = (0..rows).map(|i| m.magnitudes(i)).collect();
            for c in 0..cols {
                let want: Sum = want[c].add(1.0, f64::from(start[c]));
                let magnitude: f64 = magnitudes
                    .iter()
                    .zip(&coef)
                    .map(|(w, &a)| w[c] * f64::from(a.abs()))
                    .sum();
                let error = (f64::from(y[c]) - want.value).abs();
                let bound = bound(magnitude + f64::from(start[c].abs()), rows + 6);
                assert!(
                    error <= bound,
                    "{} {dtype} {rows} x {cols}, column {c}: {} for {}, error {error:e} over {bound:e}",
                    k.isa(),
                    y[c],
                    want.value
                );
            }
        }
    });
}

#[test]
fn a_list_of_all_rows_gives_the_same_bits_as_all_rows() {
    each_case(|k, dtype, cols| {
        for rows in [1, 2, 3, 4, 5, 9] {
            let m = Mat::new(dtype, rows, cols, 11);
            let all: Vec<u32> = (0..rows as u32).collect();
            let x = input(k, &noise(12, cols));
            let (mut a, mut b) = (vec![0.0; rows], vec![1.0; rows]);
            k.dot_rows(m.get(), &x, &mut a);
            k.dot_list(m.get(), &all, &x, &mut b);
            assert_eq!(a, b, "{} {dtype} {rows} x {cols}", k.isa());

            let coef = noise(13, rows);
            let (mut a, mut b) = (vec![0.5; cols], vec![0.5; cols]);
            k.axpy_rows(m.get(), &coef, 0..cols, &mut a);
            k.axpy_list(m.get(), &all, &coef, 0..cols, &mut b);
            assert_eq!(a, b, "{} {dtype} {rows} x {cols}", k.isa());
        }
    });
}

#[test]
fn a_row_gives_the_same_bits_in_whatever_company() {
    each_case(|k, dtype, cols| {
        let m = Mat::new(dtype, 9, cols, 14);
        let x = input(k, &noise(15, cols));
        let mut all = [0.0; 9];
        k.dot_rows(m.get(), &x, &mut all);
        for rows in [&[4u32][..], &[0, 8], &[1, 2, 7], &[0, 2, 3, 5, 6, 8]] {
            let mut out = vec![0.0; rows.len()];
            k.dot_list(m.get(), rows, &x, &mut out);
            let want: Vec<f32> = rows.iter().map(|&r| all[r as usize]).collect();
            assert_eq!(out, want, "{} {dtype} {cols} {rows:?}", k.isa());
        }
    });
}

#[test]
fn sums_do_not_depend_on_how_columns_are_cut() {
    each_case(|k, dtype, cols| {
        let m = Mat::new(dtype, 7, cols, 16);
        let rows = [0, 1, 2, 4, 6];
        let coef = noise(17, rows.len());
        let mut whole = vec![0.0; cols];
        k.axpy_list(m.get(), &rows, &coef, 0..cols, &mut whole);
        for step in [1, 2, 3, 5].map(|n| n * dtype.block_len()) {
            let mut cut = vec![0.0; cols];
            for at in (0..cols).step_by(step) {
                let range = at..(at + step).min(cols);
                k.axpy_list(m.get(), &rows, &coef, range.clone(), &mut cut[range]);
            }
            assert_eq!(whole, cut, "{} {dtype} {cols} by {step}", k.isa());
        }
    });
}

#[test]
fn rows_not_listed_are_not_read() {
    each_case(|k, dtype, cols| {
        let rows = [1u32, 4, 5, 8];
        let m = Mat::new(dtype, 10, cols, 18);
        let poisoned = m.poisoned(&rows);
        if cols > 0 && dtype != DType::T2 {
            assert!(reference::row(poisoned.get(), 0).iter().all(|v| v.is_nan()));
        }
        let x = input(k, &noise(19, cols));
        let coef = noise(20, 4);
        let run = |m: MatRef| {
            let (mut out, mut y) = (vec![0.0; 4], vec![0.0; cols]);
            k.dot_list(m, &rows, &x, &mut out);
            k.axpy_list(m, &rows, &coef, 0..cols, &mut y);
            (out, y)
        };
        let got = run(poisoned.get());
        assert!(
            got.0.iter().chain(&got.1).all(|v| v.is_finite()),
            "{} {dtype}",
            k.isa()
        );
        assert_eq!(got, run(m.get()), "{} {dtype}", k.isa());
    });
}

#[test]
fn all_instruction_sets_prepare_the_same_input_as_the_oracle() {
    for len in [0, 1, 31, 32, 96, 160, 544] {
        let mut x: Vec<f32> = noise(21, len).iter().map(|v| v * 3.0).collect();
        for (i, v) in [(3, 0.0), (33, -0.0), (64, 1e-38), (70, 1e30)] {
            if i < len {
                x[i] = v;
            }
        }
        if len > 160 {
            x[128..160].fill(0.0);
            x[160..192].fill(1e-35);
        }
        let (levels, scales) = reference::quantize(&x);
        for k in Kernels::available() {
            let mut got = input(k, &noise(22, 544));
            k.prepare(&x, &mut got);
            assert_eq!(
                (got.x(), got.len(), got.is_empty()),
                (&x[..], len, len == 0)
            );
            if got.is_blocked() {
                assert_eq!(&got.levels()[..len], levels, "{} {len}", k.isa());
                assert_eq!(&got.scales()[..len / 32], scales, "{} {len}", k.isa());
                assert!(got.levels()[len..].iter().all(|&q| q == 0));
                assert!(got.scales()[len / 32..].iter().all(|&s| s == 0.0));
                for (i, &q) in got.levels().iter().enumerate() {
                    let (block, half, at) = (i / 32 % 4, i / 16 % 2, i % 16);
                    assert_eq!(got.halves()[i / 128 * 128 + half * 64 + block * 16 + at], q);
                    let (block, quarter, at) = (i / 32 % 8, i / 8 % 4, i % 8);
                    assert_eq!(
                        got.quarters()[i / 256 * 256 + quarter * 64 + block * 8 + at],
                        q
                    );
                }
                for (b, sum) in got.sums()[..len / 32].iter().enumerate() {
                    let levels: i32 = levels[32 * b..][..32].iter().map(|&q| i32::from(q)).sum();
                    assert_eq!(*sum, scales[b] * levels as f32);
                }
            }
        }
    }
}

#[test]
fn a_nan_or_infinite_activation_reaches_every_product() {
    for k in Kernels::available() {
        for dtype in DType::ALL {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = noise(23, 512);
                x[300] = bad;
                let m = Mat::new(dtype, 5, 512, 24);
                let mut out = [0.0; 5];
                k.dot_rows(m.get(), &input(k, &x), &mut out);
                assert!(
                    out.iter().all(|v| !v.is_finite()),
                    "{} {dtype} {bad}: {out:?}",
                    k.isa()
                );
            }
        }
    }
}

#[test]
fn activations_and_gates_follow_the_formula() {
    let mut x = noise(25, 200);
    x.iter_mut().for_each(|v| *v *= 20.0);
    x.extend([
        0.0, -0.0, 88.0, -88.0, 100.0, -100.0, 1e-20, -1e-20, 1e4, -1e4, -86.7, 0.5,
    ]);
    let up = noise(26, x.len());
    for k in Kernels::available() {
        for f in [Act::Silu, Act::GeluTanh] {
            let mut a = x.clone();
            k.act(f, &mut a);
            let mut g = x.clone();
            k.glu(f, &mut g, &up);
            for i in 0..x.len() {
                let want = reference::act(f, f64::from(x[i]));
                // The argument of the exponential is rounded too, which counts its size times.
                let argument = match f {
                    Act::Silu => x[i].abs(),
                    Act::GeluTanh => 1.6 * (x[i].abs() + 0.045 * x[i].abs().powi(3)),
                };
                let steps = 16 + 8 * argument.min(90.0) as usize;
                let bound = bound(want.abs(), steps) + 1e-35;
                assert!(
                    (f64::from(a[i]) - want).abs() <= bound,
                    "{} {f:?} {}: {} for {want}",
                    k.isa(),
                    x[i],
                    a[i]
                );
                assert_eq!(g[i], a[i] * up[i], "{} {f:?}", k.isa());
            }
            let mut nan = [1.0, f32::NAN, 2.0];
            k.act(f, &mut nan);
            assert!(nan[1].is_nan() && nan[0].is_finite() && nan[2].is_finite());
        }
    }
}

#[test]
fn norm_and_exponentials_follow_the_formula() {
    for k in Kernels::available() {
        for len in [1, 2, 15, 16, 17, 33, 300] {
            let x = noise(27, len);
            let weight = noise(28, len);
            let mut out = vec![0.0; len];
            k.rms_norm(&x, &weight, 1e-6, &mut out);
            for (got, want) in out.iter().zip(reference::rms_norm(&x, &weight, 1e-6)) {
                let bound = (len / 16 + 8) as f64 * f64::from(f32::EPSILON) * want.abs();
                assert!(
                    (f64::from(*got) - want).abs() <= bound,
                    "{} {len}: {got} for {want}",
                    k.isa()
                );
            }
            let mut x: Vec<f32> = x.iter().map(|v| v * 30.0).collect();
            x[len / 2] = f32::NEG_INFINITY;
            if len == 1 {
                x[0] = 1e30;
            }
            let want = reference::softmax(&x);
            let mut got = x.clone();
            // What was the largest so far must not matter to the shares, be it smaller or larger.
            let largest = x.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
            for so_far in [f32::NEG_INFINITY, largest + 3.0] {
                got.copy_from_slice(&x);
                let (max, sum) = k.exp_below(&mut got, so_far);
                assert_eq!(max, largest.max(so_far));
                got.iter_mut().for_each(|g| *g /= sum);
            }
            for ((got, want), x) in got.iter().zip(want).zip(x) {
                let bound = (len / 16 + 80) as f64 * f64::from(f32::EPSILON) * want.abs() + 1e-35;
                assert!(
                    (f64::from(*got) - want).abs() <= bound,
                    "{} {len} {x}: {got} for {want}",
                    k.isa()
                );
            }
        }
        assert_eq!(k.exp_below(&mut [], 2.0), (2.0, 0.0));
        assert!(k.exp_below(&mut [1.0, f32::NAN], 0.0).1.is_nan());
        let nothing = f32::NEG_INFINITY;
        assert!(k.exp_below(&mut [nothing], nothing).1.is_nan());
    }
}

#[test]
fn log_sums_and_divergences_follow_the_formula() {
    for k in Kernels::available() {
        for len in [1, 2, 15, 16, 17, 300, 1023, 1025, 5000] {
            let scaled = |seed| -> Vec<f32> { noise(seed, len).iter().map(|v| v * 12.0).collect() };
            let (p, q) = (scaled(32), scaled(33));
            let log_sums = [k.log_sum_exp(&p), k.log_sum_exp(&q)];
            for (x, got) in [&p, &q].into_iter().zip(log_sums) {
                let want = reference::log_sum_exp(x);
                assert!(
                    (got - want).abs() <= 80.0 * f64::from(f32::EPSILON),
                    "{} {len}: {got} for {want}",
                    k.isa()
                );
            }
            // A term errs by its weight's relative error and by the rounding of three numbers below 64; the weights sum to 1.
            let bound = (80.0 * reference::kl_divergence(&p, &q).abs() + 3.0 * 64.0)
                * f64::from(f32::EPSILON);
            let (got, want) = (
                k.kl_divergence(&p, &q, log_sums),
                reference::kl_divergence(&p, &q),
            );
            assert!(
                (got - want).abs() <= bound,
                "{} {len}: {got} for {want}",
                k.isa()
            );
            assert_eq!(
                k.kl_divergence(&p, &p, [log_sums[0]; 2]),
                0.0,
                "{}",
                k.isa()
            );
        }
        assert!(k.log_sum_exp(&[1.0, f32::NAN]).is_nan());
        assert_eq!(k.log_sum_exp(&[]), f64::NEG_INFINITY);
        // Far outside what exp can hold.
        let far = k.log_sum_exp(&[-3000.0, -3000.0]);
        assert!(
            (far + 3000.0 - 2f64.ln()).abs() < 1e-6,
            "{}: {far}",
            k.isa()
        );
    }
}

#[test]
fn selection_keeps_what_exceeds_the_threshold_and_nothing_that_is_no_number() {
    let special = [
        0.0,
        -0.0,
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.5,
        -0.5,
        0.25,
        1e-40,
        -1e-40,
    ];
    for k in Kernels::available() {
        for len in [0, 1, 15, 16, 17, 100] {
            let mut signal = noise(29, len);
            let mut pos: Vec<f32> = noise(30, len).iter().map(|v| v.abs() * 2.0).collect();
            let mut neg: Vec<f32> = noise(31, len).iter().map(|v| v.abs() * 2.0).collect();
            if len == 100 {
                for (i, v) in special.into_iter().enumerate() {
                    signal[3 * i] = v;
                    pos[40 + i] = v;
                    neg[60 + i] = v;
                    signal[80 + i] = v;
                    pos[80 + i] = 0.0;
                }
            }
            for tau in [
                0.0,
                -0.0,
                0.25,
                0.5,
                -1.0,
                f32::INFINITY,
                f32::NEG_INFINITY,
                f32::NAN,
            ] {
                let weighted = Score::Weighted {
                    positive: &pos,
                    negative: &neg,
                };
                for score in [Score::Magnitude, Score::Value, weighted] {
                    let mut out = vec![u32::MAX; len + 3];
                    let n = k.select_above(&signal, score, tau, 1000, &mut out);
                    let want: Vec<u32> = reference::select_above(&signal, score, tau)
                        .iter()
                        .map(|i| i + 1000)
                        .collect();
                    assert_eq!(&out[..n], want, "{} {len} {tau}", k.isa());
                    assert!(
                        out[len..].iter().all(|&v| v == u32::MAX),
                        "wrote behind the signal"
                    );
                }
            }
        }
    }
}

#[test]
fn sets_are_found_by_name_and_the_error_names_those_there_are() {
    for k in Kernels::available() {
        assert_eq!(
            Kernels::select(Some(k.isa().name())).unwrap().isa(),
            k.isa()
        );
    }
    assert_eq!(Kernels::select(None).unwrap().isa(), Kernels::best().isa());
    let error = Kernels::select(Some("mmx")).err().unwrap();
    assert!(error.to_string().contains("\"mmx\"") && error.to_string().contains("scalar"));
}
