//! Distributions, edge cases, determinism.

use super::*;
use countdown_kernels::reference;

fn sampler(options: SamplingOptions, vocab: usize) -> Sampler {
    Sampler::new(options, vocab).unwrap()
}

/// Everything switched off but the draw.
fn plain(seed: u64) -> SamplingOptions {
    SamplingOptions {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: Some(seed),
        ..Default::default()
    }
}

/// Shares of `draws` draws that fell on each token.
fn shares(options: SamplingOptions, logits: &[f32], draws: usize) -> Vec<f64> {
    let mut sampler = sampler(options, logits.len());
    let mut counts = vec![0usize; logits.len()];
    for _ in 0..draws {
        counts[sampler.sample(&mut logits.to_vec()).unwrap() as usize] += 1;
    }
    counts
        .iter()
        .map(|&count| count as f64 / draws as f64)
        .collect()
}

/// Pearson's statistic of `shares` against the probabilities that `weights` stand for.
fn chi_square(shares: &[f64], weights: &[f64], draws: usize) -> f64 {
    let total: f64 = weights.iter().sum();
    let term = |(&share, &weight): (&f64, &f64)| {
        let p = weight / total;
        if p == 0.0 {
            assert_eq!(share, 0.0, "a token without probability was drawn");
            return 0.0;
        }
        (share - p).powi(2) / p
    };
    draws as f64 * shares.iter().zip(weights).map(term).sum::<f64>()
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [0.0, 1.0, 2.0, -1.0, f32::NEG_INFINITY, 0.5];
    for temperature in [0.5, 1.0, 2.0] {
        let weights = logits.map(|logit| f64::from(logit / temperature).exp());
        let shares = shares(
            SamplingOptions {
                temperature,
                ..plain(7)
            },
            &logits,
            40_000,
        );
        // 4 degrees of freedom: 18.5 is exceeded once in a thousand seeds.
        assert!(
            chi_square(&shares, &weights, 40_000) < 18.5,
            "temperature {temperature}: {shares:?}"
        );
    }
}

#[test]
fn each_cut_leaves_exactly_its_tokens_with_their_proportions() {
    // Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625, out of order.
    let logits = [0.0625f32, 0.5, 0.0625, 0.125, 0.25].map(f32::ln);
    let cases = [
        (
            SamplingOptions {
                top_k: 2,
                ..plain(1)
            },
            [0.0, 0.5, 0.0, 0.0, 0.25],
        ),
        // 0.5 + 0.25 falls short of 0.8, the third reaches it.
        (
            SamplingOptions {
                top_p: 0.8,
                ..plain(2)
            },
            [0.0, 0.5, 0.0, 0.125, 0.25],
        ),
        (
            SamplingOptions {
                min_p: 0.2,
                ..plain(3)
            },
            [0.0, 0.5, 0.0, 0.125, 0.25],
        ),
        // Of two equals at the border the lower id stays.
        (
            SamplingOptions {
                top_k: 4,
                ..plain(4)
            },
            [0.0625, 0.5, 0.0, 0.125, 0.25],
        ),
        // Top-p sees the probabilities after top-k: 0.5 of 0.75 is two thirds.
        (
            SamplingOptions {
                top_k: 2,
                top_p: 0.6,
                ..plain(5)
            },
            [0.0, 0.5, 0.0, 0.0, 0.0],
        ),
    ];
    for (options, weights) in cases {
        let shares = shares(options.clone(), &logits, 20_000);
        assert!(
            chi_square(&shares, &weights, 20_000) < 18.5,
            "{options:?}: {shares:?}"
        );
    }
}

#[test]
fn temperature_comes_last() {
    // At temperature 4 the third token would pass min-p 0.5; judged before, it does not.
    let options = SamplingOptions {
        temperature: 4.0,
        min_p: 0.5,
        ..plain(6)
    };
    let shares = shares(options, &[0.0, -0.1, -1.0], 2_000);
    assert_eq!(shares[2], 0.0);
    assert!(shares[1] > 0.4);
}

#[test]
fn temperature_0_takes_the_lowest_id_of_the_best() {
    let mut sampler = sampler(SamplingOptions::greedy(), 4);
    assert_eq!(sampler.sample(&mut [1.0, 3.0, 3.0, -2.0]).unwrap(), 1);
}

