//! CUDA kernels of a step, but for FFNs, and of prompts against their definition in double precision. Without a card that runs them, tests say so
//! and check nothing.

mod on_card;

use countdown_kernels::{
    DType, MatRef,
    cuda::{
        AttentionCall, AttentionKernels, AttentionShape, Cuda, CudaSlice, Orientation, Output,
        Product, PromptKernels, ReadProbe, StepKernels, Taken, Weights,
    },
    quant, reference,
};
use on_card::{Noise, U, card, dot};

/// Added to mean squares.
const EPS: f32 = 1e-5;

/// Types that have kernels: those that files have, which come first.
fn types() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().take(DType::Q6_K as usize + 1)
}

/// A random matrix on the card, and as numbers.
struct Matrix {
    on_card: Weights,
    values: Vec<Vec<f64>>,
}

impl Matrix {
    fn new(cuda: &Cuda, noise: &mut Noise, dtype: DType, rows: usize, cols: usize) -> Matrix {
        let bytes = dtype.row_bytes(cols).unwrap();
        let mut data = vec![0; rows * bytes];
        for row in data.chunks_exact_mut(bytes) {
            quant::pack_row(dtype, &noise.many(cols, 1.0), row);
        }
        let m = MatRef::new(dtype, rows, cols, &data).unwrap();
        let row = |i| reference::row(m, i).iter().map(|v| f64::from(*v)).collect();
        Matrix {
            on_card: Weights::upload(cuda, m, None).unwrap(),
            values: (0..rows).map(row).collect(),
        }
    }
}

fn nan(cuda: &Cuda, n: usize) -> CudaSlice<f32> {
    cuda.upload(&vec![f32::NAN; n]).unwrap()
}

#[track_caller]
fn close(got: &[f32], expected: &[f64], bound: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, ((g, e), b)) in got.iter().zip(expected).zip(bound).enumerate() {
        let off = (f64::from(*g) - e).abs();
        assert!(off <= *b, "{what}, {i}: {g} for {e}, {b} allowed");
    }
}

#[test]
fn products_are_their_definition() {
    let Some(cuda) = card() else { return };
    let mut step = StepKernels::new(&cuda).unwrap();
    for dtype in types() {
        for (cols, rows) in [
            (32, [1, 0, 0]),
            (96, [7, 3, 1]),
            (256, [5, 2, 0]),
            (896, [896, 128, 130]),
            (4096, [37, 1, 5]),
            (2560, [1031, 2, 0]),
        ] {
            if dtype.row_bytes(cols).is_none() {
                continue;
            }
            let mut noise = Noise(cols as u64);
            let all = noise.many(2 * cols, 1.0);
            let x = cuda.upload(&all).unwrap();
            let rows: Vec<usize> = rows.into_iter().filter(|r| *r > 0).collect();
            let matrices: Vec<Matrix> = rows
                .iter()
                .map(|&r| Matrix::new(&cuda, &mut noise, dtype, r, cols))
                .collect();
            let bias: Vec<Vec<f32>> = rows.iter().map(|&r| noise.many(r, 1.0)).collect();
            let before: Vec<Vec<f32>> = rows.iter().map(|&r| noise.many(r, 1.0)).collect();
            let biases: Vec<_> = bias.iter().map(|b| cuda.upload(b).unwrap()).collect();
            let mut outs: Vec<_> = before.iter().map(|b| cuda.upload(b).unwrap()).collect();
            // The first is added to what is there, the others replace it, and the last has no bias.
            let products: Vec<Product> = outs
                .iter_mut()
                .enumerate()
                .map(|(i, out)| Product {
                    weights: &matrices[i].on_card,
                    bias: (i < 2).then_some(&biases[i]),
                    out: match i {
                        0 => Output::Add(out),
                        _ => Output::Write(out),
                    },
                })
                .collect();
            step.products(&cuda, (&x, 1), None, &products).unwrap();
            for (i, out) in outs.iter().enumerate() {
                let start = |r: usize| {
                    let bias = if i < 2 { bias[i][r] } else { 0.0 };
                    f64::from(bias) + if i == 0 { f64::from(before[0][r]) } else { 0.0 }
                };
                // A lane's vectors of up to 32 columns, then lanes, warps, bias and residual; scales are a few more roundings.
                let depth = (cols / 32 + 32 + 5 + 8 + 6) as f64;
                let rows = matrices[i].values.iter().enumerate().map(|(r, w)| {
                    let (sum, magnitude) = dot(dtype, w, &all[cols..]);
                    let start = start(r);
                    (sum + start, depth * U * (magnitude + start.abs()))
                });
                let (expected, bound): (Vec<f64>, Vec<f64>) = rows.unzip();
                let what = format!("{dtype}, row of {cols}, product {i}");
                close(&cuda.download(out).unwrap(), &expected, &bound, &what);
            }
        }
    }
}

