use super::*;
use crate::{
    bytes::Bytes,
    cpu::Team,
    matrix::{MatRef, ShapeError},
    reference,
};
use proptest::prelude::*;

mod predictor;

fn h(x: f32) -> [u8; 2] {
    f16::from_f32(x).to_le_bytes()
}

/// Unpacks `block` and compares the elements `want` names.
fn check_block(dtype: DType, block: &[u8], want: &[(usize, f32)]) {
    assert_eq!(block.len(), dtype.block_bytes());
    let mut out = vec![f32::NAN; dtype.block_len()];
    unpack_row(dtype, block, &mut out);
    for &(i, x) in want {
        assert_eq!(out[i], x, "{dtype} element {i}");
    }
}

#[test]
fn float_elements_are_little_endian() {
    check_block(DType::F32, &[0, 0, 0x40, 0xc0], &[(0, -3.0)]);
    check_block(DType::F16, &[0x00, 0x3e], &[(0, 1.5)]);
    check_block(DType::BF16, &[0xc0, 0xbf], &[(0, -1.5)]);
}

#[test]
fn q8_0_known_block() {
    let mut b = vec![0u8; 34];
    b[..2].copy_from_slice(&h(0.5));
    b[2] = 0x80; // -128
    b[2 + 5] = 3;
    b[2 + 31] = 0xff; // -1
    check_block(
        DType::Q8_0,
        &b,
        &[(0, -64.0), (1, 0.0), (5, 1.5), (31, -0.5)],
    );
}

#[test]
fn q4_0_known_block() {
    let mut b = vec![0x88u8; 18];
    b[..2].copy_from_slice(&h(0.25));
    b[2] = 0xf1; // element 0: 1, element 16: 15
    b[2 + 15] = 0x07; // element 15: 7, element 31: 0
    check_block(
        DType::Q4_0,
        &b,
        &[(0, -1.75), (16, 1.75), (15, -0.25), (31, -2.0), (7, 0.0)],
    );
}

#[test]
fn q4_1_known_block() {
    let mut b = vec![0u8; 20];
    b[..2].copy_from_slice(&h(0.5));
    b[2..4].copy_from_slice(&h(-3.0));
    b[4 + 2] = 0xa4; // element 2: 4, element 18: 10
    check_block(DType::Q4_1, &b, &[(0, -3.0), (2, -1.0), (18, 2.0)]);
}

#[test]
fn q5_0_known_block() {
    let mut b = vec![0u8; 22];
    b[..2].copy_from_slice(&h(2.0));
    b[2..6].copy_from_slice(&(1u32 << 3 | 1 << 19 | 1 << 31).to_le_bytes());
    b[6 + 3] = 0x21; // element 3: 1 + 16, element 19: 2 + 16
    b[6 + 15] = 0xf0; // element 15: 0, element 31: 15 + 16
    check_block(
        DType::Q5_0,
        &b,
        &[(0, -32.0), (3, 2.0), (19, 4.0), (15, -32.0), (31, 30.0)],
    );
}

#[test]
fn q5_1_known_block() {
    let mut b = vec![0u8; 24];
    b[..2].copy_from_slice(&h(0.5));
    b[2..4].copy_from_slice(&h(1.0));
    b[4..8].copy_from_slice(&(1u32 | 1 << 16).to_le_bytes());
    b[8] = 0x53; // element 0: 3 + 16, element 16: 5 + 16
    check_block(DType::Q5_1, &b, &[(0, 10.5), (16, 11.5), (1, 1.0)]);
}

/// `d` = 0.5, `dmin` = 0.25; scale 1 = 63, scale 6 = 37 (bits 10_0101), min 1 = 2, min 6 = 50 (bits 11_0010).
fn k_head() -> [u8; 16] {
    let mut b = [0u8; 16];
    b[..2].copy_from_slice(&h(0.5));
    b[2..4].copy_from_slice(&h(0.25));
    b[4 + 1] = 63;
    b[4 + 5] = 2;
    b[4 + 2] = 0b10 << 6; // high bits of scale 6
    b[4 + 6] = 0b11 << 6; // high bits of min 6
    b[4 + 10] = 0b0101 | 0b0010 << 4;
    b
}