#[test]
fn partial_selection_equals_sorting() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    for vocab in [1, 2, 7, 300, 5_000] {
        // Coarse values: many ties.
        let logits: Vec<f32> = (0..vocab)
            .map(|_| (random.next_u32() % 64) as f32 / 8.0)
            .collect();
        let mut all: Vec<Candidate> = (0..)
            .zip(&logits)
            .map(|(id, &logit)| Candidate { logit, id })
            .collect();
        all.sort_by(best_first);
        let ids = |candidates: &[Candidate]| {
            candidates
                .iter()
                .map(|candidate| candidate.id)
                .collect::<Vec<_>>()
        };
        for k in [1, 2, 40, 299, 5_000] {
            let mut kept = Vec::new();
            keep_top_k(&logits, k.min(vocab), &mut kept);
            assert_eq!(
                ids(&kept),
                ids(&all[..k.min(vocab)]),
                "vocabulary {vocab}, top-k {k}"
            );
        }
        for top_p in [0.0, 0.3, 0.9, 0.999_999] {
            let mut kept: Vec<Candidate> = (0..)
                .zip(&logits)
                .map(|(id, &logit)| Candidate { logit, id })
                .collect();
            let wanted = top_p * super::mass(all[0].logit, &kept);
            keep_top_p(all[0].logit, [wanted; 2], &mut kept);
            assert_eq!(
                ids(&kept),
                ids(&all[..kept.len()]),
                "vocabulary {vocab}, top-p {top_p}"
            );
            let mass = |some: &[Candidate]| {
                some.iter()
                    .map(|one| f64::from(one.logit - all[0].logit).exp())
                    .sum::<f64>()
            };
            let wanted = top_p * mass(&all);
            assert!(
                mass(&kept) >= wanted * (1.0 - 1e-9),
                "vocabulary {vocab}, top-p {top_p}"
            );
            assert!(kept.len() == 1 || mass(&kept[..kept.len() - 1]) < wanted * (1.0 + 1e-9));
        }
    }
}

