//! Speed of the kernels in GB/s of weight bytes, streaming over more memory than the caches hold.
//!
//! `cargo bench -p countdown-kernels -- 'dot/4864x896/Q8_0'` runs a part. The group `read` gives what the machine's memory
//! yields to plain loads, the measure of all others.

use countdown_kernels::{
    Bytes, DType, Layout, MatRef,
    cpu::{
        Act, Input, Kernels, Team,
        ffn::{FfnWork, SparseFfn, sparse_ffn_rows},
        gemm::{GemmWork, matmul},
        parallel::gemv,
    },
    quant,
};
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};
use std::{hint::black_box, time::Duration};

/// Rows and columns of the gate matrix of models of 0.5 and 1.5 thousand million weights, and of one of 135 million,
/// whose rows are no whole number of the groups that kernels take.
const SHAPES: [(usize, usize); 3] = [(4864, 896), (8960, 1536), (1536, 576)];
/// Bytes a benchmark streams over before it comes back to the same weights.
const STREAM: usize = 256 << 20;
const THREADS: [usize; 2] = [1, 2];

/// Copies of one random matrix, taken in turn.
struct Weights {
    dtype: DType,
    rows: usize,
    cols: usize,
    data: Bytes,
    bytes: usize,
    next: usize,
}

impl Weights {
    /// `None` where the columns are no whole number of blocks.
    fn new(dtype: DType, shape: (usize, usize)) -> Option<Weights> {
        Weights::over(STREAM, dtype, shape)
    }

    /// So many copies that they fill at least these bytes.
    fn over(stream: usize, dtype: DType, (rows, cols): (usize, usize)) -> Option<Weights> {
        let bytes = dtype.row_bytes(cols)? * rows;
        let mut one = vec![0; bytes];
        let line: Vec<f32> = (0..cols)
            .map(|i| (i * 37 % 101) as f32 / 101.0 - 0.4)
            .collect();
        for row in one.chunks_exact_mut(bytes / rows) {
            quant::pack_row(dtype, &line, row);
        }
        let data = one.repeat(stream.div_ceil(bytes)).into();
        Some(Weights {
            dtype,
            rows,
            cols,
            data,
            bytes,
            next: 0,
        })
    }

    fn next(&mut self) -> MatRef<'_> {
        let at = self.advance();
        self.at(at)
    }

    fn next_three(&mut self) -> [MatRef<'_>; 3] {
        let at = [self.advance(), self.advance(), self.advance()];
        at.map(|at| self.at(at))
    }

    fn next_three_beside(&mut self) -> [MatRef<'_>; 3] {
        self.three_beside(|stride| Layout::Rows { stride })
    }

    fn next_three_parts_beside(&mut self) -> [MatRef<'_>; 3] {
        self.three_beside(|stride| Layout::Parts { stride })
    }

    fn three_beside(&mut self, layout: impl Fn(usize) -> Layout) -> [MatRef<'_>; 3] {
        let mut at = self.advance();
        if at + 3 * self.bytes > self.data.len() {
            self.next = 0;
            at = self.advance();
        }
        self.next = (at + 3 * self.bytes) % self.data.len();
        let row = self.bytes / self.rows;
        let stride = 3 * row;
        [0, 1, 2].map(|i| {
            let data = &self.data[at + i * row..][..stride * (self.rows - 1) + row];
            MatRef::with_layout(self.dtype, self.rows, self.cols, layout(stride), data)
                .expect("the length is that of the shape")
        })
    }

    /// Whether rows have as many bytes in parts as in blocks.
    fn has_whole_groups(&self) -> bool {
        self.bytes == self.rows * quant::parts_bytes(self.dtype, self.cols)
    }

    /// As rows in parts.
    fn next_in_parts(&mut self) -> MatRef<'_> {
        let at = self.advance();
        let data = &self.data[at..at + self.bytes];
        let stride = self.bytes / self.rows;
        let layout = Layout::Parts { stride };
        MatRef::with_layout(self.dtype, self.rows, self.cols, layout, data)
            .expect("the length is that of the shape")
    }

    fn advance(&mut self) -> usize {
        let at = self.next;
        self.next = (at + self.bytes) % self.data.len();
        at
    }

    fn at(&self, at: usize) -> MatRef<'_> {
        let data = &self.data[at..at + self.bytes];
        MatRef::new(self.dtype, self.rows, self.cols, data)
            .expect("the length is that of the shape")
    }
}