#[test]
fn products_with_a_norm_are_products_of_the_norm() {
    let Some(cuda) = card() else { return };
    let mut step = StepKernels::new(&cuda).unwrap();
    for (dtype, cols, rows) in [
        (DType::BF16, 4096, 77),
        (DType::Q8_0, 96, 300),
        (DType::Q4_K, 2560, 65),
    ] {
        let mut noise = Noise(3);
        let m = Matrix::new(&cuda, &mut noise, dtype, rows, cols);
        let (x, weight) = (noise.many(cols, 1.0), noise.many(cols, 1.0));
        let x = cuda.upload(&x).unwrap();
        let weight = cuda.upload(&weight).unwrap();
        let mut normed = nan(&cuda, cols);
        let norm = (&weight, EPS);
        step.norm(&cuda, &x, 1, norm, Some(&mut normed)).unwrap();
        let mut outs = [nan(&cuda, rows), nan(&cuda, rows)];
        let [apart, together] = &mut outs;
        for (x, norm, out) in [(&normed, None, apart), (&x, Some(norm), together)] {
            let product = Product {
                weights: &m.on_card,
                bias: None,
                out: Output::Write(out),
            };
            step.products(&cuda, (x, 0), norm, &[product]).unwrap();
        }
        let normed = cuda.download(&normed).unwrap();
        // Squares are summed in another order, so a level near the middle of two may be either.
        let near = |x: &[f32], v: f32| {
            let scale = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
            let to_half = ((v / scale).abs().fract() - 0.5).abs();
            if dtype.is_quantized() && to_half < 1e-3 {
                f64::from(scale)
            } else {
                0.0
            }
        };
        let off: Vec<f64> = normed
            .chunks(32)
            .flat_map(|block| block.iter().map(move |v| near(block, *v)))
            .collect();
        let bound = |w: &Vec<f64>| -> f64 {
            let flipped = w.iter().zip(&off).map(|(w, off)| w.abs() * off);
            60.0 * U * dot(dtype, w, &normed).1 + flipped.sum::<f64>()
        };
        let bound: Vec<f64> = m.values.iter().map(bound).collect();
        let [apart, together] = outs.map(|o| cuda.download(&o).unwrap());
        let apart: Vec<f64> = apart.into_iter().map(f64::from).collect();
        close(&together, &apart, &bound, &format!("{dtype} {cols}"));
    }
}

/// Rows as long as `weight`, each divided by its root mean square and multiplied by it.
fn normed(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let row = |row: &[f32]| {
        let squares: f64 = row.iter().map(|v| f64::from(*v).powi(2)).sum();
        let factor = 1.0 / (squares / row.len() as f64 + f64::from(EPS)).sqrt();
        let each = |(v, w): (&f32, &f32)| f64::from(*v) * factor * f64::from(*w);
        row.iter().zip(weight).map(each).collect::<Vec<_>>()
    };
    x.chunks_exact(weight.len()).flat_map(row).collect()
}

