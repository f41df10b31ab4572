//! Sparse FFNs: the formula on the rows they keep, whatever decides, and nothing read of the others.

use super::{
    super::ffn::{
        Affine, Decider, Estimate, FfnWork, Planes, SparseFfn, estimate, sparse_ffn,
        sparse_ffn_rows, sum_all,
    },
    *,
};
use crate::quant::{Beside, RowForm, Rows, interleave};

const INTER: usize = 101;
const HIDDEN: usize = 64;

/// Biases of gate and of up.
type Biases<'a> = [Option<&'a [f32]>; 2];
const NO_BIASES: Biases = [None; 2];

/// act(gate x), up x and their product for every neuron.
fn products(k: &Kernels, w: &SparseFfn, x: &Input) -> [Vec<f32>; 3] {
    let (mut gate, mut up) = (vec![0.0; INTER], vec![0.0; INTER]);
    k.dot_rows(w.gate, x, &mut gate);
    k.dot_rows(w.up, x, &mut up);
    for (out, bias) in [(&mut gate, w.gate_bias), (&mut up, w.up_bias)] {
        let bias = bias.unwrap_or(&[]);
        out.iter_mut().zip(bias).for_each(|(o, b)| *o += b);
    }
    k.act(w.act, &mut gate);
    let product = gate.iter().zip(&up).map(|(g, u)| g * u).collect();
    [gate, up, product]
}

/// The sums of `coef` times rows of `down`, and of the terms' magnitudes.
fn sums(down: &Mat, rows: &[u32], coef: &[f32]) -> Vec<(f64, f64)> {
    let unpacked: Vec<_> = rows
        .iter()
        .map(|&i| reference::row(down.get(), i as usize))
        .collect();
    let magnitudes: Vec<_> = rows.iter().map(|&i| down.magnitudes(i as usize)).collect();
    let column = |c: usize| {
        let terms = coef.iter().zip(unpacked.iter().zip(&magnitudes));
        let (mut sum, mut magnitude) = (0.0, 0.0);
        for (coef, (row, largest)) in terms {
            sum += f64::from(*coef) * f64::from(row[c]);
            magnitude += f64::from(coef.abs()) * largest[c];
        }
        (sum, magnitude)
    };
    (0..HIDDEN).map(column).collect()
}

#[test]
#[should_panic(expected = "row 101 of 101")]
fn a_row_beyond_the_neurons_is_refused() {
    let mats = matrices(DType::F32);
    let w = ffn(&mats, NO_BIASES, Act::Silu);
    let (k, mut team) = (Kernels::best(), Team::new(1).unwrap());
    let x = input(k, &noise(44, HIDDEN));
    let mut work = FfnWork::new(INTER, HIDDEN);
    let mut y = vec![0.0; HIDDEN];
    sparse_ffn_rows(&mut team, k, &w, &[3, 101], &x, &mut work, &mut y);
}

/// Runs a decider whose signals are `signal` under several scores, thresholds and teams. `spared` says which of gate and up
/// the decider does not read densely.
fn check(
    k: &'static Kernels,
    mats: &[Mat; 3],
    biases: Biases,
    act: Act,
    decide: Decider,
    signal: &[f32],
    spared: [bool; 2],
) {
    let w = ffn(mats, biases, act);
    let x = input(k, &noise(44, HIDDEN));
    let [_, _, product] = products(k, &w, &x);
    let positive: Vec<f32> = noise(45, INTER).iter().map(|v| v.abs()).collect();
    let negative: Vec<f32> = noise(46, INTER).iter().map(|v| v.abs()).collect();
    let weighted = Score::Weighted {
        positive: &positive,
        negative: &negative,
    };
    for score in [Score::Magnitude, Score::Value, weighted] {
        for tau in [f32::NEG_INFINITY, 0.3, 1.0, 1e9] {
            let rows = reference::select_above(signal, score, tau);
            let coef: Vec<f32> = rows.iter().map(|&i| product[i as usize]).collect();
            let want = sums(&mats[2], &rows, &coef);
            // All teams give the same bits.
            let mut first: Option<Vec<f32>> = None;
            let mut agrees = |y: &[f32]| {
                for (y, (want, magnitude)) in y.iter().zip(&want) {
                    let error = (f64::from(*y) - want).abs();
                    // They may be added in another order.
                    let bound = bound(*magnitude, rows.len() + 20);
                    assert!(error <= bound, "{}: {y} for {want}", k.isa());
                }
                assert_eq!(first.get_or_insert_with(|| y.to_vec()), y, "{}", k.isa());
            };
            // What is skipped may hold anything.
            let poisoned = [0, 1, 2].map(|i| mats[i].poisoned(&rows));
            let none = SparseFfn {
                gate: poisoned[0].get(),
                up: poisoned[1].get(),
                down: poisoned[2].get(),
                ..w
            };
            let some = SparseFfn {
                gate: if spared[0] { none.gate } else { w.gate },
                up: if spared[1] { none.up } else { w.up },
                ..none
            };
            // Rows side by side are the same rows.
            let same = poisoned
                .each_ref()
                .map(|m| (Rows::Of(m.get()), RowForm::Same));
            let beside = interleave(&same, &mut Team::new(1).unwrap());
            let beside = ffn_beside(&poisoned, &beside, biases, act);
            for threads in [1, 2, 5] {
                let mut team = Team::new(threads).unwrap();
                let mut work = FfnWork::new(INTER + 3, HIDDEN + 1);
                let mut y = vec![9.0; HIDDEN];
                let n = sparse_ffn(
                    &mut team, k, &some, decide, score, tau, &x, &mut work, &mut y,
                );
                assert_eq!(n, rows.len(), "{} {score:?} {tau} {threads}", k.isa());
                assert_eq!(work.kept(INTER), (rows.clone(), coef.clone()));
                agrees(&y);

                for w in [&none, &beside] {
                    let mut y = vec![9.0; HIDDEN];
                    sparse_ffn_rows(&mut team, k, w, &rows, &x, &mut work, &mut y);
                    assert_eq!(work.kept(INTER), (rows.clone(), coef.clone()));
                    agrees(&y);
                }

                if rows.len() == INTER {
                    let mut y = vec![9.0; HIDDEN];
                    sum_all(&mut team, k, w.down, &coef, &mut work, &mut y);
                    agrees(&y);
                }
            }
        }
    }
}

