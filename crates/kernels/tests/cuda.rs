//! CUDA kernels against their definition in double precision. Without a card that runs them, tests say so and check nothing.

mod on_card;

use countdown_kernels::{
    DType, MatRef,
    cpu::Act,
    cuda::{
        Cuda, Output, Weights as OnCard,
        ffn::{
            Cut, Decide, FfnBuffers, FfnKernels, FfnShape, FfnWeights, Neighbours, Score, copy4,
        },
    },
    quant, reference,
};
use on_card::{Noise, U, card, dot};

/// A matrix, and as numbers.
struct Weights {
    dtype: DType,
    data: Vec<u8>,
    values: Vec<f64>,
    cols: usize,
}

impl Weights {
    fn new(noise: &mut Noise, dtype: DType, rows: usize, cols: usize) -> Weights {
        let scale = 1.7 / (cols as f32).sqrt();
        let data = reference::packed(dtype, &noise.many(rows * cols, scale));
        let mut values = vec![0.0; rows * cols];
        quant::unpack_row(dtype, &data, &mut values);
        Weights {
            dtype,
            data,
            values: values.into_iter().map(f64::from).collect(),
            cols,
        }
    }

    /// Products of all rows with x, and what their rounding is in units of.
    fn times(&self, x: &[f32]) -> (Vec<f64>, Vec<f64>) {
        let rows = self.values.chunks_exact(self.cols);
        rows.map(|row| dot(self.dtype, row, x)).unzip()
    }

    /// On the card. The rows that are not kept become what must not be read: NaN, or levels with a scale of NaN.
    fn on_card(&self, cuda: &Cuda, kept: &[bool]) -> OnCard {
        let mut data = self.data.clone();
        let bytes = self.dtype.row_bytes(self.cols).unwrap();
        for (row, _) in data.chunks_exact_mut(bytes).zip(kept).filter(|(_, k)| !**k) {
            row.fill(0xff);
        }
        let m = MatRef::new(self.dtype, self.values.len() / self.cols, self.cols, &data);
        OnCard::upload(cuda, m.unwrap(), None).unwrap()
    }

    /// In Q4_0; nothing where rows are no whole number of blocks.
    fn q4_0(&self) -> Vec<u8> {
        if !self.cols.is_multiple_of(32) {
            return Vec::new();
        }
        let mut out = vec![0; DType::Q4_0.row_bytes(self.values.len()).unwrap()];
        let values: Vec<f32> = self.values.iter().map(|v| *v as f32).collect();
        quant::pack_row(DType::Q4_0, &values, &mut out);
        out
    }
}

fn act(act: Act, x: f64) -> f64 {
    match act {
        Act::Silu => x / (1.0 + (-x).exp()),
        Act::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + u.tanh())
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    All,
    Gate,
    Up,
    LowRank,
    Copy4,
}

/// A threshold in a wide gap between scores, near the one that keeps so many.
fn threshold(scores: &[f64], keep: usize) -> f32 {
    let mut order = scores.to_vec();
    order.sort_by(|a, b| b.total_cmp(a));
    if keep == 0 {
        return order[0] as f32 + 1.0;
    }
    if keep >= order.len() {
        return order[order.len() - 1] as f32 - 1.0;
    }
    let near = keep.saturating_sub(20).max(1)..(keep + 20).min(order.len());
    let at = near.max_by(|&a, &b| (order[a - 1] - order[a]).total_cmp(&(order[b - 1] - order[b])));
    let at = at.unwrap();
    ((order[at - 1] + order[at]) / 2.0) as f32
}

struct Layer {
    gate: Weights,
    up: Weights,
    down: Weights,
    a: Weights,
    b: Weights,
    bias: Vec<f32>,
    positive: Vec<f32>,
    negative: Vec<f32>,
}

