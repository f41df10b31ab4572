//! Products with many tokens: right to the rounding they promise, whatever unit their panels have.

use super::{
    super::gemm::{GemmWork, matmul, matmul_transposed},
    *,
};
use half::bf16;

/// Every table: those of `available` and, where the last of them multiplies `bf16`, its set's without, which other CPUs have.
fn tables() -> Vec<&'static Kernels> {
    #[allow(unused_mut)]
    let mut all = Kernels::available();
    #[cfg(target_arch = "x86_64")]
    if Kernels::best().bf16.is_some() {
        all.push(&super::super::avx512::KERNELS);
    }
    all
}

fn name(k: &Kernels) -> String {
    let with = if k.bf16.is_some() { " with bf16" } else { "" };
    format!("{}{with}", k.isa())
}

/// By how much of itself a product changes when its factors are rounded.
fn rounding(k: &Kernels, dtype: DType) -> f64 {
    let half_a_step = 2f64.powi(-8);
    match dtype {
        _ if !k.rounds_to_bf16(dtype) => 0.0,
        DType::BF16 => half_a_step,
        _ => (1.0 + half_a_step).powi(2) - 1.0,
    }
}

fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
}

/// `w` in `F32`, each element rounded.
fn rounded_weights(w: &Mat) -> Mat {
    let rows: Vec<f32> = (0..w.rows)
        .flat_map(|i| rounded(&reference::row(w.get(), i)))
        .collect();
    Mat {
        dtype: DType::F32,
        data: reference::packed(DType::F32, &rows),
        ..*w
    }
}

/// Both products of `tokens` rows of noise: `x`, `matmul`'s output, `s`, `matmul_transposed`'s output.
struct Products {
    x: Vec<f32>,
    out: Vec<f32>,
    s: Vec<f32>,
    sums: Vec<f32>,
}

fn products(k: &Kernels, m: &Mat, tokens: usize, threads: usize, work: &mut GemmWork) -> Products {
    let x = noise(51, tokens * m.cols);
    let s = noise(52, tokens * m.rows);
    let mut team = Team::new(threads).unwrap();
    let mut out = vec![f32::NAN; tokens * m.rows];
    let mut sums = vec![f32::NAN; tokens * m.cols];
    matmul(&mut team, k, m.get(), &x, tokens, &mut out, work);
    matmul_transposed(&mut team, k, m.get(), &s, tokens, &mut sums, work);
    Products { x, out, s, sums }
}

#[test]
fn bf16_is_multiplied_where_the_cpu_can() {
    #[cfg(target_arch = "x86_64")]
    if let Ok(k) = Kernels::select(Some("avx512")) {
        let can = is_x86_feature_detected!("avx512bf16");
        for dtype in DType::ALL {
            let is_exact = [DType::F32, DType::F16].contains(&dtype);
            assert_eq!(k.rounds_to_bf16(dtype), can && !is_exact);
        }
    }
    for isa in [Isa::Scalar, Isa::Neon, Isa::Avx2] {
        if let Ok(k) = Kernels::select(Some(isa.name())) {
            assert!(k.bf16.is_none(), "{isa}");
        }
    }
}