#[test]
fn q4_k_known_block() {
    let mut b = vec![0u8; 144];
    b[..16].copy_from_slice(&k_head());
    b[16 + 4] = 0x30; // chunk 0, high nibble: sub-block 1, element 36
    b[16 + 96 + 31] = 0x0d; // chunk 3, low nibble: sub-block 6, element 223
    check_block(
        DType::Q4_K,
        &b,
        &[
            (0, 0.0),
            (36, 31.5 * 3.0 - 0.5),
            (37, -0.5),
            (223, 18.5 * 13.0 - 12.5),
            (192, -12.5),
        ],
    );
}

#[test]
fn q5_k_known_block() {
    let mut b = vec![0u8; 176];
    b[..16].copy_from_slice(&k_head());
    b[16 + 4] = 1 << 1; // fifth bit of element 4 of sub-block 1
    b[16 + 31] = 1 << 6; // fifth bit of element 31 of sub-block 6
    b[48 + 4] = 0x30;
    b[48 + 96 + 31] = 0x0d;
    check_block(
        DType::Q5_K,
        &b,
        &[(4, 0.0), (36, 31.5 * 19.0 - 0.5), (223, 18.5 * 29.0 - 12.5)],
    );
}

#[test]
fn q6_k_known_block() {
    let mut b = vec![0u8; 210];
    b[208..].copy_from_slice(&h(0.5));
    for (s, scale) in b[192..208].iter_mut().enumerate() {
        *scale = s as u8 + 1;
    }
    b[192 + 15] = 0xfe; // -2
    b[17] = 0x95; // half 0, l = 17: element 17 nibble 5, element 81 nibble 9
    b[128 + 17] = 0b01_10_11_00; // upper pairs of elements 17, 49, 81, 113
    b[64 + 32 + 20] = 0x71; // half 1: element 180 nibble 1, element 244 nibble 7
    check_block(
        DType::Q6_K,
        &b,
        &[
            (17, 0.5 * 2.0 * (5.0 - 32.0)),
            (49, 0.5 * 4.0 * (48.0 - 32.0)),
            (81, 0.5 * 6.0 * (32.0 + 9.0 - 32.0)),
            (113, 0.5 * 8.0 * (16.0 - 32.0)),
            (180, 0.5 * 12.0 * (1.0 - 32.0)),
            (244, 0.5 * -2.0 * (7.0 - 32.0)),
        ],
    );
}

/// How far a value may move when it is packed: half a step, a step being what the scale makes of the block's extremes,
/// and what `f16` takes off the scale and the minimum.
fn bound(dtype: DType, block: &[f32]) -> f32 {
    let most = block.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
    let (lo, hi) = min_max(block);
    let half = 2f32.powi(-11);
    match dtype {
        DType::F32 => 0.0,
        DType::F16 => most * half,
        DType::BF16 => most * 2f32.powi(-8),
        DType::Q8_0 => most * (0.5 / 127.0 + half),
        // The far end has no level of its own: up to a whole step is lost there.
        DType::Q4_0 => most * (1.0 / 8.0 + half),
        DType::Q5_0 => most * (1.0 / 16.0 + half),
        DType::Q4_1 => (hi - lo) * (0.5 / 15.0 + half) + most * half,
        DType::Q5_1 => (hi - lo) * (0.5 / 31.0 + half) + most * half,
        // The search may give up an extreme for the sum of squares, and six-bit scales round by up to 1 in 126.
        DType::Q4_K => 2.0 * most * (1.0 / 15.0 + 2.0 / 63.0),
        DType::Q5_K => 2.0 * most * (1.0 / 31.0 + 2.0 / 63.0),
        DType::Q6_K => most * (1.5 / 32.0 + 1.0 / 128.0),
        // The search gives up extremes for the sum of squares; what it must reach has tests of its own.
        DType::Q3_0 | DType::Q2_0 => most,
        DType::T2 => (most - 1.0).max(0.5),
        DType::Q8_H => most * (1.0 / 15.0 + half),
    }
}

