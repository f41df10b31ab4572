//! The scale of a block that loses least.

/// Evenly spaced levels: element `q` in `0..=max` stands for `d * (q - zero)`, `d` being the block's scale.
#[derive(Clone, Copy)]
pub(super) struct Levels {
    pub max: u8,
    pub zero: f32,
}

impl Levels {
    /// The levels of `x` under scale `d`, to nearest.
    pub(super) fn nearest(self, d: f32, x: &[f32; 32]) -> [u8; 32] {
        let inv = super::inverse(d);
        x.map(|v| super::level(v * inv + self.zero, self.max))
    }
}

/// Scales tried for each sign: from that which puts the element of largest magnitude at [`LEAST`] times the outermost
/// level, short of it, each [`RATIO`] times denser than the one before, to that which puts it at four times the outermost
/// level, so that it is cut off for the sake of the others.
const TRIED: usize = 24;
const LEAST: f32 = 0.7;
const RATIO: f32 = 1.08;
/// Times the best scale found is fitted once more to the levels it gives.
const POLISH: usize = 2;

/// The scale for which the sum of `importance * (x - stored)^2` is (nearly) least.
///
/// Given the levels, the best scale is a quotient of sums, `d = xq / qq`, and what it explains of the sum of
/// `importance * x^2` is `xq^2 / qq`; so scales are compared by that.
pub(super) fn scale(levels: Levels, x: &[f32; 32], importance: &[f32; 32]) -> f32 {
    let extreme = super::extreme(x);
    if extreme.abs() < 1e-30 {
        return 0.0;
    }
    // In units of the extreme element, so that no square leaves the range of f32.
    let inv = 1.0 / extreme;
    let x = x.map(|v| v * inv);
    let most = importance.iter().fold(0.0, |m: f32, &w| m.max(w));
    let w = if most > 0.0 {
        importance.map(|w| w / most)
    } else {
        [1.0; 32]
    };
    // Where there is a level more on one side of zero than on the other, the sign of the scale counts.
    let signs: &[f32] = if levels.zero * 2.0 == f32::from(levels.max) {
        &[1.0]
    } else {
        &[-1.0, 1.0]
    };
    let mut best = Fit::default();
    for sign in signs {
        let mut reach = sign * LEAST * levels.zero;
        for _ in 0..TRIED {
            best = best.better(fit(levels, reach, &x, &w));
            reach *= RATIO;
        }
    }
    for _ in 0..POLISH {
        best = best.better(fit(levels, super::inverse(best.d), &x, &w));
    }
    best.d * extreme
}

/// A scale and how much of the elements it explains.
#[derive(Clone, Copy, Default)]
struct Fit {
    d: f32,
    explained: f32,
}

impl Fit {
    fn better(self, other: Fit) -> Fit {
        if other.explained > self.explained {
            other
        } else {
            self
        }
    }
}

/// The best scale for the levels that `x` has under scale `1 / inv`.
#[inline]
fn fit(levels: Levels, inv: f32, x: &[f32; 32], w: &[f32; 32]) -> Fit {
    // Adding 1.5 * 2^23 rounds to an integer. Unlike `round`, it is done in vectors.
    const ROUND: f32 = 12_582_912.0;
    let (mut xq, mut qq) = ([0.0; 8], [0.0; 8]);
    for (x, w) in x.as_chunks::<8>().0.iter().zip(w.as_chunks::<8>().0) {
        for i in 0..8 {
            let at = (x[i] * inv + levels.zero).clamp(0.0, f32::from(levels.max));
            let q = (at + ROUND) - ROUND - levels.zero;
            let wq = w[i] * q;
            xq[i] += wq * x[i];
            qq[i] += wq * q;
        }
    }
    let (xq, qq): (f32, f32) = (xq.iter().sum(), qq.iter().sum());
    let d = xq * super::inverse(qq);
    Fit {
        d,
        explained: xq * d,
    }
}