#[test]
fn embeddings_norms_and_sums_are_their_definition() {
    let Some(cuda) = card() else { return };
    let step = StepKernels::new(&cuda).unwrap();
    let mut noise = Noise(5);
    for dtype in types() {
        let cols = 3 * dtype.block_len().max(32);
        let table = Matrix::new(&cuda, &mut noise, dtype, 9, cols);
        let tokens = cuda.upload(&[7u32, 8, 0, 3]).unwrap();
        let mut out = nan(&cuda, 3 * cols);
        step.embed(&cuda, &table.on_card, (&tokens, 1, 3), 1.5, &mut out)
            .unwrap();
        let expected: Vec<f64> = [8, 0, 3]
            .iter()
            .flat_map(|&t: &usize| table.values[t].iter().map(|v| v * 1.5))
            .collect();
        let bound: Vec<f64> = expected.iter().map(|e| 2.0 * U * e.abs()).collect();
        let what = format!("embedding {dtype}");
        close(&cuda.download(&out).unwrap(), &expected, &bound, &what);
    }
    for (rows, cols) in [(1, 4096), (3, 96), (5, 1000), (12, 24)] {
        let (x, weight) = (noise.many(rows * cols, 1.0), noise.many(cols, 1.0));
        let mut on_card = cuda.upload(&x).unwrap();
        let w = cuda.upload(&weight).unwrap();
        let mut out = nan(&cuda, rows * cols);
        step.norm(&cuda, &on_card, rows, (&w, EPS), Some(&mut out))
            .unwrap();
        let expected = normed(&x, &weight);
        // Squares are summed by threads, lanes and warps; the root halves what that is off.
        let depth = (cols / 32 + 5 + 16) as f64 / 2.0 + 6.0;
        let bound: Vec<f64> = expected.iter().map(|e| depth * U * e.abs()).collect();
        let what = format!("norm {rows} x {cols}");
        let got = cuda.download(&out).unwrap();
        close(&got, &expected, &bound, &what);
        let mut sum = cuda.upload(&x).unwrap();
        let add = step.prepare_norm_add(&cuda, &mut sum, (&on_card, 0.5), rows, (&w, EPS));
        add.launch(&cuda).unwrap();
        let sums = || {
            x.iter()
                .zip(&expected)
                .map(|(x, e)| f64::from(*x) + 0.5 * e)
        };
        let bounds = bound.iter().zip(sums()).map(|(b, s)| b + U * s.abs());
        let (added, bounds) = (cuda.download(&sum).unwrap(), bounds.collect::<Vec<_>>());
        let sums: Vec<f64> = sums().collect();
        close(&added, &sums, &bounds, &format!("{what}, added"));
        step.norm(&cuda, &on_card, rows, (&w, EPS), None).unwrap();
        assert_eq!(cuda.download(&on_card).unwrap(), got, "{what} in place");
        // Half of a number is exact, so that the sum is rounded once here as there.
        let half = (&w, 0.5);
        step.add(&cuda, &mut on_card, half, rows * cols).unwrap();
        let sums = got.chunks_exact(cols);
        let sums: Vec<f32> = sums
            .flat_map(|r| r.iter().zip(&weight).map(|(a, b)| a + 0.5 * b))
            .collect();
        assert_eq!(cuda.download(&on_card).unwrap(), sums, "{what}, added");
    }
}

#[test]
fn products_of_prompts_are_their_definition() {
    let Some(cuda) = card() else { return };
    let step = StepKernels::new(&cuda).unwrap();
    let mut noise = Noise(77);
    for dtype in types() {
        for (rows, cols, tokens) in [(96, 64, 3), (160, 224, 70), (64, 512, 3)] {
            if dtype.row_bytes(cols).is_none() {
                continue;
            }
            let most = tokens * rows.max(cols);
            let mut prompt = PromptKernels::new(&cuda, most, rows * cols).unwrap();
            let m = Matrix::new(&cuda, &mut noise, dtype, rows, cols);
            for orientation in [Orientation::RowPerOutput, Orientation::RowPerInput] {
                let (outputs, inputs) = match orientation {
                    Orientation::RowPerOutput => (rows, cols),
                    Orientation::RowPerInput => (cols, rows),
                };
                let x = noise.many((tokens + 1) * inputs, 1.0);
                let on_card = cuda.upload(&x).unwrap();
                let mut out = nan(&cuda, tokens * outputs);
                let from = (&on_card, 1, tokens);
                prompt
                    .matmul(&cuda, &step, &m.on_card, orientation, from, &mut out)
                    .unwrap();
                let weight = |o: usize, i: usize| match orientation {
                    Orientation::RowPerOutput => m.values[o][i],
                    Orientation::RowPerInput => m.values[i][o],
                };
                // Inputs and unpacked weights are rounded to so many bits.
                let bits = match dtype {
                    DType::F32 => 24,
                    DType::BF16 => 8,
                    _ => 11,
                };
                let relative = 2.0 / f64::from(1u32 << bits) + (inputs + 2) as f64 * U;
                let (mut expected, mut bound) = (Vec::new(), Vec::new());
                for row in x[inputs..].chunks_exact(inputs) {
                    for o in 0..outputs {
                        let products = (0..inputs).map(|i| f64::from(row[i]) * weight(o, i));
                        expected.push(products.clone().sum());
                        bound.push(relative * products.map(f64::abs).sum::<f64>());
                    }
                }
                let what = format!("{dtype} {rows} x {cols}, {tokens} tokens, {orientation:?}");
                close(&cuda.download(&out).unwrap(), &expected, &bound, &what);
            }
        }
    }
}