fn check(
    cuda: &Cuda,
    kernels: &mut FfnKernels,
    s: FfnShape,
    blocks: usize,
    layer: &Layer,
    how: How,
    keep: usize,
) {
    let (hidden, inter) = (s.hidden, s.inter);
    let mut noise = Noise(keep as u64 + 99);
    let (x, residual) = (noise.many(hidden, 1.7), noise.many(hidden, 1.0));
    let (g, g_abs) = layer.gate.times(&x);
    let (u, u_abs) = layer.up.times(&x);
    let bias = |i: usize| f64::from(layer.bias[i]);
    let copies = [layer.gate.q4_0(), layer.up.q4_0()];
    let signal: Vec<f64> = match how {
        How::All => vec![1.0; inter],
        How::Gate => g.iter().map(|g| act(s.act, *g)).collect(),
        How::Up => u.clone(),
        How::LowRank => {
            let z: Vec<f32> = layer.a.times(&x).0.iter().map(|z| *z as f32).collect();
            let logits = layer.b.times(&z).0;
            logits
                .iter()
                .enumerate()
                .map(|(i, l)| l + bias(i))
                .collect()
        }
        How::Copy4 => {
            let z = reference::activations(&x, DType::Q4_0);
            let products = copies.each_ref().map(|data| {
                let m = MatRef::new(DType::Q4_0, inter, hidden, data).unwrap();
                let row = |i: usize| -> f64 {
                    let w = reference::row(m, i);
                    w.iter().zip(&z).map(|(w, z)| f64::from(*w) * z).sum()
                };
                (0..inter).map(row).collect::<Vec<f64>>()
            });
            let [g, u] = &products;
            g.iter().zip(u).map(|(g, u)| act(s.act, *g) * u).collect()
        }
    };
    // One kind of score for each way.
    let score = |i: usize| match how {
        How::Up | How::Copy4 => {
            let s = signal[i];
            (s * f64::from(layer.positive[i])).max(-s * f64::from(layer.negative[i]))
        }
        How::Gate => signal[i].abs(),
        How::All | How::LowRank => signal[i],
    };
    let scores: Vec<f64> = (0..inter).map(score).collect();
    let tau = threshold(&scores, keep);
    let kept: Vec<bool> = scores
        .iter()
        .map(|s| how == How::All || *s > f64::from(tau))
        .collect();
    let count = kept.iter().filter(|k| **k).count();

    // Sixteen products a thread, or a block, then a warp and a team; a block's neurons, then the blocks.
    let dot = (8 + 2 + 5 + 32 + 2) as f64 * U;
    let depth = (inter / blocks + 2 + blocks + 8) as f64 * U;
    let mut expected: Vec<f64> = residual.iter().map(|r| f64::from(*r)).collect();
    let mut bound: Vec<f64> = expected.iter().map(|r| depth * r.abs()).collect();
    for i in (0..inter).filter(|i| kept[*i]) {
        let a = act(s.act, g[i]);
        let coefficient = a * u[i];
        let (g_error, u_error) = (dot * g_abs[i], dot * u_abs[i]);
        let error = 1.2 * g_error * (u[i].abs() + u_error)
            + a.abs() * u_error
            + 16.0 * U * coefficient.abs();
        let row = &layer.down.values[i * hidden..(i + 1) * hidden];
        for ((y, bound), w) in expected.iter_mut().zip(&mut bound).zip(row) {
            *y += coefficient * w;
            *bound += (depth * coefficient.abs() + error) * w.abs();
        }
    }

    let all = vec![true; inter];
    let read = |reads: bool| if reads { &all } else { &kept };
    let gate = read(matches!(how, How::All | How::Gate));
    let gate = layer.gate.on_card(cuda, gate);
    let up = read(matches!(how, How::All | How::Up));
    let up = layer.up.on_card(cuda, up);
    let down = layer.down.on_card(cuda, read(how == How::All));
    let (a, b) = (
        layer.a.on_card(cuda, &vec![true; s.rank]),
        layer.b.on_card(cuda, &all),
    );
    let [positive, negative, bias] =
        [&layer.positive, &layer.negative, &layer.bias].map(|v| cuda.upload(v).unwrap());
    let [copy_gate, copy_up] = copies.each_ref().map(|data| {
        hidden
            .is_multiple_of(32)
            .then(|| MatRef::new(DType::Q4_0, inter, hidden, data).unwrap())
    });
    let copy = copy_gate
        .zip(copy_up)
        .map(|(gate, up)| cuda.upload(&copy4(gate, up)).unwrap());
    let weighted = Cut {
        score: Score::Weighted {
            positive: &positive,
            negative: &negative,
        },
        tau,
        expected: keep,
    };
    let by = |score| Cut {
        score,
        tau,
        expected: keep,
    };
    let decide = match how {
        How::All => Decide::All,
        How::Gate => Decide::Gate(by(Score::Magnitude)),
        How::Up => Decide::Up(weighted),
        How::LowRank => Decide::LowRank {
            a: &a,
            b: &b,
            bias: Some(&bias),
            cut: by(Score::Value),
        },
        How::Copy4 => Decide::Copy4 {
            copy: copy.as_ref().unwrap(),
            cut: weighted,
        },
    };
    let x = cuda.upload(&x).unwrap();
    let what = format!("{s:?} {how:?} keeping {count}");
    let runs = [0, 1].map(|_| {
        let mut y = cuda.upload(&residual).unwrap();
        let mut counted = cuda.upload(&[u32::MAX]).unwrap();
        let weights = FfnWeights {
            gate: &gate,
            up: &up,
            down: &down,
        };
        let buffers = FfnBuffers {
            x: Some(&x),
            norm: None,
            y: Output::Add(&mut y),
            row: 0,
            kept: &mut counted,
            at: 0,
        };
        kernels.run(cuda, weights, decide, buffers).unwrap();
        if how != How::All {
            assert_eq!(cuda.download(&counted).unwrap(), [count as u32], "{what}");
        }
        cuda.download(&y).unwrap()
    });
    for ((y, expected), bound) in runs[0].iter().zip(&expected).zip(&bound) {
        let off = (f64::from(*y) - expected).abs();
        assert!(off <= *bound, "{what}: {y} for {expected}, {bound} allowed");
    }
    assert!(runs[0] == runs[1], "{what}: two runs differ");
    assert!(
        kernels.is_at_rest(cuda).unwrap(),
        "{what}: memory is not empty"
    );
}