fn input(k: &Kernels, len: usize) -> Input {
    let x: Vec<f32> = (0..len)
        .map(|i| (i * 29 % 97) as f32 / 97.0 - 0.5)
        .collect();
    let mut input = Input::with_capacity(len);
    k.prepare(&x, &mut input);
    input
}

/// Every shape and type, in a group of its own that runs briefly: there are many.
fn every_case(
    c: &mut Criterion,
    name: &str,
    f: impl Fn(&mut BenchmarkGroup<WallTime>, &'static Kernels, &mut Weights),
) {
    for shape in SHAPES {
        for dtype in DType::ALL {
            let Some(mut weights) = Weights::new(dtype, shape) else {
                continue;
            };
            let mut group = c.benchmark_group(format!("{name}/{}x{}/{dtype}", shape.0, shape.1));
            group
                .sample_size(20)
                .warm_up_time(Duration::from_millis(200))
                .measurement_time(Duration::from_secs(1));
            for k in Kernels::available() {
                f(&mut group, k, &mut weights);
            }
        }
    }
}

fn read(c: &mut Criterion) {
    let data = vec![1u64; STREAM / 8];
    let mut group = c.benchmark_group("read");
    group.throughput(Throughput::BytesDecimal(STREAM as u64));
    group.sample_size(10);
    for threads in THREADS {
        let mut team = Team::new(threads).expect("threads");
        group.bench_function(format!("{threads} threads"), |b| {
            b.iter(|| {
                team.for_each(16, |i| {
                    let part = &data[i * data.len() / 16..(i + 1) * data.len() / 16];
                    black_box(part.iter().fold(0, |s: u64, v| s ^ v));
                });
            });
        });
    }
}

fn dot(c: &mut Criterion) {
    every_case(c, "dot", |group, k, weights| {
        group.throughput(Throughput::BytesDecimal(weights.bytes as u64));
        let x = input(k, weights.cols);
        let mut out = vec![0.0; weights.rows];
        for threads in THREADS {
            let mut team = Team::new(threads).expect("threads");
            group.bench_function(BenchmarkId::new(k.isa().name(), threads), |b| {
                b.iter(|| gemv(&mut team, k, weights.next(), &x, &mut out));
            });
        }
    });
}

/// The same where the matrix lies in tiles.
fn dot_tiled(c: &mut Criterion) {
    tiled(c, "dot_tiled", &SHAPES, STREAM, &THREADS);
}

/// Tiles that stay in the second cache: what their kernels could do if memory were not in the way.
fn tiled_in_cache(c: &mut Criterion) {
    tiled(c, "tiled_in_cache", &[(128, 896), (128, 1536)], 1, &[1]);
}

fn tiled(
    c: &mut Criterion,
    name: &str,
    shapes: &[(usize, usize)],
    stream: usize,
    threads: &[usize],
) {
    for &shape in shapes {
        for dtype in DType::ALL.into_iter().filter(|t| quant::has_tiles(*t)) {
            let Some(mut weights) = Weights::over(stream, dtype, shape) else {
                continue;
            };
            // Copies of one matrix follow each other, and a tile is a run of bytes.
            let (rows, cols) = (weights.data.len() / weights.bytes * shape.0, shape.1);
            let all = MatRef::new(dtype, rows, cols, &weights.data);
            let mut team = Team::new(1).expect("threads");
            weights.data =
                quant::tile(all.expect("whole matrices"), &mut team).expect("rows that fill tiles");
            let mut group = c.benchmark_group(format!("{name}/{}x{}/{dtype}", shape.0, shape.1));
            group
                .sample_size(20)
                .warm_up_time(Duration::from_millis(200))
                .measurement_time(Duration::from_secs(1))
                .throughput(Throughput::BytesDecimal(weights.bytes as u64));
            let k = Kernels::best();
            let x = input(k, weights.cols);
            let mut out = vec![0.0; weights.rows];
            for &threads in threads {
                let mut team = Team::new(threads).expect("threads");
                group.bench_function(BenchmarkId::new(k.isa().name(), threads), |b| {
                    b.iter(|| {
                        let at = weights.advance();
                        let data = &weights.data[at..at + weights.bytes];
                        let m = MatRef::with_layout(
                            dtype,
                            weights.rows,
                            weights.cols,
                            Layout::Tiles,
                            data,
                        );
                        gemv(&mut team, k, m.expect("a matrix"), &x, &mut out);
                    });
                });
            }
        }
    }
}

/// Three rows in ten, irregularly.
fn kept(rows: usize) -> Vec<u32> {
    (0..rows as u32)
        .filter(|i| i.wrapping_mul(2_654_435_761) >> 16 & 1023 < 307)
        .collect()
}

fn dot_kept(c: &mut Criterion) {
    every_case(c, "dot_kept", |group, k, weights| {
        let rows = kept(weights.rows);
        group.throughput(Throughput::BytesDecimal(
            (weights.bytes / weights.rows * rows.len()) as u64,
        ));
        let x = input(k, weights.cols);
        let mut out = vec![0.0; rows.len()];
        group.bench_function(BenchmarkId::new(k.isa().name(), 1), |b| {
            b.iter(|| k.dot_list(weights.next(), &rows, &x, &mut out));
        });
        if k.multiplies_parts(weights.dtype) && weights.has_whole_groups() {
            group.bench_function(BenchmarkId::new(k.isa().name(), "parts"), |b| {
                b.iter(|| k.dot_list(weights.next_in_parts(), &rows, &x, &mut out));
            });
        }
    });
}

fn axpy_kept(c: &mut Criterion) {
    every_case(c, "axpy_kept", |group, k, weights| {
        let rows = kept(weights.rows);
        group.throughput(Throughput::BytesDecimal(
            (weights.bytes / weights.rows * rows.len()) as u64,
        ));
        let coef = vec![0.25; rows.len()];
        let mut y = vec![0.0; weights.cols];
        group.bench_function(BenchmarkId::new(k.isa().name(), 1), |b| {
            b.iter(|| k.axpy_list(weights.next(), &rows, &coef, 0..y.len(), &mut y));
        });
        if k.sums_parts(weights.dtype) && weights.has_whole_groups() {
            group.bench_function(BenchmarkId::new(k.isa().name(), "parts"), |b| {
                b.iter(|| k.axpy_list(weights.next_in_parts(), &rows, &coef, 0..y.len(), &mut y));
            });
        }
    });
}

/// Gate, up and down of the neurons kept, from three matrices.
fn ffn_kept(c: &mut Criterion) {
    every_case(c, "ffn_kept", |group, k, weights| {
        kept_neurons(group, k, weights, Weights::next_three);
    });
}

/// The same with a neuron's three rows side by side.
fn ffn_kept_beside(c: &mut Criterion) {
    every_case(c, "ffn_kept_beside", |group, k, weights| {
        kept_neurons(group, k, weights, Weights::next_three_beside);
    });
}

/// The same with these rows in parts.
fn ffn_kept_parts(c: &mut Criterion) {
    every_case(c, "ffn_kept_parts", |group, k, weights| {
        let dtype = weights.dtype;
        if k.multiplies_parts(dtype) && k.sums_parts(dtype) && weights.has_whole_groups() {
            kept_neurons(group, k, weights, Weights::next_three_parts_beside);
        }
    });
}

/// Products with and sums of a few rows that stay in the second cache, eight at a time; elements are rows. As the sparse FFN takes
/// them, in parts where kernels prefer it.
fn in_cache(c: &mut Criterion) {
    const ROWS: usize = 64;
    const TOGETHER: usize = 8;
    for cols in [896, 1536, 2048] {
        for dtype in DType::ALL {
            let Some(mut weights) = Weights::new(dtype, (ROWS, cols)) else {
                continue;
            };
            let mut group = c.benchmark_group(format!("in_cache/{cols}/{dtype}"));
            group
                .sample_size(20)
                .warm_up_time(Duration::from_millis(100))
                .measurement_time(Duration::from_millis(500))
                .throughput(Throughput::Elements(ROWS as u64));
            let all: Vec<u32> = (0..ROWS as u32).collect();
            for k in Kernels::available() {
                let x = input(k, cols);
                let mut out = [0.0; ROWS];
                let mut y = vec![0.0; cols];
                let whole = weights.has_whole_groups();
                weights.next = 0;
                let m = if k.multiplies_parts(dtype) && whole {
                    weights.next_in_parts()
                } else {
                    weights.next()
                };
                group.bench_function(BenchmarkId::new(k.isa().name(), "dot"), |b| {
                    b.iter(|| {
                        for (i, out) in out.chunks_mut(TOGETHER).enumerate() {
                            k.dot_list(m, &all[TOGETHER * i..], &x, out);
                        }
                    });
                });
                weights.next = 0;
                let m = if k.sums_parts(dtype) && whole {
                    weights.next_in_parts()
                } else {
                    weights.next()
                };
                group.bench_function(BenchmarkId::new(k.isa().name(), "sum"), |b| {
                    b.iter(|| {
                        for i in (0..ROWS).step_by(TOGETHER) {
                            let coef = [0.25; TOGETHER];
                            k.axpy_list(m, &all[i..], &coef, 0..cols, &mut y);
                        }
                    });
                });
            }
        }
    }
}

fn kept_neurons(
    group: &mut BenchmarkGroup<WallTime>,
    k: &'static Kernels,
    weights: &mut Weights,
    next: impl for<'a> Fn(&'a mut Weights) -> [MatRef<'a>; 3],
) {
    let rows = kept(weights.rows);
    group.throughput(Throughput::BytesDecimal(
        (3 * weights.bytes / weights.rows * rows.len()) as u64,
    ));
    let x = input(k, weights.cols);
    let mut work = FfnWork::new(weights.rows, weights.cols);
    let mut y = vec![0.0; weights.cols];
    for threads in THREADS {
        let mut team = Team::new(threads).expect("threads");
        group.bench_function(BenchmarkId::new(k.isa().name(), threads), |b| {
            b.iter(|| {
                let [gate, up, down] = next(weights);
                let act = Act::Silu;
                let ffn = SparseFfn {
                    gate,
                    up,
                    down,
                    gate_bias: None,
                    up_bias: None,
                    act,
                };
                sparse_ffn_rows(&mut team, k, &ffn, &rows, &x, &mut work, &mut y);
            });
        });
    }
}

/// Prefill of 128 tokens; elements are multiply-adds.
fn prefill(c: &mut Criterion) {
    const TOKENS: usize = 128;
    every_case(c, "matmul", |group, k, weights| {
        group.throughput(Throughput::Elements(
            (weights.rows * weights.cols * TOKENS) as u64,
        ));
        group.sample_size(10);
        let x = vec![0.5; TOKENS * weights.cols];
        let mut out = vec![0.0; TOKENS * weights.rows];
        let mut work = GemmWork::new();
        for threads in THREADS {
            let mut team = Team::new(threads).expect("threads");
            group.bench_function(BenchmarkId::new(k.isa().name(), threads), |b| {
                b.iter(|| {
                    matmul(
                        &mut team,
                        k,
                        weights.next(),
                        &x,
                        TOKENS,
                        &mut out,
                        &mut work,
                    )
                });
            });
        }
    });
}

criterion_group!(
    benches,
    read,
    dot,
    dot_tiled,
    tiled_in_cache,
    dot_kept,
    axpy_kept,
    ffn_kept,
    ffn_kept_beside,
    ffn_kept_parts,
    in_cache,
    prefill
);
criterion_main!(benches);