/// Attention of all tokens in double precision, `[tokens, heads, head_dim]`.
struct Attended {
    s: AttentionShape,
    pairs: usize,
    window: Option<usize>,
    cap: Option<f32>,
    scale: f32,
    turns: Vec<f32>,
}

impl Attended {
    fn rotated(&self, head: &[f32], position: usize) -> Vec<f64> {
        let mut out: Vec<f64> = head.iter().map(|v| f64::from(*v)).collect();
        for i in 0..self.pairs {
            let at = 2 * (position * self.pairs + i);
            let (cos, sin) = (f64::from(self.turns[at]), f64::from(self.turns[at + 1]));
            let (a, b) = (f64::from(head[i]), f64::from(head[i + self.pairs]));
            out[i] = a * cos - b * sin;
            out[i + self.pairs] = b * cos + a * sin;
        }
        out
    }

    fn of(&self, [q, k, v]: [&[f32]; 3], tokens: usize) -> Vec<f64> {
        let AttentionShape {
            heads,
            kv_heads,
            head_dim: n,
            ..
        } = self.s;
        let head = |x: &[f32], t: usize, count: usize, h: usize| {
            x[(t * count + h) * n..(t * count + h + 1) * n].to_vec()
        };
        let mut out = Vec::new();
        for t in 0..tokens {
            for h in 0..heads {
                let kv = h / (heads / kv_heads);
                let q = self.rotated(&head(q, t, heads, h), t);
                let oldest = self.window.map_or(0, |w| (t + 1).saturating_sub(w));
                let score = |p: usize| {
                    let k = self.rotated(&head(k, p, kv_heads, kv), p);
                    let s: f64 = q.iter().zip(&k).map(|(q, k)| q * k).sum();
                    let s = s * f64::from(self.scale);
                    self.cap.map_or(s, |c| {
                        let c = f64::from(c);
                        c * (s / c).tanh()
                    })
                };
                let scores: Vec<f64> = (oldest..=t).map(score).collect();
                let top = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let mut row = vec![0.0; n];
                for (p, w) in (oldest..=t).zip(&weights) {
                    let v = head(v, p, kv_heads, kv);
                    for (r, v) in row.iter_mut().zip(v) {
                        *r += w / sum * f64::from(v);
                    }
                }
                out.extend(row);
            }
        }
        out
    }
}

