//! CUDA kernels against their definition in double precision. Without a card that runs them, tests say so and check nothing.

mod on_card;

use countdown_kernels::{
    DType, MatRef,
    cpu::{
        Act, Team,
        ffn::{Affine, Estimate},
    },
    cuda::{
        Cuda, Form, Output, Predictor, Weights as OnCard,
        ffn::{Cut, Decide, FfnBuffers, FfnKernels, FfnShape, FfnWeights, Neighbours, Score},
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

    /// Products of all rows with what a predictor's matrices are multiplied with: x in full.
    fn times_floats(&self, x: &[f64]) -> Vec<f64> {
        let rows = self.values.chunks_exact(self.cols);
        rows.map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
            .collect()
    }

    fn view(&self) -> MatRef<'_> {
        let rows = self.values.len() / self.cols;
        MatRef::new(self.dtype, rows, self.cols, &self.data).unwrap()
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

#[derive(Clone, Copy)]
enum How<'a> {
    All,
    Gate,
    Up,
    Predicted(&'a Imitation),
}

/// Form and type of the outer matrices, and rank and type of the inner one if there is one.
type Kind = (Form, DType, Option<(usize, DType)>);

/// What says which neurons are kept.
struct Imitation {
    form: Form,
    inner: Option<Weights>,
    outer: Vec<Weights>,
    biases: Option<Vec<Vec<f32>>>,
}

impl Imitation {
    fn new(noise: &mut Noise, (form, dtype, inner): Kind, hidden: usize, inter: usize) -> Self {
        let inner = inner.map(|(rank, dtype)| Weights::new(noise, dtype, rank, hidden));
        let width = inner.as_ref().map_or(hidden, |a| a.values.len() / hidden);
        let matrices = if form == Form::Product { 2 } else { 1 };
        let outer = (0..matrices).map(|_| Weights::new(noise, dtype, inter, width));
        let outer: Vec<_> = outer.collect();
        // As predictors have them: what is trained has biases.
        let is_trained = inner.is_some() || form == Form::Logits;
        let biases = is_trained.then(|| outer.iter().map(|_| noise.many(inter, 0.1)).collect());
        Imitation {
            form,
            inner,
            outer,
            biases,
        }
    }

    fn signals(&self, by: Act, x: &[f32]) -> Vec<f64> {
        let z = match &self.inner {
            Some(a) => {
                let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
                a.times_floats(&x)
            }
            None => reference::activations(x, self.outer[0].dtype),
        };
        let mut products: Vec<Vec<f64>> = self.outer.iter().map(|w| w.times_floats(&z)).collect();
        for (p, b) in products.iter_mut().zip(self.biases.iter().flatten()) {
            p.iter_mut().zip(b).for_each(|(p, b)| *p += f64::from(*b));
        }
        let first = products[0].iter();
        match self.form {
            Form::Logits => products[0].clone(),
            Form::Gate => first.map(|p| act(by, *p)).collect(),
            Form::Product => first
                .zip(&products[1])
                .map(|(g, u)| act(by, *g) * u)
                .collect(),
        }
    }

    fn on_card(&self, cuda: &Cuda) -> Predictor {
        let affine = |i: usize| Affine {
            weight: self.outer[i].view(),
            bias: self.biases.as_ref().map(|b| &b[i][..]),
        };
        let outer = match self.form {
            Form::Logits => Estimate::Logits(affine(0)),
            Form::Gate => Estimate::Gate(affine(0)),
            Form::Product => Estimate::Product {
                gate: affine(0),
                up: affine(1),
            },
        };
        let inner = self.inner.as_ref().map(Weights::view);
        Predictor::upload(cuda, inner, outer, &mut Team::new(2).unwrap()).unwrap()
    }
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
    let signal: Vec<f64> = match how {
        How::All => vec![1.0; inter],
        How::Gate => g.iter().map(|g| act(s.act, *g)).collect(),
        How::Up => u.clone(),
        How::Predicted(by) => by.signals(s.act, &x),
    };
    // One kind of score for each way.
    let weighted = |i: usize| {
        let s = signal[i];
        (s * f64::from(layer.positive[i])).max(-s * f64::from(layer.negative[i]))
    };
    let score = |i: usize| match how {
        How::All => signal[i],
        How::Gate => signal[i].abs(),
        How::Up => weighted(i),
        How::Predicted(p) => match p.form {
            Form::Logits => signal[i],
            Form::Gate => signal[i].abs(),
            Form::Product => weighted(i),
        },
    };
    let scores: Vec<f64> = (0..inter).map(score).collect();
    let tau = threshold(&scores, keep);
    let kept: Vec<bool> = scores
        .iter()
        .map(|s| matches!(how, How::All) || *s > f64::from(tau))
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
    let down = layer.down.on_card(cuda, read(matches!(how, How::All)));
    let [positive, negative] = [&layer.positive, &layer.negative].map(|v| cuda.upload(v).unwrap());
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
    let predictor = match how {
        How::Predicted(p) => Some(p.on_card(cuda)),
        _ => None,
    };
    let decide = match how {
        How::All => Decide::All,
        How::Gate => Decide::Gate(by(Score::Magnitude)),
        How::Up => Decide::Up(weighted),
        How::Predicted(p) => Decide::Predicted {
            predictor: predictor.as_ref().unwrap(),
            cut: match p.form {
                Form::Logits => by(Score::Value),
                Form::Gate => by(Score::Magnitude),
                Form::Product => weighted,
            },
        },
    };
    let x = cuda.upload(&x).unwrap();
    let way = match how {
        How::All => "all",
        How::Gate => "by gate",
        How::Up => "by up",
        How::Predicted(..) => "by a predictor",
    };
    let what = format!("{s:?} {way} keeping {count}");
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
        if !matches!(how, How::All) {
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

const fn low_rank(form: Form, rank: usize, dtype: DType) -> Kind {
    (form, dtype, Some((rank, dtype)))
}

const fn copy(dtype: DType) -> Kind {
    (Form::Product, dtype, None)
}

const TERNARY: Kind = (Form::Logits, DType::T2, None);

/// Width, neurons, type, activation, blocks.
type Case = (usize, usize, DType, Act, usize);

fn check_all((hidden, inter, weights, act, blocks): Case, kinds: &[Kind], cuda: &Cuda) {
    // As models have them: down is transposed and packed once more.
    let down = if weights.is_quantized() {
        DType::Q8_0
    } else {
        weights
    };
    let shape = FfnShape {
        hidden,
        inter,
        weights,
        down,
        predictor: None,
        act,
        neighbours: Neighbours::Products,
    };
    let mut noise = Noise(hidden as u64);
    let mut matrix = |dtype| Weights::new(&mut noise, dtype, inter, hidden);
    let [gate, up, down] = [weights, weights, down].map(&mut matrix);
    let mut spread = || -> Vec<f32> { noise.many(inter, 0.5).iter().map(|v| v + 1.0).collect() };
    let (positive, negative) = (spread(), spread());
    let layer = Layer {
        gate,
        up,
        down,
        positive,
        negative,
    };
    let some = [0, 1, inter / 10, inter * 3 / 10, inter];
    let mut kernels = FfnKernels::with_blocks(cuda, shape, blocks).unwrap();
    let mut checked = |how, keep| check(cuda, &mut kernels, shape, blocks, &layer, how, keep);
    checked(How::All, inter);
    for how in [How::Gate, How::Up] {
        some.into_iter().for_each(|keep| checked(how, keep));
    }
    for kind in kinds {
        let imitation = Imitation::new(&mut noise, *kind, hidden, inter);
        let shape = FfnShape {
            predictor: Some(imitation.on_card(cuda).shape()),
            ..shape
        };
        let mut kernels = FfnKernels::with_blocks(cuda, shape, blocks).unwrap();
        let how = How::Predicted(&imitation);
        for keep in some {
            check(cuda, &mut kernels, shape, blocks, &layer, how, keep);
        }
    }
}

#[test]
fn ffns_are_their_definition_and_read_only_what_is_kept() {
    let Some(cuda) = card() else { return };
    let many = cuda.card().multiprocessors;
    let cases: [(Case, &[Kind]); 5] = [
        (
            (896, 4864, DType::BF16, Act::GeluTanh, many),
            &[
                low_rank(Form::Logits, 64, DType::BF16),
                low_rank(Form::Product, 128, DType::F16),
                copy(DType::Q4_0),
                TERNARY,
            ],
        ),
        (
            (576, 1536, DType::F16, Act::Silu, many),
            &[
                low_rank(Form::Logits, 512, DType::F16),
                low_rank(Form::Product, 512, DType::Q8_0),
                copy(DType::Q3_0),
            ],
        ),
        (
            (600, 1001, DType::BF16, Act::Silu, many.min(7)),
            &[low_rank(Form::Gate, 8, DType::BF16)],
        ),
        (
            (4096, 3001, DType::BF16, Act::Silu, many),
            &[
                low_rank(Form::Logits, 512, DType::BF16),
                low_rank(Form::Logits, 512, DType::Q8_0),
                copy(DType::Q4_0),
                copy(DType::Q2_0),
            ],
        ),
        (
            (5120, 777, DType::F16, Act::GeluTanh, many),
            &[
                low_rank(Form::Logits, 520, DType::F16),
                (Form::Gate, DType::Q4_0, None),
                TERNARY,
            ],
        ),
    ];
    for (case, kinds) in cases {
        check_all(case, kinds, &cuda);
    }
}

#[test]
fn ffns_of_quantised_weights_are_their_definition_and_read_only_what_is_kept() {
    let Some(cuda) = card() else { return };
    let many = cuda.card().multiprocessors;
    let cases: [(Case, &[Kind]); 8] = [
        (
            (896, 1001, DType::Q8_0, Act::GeluTanh, many),
            &[
                low_rank(Form::Logits, 64, DType::BF16),
                copy(DType::Q3_0),
                copy(DType::Q4_0),
            ],
        ),
        (
            (4096, 1501, DType::Q4_0, Act::Silu, many),
            &[
                low_rank(Form::Logits, 512, DType::BF16),
                low_rank(Form::Product, 512, DType::Q8_0),
                copy(DType::Q2_0),
                TERNARY,
            ],
        ),
        (
            (96, 200, DType::Q4_1, Act::Silu, many.min(3)),
            &[low_rank(Form::Logits, 16, DType::BF16), copy(DType::Q4_0)],
        ),
        (
            (224, 301, DType::Q5_0, Act::Silu, many.min(5)),
            &[low_rank(Form::Logits, 8, DType::BF16), TERNARY],
        ),
        (
            (1056, 500, DType::Q5_1, Act::GeluTanh, many),
            &[
                low_rank(Form::Product, 64, DType::F16),
                (Form::Gate, DType::Q3_0, None),
            ],
        ),
        (
            (2048, 1003, DType::Q4_K, Act::Silu, many),
            &[low_rank(Form::Logits, 64, DType::Q8_0), copy(DType::Q4_0)],
        ),
        (
            (5120, 777, DType::Q5_K, Act::Silu, many),
            &[low_rank(Form::Logits, 520, DType::BF16), copy(DType::Q4_0)],
        ),
        (
            (768, 650, DType::Q6_K, Act::Silu, many),
            &[low_rank(Form::Gate, 64, DType::Q4_1), copy(DType::Q2_0)],
        ),
    ];
    for (case, kinds) in cases {
        check_all(case, kinds, &cuda);
    }
}

/// Small enough for a sanitizer.
#[test]
fn the_small_shape_is_its_definition() {
    let Some(cuda) = card() else { return };
    let kinds = [
        low_rank(Form::Logits, 16, DType::BF16),
        low_rank(Form::Product, 32, DType::Q8_0),
        copy(DType::Q4_0),
        TERNARY,
    ];
    for dtype in [DType::BF16, DType::Q4_0] {
        check_all((64, 50, dtype, Act::Silu, 3), &kinds, &cuda);
    }
}

#[test]
fn compiled_code_is_kept_and_found_again() {
    let Some(_) = card() else { return };
    let folder = tempfile::tempdir().unwrap();
    let shape = FfnShape {
        hidden: 64,
        inter: 40,
        weights: DType::F16,
        down: DType::F16,
        predictor: None,
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
