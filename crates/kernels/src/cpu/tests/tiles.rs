//! Products of tiles: right to rounding, the same for every team, and the same matrix to everything that unpacks.

use super::{
    super::{
        gemm::{GemmWork, matmul},
        parallel::gemv,
    },
    *,
};
use crate::{
    bytes::Bytes,
    matrix::Layout,
    quant::{self, TILE, has_tiles},
};

fn tile(m: MatRef) -> Option<Bytes> {
    quant::tile(m, &mut Team::new(1).unwrap())
}

fn tiled() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|t| has_tiles(*t))
}

fn view<'a>(m: &Mat, tiles: &'a [u8]) -> MatRef<'a> {
    MatRef::with_layout(m.dtype, m.rows, m.cols, Layout::Tiles, tiles).unwrap()
}

/// Holds a product of tiles against the reference on the rows.
fn check(k: &Kernels, m: &Mat, x: &[f32]) {
    let tiles = tile(m.get()).unwrap();
    let seen = reference::activations(x, m.dtype);
    let mut out = vec![9.0; m.rows];
    k.dot_rows(view(m, &tiles), &input(k, x), &mut out);
    let want = reference::dot_rows(m.get(), &seen);
    for (i, (got, want)) in out.iter().zip(want).enumerate() {
        let magnitude = magnitude(m, i, &seen);
        let error = (f64::from(*got) - want.value).abs();
        // One sum over the blocks, each of which passes through a handful of roundings; a block may be one element.
        let terms = m.cols / m.dtype.block_len().clamp(8, 32);
        let bound = bound(magnitude, terms + 12);
        let label = format!("{} {} {i}", k.isa(), m.dtype);
        assert!(error <= bound, "{label}: {got} for {}", want.value);
    }
}

#[test]
fn dot_products_of_tiles_are_within_the_rounding_of_their_sum() {
    for k in Kernels::available() {
        for dtype in tiled() {
            for &cols in widths(dtype).iter().filter(|c| **c > 0) {
                for rows in [TILE, 5 * TILE] {
                    check(k, &Mat::new(dtype, rows, cols, 7), &noise(8, cols));
                }
            }
        }
    }
}

#[test]
fn extreme_levels_of_tiles_neither_saturate_nor_lose_their_sign() {
    for k in Kernels::available() {
        for dtype in tiled() {
            for byte in [0x80, 0x7f, 0xff, 0x00, 0x88, 0x77, 0x55, 0xaa] {
                if dtype == DType::F16 {
                    continue;
                }
                let cols = dtype.block_len().max(64);
                let mut data = vec![byte; TILE * dtype.row_bytes(cols).unwrap()];
                for (i, block) in data.chunks_exact_mut(dtype.block_bytes()).enumerate() {
                    // Scales that differ from row to row.
                    let scale = half::f16::from_f32(1.0 + i as f32 / 8.0).to_le_bytes();
                    for &at in halves(dtype) {
                        block[at..at + 2].copy_from_slice(&scale);
                    }
                }
                let m = Mat {
                    dtype,
                    rows: TILE,
                    cols,
                    data,
                };
                for signs in [[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]] {
                    let x: Vec<f32> = (0..cols).map(|c| signs[c % 2]).collect();
                    check(k, &m, &x);
                }
            }
        }
    }
}

#[test]
fn what_is_no_number_stays_in_its_row() {
    for k in Kernels::available() {
        // T2 has nothing that could be no number.
        for dtype in tiled().filter(|t| *t != DType::T2) {
            let m = Mat::new(dtype, TILE, 256, 7);
            let all: Vec<u32> = (0..TILE as u32).filter(|i| *i != 5).collect();
            let poisoned = m.poisoned(&all);
            let (clean, bad) = (tile(m.get()).unwrap(), tile(poisoned.get()).unwrap());
            let x = noise(9, 256);
            let mut out = [[0.0; TILE]; 2];
            for (tiles, out) in [&clean, &bad].into_iter().zip(&mut out) {
                k.dot_rows(view(&m, tiles), &input(k, &x), out);
            }
            for (i, (clean, bad)) in out[0].iter().zip(out[1]).enumerate() {
                assert!(if i == 5 { bad.is_nan() } else { bad == *clean });
            }
            let mut x = x;
            x[77] = f32::NAN;
            k.dot_rows(view(&m, &clean), &input(k, &x), &mut out[0]);
            assert!(out[0].iter().all(|v| v.is_nan()), "{} {dtype}", k.isa());
        }
    }
}

#[test]
fn tiles_are_the_same_matrix_to_teams_and_to_prompts() {
    const ROWS: usize = 7 * TILE;
    for k in Kernels::available() {
        for dtype in tiled() {
            let cols = 768;
            let m = Mat::new(dtype, ROWS, cols, 3);
            let tiles = tile(m.get()).unwrap();
            let t = view(&m, &tiles);
            let x = noise(4, 9 * cols);
            let one = input(k, &x[..cols]);
            let mut results = Vec::new();
            for threads in [1, 2, 5] {
                let mut team = Team::new(threads).unwrap();
                let mut out = vec![9.0; ROWS];
                gemv(&mut team, k, t, &one, &mut out);
                results.push(out);
            }
            assert!(results.iter().all(|r| *r == results[0]));
            let product = |m: MatRef| {
                let mut out = vec![9.0; 9 * ROWS];
                let (mut team, mut work) = (Team::new(2).unwrap(), GemmWork::new());
                matmul(&mut team, k, m, &x, 9, &mut out, &mut work);
                out
            };
            assert_eq!(product(t), product(m.get()), "{} {dtype}", k.isa());
        }
    }
}

#[test]
#[should_panic(expected = "tiles have no rows")]
fn a_list_of_rows_of_tiles_is_refused() {
    let m = Mat::new(DType::Q4_0, TILE, 32, 1);
    let tiles = tile(m.get()).unwrap();
    let k = Kernels::best();
    k.dot_list(view(&m, &tiles), &[1], &input(k, &[0.5; 32]), &mut [0.0]);
}

#[test]
fn what_kernels_prefer_can_be_laid_out() {
    for k in Kernels::available() {
        for dtype in DType::ALL {
            let has_kernel = k.tiles[dtype as usize].is_some();
            let wanted = match k.isa() {
                Isa::Avx2 => has_tiles(dtype),
                Isa::Avx512 => has_tiles(dtype) && !matches!(dtype, DType::Q6_K | DType::Q2_0),
                _ => false,
            };
            assert_eq!(has_kernel, wanted, "{} {dtype}", k.isa());
            // Short rows always, longer ones where they gain.
            let are_quick = dtype == DType::F16 || (k.isa(), dtype) == (Isa::Avx512, DType::Q8_0);
            for (cols, gains) in [(512, wanted), (1024, wanted && !are_quick)] {
                let data = vec![0; TILE * dtype.row_bytes(cols).unwrap()];
                let m = MatRef::new(dtype, TILE, cols, &data).unwrap();
                assert_eq!(k.prefers_tiles(m), gains, "{} {dtype} {cols}", k.isa());
            }
        }
    }
}
