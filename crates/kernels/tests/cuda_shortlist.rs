//! The largest logits as a card lists them, against sorting. Without a card that runs kernels, tests say so and check nothing.

mod on_card;

use countdown_kernels::{
    cuda::{Cuda, ShortlistKernels},
    reference,
    shortlist::Shortlist,
};
use on_card::{Noise, card};

/// The list of `logits`, with a few words that go along.
fn list(cuda: &Cuda, kernels: &mut ShortlistKernels, logits: &[f32]) -> Shortlist {
    // What lies behind must not be read.
    let behind = [f32::INFINITY; 5];
    let logits = cuda.upload(&[logits, &behind].concat()).unwrap();
    let words: Vec<u32> = (0..300).map(|i| i * i).collect();
    let on_card = cuda.upload(&words).unwrap();
    let mut along = cuda.host_buffer(299).unwrap();
    kernels.list(cuda, &logits, (&on_card, &mut along)).unwrap();
    cuda.synchronize().unwrap();
    assert_eq!(along.get().unwrap(), &words[..299]);
    let mut list = Shortlist::default();
    kernels.read(&mut list).unwrap();
    list
}

/// Sums of some noise, so that few are far out.
fn spread(noise: &mut Noise, n: usize) -> Vec<f32> {
    let mut sums = vec![0.0; n];
    for _ in 0..6 {
        let more = noise.many(n, 3.0);
        sums.iter_mut().zip(more).for_each(|(s, m)| *s += m);
    }
    sums
}

#[track_caller]
fn check(got: &Shortlist, logits: &[f32], at_least: usize, what: &str) {
    // Both zeros are the same logit.
    let sorted = |list: &Shortlist| {
        let listed = list.candidates().iter();
        let mut keys: Vec<_> = listed.map(|c| (c.id, (c.logit + 0.0).to_bits())).collect();
        keys.sort_unstable();
        keys
    };
    let n = got.candidates().len();
    assert_eq!(
        sorted(got),
        sorted(&reference::shortlist(logits, n)),
        "{what}"
    );
    assert!(n >= at_least, "{what}: {n} listed");
    assert!(got.is_finite(), "{what}");
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let exact: f64 = logits.iter().map(|l| f64::from(l - largest).exp()).sum();
    let (mass, allowed) = (got.mass(), Shortlist::MASS_ERROR * exact);
    assert!(
        (mass - exact).abs() <= allowed,
        "{what}: {mass} for {exact}"
    );
}

#[test]
fn the_largest_are_listed() {
    let Some(cuda) = card() else { return };
    // Of few all are; of many whatever is complete, on average far more than a sampler asks for.
    for (vocab, at_least) in [
        (1, 1),
        (3, 3),
        (4, 4),
        (6, 6),
        (257, 257),
        (1024, 1024),
        (1025, 200),
        (2048, 200),
        (32_003, 200),
        (128_256, 200),
        (131_073, 200),
        (256_000, 200),
    ] {
        let mut kernels = ShortlistKernels::new(&cuda, vocab).unwrap();
        let mut noise = Noise(vocab as u64);
        let logits = spread(&mut noise, vocab);
        let what = format!("{vocab}");
        let got = list(&cuda, &mut kernels, &logits);
        check(&got, &logits, at_least, &what);

        // Many equals, none of which may be missing; those on the border are left out together.
        let coarse: Vec<f32> = logits.iter().map(|l| l.round()).collect();
        let got = list(&cuda, &mut kernels, &coarse);
        check(&got, &coarse, vocab.min(1), &format!("{what}, rounded"));
        for same in [0.0, -3.5, 1e30, f32::MIN] {
            let mut alike = vec![same; vocab];
            let got = list(&cuda, &mut kernels, &alike);
            check(&got, &alike, 0, &format!("{what} times {same}"));
            alike[vocab / 2] = same.max(0.0) * 1.5 + 1.0;
            let got = list(&cuda, &mut kernels, &alike);
            check(&got, &alike, 1, &format!("{what} times {same} but one"));
        }
        let mut zeros: Vec<f32> = logits.iter().map(|l| 0.0f32.copysign(*l)).collect();
        zeros[vocab - 1] = 1e-40;
        let got = list(&cuda, &mut kernels, &zeros);
        check(&got, &zeros, 1, &format!("{what} zeros"));

        // Likely tokens side by side, as digits are.
        let mut near = logits.clone();
        let (from, to) = (vocab / 3, (vocab / 3 + 40).min(vocab));
        near[from..to].iter_mut().for_each(|l| *l += 40.0);
        let got = list(&cuda, &mut kernels, &near);
        check(&got, &near, to - from, &format!("{what}, neighbours"));
    }
}

#[test]
fn what_is_not_finite_is_told_wherever_it_is() {
    let Some(cuda) = card() else { return };
    for vocab in [1, 6, 2049, 128_256] {
        let mut kernels = ShortlistKernels::new(&cuda, vocab).unwrap();
        let mut logits = spread(&mut Noise(1), vocab);
        let negative = f32::from_bits(u32::MAX);
        for odd in [f32::NAN, negative, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, vocab / 2, vocab - 1] {
                let before = std::mem::replace(&mut logits[at], odd);
                let got = list(&cuda, &mut kernels, &logits);
                assert!(!got.is_finite(), "{odd} at {at} of {vocab}");
                logits[at] = before;
            }
        }
        assert!(list(&cuda, &mut kernels, &logits).is_finite());
        // Far apart is finite.
        logits[vocab / 2] = f32::MAX;
        logits[0] = f32::MIN;
        assert!(list(&cuda, &mut kernels, &logits).is_finite(), "{vocab}");
    }
}
