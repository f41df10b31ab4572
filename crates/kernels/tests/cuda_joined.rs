//! FFNs with the products before and after them in one launch, against the same by launches of their own. Without a card that runs them, tests say so and check nothing.

mod on_card;

use countdown_kernels::{
    DType, MatRef,
    cpu::Act,
    cuda::{
        Cuda, CudaSlice, Joints, Output, Product, StepKernels, Weights,
        ffn::{
            Cut, Decide, FfnBuffers, FfnKernels, FfnShape, FfnWeights, Neighbours, Score, copy4,
        },
    },
    quant,
};
use on_card::{Noise, card};

const EPS: f32 = 1e-5;

struct Layer {
    output: Weights,
    gate: Weights,
    up: Weights,
    down: Weights,
    a: Weights,
    b: Weights,
    copy: Option<CudaSlice<u8>>,
    next: [Weights; 3],
    bias: CudaSlice<f32>,
    norms: [CudaSlice<f32>; 2],
}

struct Case {
    hidden: usize,
    inter: usize,
    rank: usize,
    next: [usize; 3],
    dtype: DType,
}

impl Case {
    fn down(&self) -> DType {
        if self.dtype.is_quantized() {
            DType::Q8_0
        } else {
            self.dtype
        }
    }

    fn shape(&self, neighbours: Neighbours) -> FfnShape {
        FfnShape {
            hidden: self.hidden,
            inter: self.inter,
            rank: self.rank,
            weights: self.dtype,
            down: self.down(),
            predictor: DType::BF16,
            act: Act::Silu,
            neighbours,
        }
    }

    fn layer(&self, cuda: &Cuda, noise: &mut Noise) -> Layer {
        let &Case {
            hidden,
            inter,
            rank,
            dtype,
            ..
        } = self;
        let mut packed = |dtype: DType, rows: usize, cols: usize| {
            let mut data = vec![0; rows * dtype.row_bytes(cols).unwrap()];
            for row in data.chunks_exact_mut(dtype.row_bytes(cols).unwrap()) {
                quant::pack_row(dtype, &noise.many(cols, 1.7 / (cols as f32).sqrt()), row);
            }
            data
        };
        let mut matrix = |dtype: DType, rows: usize, cols: usize| {
            let data = packed(dtype, rows, cols);
            Weights::upload(cuda, MatRef::new(dtype, rows, cols, &data).unwrap()).unwrap()
        };
        let output = matrix(dtype, hidden, hidden);
        let [gate, up] = [(); 2].map(|()| matrix(dtype, inter, hidden));
        let down = matrix(self.down(), inter, hidden);
        let a = matrix(DType::BF16, rank, hidden);
        let b = matrix(DType::BF16, inter, rank);
        let next = self.next.map(|rows| matrix(dtype, rows, hidden));
        let copy = hidden.is_multiple_of(32).then(|| {
            let data = [(); 2].map(|()| packed(DType::Q4_0, inter, hidden));
            let [gate, up] = data
                .each_ref()
                .map(|d| MatRef::new(DType::Q4_0, inter, hidden, d).unwrap());
            cuda.upload(&copy4(gate, up)).unwrap()
        });
        let upload = |v: Vec<f32>| cuda.upload(&v).unwrap();
        Layer {
            output,
            gate,
            up,
            down,
            a,
            b,
            copy,
            next,
            bias: upload(noise.many(self.next[1], 1.0)),
            norms: [(); 2].map(|()| {
                upload(
                    noise
                        .many(hidden, 1.0)
                        .iter()
                        .map(|v| 1.0 + 0.3 * v)
                        .collect(),
                )
            }),
        }
    }
}

/// Neurons of signals above zero, about half of them.
fn decide(how: usize, l: &Layer, inter: usize) -> Option<Decide<'_>> {
    let cut = Cut {
        score: Score::Value,
        tau: 0.0,
        expected: inter / 2,
    };
    Some(match how {
        0 => Decide::All,
        1 => Decide::Gate(cut),
        2 => Decide::Up(cut),
        3 => Decide::LowRank {
            a: &l.a,
            b: &l.b,
            bias: None,
            cut,
        },
        _ => Decide::Copy4 {
            copy: l.copy.as_ref()?,
            cut,
        },
    })
}

