use super::*;
use crate::DType;
use half::f16;

/// Attention of one token as its definition says, in f64, and the largest |v| that it can mean.
fn plain(a: &Attention, k: &[Vec<f32>], v: &[Vec<f32>], q: &[f32], t: usize) -> Vec<f64> {
    let dim = q.len() / a.heads;
    let mut out = vec![0.0; q.len()];
    for h in 0..a.heads {
        let kv = h / a.group() * dim;
        let score = |p: usize| -> f64 {
            let dot: f64 = (0..dim)
                .map(|i| f64::from(q[h * dim + i]) * f64::from(k[p][kv + i]))
                .sum();
            let score = dot * f64::from(a.scale);
            match a.soft_cap.map(f64::from) {
                Some(cap) => cap * (score / cap).tanh(),
                None => score,
            }
        };
        let most = a.seen(t).map(score).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = a.seen(t).map(|p| (score(p) - most).exp()).sum();
        for p in a.seen(t) {
            let share = (score(p) - most).exp() / total;
            for i in 0..dim {
                out[h * dim + i] += share * f64::from(v[p][kv + i]);
            }
        }
    }
    out
}

/// Values in -1..1 that do not repeat, as `f16` has them.
fn wave(seed: usize, n: usize) -> Vec<f32> {
    let at = |i: usize| ((seed * 31 + i * 7) as f32 * 0.37).sin();
    (0..n).map(|i| f16::from_f32(at(i)).to_f32()).collect()
}

struct Case {
    heads: [usize; 2],
    dim: usize,
    dtype: DType,
    soft_cap: Option<f32>,
    window: Option<usize>,
    start: usize,
    tokens: usize,
    threads: usize,
}

/// Attention of all instruction sets against its definition.
fn check(case: &Case) {
    let Case { dim, start, .. } = *case;
    let ([heads, kv_heads], end) = (case.heads, start + case.tokens);
    let k: Vec<_> = (0..end).map(|p| wave(p, kv_heads * dim)).collect();
    let v: Vec<_> = (0..end).map(|p| wave(p + 50, kv_heads * dim)).collect();
    let mut cache = LayerCache::new(case.dtype, kv_heads, end + 5, dim);
    for p in 0..end {
        cache.store(p, &k[p], &v[p]);
    }
    let a = Attention {
        heads,
        kv_heads,
        scale: 8.0 / dim as f32,
        soft_cap: case.soft_cap,
        window: case.window,
        start,
    };
    let q: Vec<f32> = (start..end)
        .flat_map(|p| wave(p + 90, heads * dim))
        .collect();
    let mut team = Team::new(case.threads).unwrap();
    let mut work = AttentionWork::new(case.threads, &a, dim, end + 5);
    for kernels in Kernels::available() {
        let mut out = vec![f32::NAN; q.len()];
        attend(&mut team, kernels, &a, &cache, &q, &mut work, &mut out);
        let each = q.chunks(heads * dim).zip(out.chunks(heads * dim));
        for (t, (q, out)) in each.enumerate() {
            // Scores are at most 8 (a soft cap makes them smaller, and adds an error of a few eps of them), added up from `dim` products with an error of eps each at worst; a weight is off by as much,
            // and the values, at most 1, are added up over the positions seen.
            let bound =
                f64::from(f32::EPSILON) * (2.0 * 8.0 * (dim as f64 + 4.0) + (end + 80) as f64);
            for (x, y) in out.iter().zip(plain(&a, &k, &v, q, t)) {
                let off = (f64::from(*x) - y).abs();
                assert!(off < bound, "{} {t}: {x} for {y}", kernels.isa());
            }
        }
    }
}

