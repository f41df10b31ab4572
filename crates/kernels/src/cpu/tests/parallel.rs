//! Products spread over teams: the same bits for every team, and right.

use super::{
    super::{
        gemm::{GemmWork, matmul, matmul_transposed},
        parallel::gemv,
    },
    *,
};

#[test]
fn parallel_products_give_the_same_bits_for_every_team() {
    for k in Kernels::available() {
        for dtype in [DType::F32, DType::Q8_0, DType::Q5_0, DType::Q4_K] {
            let m = Mat::new(dtype, 37, 512, 32);
            let x = input(k, &noise(33, 512));
            let mut want = vec![0.0; 37];
            k.dot_rows(m.get(), &x, &mut want);
            for threads in [1, 2, 5] {
                let mut team = Team::new(threads).unwrap();
                let mut got = vec![9.0; 37];
                gemv(&mut team, k, m.get(), &x, &mut got);
                assert_eq!(got, want, "{} {dtype} {threads}", k.isa());
            }
        }
    }
}

#[test]
fn products_with_many_tokens_are_within_the_rounding_of_their_sums() {
    let mut work = GemmWork::new();
    for k in Kernels::available() {
        for dtype in DType::ALL {
            let cols = if dtype.is_quantized() {
                2 * dtype.block_len()
            } else {
                83
            };
            let rows = 61;
            let m = Mat::new(dtype, rows, cols, 50);
            for tokens in [0, 1, 4, 5, 32, 45] {
                let mut team = Team::new(1 + tokens % 3).unwrap();
                let x = noise(51, tokens * cols);
                let mut out = vec![f32::NAN; tokens * rows];
                matmul(&mut team, k, m.get(), &x, tokens, &mut out, &mut work);
                for t in 0..tokens {
                    let x = &x[t * cols..][..cols];
                    let seen = if tokens <= 4 {
                        reference::activations(x, dtype)
                    } else {
                        reference::activations(x, DType::F32)
                    };
                    for (i, want) in reference::dot_rows(m.get(), &seen).iter().enumerate() {
                        let magnitude: f64 = m
                            .magnitudes(i)
                            .iter()
                            .zip(&seen)
                            .map(|(w, x)| w * x.abs())
                            .sum();
                        let got = out[t * rows + i];
                        assert!(
                            (f64::from(got) - want.value).abs() <= bound(magnitude, cols + 12),
                            "{} {dtype} {tokens} tokens: {got} for {}",
                            k.isa(),
                            want.value
                        );
                    }
                }

                let s = noise(52, tokens * rows);
                let mut out = vec![f32::NAN; tokens * cols];
                matmul_transposed(&mut team, k, m.get(), &s, tokens, &mut out, &mut work);
                let all: Vec<u32> = (0..rows as u32).collect();
                for (s, out) in s.chunks(rows).zip(out.chunks(cols)) {
                    for (got, want) in out.iter().zip(reference::axpy_rows(m.get(), &all, s)) {
                        assert!(
                            (f64::from(*got) - want.value).abs()
                                <= bound(2.0 * want.magnitude, rows + 12),
                            "{} {dtype} {tokens} tokens: {got} for {}",
                            k.isa(),
                            want.value
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn products_with_many_tokens_do_not_depend_on_the_team_and_cross_every_tile_border() {
    // More rows than a tile, more columns than a tile is deep, more tokens than a panel.
    let m = Mat::new(DType::F32, 110, 600, 53);
    let (x, s) = (noise(54, 70 * 600), noise(55, 70 * 110));
    for k in Kernels::available() {
        let run = |threads| {
            let mut team = Team::new(threads).unwrap();
            let mut work = GemmWork::new();
            let (mut a, mut b) = (vec![0.0; 70 * 110], vec![0.0; 70 * 600]);
            matmul(&mut team, k, m.get(), &x, 70, &mut a, &mut work);
            matmul_transposed(&mut team, k, m.get(), &s, 70, &mut b, &mut work);
            (a, b)
        };
        let (a, b) = run(1);
        assert_eq!((&a, &b), (&run(3).0, &run(3).1), "{}", k.isa());
        let x: Vec<f64> = x[69 * 600..].iter().map(|&v| f64::from(v)).collect();
        for (got, want) in a[69 * 110..].iter().zip(reference::dot_rows(m.get(), &x)) {
            assert!((f64::from(*got) - want.value).abs() <= bound(want.magnitude, 612));
        }
        let all: Vec<u32> = (0..110).collect();
        for (got, want) in
            b[69 * 600..]
                .iter()
                .zip(reference::axpy_rows(m.get(), &all, &s[69 * 110..]))
        {
            assert!((f64::from(*got) - want.value).abs() <= bound(want.magnitude, 122));
        }
    }
}