/// The residual stream, the projections after each layer but the last, and neurons kept; `None` where there is no such kernel.
fn run(
    cuda: &Cuda,
    step: &mut StepKernels,
    (kernels, joints): (&mut FfnKernels, &mut Option<Joints>),
    c: &Case,
    layers: &[Layer],
    how: usize,
) -> Option<Vec<Vec<f32>>> {
    let mut noise = Noise(5);
    let mut x = cuda.upload(&noise.many(c.hidden, 1.0)).unwrap();
    let mut kept = cuda.upload(&vec![0u32; layers.len()]).unwrap();
    let mut seen = Vec::new();
    // Twice, so that what one step leaves would be seen by the next.
    for _ in 0..2 {
        for (i, l) in layers.iter().enumerate() {
            let attended = cuda.upload(&noise.many(c.hidden, 1.0)).unwrap();
            let mut outs = c
                .next
                .map(|rows| cuda.upload(&vec![f32::NAN; rows]).unwrap());
            let product = Product {
                weights: &l.output,
                bias: None,
                out: Output::Add(&mut x),
            };
            let output = step
                .prepare_products(cuda, (&attended, 0), None, &[product])
                .unwrap();
            let alone = |p: Option<_>| assert!(p.is_none(), "it joins");
            let mut output = Some(output);
            if joints.is_none() {
                output.take().unwrap().launch(cuda).unwrap();
            }
            let weights = FfnWeights {
                gate: &l.gate,
                up: &l.up,
                down: &l.down,
            };
            let buffers = FfnBuffers {
                x: None,
                norm: Some((&l.norms[0], EPS)),
                y: Output::Add(&mut x),
                row: 0,
                kept: &mut kept,
                at: i,
            };
            let mut ffn = kernels.prepare(cuda, weights, decide(how, l, c.inter)?, buffers);
            output.into_iter().for_each(|o| alone(ffn.join_output(o)));
            let is_last = i + 1 == layers.len();
            let [q, k, v] = &mut outs;
            let products = [
                (&l.next[0], None, q),
                (&l.next[1], Some(&l.bias), k),
                (&l.next[2], None, v),
            ];
            let products = products.map(|(weights, bias, out)| Product {
                weights,
                bias,
                out: Output::Write(out),
            });
            let next = step
                .prepare_products(cuda, (&x, 0), Some((&l.norms[1], EPS)), &products)
                .unwrap();
            let mut next = Some(next).filter(|_| !is_last);
            if joints.is_some() {
                next.take()
                    .into_iter()
                    .for_each(|n| alone(ffn.join_next(n)));
            }
            ffn.launch(cuda, joints.as_mut()).unwrap();
            next.into_iter().for_each(|n| n.launch(cuda).unwrap());
            seen.push(cuda.download(&x).unwrap());
            if !is_last {
                seen.extend(outs.iter().map(|o| cuda.download(o).unwrap()));
            }
        }
        seen.push(
            cuda.download(&kept)
                .unwrap()
                .iter()
                .map(|k| *k as f32)
                .collect(),
        );
    }
    assert!(
        kernels.is_at_rest(cuda).unwrap(),
        "memory of {how} is not empty"
    );
    assert!(
        joints.as_ref().is_none_or(|j| j.is_at_rest(cuda).unwrap()),
        "joints of {how} are not empty"
    );
    Some(seen)
}

#[test]
fn joined_launches_give_what_launches_of_their_own_do() {
    let Some(cuda) = card() else { return };
    let mut step = StepKernels::new(&cuda).unwrap();
    // All of a multiprocessor's memory but what attention takes, and so little that rows go round the ring many times.
    let rings = |needs: usize| [cuda.card().shared - needs, 20_000];
    for (hidden, inter, rank, next, dtype, needs) in [
        (256, 300, 16, [256, 64, 64], DType::F32, 40_000),
        (896, 1000, 64, [896, 128, 128], DType::BF16, 60_000),
        (2048, 2100, 64, [1024, 512, 512], DType::F16, 90_000),
        (4096, 4200, 512, [2048, 1024, 1024], DType::BF16, 115_000),
        (1024, 1100, 64, [768, 128, 128], DType::Q8_0, 90_000),
        (2048, 2100, 64, [1024, 256, 256], DType::Q4_0, 90_000),
        (2048, 2100, 64, [1024, 256, 256], DType::Q4_K, 90_000),
    ] {
        let case = Case {
            hidden,
            inter,
            rank,
            next,
            dtype,
        };
        let mut noise = Noise(hidden as u64 + inter as u64);
        let layers = [(); 2].map(|()| case.layer(&cuda, &mut noise));
        let kernels = |neighbours: Neighbours| {
            let joints =
                (neighbours != Neighbours::Products).then(|| Joints::new(&cuda, hidden).unwrap());
            (
                FfnKernels::new(&cuda, case.shape(neighbours)).unwrap(),
                joints,
            )
        };
        let (mut apart, mut none) = kernels(Neighbours::Products);
        let mut joined = rings(needs).map(|shared| kernels(Neighbours::Attention { shared }));
        for how in 0..5 {
            let what = format!("{hidden} x {inter}, {dtype}, {how}");
            let by = (&mut apart, &mut none);
            let Some(apart) = run(&cuda, &mut step, by, &case, &layers, how) else {
                continue;
            };
            for (kernels, joints) in &mut joined {
                let mut run = || run(&cuda, &mut step, (kernels, joints), &case, &layers, how);
                let [joined, again] = [(); 2].map(|()| run().unwrap());
                assert!(joined == again, "{what}: two runs differ");
                assert_eq!(joined.len(), apart.len());
                // Sums in another order; of quantised weights x is rounded to 8 bits afterwards, where that makes steps of a 127th of a block's largest.
                let allowed = if dtype.is_quantized() { 2e-2 } else { 2e-5 };
                for (n, (j, a)) in joined.iter().zip(&apart).enumerate() {
                    let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
                    for (i, (j, a)) in j.iter().zip(a).enumerate() {
                        assert!(
                            (j - a).abs() <= allowed * largest,
                            "{what}, vector {n}, {i}: {j} for {a}, largest {largest}"
                        );
                    }
                }
            }
        }
    }
}