/// What the coarse steps of small `f16` scales add, at the largest level.
fn tiny(dtype: DType) -> f32 {
    let levels = match dtype {
        DType::F32 | DType::BF16 | DType::T2 => 0.0,
        DType::F16 => 1.0,
        DType::Q4_K | DType::Q5_K | DType::Q6_K => 128.0 * 32.0,
        _ => 128.0,
    };
    levels * 2f32.powi(-25)
}

proptest! {
    #[test]
    fn what_is_packed_comes_back_within_a_step(
        raw in prop::collection::vec(-1.0f32..1.0, 512),
        shift in -2.0f32..2.0,
        exponent in -10i32..6,
    ) {
        let x: Vec<f32> = raw.iter().map(|v| (v + shift) * 2f32.powi(exponent)).collect();
        for dtype in DType::ALL {
            let bytes = reference::packed(dtype, &x);
            let mut back = vec![0.0; x.len()];
            unpack_row(dtype, &bytes, &mut back);
            for (x, back) in x.chunks(dtype.block_len()).zip(back.chunks(dtype.block_len())) {
                let bound = bound(dtype, x) * 1.001 + tiny(dtype);
                for (x, b) in x.iter().zip(back) {
                    prop_assert!((x - b).abs() <= bound, "{dtype}: {x} became {b}, bound {bound}");
                }
            }
        }
    }

    #[test]
    fn packing_what_was_unpacked_changes_little_or_nothing(raw in prop::collection::vec(-1.0f32..1.0, 256)) {
        for dtype in DType::ALL {
            let once = reference::packed(dtype, &raw);
            let mut x = vec![0.0; 256];
            unpack_row(dtype, &once, &mut x);
            let mut again = vec![0.0; 256];
            unpack_row(dtype, &reference::packed(dtype, &x), &mut again);
            let error = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum() };
            match dtype {
                // Their scales are fitted, and a fit of the fitted need not find the same scales.
                DType::Q4_K | DType::Q5_K | DType::Q6_K | DType::Q3_0 | DType::Q2_0 => {
                    prop_assert!(error(&again, &x) <= error(&x, &raw), "{dtype}");
                }
                _ => prop_assert_eq!(&again, &x, "{}", dtype),
            }
        }
    }
}

#[test]
fn fitted_scales_beat_those_of_the_extremes() {
    // A sub-block of small values with one far out: the plain choice wastes its levels on the gap.
    let x: Vec<f32> = (0..256)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0)
        .collect();
    let rms = |dtype| {
        let mut back = vec![0.0; 256];
        unpack_row(dtype, &reference::packed(dtype, &x), &mut back);
        let sum: f32 = x.iter().zip(back).map(|(x, b)| (x - b).powi(2)).sum();
        (sum / 256.0).sqrt()
    };
    // A uniform quantiser of range 2 with n steps has the error 2 / n / sqrt(12).
    assert!(rms(DType::Q4_K) < 2.0 / 15.0 / 12f32.sqrt() * 1.1);
    assert!(rms(DType::Q5_K) < 2.0 / 31.0 / 12f32.sqrt() * 1.2);
    assert!(rms(DType::Q6_K) < 2.0 / 63.0 / 12f32.sqrt() * 1.2);
}

#[test]
fn zeros_constants_and_giants_pack_to_finite_values() {
    for dtype in DType::ALL {
        for value in [0.0, 1.0, -1.0, 1e-30, 6e4, -6e4] {
            let x = [value; 256];
            let mut back = [f32::NAN; 256];
            unpack_row(dtype, &reference::packed(dtype, &x), &mut back);
            for b in back {
                // Ternary weights have no scale.
                let value = if dtype == DType::T2 {
                    value.clamp(-1.0, 1.0)
                } else {
                    value
                };
                assert!(
                    (b - value).abs() <= 0.04 * value.abs() + 1e-7,
                    "{dtype}: {value} became {b}"
                );
            }
        }
        let mut back = [f32::NAN; 256];
        unpack_row(dtype, &reference::packed(dtype, &[1e30; 256]), &mut back);
        assert!(
            dtype == DType::F16 || back.iter().all(|b| b.is_finite()),
            "{dtype}"
        );
    }
}