/// The FFN of three matrices side by side.
fn ffn_beside<'a>(
    mats: &[Mat; 3],
    beside: &'a Beside,
    [gate_bias, up_bias]: Biases<'a>,
    act: Act,
) -> SparseFfn<'a> {
    let view = |i: usize| {
        let (m, (range, layout)) = (&mats[i], &beside.views[i]);
        MatRef::with_layout(
            m.dtype,
            m.rows,
            m.cols,
            *layout,
            &beside.data[range.clone()],
        )
        .unwrap()
    };
    SparseFfn {
        gate: view(0),
        up: view(1),
        down: view(2),
        gate_bias,
        up_bias,
        act,
    }
}

/// The FFN whose gate, up and down these are.
fn ffn<'a>(mats: &'a [Mat; 3], [gate_bias, up_bias]: Biases<'a>, act: Act) -> SparseFfn<'a> {
    let [gate, up, down] = mats.each_ref().map(Mat::get);
    SparseFfn {
        gate,
        up,
        down,
        gate_bias,
        up_bias,
        act,
    }
}

fn matrices(dtype: DType) -> [Mat; 3] {
    [1, 2, 3].map(|s| Mat::new(dtype, INTER, HIDDEN, 40 + s))
}

#[test]
fn a_sparse_ffn_is_the_formula_on_the_rows_it_keeps_for_every_team() {
    for k in Kernels::available() {
        for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::Q5_0] {
            let mats = matrices(dtype);
            let x = input(k, &noise(44, HIDDEN));
            let (gate_bias, up_bias) = (noise(49, INTER), noise(50, INTER));
            for biases in [NO_BIASES, [Some(&gate_bias), Some(&up_bias)]] {
                let w = ffn(&mats, biases, Act::Silu);
                let [gate, up, _] = products(k, &w, &x);
                let (by_gate, by_up) = ([false, true], [true, false]);
                check(k, &mats, biases, w.act, Decider::Gate, &gate, by_gate);
                check(k, &mats, biases, w.act, Decider::Up, &up, by_up);
            }
        }
    }
}

#[test]
fn an_estimate_decides_by_its_own_matrices_and_reads_all_three_only_where_kept() {
    const WIDTH: usize = 96;
    for k in Kernels::available() {
        for dtype in [DType::F16, DType::Q4_0] {
            let mats = matrices(DType::Q8_0);
            let cheap = [5, 6].map(|s| Mat::new(dtype, INTER, WIDTH, 40 + s));
            let bias = noise(47, INTER);
            let z = input(k, &noise(48, WIDTH));
            let affine = |i: usize, bias| Affine {
                weight: cheap[i].get(),
                bias,
            };
            for act in [Act::Silu, Act::GeluTanh] {
                for bias in [None, Some(&bias[..])] {
                    let (gate, up) = (affine(0, bias), affine(1, bias));
                    let row = |w: &Affine| {
                        let mut out = vec![0.0; INTER];
                        k.dot_rows(w.weight, &z, &mut out);
                        if let Some(bias) = bias {
                            out.iter_mut().zip(bias).for_each(|(o, b)| *o += b);
                        }
                        out
                    };
                    let mut activated = row(&gate);
                    k.act(act, &mut activated);
                    let mut product = row(&gate);
                    k.glu(act, &mut product, &row(&up));
                    for (e, signal) in [
                        (Estimate::Logits(gate), row(&gate)),
                        (Estimate::Gate(gate), activated),
                        (Estimate::Product { gate, up }, product),
                    ] {
                        let decide = Decider::Estimate(e, &z);
                        check(k, &mats, NO_BIASES, act, decide, &signal, [true; 2]);
                        let mut team = Team::new(3).unwrap();
                        let (mut out, mut spare) = (vec![9.0; INTER], vec![9.0; INTER]);
                        estimate(&mut team, k, &e, act, &z, &mut out, &mut spare);
                        assert_eq!(out, signal);
                    }
                }
            }
        }
    }
}