#[test]
fn products_with_many_tokens_are_within_the_rounding_of_their_sums() {
    let mut work = GemmWork::new();
    for k in tables() {
        for dtype in DType::ALL {
            let cols = if dtype.is_quantized() {
                2 * dtype.block_len()
            } else {
                83
            };
            let rows = 61;
            let m = Mat::new(dtype, rows, cols, 50);
            for tokens in [0, 1, 4, 5, 32, 45, 100] {
                let p = products(k, &m, tokens, 1 + tokens % 3, &mut work);
                for t in 0..tokens {
                    let x = &p.x[t * cols..][..cols];
                    let (seen, rounding) = if tokens <= 4 {
                        (reference::activations(x, dtype), 0.0)
                    } else {
                        (reference::activations(x, DType::F32), rounding(k, dtype))
                    };
                    for (i, want) in reference::dot_rows(m.get(), &seen).iter().enumerate() {
                        let magnitude = magnitude(&m, i, &seen);
                        let got = p.out[t * rows + i];
                        assert!(
                            (f64::from(got) - want.value).abs()
                                <= bound(magnitude, cols + 12) + rounding * want.magnitude,
                            "{} {dtype} {tokens} tokens: {got} for {}",
                            name(k),
                            want.value
                        );
                    }
                }
                let all: Vec<u32> = (0..rows as u32).collect();
                for (s, out) in p.s.chunks(rows).zip(p.sums.chunks(cols)) {
                    for (got, want) in out.iter().zip(reference::axpy_rows(m.get(), &all, s)) {
                        assert!(
                            (f64::from(*got) - want.value).abs()
                                <= bound(2.0 * want.magnitude, rows + 12)
                                    + rounding(k, dtype) * want.magnitude,
                            "{} {dtype} {tokens} tokens: {got} for {}",
                            name(k),
                            want.value
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn factors_are_rounded_to_nearest_and_nothing_else_is_lost() {
    // Types that every table unpacks to the same bits. Were factors not rounded, errors would be larger by orders.
    let types = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q8_0,
        DType::Q4_0,
        DType::Q5_0,
    ];
    let (rows, tokens) = (61, 5);
    let all: Vec<u32> = (0..rows as u32).collect();
    let mut work = GemmWork::new();
    for k in tables() {
        for dtype in types {
            let cols = if dtype.is_quantized() { 96 } else { 83 };
            let m = Mat::new(dtype, rows, cols, 50);
            let p = products(k, &m, tokens, 2, &mut work);
            let (w, x, s) = if k.rounds_to_bf16(dtype) {
                (rounded_weights(&m), rounded(&p.x), rounded(&p.s))
            } else {
                (
                    Mat {
                        data: m.data.clone(),
                        ..m
                    },
                    p.x,
                    p.s,
                )
            };
            for (x, out) in x.chunks(cols).zip(p.out.chunks(rows)) {
                let x: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
                for (got, want) in out.iter().zip(reference::dot_rows(w.get(), &x)) {
                    assert!(
                        (f64::from(*got) - want.value).abs() <= bound(want.magnitude, cols + 2),
                        "{} {dtype}: {got} for {}",
                        name(k),
                        want.value
                    );
                }
            }
            for (s, out) in s.chunks(rows).zip(p.sums.chunks(cols)) {
                for (got, want) in out.iter().zip(reference::axpy_rows(w.get(), &all, s)) {
                    assert!(
                        (f64::from(*got) - want.value).abs() <= bound(want.magnitude, rows + 2),
                        "{} {dtype}, transposed: {got} for {}",
                        name(k),
                        want.value
                    );
                }
            }
        }
    }
}

#[test]
fn what_is_no_finite_number_reaches_its_token_and_no_other() {
    let (rows, cols, tokens) = (37, 256, 40);
    let mut team = Team::new(2).unwrap();
    let mut work = GemmWork::new();
    for k in tables() {
        for dtype in DType::ALL {
            let m = Mat::new(dtype, rows, cols, 56);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let check = |out: &[f32], len: usize, what: &str| {
                    for (t, out) in out.chunks(len).enumerate() {
                        let well = |v: &f32| match (t == 33, bad.is_nan()) {
                            (false, _) => v.is_finite(),
                            (true, true) => v.is_nan(),
                            (true, false) => !v.is_finite(),
                        };
                        let wrong = out.iter().find(|v| !well(v));
                        assert_eq!(wrong, None, "{} {dtype} {bad} {what} {t}", name(k));
                    }
                };
                let (mut x, mut s) = (noise(57, tokens * cols), noise(58, tokens * rows));
                // A weight of zero makes NaN of an infinity, which is no finite number either.
                x[33 * cols + 7] = bad;
                s[33 * rows + rows - 1] = bad;
                let (mut out, mut sums) = (vec![0.0; tokens * rows], vec![0.0; tokens * cols]);
                matmul(&mut team, k, m.get(), &x, tokens, &mut out, &mut work);
                matmul_transposed(&mut team, k, m.get(), &s, tokens, &mut sums, &mut work);
                check(&out, rows, "row");
                check(&sums, cols, "column");
            }
        }
    }
}

#[test]
fn products_do_not_depend_on_the_team_and_cross_every_tile_border() {
    // More rows than a tile, more of both than a tile is deep in pairs, more tokens than a panel.
    let (rows, cols, tokens) = (531, 608, 70);
    for k in tables() {
        for dtype in [DType::F32, DType::BF16, DType::Q8_0] {
            let m = Mat::new(dtype, rows, cols, 53);
            let p = products(k, &m, tokens, 1, &mut GemmWork::new());
            let other = products(k, &m, tokens, 3, &mut GemmWork::new());
            assert_eq!(
                (&p.out, &p.sums),
                (&other.out, &other.sums),
                "{} {dtype}",
                name(k)
            );
            let last = tokens - 1;
            let x: Vec<f64> = p.x[last * cols..].iter().map(|&v| f64::from(v)).collect();
            let all: Vec<u32> = (0..rows as u32).collect();
            let got = p.out[last * rows..].iter().chain(&p.sums[last * cols..]);
            let s = &p.s[last * rows..];
            let want = reference::dot_rows(m.get(), &x).into_iter();
            for (got, want) in got.zip(want.chain(reference::axpy_rows(m.get(), &all, s))) {
                let bound = bound(want.magnitude, cols + 12);
                assert!(
                    (f64::from(*got) - want.value).abs()
                        <= bound + rounding(k, dtype) * want.magnitude,
                    "{} {dtype}: {got} for {}",
                    name(k),
                    want.value
                );
            }
        }
    }
}
