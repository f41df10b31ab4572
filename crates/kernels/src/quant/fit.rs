//! The scale of a block that loses least.

/// Evenly spaced levels: element `q` in `0..=max` stands for `d * (q - zero)`, `d` being the block's scale.
#[derive(Clone, Copy)]
pub(super) struct Levels {
    pub max: u8,
    pub zero: f32,
}

/// Scales tried for each sign: from that which puts the element of largest magnitude at [`LEAST`] times the outermost
/// level, short of it, each [`RATIO`] times denser than the one before, to that which puts it at four times the outermost
/// level, so that it is cut off for the sake of the others.
const TRIED: usize = 24;
const LEAST: f32 = 0.7;
const RATIO: f32 = 1.08;
/// Times the best scale found is fitted once more to the levels it gives.
const POLISH: usize = 2;

impl Levels {
    /// The levels of a block `x` of 32 elements under scale `d`, to nearest.
    pub(super) fn nearest(self, d: f32, x: &[f32]) -> [u8; 32] {
        let inv = super::inverse(d);
        std::array::from_fn(|i| super::level(x[i] * inv + self.zero, self.max))
    }

    /// The scale for which the sum of `(x - stored)^2` over a block `x` of 32 elements is (nearly) least.
    ///
    /// Given the levels, the best scale is a quotient of sums, `d = xq / qq`, and what it explains of the sum of `x^2` is
    /// `xq^2 / qq`; so scales are compared by that.
    pub(super) fn scale(self, x: &[f32]) -> f32 {
        let extreme = super::extreme(x);
        if extreme.abs() < 1e-30 {
            return 0.0;
        }
        // In units of the extreme element, so that no square leaves the range of f32.
        let inv = 1.0 / extreme;
        let x = std::array::from_fn(|i| x[i] * inv);
        // Where there is a level more on one side of zero than on the other, the sign of the scale counts.
        let signs: &[f32] = if self.zero * 2.0 == f32::from(self.max) {
            &[1.0]
        } else {
            &[-1.0, 1.0]
        };
        let mut best = Fit::default();
        for sign in signs {
            let mut reach = sign * LEAST * self.zero;
            for _ in 0..TRIED {
                best = best.better(self.fit(reach, &x));
                reach *= RATIO;
            }
        }
        for _ in 0..POLISH {
            best = best.better(self.fit(super::inverse(best.d), &x));
        }
        best.d * extreme
    }

    /// The best scale for the levels that `x` has under scale `1 / inv`.
    #[inline]
    fn fit(self, inv: f32, x: &[f32; 32]) -> Fit {
        // Adding 1.5 * 2^23 rounds to an integer. Unlike `round`, it is done in vectors.
        const ROUND: f32 = 12_582_912.0;
        let (mut xq, mut qq) = ([0.0; 8], [0.0; 8]);
        for x in x.as_chunks::<8>().0 {
            for i in 0..8 {
                let at = (x[i] * inv + self.zero).clamp(0.0, f32::from(self.max));
                let q = (at + ROUND) - ROUND - self.zero;
                xq[i] += q * x[i];
                qq[i] += q * q;
            }
        }
        let (xq, qq): (f32, f32) = (xq.iter().sum(), qq.iter().sum());
        let d = xq * super::inverse(qq);
        Fit {
            d,
            explained: xq * d,
        }
    }
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
