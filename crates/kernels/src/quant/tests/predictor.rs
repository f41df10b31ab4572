//! The formats of predictors, and the search for scales.

use super::*;

#[test]
fn q3_0_known_block() {
    let mut b = vec![0u8; 14];
    b[..2].copy_from_slice(&h(-0.5));
    b[2] = 0b11_10_01_00; // low bits of elements 0, 8, 16, 24
    b[2 + 5] = 0b00_00_01_00; // of element 13
    b[10] = 1 << 2 | 1 << 7; // third bits of elements 0 and 24
    b[10 + 1] = 1 << 1; // of element 13
    b[10 + 3] = 1 << 6 | 1 << 4; // of elements 19 and 23
    check_block(
        DType::Q3_0,
        &b,
        &[
            (0, 0.0),
            (8, 1.5),
            (16, 1.0),
            (24, -1.5),
            (13, -0.5),
            (19, 0.0),
            (23, 0.0),
            (31, 2.0),
        ],
    );
}

#[test]
fn q2_0_known_block() {
    let mut b = vec![0u8; 10];
    b[..2].copy_from_slice(&h(0.5));
    b[2] = 0b11_10_01_00; // elements 0, 8, 16, 24
    b[2 + 7] = 0b10_00_00_01; // elements 7 and 31
    check_block(
        DType::Q2_0,
        &b,
        &[
            (0, -0.75),
            (8, -0.25),
            (16, 0.25),
            (24, 0.75),
            (7, -0.25),
            (31, 0.25),
        ],
    );
}

#[test]
fn t2_known_block() {
    let mut b = vec![0b01_01_01_01u8; 8];
    b[3] = 0b10_01_00_01; // elements 3, 11, 19, 27
    check_block(
        DType::T2,
        &b,
        &[(0, 0.0), (3, 0.0), (11, -1.0), (19, 0.0), (27, 1.0)],
    );
    let x: Vec<f32> = (0..32).map(|i| (i as f32 - 16.0) / 8.0).collect();
    let mut back = [f32::NAN; 32];
    unpack_row(DType::T2, &reference::packed(DType::T2, &x), &mut back);
    for (x, b) in x.iter().zip(back) {
        let nearest = if x.abs() < 0.5 { 0.0 } else { x.signum() };
        assert_eq!(b, nearest, "{x}");
    }
}

#[test]
fn q8_h_known_block() {
    let mut b = vec![0x88u8; 18];
    b[..2].copy_from_slice(&h(0.25));
    b[2] = 0xf1; // element 0: 1, element 16: 15
    b[2 + 15] = 0x07; // element 15: 7, element 31: 0
    check_block(
        DType::Q8_H,
        &b,
        &[(0, -26.0), (16, 30.0), (15, -2.0), (31, -30.0), (7, 2.0)],
    );
}

#[test]
fn the_planes_of_q8_0_add_up_to_it_exactly() {
    // Every level under the smallest, the largest and other scales, of either sign, in rows of 64 elements.
    let scales = [
        2f32.powi(-24),
        2f32.powi(-14),
        0.0,
        1.0 / 3.0,
        -0.7,
        65504.0,
        -65504.0,
    ];
    let mut data = Vec::new();
    for d in scales {
        for first in (0..256).step_by(32) {
            data.extend(h(d));
            data.extend((first..first + 32).map(|q| q as u8));
        }
    }
    let (rows, cols) = (scales.len() * 4, 64);
    let m = MatRef::new(DType::Q8_0, rows, cols, &data).unwrap();
    let (high, low) = split_q8_0(m);
    let high = MatRef::new(DType::Q8_H, rows, cols, &high).unwrap();
    let low = MatRef::new(DType::Q4_0, rows, cols, &low).unwrap();
    for i in 0..rows {
        let planes = reference::row(high, i)
            .into_iter()
            .zip(reference::row(low, i));
        for (whole, (high, low)) in reference::row(m, i).into_iter().zip(planes) {
            assert_eq!(high + low, whole, "{high} and {low}");
        }
    }
}

#[test]
#[should_panic(expected = "split_q8_0: type")]
fn only_q8_0_has_planes() {
    split_q8_0(MatRef::new(DType::Q4_0, 1, 32, &[0; 18]).unwrap());
}

/// Normal numbers, by blocks.
fn samples(blocks: usize) -> Vec<[f32; 32]> {
    let mut state = 1u64;
    let mut uniform = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 + 0.5) / (1u64 << 24) as f32
    };
    let mut normal = || (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
    (0..blocks)
        .map(|_| std::array::from_fn(|_| normal()))
        .collect()
}

fn error(x: &[f32; 32], stored: &[f32; 32]) -> f64 {
    let pairs = x.iter().zip(stored);
    pairs.map(|(x, s)| f64::from(x - s).powi(2)).sum()
}

/// The error of a packed block.
fn packed_error(dtype: DType, x: &[f32; 32]) -> f64 {
    let mut out = [f32::NAN; 32];
    unpack_row(dtype, &reference::packed(dtype, x), &mut out);
    error(x, &out)
}

/// The least error of any of many scales, each of either sign.
fn least(dtype: DType, x: &[f32; 32]) -> f64 {
    let (max, zero) = match dtype {
        DType::Q3_0 => (7.0, 4.0),
        _ => (3.0, 1.5),
    };
    let most = x.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
    (1..500)
        .flat_map(|i| [i, -i])
        .map(|i| {
            let d = most * 2.0 * i as f32 / 500.0 / zero;
            error(
                x,
                &x.map(|v| d * ((v / d + zero).round().clamp(0.0, max) - zero)),
            )
        })
        .fold(f64::INFINITY, f64::min)
}

#[test]
fn fitted_scales_lose_as_little_as_any() {
    for dtype in [DType::Q3_0, DType::Q2_0] {
        let (mut got, mut best) = (0.0, 0.0);
        for x in samples(150) {
            got += packed_error(dtype, &x);
            best += least(dtype, &x);
        }
        assert!(got <= 1.01 * best, "{dtype}: {got} for {best}");
    }
}

#[test]
fn on_normal_weights_fitted_scales_beat_the_best_quantiser_of_one_scale() {
    let x = samples(400);
    // Squared errors of the best uniform quantisers of a normal variable (Max, 1960).
    for (dtype, one_scale) in [(DType::Q3_0, 0.03744), (DType::Q2_0, 0.1188)] {
        let total: f64 = x.iter().map(|x| packed_error(dtype, x)).sum();
        let mean = total / (32 * x.len()) as f64;
        assert!(mean < 0.95 * one_scale, "{dtype}: {mean}");
    }
}