#[test]
fn attention_is_its_definition_in_steps_and_in_prompts() {
    let Some(cuda) = card() else { return };
    use Taken::{AsIs, Normed};
    for (heads, kv_heads, head_dim, cache, window, cap, pairs, taken) in [
        (3, 1, 32, DType::F32, None, None, 16, AsIs),
        (14, 2, 64, DType::F16, None, None, 32, AsIs),
        (4, 4, 24, DType::F32, Some(7), Some(2.0), 12, AsIs),
        (4, 1, 48, DType::F16, Some(8), None, 24, Normed),
        (6, 2, 40, DType::F16, None, Some(1.5), 20, AsIs),
        (16, 1, 8, DType::F32, None, Some(0.5), 2, AsIs),
        (8, 2, 128, DType::F16, None, None, 64, AsIs),
        (8, 2, 128, DType::F32, None, None, 64, Normed),
        (2, 1, 256, DType::F16, Some(33), None, 128, AsIs),
        (4, 2, 256, DType::F16, Some(33), None, 128, Normed),
        (7, 1, 64, DType::F32, None, None, 32, Normed),
    ] {
        let tokens = 75;
        let shape = AttentionShape {
            heads,
            kv_heads,
            head_dim,
            context: 80,
            cache,
            queries_and_keys: taken,
        };
        let mut kernels = AttentionKernels::new(&cuda, shape).unwrap();
        let mut noise = Noise(heads as u64);
        let q = noise.many(tokens * heads * head_dim, 1.0);
        let k = noise.many(tokens * kv_heads * head_dim, 1.0);
        let v = noise.many(tokens * kv_heads * head_dim, 1.0);
        let turns: Vec<f32> = (0..80 * pairs)
            .flat_map(|i| [(i as f32 * 0.37).cos(), (i as f32 * 0.37).sin()])
            .collect();
        let definition = Attended {
            s: shape,
            pairs,
            window,
            cap,
            scale: 3.0 / (head_dim as f32).sqrt(),
            turns,
        };
        let norms = [(); 2].map(|()| {
            let around_1 = noise.many(head_dim, 0.3).into_iter().map(|v| 1.0 + v);
            around_1.collect::<Vec<_>>()
        });
        let [q_normed, k_normed] = match taken {
            AsIs => [q.clone(), k.clone()],
            Normed => [(&q, &norms[0]), (&k, &norms[1])]
                .map(|(x, w)| normed(x, w).into_iter().map(|v| v as f32).collect()),
        };
        let norms: [_; 2] = norms.map(|w| cuda.upload(&w).unwrap());
        let expected = definition.of([&q_normed, &k_normed, &v], tokens);
        // Scores are off by what keys are rounded to, in the cache too, and queries of prompts over a cache of 16 bits; weights by twice that, values once more, as those weights.
        // Scores stay below 3 * sqrt(head_dim), where heads are normed times two weights of 1.3 at most; norms are off by some sums of warps.
        let unit = if cache == DType::F16 { 1.0 / 2048.0 } else { U };
        let (largest, of_norms) = match taken {
            AsIs => (1.0, 0),
            Normed => (1.7, 2 * 40),
        };
        let scores = 3.0 * largest * (head_dim as f64).sqrt();
        let off = |rounded: f64| {
            let sums = (head_dim + 8 + of_norms) as f64 * U;
            2.0 * scores * (rounded * unit + sums) + rounded * unit + 200.0 * U
        };
        let turns = cuda.upload(&definition.turns).unwrap();
        let mut position = cuda.zeros(1).unwrap();
        let what = format!("{shape:?} {window:?} {cap:?}");

        // Token by token, then in three batches, each over a cache of its own.
        let of_prompts = if cache == DType::F16 { 2.0 } else { 1.0 };
        for (batches, rounded) in [(vec![1; tokens], 1.0), (vec![64, 10, 1], of_prompts)] {
            let bound = vec![off(rounded); expected.len()];
            let mut cache = kernels.cache(&cuda).unwrap();
            let mut got = Vec::new();
            let mut start = 0;
            for n in batches {
                cuda.write(&[start as u32], &mut position).unwrap();
                let call = AttentionCall {
                    rope: Some((&turns, pairs)),
                    position: &position,
                    norms: (taken == Normed && n == 1).then_some((norms.each_ref(), EPS)),
                    window,
                    scale: definition.scale,
                    cap,
                };
                // Prompts are normed before.
                let (q, k) = match n {
                    1 => (&q, &k),
                    _ => (&q_normed, &k_normed),
                };
                let rows = |x: &[f32], width: usize| {
                    cuda.upload(&x[start * width..(start + n) * width]).unwrap()
                };
                let mut q = rows(q, heads * head_dim);
                let kv = [rows(k, kv_heads * head_dim), rows(&v, kv_heads * head_dim)];
                let kv = [&kv[0], &kv[1]];
                if n == 1 {
                    kernels
                        .attend(&cuda, call, &mut cache, &mut q, kv, None)
                        .unwrap();
                    got.extend(cuda.download(&q).unwrap());
                } else {
                    let mut out = nan(&cuda, n * heads * head_dim);
                    kernels
                        .attend_prompt(&cuda, call, &mut cache, n, &mut q, kv, &mut out)
                        .unwrap();
                    got.extend(cuda.download(&out).unwrap());
                }
                start += n;
            }
            close(&got, &expected, &bound, &what);
        }
    }
}

#[test]
fn the_probe_reads_all_of_the_memory() {
    let Some(cuda) = card() else { return };
    // Less than a load for each thread, some, a length that no number of threads divides, and several launches.
    for words in [4usize, 4096, 4 * 1_234_567, (1 << 27) + 4] {
        let memory: Vec<u32> = (0..words as u32)
            .map(|i| i.wrapping_mul(2_654_435_761))
            .collect();
        let sum = memory.iter().fold(0u32, |a, b| a.wrapping_add(*b));
        let mut probe = ReadProbe::new(&cuda, cuda.upload(&memory).unwrap()).unwrap();
        assert_eq!(probe.sum(&cuda).unwrap(), sum, "{words}");
        let gb_s = probe.gb_s(&cuda).unwrap();
        let limit = cuda.card().bandwidth as f64 / 1e9;
        // What the caches hold comes faster.
        assert!(
            gb_s > 0.0 && (words < 1 << 27 || limit == 0.0 || gb_s < limit),
            "{gb_s}"
        );
        eprintln!("{words} words: {gb_s:.0} GB/s of {limit:.0}");
    }
}