/// Width, neurons, rank, type, activation, blocks.
type Case = (usize, usize, usize, DType, Act, usize);

fn check_all((hidden, inter, rank, weights, act, blocks): Case, cuda: &Cuda) {
    // As models have them: down is transposed and packed once more, and predictors are of floats.
    let (down, predictor) = if weights.is_quantized() {
        (DType::Q8_0, DType::BF16)
    } else {
        (weights, weights)
    };
    let shape = FfnShape {
        hidden,
        inter,
        rank,
        weights,
        down,
        predictor,
        act,
        neighbours: Neighbours::Products,
    };
    let mut noise = Noise(hidden as u64);
    let mut matrix = |dtype, rows, cols| Weights::new(&mut noise, dtype, rows, cols);
    let [gate, up] = [(); 2].map(|()| matrix(weights, inter, hidden));
    let down = matrix(down, inter, hidden);
    // Without a predictor these are not used.
    let rows = rank.max(8);
    let a = matrix(predictor, rows, hidden);
    let b = matrix(predictor, inter, rows);
    let mut spread = || -> Vec<f32> { noise.many(inter, 0.5).iter().map(|v| v + 1.0).collect() };
    let (positive, negative) = (spread(), spread());
    let layer = Layer {
        gate,
        up,
        down,
        a,
        b,
        bias: noise.many(inter, 0.1),
        positive,
        negative,
    };
    let mut kernels = FfnKernels::with_blocks(cuda, shape, blocks).unwrap();
    check(cuda, &mut kernels, shape, blocks, &layer, How::All, inter);
    for how in [How::Gate, How::Up, How::LowRank, How::Copy4] {
        if how == How::Copy4 && !hidden.is_multiple_of(32) || how == How::LowRank && rank == 0 {
            continue;
        }
        for keep in [0, 1, inter / 10, inter * 3 / 10, inter] {
            check(cuda, &mut kernels, shape, blocks, &layer, how, keep);
        }
    }
}

#[test]
fn ffns_are_their_definition_and_read_only_what_is_kept() {
    let Some(cuda) = card() else { return };
    let many = cuda.card().multiprocessors;
    for case in [
        (896, 4864, 64, DType::BF16, Act::GeluTanh, many),
        (576, 1536, 512, DType::F16, Act::Silu, many),
        (600, 1001, 8, DType::BF16, Act::Silu, many.min(7)),
        (4096, 3001, 512, DType::BF16, Act::Silu, many),
        (5120, 777, 520, DType::F16, Act::GeluTanh, many),
    ] {
        check_all(case, &cuda);
    }
}

#[test]
fn ffns_of_quantised_weights_are_their_definition_and_read_only_what_is_kept() {
    let Some(cuda) = card() else { return };
    let many = cuda.card().multiprocessors;
    for case in [
        (896, 1001, 64, DType::Q8_0, Act::GeluTanh, many),
        (4096, 1501, 512, DType::Q4_0, Act::Silu, many),
        (96, 200, 16, DType::Q4_1, Act::Silu, many.min(3)),
        (224, 301, 8, DType::Q5_0, Act::Silu, many.min(5)),
        (1056, 500, 64, DType::Q5_1, Act::GeluTanh, many),
        (2048, 1003, 0, DType::Q4_K, Act::Silu, many),
        (5120, 777, 520, DType::Q5_K, Act::Silu, many),
        (768, 650, 64, DType::Q6_K, Act::Silu, many),
    ] {
        check_all(case, &cuda);
    }
}

#[test]
fn the_small_shape_is_its_definition() {
    let Some(cuda) = card() else { return };
    for dtype in [DType::BF16, DType::Q4_0] {
        check_all((64, 50, 16, dtype, Act::Silu, 3), &cuda);
    }
}

#[test]
fn compiled_code_is_kept_and_found_again() {
    let Some(_) = card() else { return };
    let folder = tempfile::tempdir().unwrap();
    let shape = FfnShape {
        hidden: 64,
        inter: 40,
        rank: 8,
        weights: DType::F16,
        down: DType::F16,
        predictor: DType::F16,
        act: Act::Silu,
        neighbours: Neighbours::Products,
    };
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    for _ in 0..2 {
        let cuda = Cuda::open(0, Some(folder.path())).unwrap();
        FfnKernels::new(&cuda, shape).unwrap();
        assert_eq!(files(), 1);
    }
    let cuda = Cuda::open(0, Some(folder.path())).unwrap();
    FfnKernels::new(&cuda, FfnShape { inter: 41, ..shape }).unwrap();
    assert_eq!(files(), 2);
}

#[test]
fn a_card_that_is_not_there_is_named() {
    let Some(_) = card() else { return };
    let e = Cuda::open(99, None).err().unwrap();
    assert!(e.to_string().contains("no CUDA card number 99"), "{e}");
}