#[test]
#[should_panic(expected = "33 elements of Q4_0")]
fn lengths_that_are_no_blocks_panic() {
    unpack_row(DType::Q4_0, &[0; 18], &mut [0.0; 33]);
}

#[test]
fn a_transpose_holds_every_element_whatever_the_team() {
    let value = |r: usize, c: usize| (r * 7 + c * 3) as f32 % 13.0 - 6.0;
    for (from, rows, cols) in [
        (DType::F32, 32, 1),
        (DType::BF16, 64, 67),
        (DType::Q8_0, 96, 96),
        (DType::Q6_K, 256, 512),
    ] {
        let x: Vec<f32> = (0..rows * cols)
            .map(|i| value(i / cols, i % cols))
            .collect();
        let data = reference::packed(from, &x);
        let m = MatRef::new(from, rows, cols, &data).unwrap();
        for to in [DType::F32, DType::Q8_0, DType::Q4_K] {
            let mut first = Bytes::from(Vec::new());
            for threads in [1, 3] {
                let got = transpose_pack(m, to, &mut Team::new(threads).unwrap());
                if to.row_bytes(rows).is_none() {
                    assert_eq!(
                        got,
                        Err(ShapeError::Columns {
                            dtype: to,
                            cols: rows
                        })
                    );
                    continue;
                }
                let got = got.unwrap();
                let t = MatRef::new(to, cols, rows, &got).unwrap();
                for c in 0..cols {
                    let column: Vec<f32> = (0..rows).map(|r| reference::row(m, r)[c]).collect();
                    assert_eq!(
                        t.row(c),
                        reference::packed(to, &column),
                        "{from} to {to}, column {c}"
                    );
                }
                if threads == 1 {
                    first = got;
                } else {
                    assert_eq!(first, got);
                }
            }
        }
    }
}

#[test]
fn nearest_is_round() {
    let mut values = vec![
        0.0,
        -0.0,
        0.5f32.next_down(),
        f32::INFINITY,
        f32::NEG_INFINITY,
    ];
    for i in 0..300 {
        let half = i as f32 + 0.5;
        values.extend([half, half.next_down(), half.next_up(), i as f32]);
    }
    for power in 20..130 {
        values.extend([2f32.powi(power) + 1.0, 2f32.powi(power) - 0.5]);
    }
    for x in values {
        for x in [x, -x] {
            let want = x.round().clamp(-200.0, 201.0);
            assert_eq!(nearest(x, -200, 201) as f32, want, "{x}");
        }
    }
    assert_eq!(nearest(f32::NAN, -5, 5), 0);
    assert_eq!(nearest(f32::NAN, 1, 5), 1);
}

#[test]
fn the_largest_magnitude_is_found_in_any_place() {
    for len in 0..40 {
        for at in 0..len {
            let mut x = vec![-0.5; len];
            x[at] = -3.0;
            x[(at + 1) % len] = if len > 1 { f32::NAN } else { -3.0 };
            assert_eq!(largest(&x), 3.0);
        }
    }
    assert_eq!(largest(&[]), 0.0);
}

#[test]
fn transposing_nothing_gives_nothing() {
    let m = MatRef::new(DType::F32, 0, 5, &[]).unwrap();
    let mut team = Team::new(2).unwrap();
    assert_eq!(
        transpose_pack(m, DType::Q8_0, &mut team),
        Ok(Bytes::from(Vec::new()))
    );
    let m = MatRef::new(DType::F32, 32, 0, &[]).unwrap();
    assert_eq!(
        transpose_pack(m, DType::Q8_0, &mut team),
        Ok(Bytes::from(Vec::new()))
    );
}