#[test]
fn the_same_seed_draws_the_same_tokens() {
    let logits: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
    let draw = |seed| {
        let mut sampler = sampler(
            SamplingOptions {
                seed,
                ..Default::default()
            },
            logits.len(),
        );
        (
            sampler.seed(),
            (0..32)
                .map(|_| sampler.sample(&mut logits.clone()).unwrap())
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(draw(Some(42)), draw(Some(42)));
    assert_ne!(draw(Some(42)).1, draw(Some(43)).1);
    let (seed, tokens) = draw(None);
    assert_eq!(
        draw(Some(seed)).1,
        tokens,
        "a seed that was not given can be asked for"
    );
}

#[test]
fn seeds_are_part_of_the_interface() {
    // These tokens must never change: users keep seeds.
    let mut sampler = sampler(plain(1), 256);
    let tokens: Vec<u32> = (0..6)
        .map(|_| sampler.sample(&mut [0.0; 256]).unwrap())
        .collect();
    assert_eq!(tokens, SEED_1);
}

const SEED_1: [u32; 6] = [103, 20, 152, 56, 72, 181];

#[test]
fn penalties_reach_recent_tokens_once_each_and_forget() {
    let options = SamplingOptions {
        repeat_penalty: 2.0,
        repeat_last_n: 2,
        ..SamplingOptions::greedy()
    };
    let mut sampler = sampler(options, 3);
    for token in [0, 1, 1] {
        sampler.accept(token);
    }
    let mut logits = [4.0, 6.0, -1.0];
    sampler.sample(&mut logits).unwrap();
    assert_eq!(
        logits,
        [4.0, 3.0, -1.0],
        "token 0 has left the window, token 1 counts once"
    );
    sampler.accept(2);
    let mut logits = [4.0, 6.0, -1.0];
    assert_eq!(sampler.sample(&mut logits).unwrap(), 0);
    assert_eq!(logits, [4.0, 3.0, -2.0], "negative logits are multiplied");
    // A token outside the vocabulary cannot be penalised, and does no harm.
    sampler.accept(77);
    sampler.sample(&mut [0.0; 3]).unwrap();
}

#[test]
fn broken_logits_are_an_error() {
    for options in [SamplingOptions::greedy(), plain(1)] {
        let mut sampler = sampler(options, 3);
        for logits in [
            [0.0, f32::NAN, 1.0],
            [0.0, f32::INFINITY, 1.0],
            [f32::NEG_INFINITY; 3],
        ] {
            assert!(
                matches!(
                    sampler.sample(&mut logits.clone()),
                    Err(Error::NotFinite(_))
                ),
                "{logits:?}"
            );
        }
        assert!(matches!(
            sampler.sample(&mut [0.0; 2]),
            Err(Error::Input { .. })
        ));
    }
}

#[test]
fn extreme_but_sound_settings_draw_the_best() {
    let logits = [-3.0e38f32, 3.0e38, 0.0];
    for options in [
        SamplingOptions {
            temperature: 1e-38,
            ..plain(1)
        },
        SamplingOptions {
            top_p: 0.0,
            ..plain(1)
        },
        SamplingOptions {
            min_p: 1.0,
            ..plain(1)
        },
        SamplingOptions {
            top_k: usize::MAX,
            ..plain(1)
        },
        SamplingOptions {
            top_k: 1,
            ..plain(1)
        },
    ] {
        assert_eq!(
            sampler(options.clone(), 3)
                .sample(&mut logits.clone())
                .unwrap(),
            1,
            "{options:?}"
        );
    }
}

#[test]
fn options_out_of_range_are_refused_with_a_remedy() {
    let bad = [
        SamplingOptions {
            temperature: -0.1,
            ..Default::default()
        },
        SamplingOptions {
            temperature: f32::NAN,
            ..Default::default()
        },
        SamplingOptions {
            temperature: f32::INFINITY,
            ..Default::default()
        },
        SamplingOptions {
            top_p: 1.1,
            ..Default::default()
        },
        SamplingOptions {
            top_p: f32::NAN,
            ..Default::default()
        },
        SamplingOptions {
            min_p: -0.1,
            ..Default::default()
        },
        SamplingOptions {
            repeat_penalty: 0.0,
            ..Default::default()
        },
        SamplingOptions {
            repeat_penalty: f32::INFINITY,
            ..Default::default()
        },
    ];
    for options in bad {
        let error = Sampler::new(options.clone(), 8).unwrap_err();
        assert!(
            matches!(error, Error::Input { .. }) && error.remedy().starts_with("give"),
            "{options:?}"
        );
    }
    assert!(Sampler::new(SamplingOptions::default(), 0).is_err());
}

#[test]
fn drawing_does_not_allocate() {
    for options in [
        SamplingOptions::default(),
        plain(1),
        SamplingOptions {
            repeat_penalty: 1.1,
            ..plain(2)
        },
    ] {
        let mut sampler = sampler(options, 500);
        let before = (sampler.candidates.capacity(), sampler.recent.capacity());
        for i in 0..200 {
            let mut logits: Vec<f32> = (0..500).map(|j| ((i * j) as f32).cos()).collect();
            let token = sampler.sample(&mut logits).unwrap();
            sampler.accept(token);
        }
        assert_eq!(
            (sampler.candidates.capacity(), sampler.recent.capacity()),
            before
        );
    }
}

/// Logits of some kind, one for each seed: spread out, with many ties, all alike but one, zeros of both signs.
fn logits_of(random: &mut ChaCha8Rng, vocab: usize, kind: u32) -> Vec<f32> {
    let logit = |i: usize| {
        let noise: f32 = (0..4)
            .map(|_| random.next_u32() as f32 / (1u64 << 32) as f32 - 0.5)
            .sum();
        match kind {
            0 => 8.0 * noise,
            1 => (6.0 * noise).round() / 2.0,
            2 => f32::from(u8::from(i == vocab / 2)),
            3 => 40.0 * noise,
            _ => [0.0, -0.0, -1.0][random.next_u32() as usize % 3],
        }
    };
    (0..vocab).map(logit).collect()
}

#[test]
fn the_largest_draw_what_all_draw() {
    let mut random = ChaCha8Rng::seed_from_u64(8);
    let mut decided = 0;
    for (vocab, kind) in [1, 2, 9, 300, 3000]
        .into_iter()
        .flat_map(|v| (0..5).map(move |k| (v, k)))
    {
        let logits = logits_of(&mut random, vocab, kind);
        for (n, top_k) in [1, 8, 60, 256, 4000]
            .into_iter()
            .flat_map(|n| [0, 1, 8, 40, 1000].map(|k| (n, k)))
        {
            let list = reference::shortlist(&logits, n);
            assert!(list.is_finite());
            for (settings, repeat_penalty) in [
                (1.0, 0.0, 0.0),
                (1.0, 0.0, 0.7),
                (0.95, 0.05, 0.8),
                (0.9, 0.0, 1.5),
                (0.2, 0.0, 1.0),
                (0.0, 0.0, 1.0),
                (1.0, 0.3, 2.0),
                (0.999_999, 1e-9, 1.0),
                (1.0, 1.0, 1.0),
            ]
            .into_iter()
            .flat_map(|s| [1.0, 1.3, 0.8, 1e30].map(|penalty| (s, penalty)))
            {
                let (top_p, min_p, temperature) = settings;
                let options = SamplingOptions {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    repeat_penalty,
                    repeat_last_n: 3,
                    ..plain(9)
                };
                let what = format!("{vocab} of kind {kind}, {n} listed: {options:?}");
                let mut from_all = sampler(options.clone(), vocab);
                let mut from_list = from_all.clone();
                for _ in 0..6 {
                    let expected = from_all.sample(&mut logits.clone()).unwrap();
                    let token = from_list.sample_largest(&list);
                    decided += u32::from(token.is_some());
                    // Where nothing was drawn, all logits draw what they would have drawn at once.
                    let token =
                        token.unwrap_or_else(|| from_list.sample(&mut logits.clone()).unwrap());
                    assert_eq!(token, expected, "{what}");
                    from_all.accept(token);
                    from_list.accept(token);
                }
                let listed = list.candidates().len();
                let enough = temperature == 0.0 || (1..=listed).contains(&top_k) || listed == vocab;
                if listed > 0 && enough && repeat_penalty == 1.0 {
                    assert!(from_list.sample_largest(&list).is_some(), "{what}");
                }
            }
        }
    }
    assert!(decided > 10_000, "{decided}");
}

#[test]
fn top_p_and_min_p_end_within_a_list() {
    // Probabilities of 2^-1, 2^-2 and so on.
    let logits: Vec<f32> = (1..60)
        .map(|i| i as f32 * -std::f32::consts::LN_2)
        .collect();
    let list = reference::shortlist(&logits, 10);
    let draws = |top_p, min_p| {
        let options = SamplingOptions {
            top_p,
            min_p,
            ..plain(3)
        };
        sampler(options, logits.len())
            .sample_largest(&list)
            .is_some()
    };
    assert!(draws(0.9, 0.0));
    // The first three reach 0.875 to within rounding.
    assert!(!draws(0.875, 0.0));
    assert!(draws(0.875 + 1e-4, 0.0) && draws(0.875 - 1e-4, 0.0));
    // 0.999 is reached by ten, 0.9999 by more.
    assert!(draws(0.999, 0.0) && !draws(0.9999, 0.0));
    assert!(draws(1.0, 0.01) && !draws(1.0, 1e-4));
    assert!(draws(0.9999, 0.01));
    assert!(!draws(1.0, 0.0));
}

#[test]
fn a_penalty_is_known_to_reach_the_best_of_a_list_or_not() {
    let logits: Vec<f32> = (0..60).map(|i| 6.0 - i as f32 / 10.0).collect();
    let list = reference::shortlist(&logits, 30);
    let draw = |repeat_penalty, recent: &[u32]| {
        let options = SamplingOptions {
            repeat_penalty,
            ..SamplingOptions::greedy()
        };
        let mut sampler = sampler(options, logits.len());
        recent.iter().for_each(|t| sampler.accept(*t));
        sampler.sample_largest(&list)
    };
    assert_eq!(draw(1.1, &[0, 1, 1, 3, 50]), Some(2));
    assert_eq!(draw(0.9, &[]), Some(0));
    // It may raise one that is not there above all that are.
    assert_eq!(draw(0.9, &[5]), None);
    // All that are there may fall below one that is not.
    let all: Vec<u32> = (0..30).collect();
    assert_eq!(draw(10.0, &all), None);
    assert_eq!(draw(10.0, &all[..29]), Some(29));
}
