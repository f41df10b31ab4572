//! Speed of attention in GB/s of the keys and values that one token sees.

use countdown_kernels::{
    DType,
    cpu::{
        Kernels, Team,
        attention::{Attention, AttentionWork, LayerCache, attend},
    },
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

/// One token after a context, and the last 64 of a prompt.
fn attention(c: &mut Criterion) {
    for (heads, kv_heads, dim) in [(14, 2, 64), (12, 2, 128), (9, 3, 64), (32, 8, 64)] {
        for context in [512, 4096] {
            let dtype = DType::F16;
            let mut cache = LayerCache::new(dtype, kv_heads, context, dim);
            let row = vec![0.3; kv_heads * dim];
            (0..context).for_each(|p| cache.store(p, &row, &row));
            let name = format!("attention/{heads}-{kv_heads}-{dim}/{context}");
            let mut group = c.benchmark_group(name);
            group
                .sample_size(20)
                .measurement_time(Duration::from_secs(1));
            let bytes = LayerCache::bytes(dtype, kv_heads, context, dim).expect("small sizes");
            group.throughput(Throughput::BytesDecimal(bytes as u64));
            for (threads, tokens) in [(1, 1), (2, 1), (1, 64), (2, 64)] {
                let a = Attention {
                    heads,
                    kv_heads,
                    scale: 0.1,
                    soft_cap: None,
                    window: None,
                    start: context - tokens,
                };
                let k = Kernels::best();
                let mut team = Team::new(threads).expect("threads");
                let mut work = AttentionWork::new(threads, &a, dim, context);
                let q = vec![0.2; tokens * heads * dim];
                let mut out = vec![0.0; q.len()];
                let id = BenchmarkId::new(format!("{tokens} tokens"), threads);
                group.bench_function(id, |b| {
                    b.iter(|| attend(&mut team, k, &a, &cache, &q, &mut work, &mut out));
                });
            }
        }
    }
}

criterion_group!(benches, attention);
criterion_main!(benches);