#[test]
fn attention_is_its_definition_with_groups_windows_and_any_team() {
    let small = Case {
        heads: [6, 2],
        dim: 10,
        dtype: DType::F32,
        soft_cap: None,
        window: None,
        start: 0,
        tokens: 7,
        threads: 1,
    };
    check(&small);
    for (window, start, tokens, threads) in [
        // Beyond a span, at the edges of blocks and spans.
        (None, 127, 1, 2),
        (None, 128, 1, 3),
        (None, 300, 1, 2),
        (None, 250, 40, 2),
        // Windows that begin within a block, a span before the last, or hold the token alone.
        (Some(3), 2, 5, 3),
        (Some(1), 5, 2, 2),
        (Some(1), 131, 1, 2),
        (Some(150), 290, 1, 2),
        (Some(33), 100, 90, 2),
        (Some(150), 0, 300, 2),
    ] {
        check(&Case {
            window,
            start,
            tokens,
            threads,
            ..small
        });
    }
}

#[test]
fn scores_are_softly_capped() {
    for (soft_cap, start, tokens) in [(2.5, 0, 40), (0.7, 300, 1), (50.0, 130, 3)] {
        check(&Case {
            heads: [4, 2],
            dim: 24,
            dtype: DType::F32,
            soft_cap: Some(soft_cap),
            window: Some(150),
            start,
            tokens,
            threads: 2,
        });
    }
}

#[test]
fn heads_of_any_width_and_group_fit() {
    for (heads, dim) in [
        ([14, 2], 64),
        ([5, 5], 32),
        ([2, 1], 300),
        ([60, 1], 8),
        ([4, 2], 1),
    ] {
        for (start, tokens) in [(150, 1), (3, 20)] {
            check(&Case {
                heads,
                dim,
                dtype: DType::F16,
                soft_cap: None,
                window: None,
                start,
                tokens,
                threads: 2,
            });
        }
    }
}

#[test]
fn a_token_is_the_same_whatever_the_team_and_nothing_unseen_is_read() {
    let a = Attention {
        heads: 6,
        kv_heads: 2,
        scale: 0.3,
        soft_cap: None,
        window: Some(180),
        start: 330,
    };
    let (dim, end) = (40, 331);
    let mut cache = LayerCache::new(DType::F16, 2, 400, dim);
    for p in 0..400 {
        let seen = a.seen(0).contains(&p);
        let row = |seed| {
            if seen {
                wave(p + seed, 2 * dim)
            } else {
                vec![f32::NAN; 2 * dim]
            }
        };
        // What lies before the window within its first block is weighed with zero: there, and only there, it must be a number.
        let block = a.seen(0).start / LANES * LANES..end;
        let value = if block.contains(&p) {
            wave(p + 50, 2 * dim)
        } else {
            row(0)
        };
        cache.store(p, &row(0), &value);
    }
    let q = wave(7, 6 * dim);
    for kernels in Kernels::available() {
        let runs = [1, 2, 5].map(|threads| {
            let mut out = vec![f32::NAN; q.len()];
            let mut team = Team::new(threads).unwrap();
            let mut work = AttentionWork::new(threads, &a, dim, 400);
            attend(&mut team, kernels, &a, &cache, &q, &mut work, &mut out);
            assert!(out.iter().all(|x| x.is_finite()), "{}", kernels.isa());
            out
        });
        assert!(
            runs[0] == runs[1] && runs[0] == runs[2],
            "{}",
            kernels.isa()
        );
    }
}

#[test]
fn what_is_no_number_reaches_the_output() {
    let a = Attention {
        heads: 2,
        kv_heads: 1,
        scale: 1.0,
        soft_cap: None,
        window: None,
        start: 2,
    };
    for (key, value) in [(f32::NAN, 1.0), (1.0, f32::NAN)] {
        let mut cache = LayerCache::new(DType::F32, 1, 3, 4);
        for p in 0..3 {
            let at = |x: f32| if p == 1 { [x; 4] } else { [0.5; 4] };
            cache.store(p, &at(key), &at(value));
        }
        for kernels in Kernels::available() {
            let (mut team, mut out) = (Team::new(1).unwrap(), [0.0; 8]);
            let mut work = AttentionWork::new(1, &a, 4, 3);
            attend(
                &mut team, kernels, &a, &cache, &[1.0; 8], &mut work, &mut out,
            );
            assert!(out.iter().all(|x| x.is_nan()), "{}", kernels.isa());
        }
    }
}