#[test]
fn planes_decide_by_the_high_ones_and_read_the_low_ones_only_where_kept() {
    for k in Kernels::available() {
        let mats = matrices(DType::Q8_0);
        let (gate_bias, up_bias) = (noise(49, INTER), noise(50, INTER));
        let w = ffn(&mats, [Some(&gate_bias), Some(&up_bias)], Act::Silu);
        let plane = |dtype, data| Mat {
            dtype,
            rows: INTER,
            cols: HIDDEN,
            data,
        };
        let planes = [0, 1].map(|i: usize| {
            let (high, low) = crate::quant::split_q8_0(mats[i].get());
            (plane(DType::Q8_H, high), plane(DType::Q4_0, low))
        });
        let x = input(k, &noise(44, HIDDEN));
        let high = [planes[0].0.get(), planes[1].0.get()];
        let (mut signal, mut up) = (vec![0.0; INTER], vec![0.0; INTER]);
        k.dot_rows(high[0], &x, &mut signal);
        k.dot_rows(high[1], &x, &mut up);
        for (out, bias) in [(&mut signal, &gate_bias), (&mut up, &up_bias)] {
            out.iter_mut().zip(bias).for_each(|(o, b)| *o += b);
        }
        k.glu(w.act, &mut signal, &up);
        let [_, _, product] = products(k, &w, &x);
        let largest = product.iter().fold(0f32, |m, v| m.max(v.abs()));
        for tau in [f32::NEG_INFINITY, 0.5, 2.0] {
            let rows = reference::select_above(&signal, Score::Magnitude, tau);
            let low = [planes[0].1.poisoned(&rows), planes[1].1.poisoned(&rows)];
            let down = mats[2].poisoned(&rows);
            let decide = Decider::Planes(Planes {
                high,
                low: [low[0].get(), low[1].get()],
            });
            let w = SparseFfn {
                down: down.get(),
                ..w
            };
            let mut results = Vec::new();
            for threads in [1, 3] {
                let mut team = Team::new(threads).unwrap();
                let (mut work, mut y) = (FfnWork::new(INTER, HIDDEN), vec![9.0; HIDDEN]);
                let score = Score::Magnitude;
                sparse_ffn(&mut team, k, &w, decide, score, tau, &x, &mut work, &mut y);
                let (kept, coefficients) = work.kept(INTER);
                assert_eq!(kept, rows);
                for (c, &i) in coefficients.iter().zip(&rows) {
                    // Two sums where there was one; the activations are the same 8-bit levels.
                    let d = (c - product[i as usize]).abs();
                    assert!(d <= 1e-5 * largest, "{}: {d}", k.isa());
                }
                results.push(y);
            }
            assert_eq!(results[0], results[1]);
        }
    }
}

#[test]
fn rows_in_parts_side_by_side_are_the_same_ffn() {
    for k in Kernels::available() {
        for dtype in [DType::Q8_0, DType::Q5_0, DType::Q4_1] {
            let mats = matrices(dtype);
            let w = ffn(&mats, NO_BIASES, Act::Silu);
            let x = input(k, &noise(44, HIDDEN));
            let [_, up, product] = products(k, &w, &x);
            let rows = reference::select_above(&up, Score::Magnitude, 0.3);
            let poisoned = mats.each_ref().map(|m| m.poisoned(&rows));
            let mut team = Team::new(3).unwrap();
            let parts = poisoned
                .each_ref()
                .map(|m| (Rows::Of(m.get()), RowForm::Parts));
            let beside = interleave(&parts, &mut team);
            let w = SparseFfn {
                up: w.up,
                ..ffn_beside(&poisoned, &beside, NO_BIASES, w.act)
            };
            let (mut work, mut y) = (FfnWork::new(INTER, HIDDEN), vec![9.0; HIDDEN]);
            let score = Score::Magnitude;
            sparse_ffn(
                &mut team,
                k,
                &w,
                Decider::Up,
                score,
                0.3,
                &x,
                &mut work,
                &mut y,
            );
            let (kept, coefficients) = work.kept(INTER);
            assert_eq!(kept, rows);
            let largest = product.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (c, &i) in coefficients.iter().zip(&rows) {
                // The same integers, added in another order.
                let d = (c - product[i as usize]).abs();
                assert!(d <= 1e-5 * largest, "{} {dtype}: {d}", k.isa());
            }
            for (y, (want, magnitude)) in y.iter().zip(sums(&mats[2], &rows, &coefficients)) {
                let fixed = fixed_point(k, dtype, magnitude);
                let bound = bound(magnitude, rows.len() + 20) + fixed;
                assert!((f64::from(*y) - want).abs() <= bound, "{} {dtype}", k.isa());
            }
        }
    }
}
